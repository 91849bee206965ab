//! When the agent is woken for what happens to requests. To wake it costs the thread of the server that does so some ten
//! microseconds, more than all else that a program does for it: once every [`WAKE_NS`] has to do. The agent looks once more
//! when that time is over, so that nothing waits for the next event.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use llamaprobe_common::request::{MIDDLES_EIGHTHS, WAKE_NS};

use crate::maps::{PAYLOAD, PAYLOAD_BYTES, WOKEN};

/// `BPF_RB_NO_WAKEUP`: the agent looks at it when it looks at something else.
pub const LET_SLEEP: u64 = 1;
/// `BPF_RB_FORCE_WAKEUP`.
const WAKE: u64 = 2;

/// `BPF_RB_AVAIL_DATA`: how much of a ring buffer is not read yet.
const UNREAD: u64 = 0;

/// Whether more than so many eighths of the bytes that find room wait for the agent.
#[inline(always)]
pub fn is_behind(eighths: u64) -> bool {
    PAYLOAD.query(UNREAD) > PAYLOAD_BYTES / 8 * eighths
}

/// How to submit an event.
#[inline(always)]
pub fn for_event() -> u64 {
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(woken) = WOKEN.get_ptr_mut(0) else { return WAKE };
    // SAFETY: `woken` points to a map value. Two processors that find it old wake the agent twice, which does no harm.
    unsafe {
        if now.wrapping_sub(woken.read_volatile()) < WAKE_NS {
            return LET_SLEEP;
        }
        woken.write_volatile(now);
    }
    WAKE
}

/// How to submit bytes: at once where many wait.
#[inline(always)]
pub fn for_bytes() -> u64 {
    if is_behind(MIDDLES_EIGHTHS) { WAKE } else { for_event() }
}
