//! Bytes of a request that are not told at once: reads of a few bytes are gathered into one event, and of a request
//! that is too long to be told the end is kept, where clients write the fields that follow the prompt.

use core::arch::asm;

use aya_ebpf::{
    helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user},
    maps::ring_buf::RingBufEntry,
};
use llamaprobe_common::{
    loss::Loss,
    request::{Connection, GATHERED, PIECE_BYTES, ReadEvent, RequestEventKind, RequestKey},
};

use crate::maps::REQUEST_EVENTS;

/// Whether `len` more bytes find room.
#[inline(always)]
pub fn has_room(state: &Connection, len: u32) -> bool {
    len < PIECE_BYTES as u32 && state.gathered_len + len < GATHERED
}

/// Adds the bytes of a read for which there is room.
#[inline(always)]
pub fn add(state: &mut Connection, buffer: u64, len: u32) -> Result<(), Loss> {
    let (mut at, mut size) = (state.gathered_len, len);
    // The compiler knows the bounds and would drop the masks, which are there for the verifier.
    // SAFETY: adds nothing; an empty text would leave two lines for one instruction, which the kernel refuses.
    unsafe {
        asm!("{0} += 0", "{1} += 0", inout(reg) at, inout(reg) size, options(nomem, nostack, preserves_flags))
    };
    at &= GATHERED - 1;
    size &= PIECE_BYTES as u32 - 1;
    // SAFETY: the place lies within the map value: at most 1,023 + 511 bytes; the helper checks the source.
    let failed = unsafe {
        let to = (&raw mut state.gathered).cast::<u8>().add(at as usize);
        bpf_probe_read_user(to.cast(), size, buffer as *const _)
    };
    if failed != 0 {
        return Err(Loss::Unreadable);
    }
    state.gathered_len = at + size;
    Ok(())
}

/// Keeps the end of a read, or of all reads where it continues what is kept, of a request that is not told whole.
#[inline(always)]
pub fn add_end(state: &mut Connection, buffer: u64, len: u32) -> Result<(), Loss> {
    if state.flags & Connection::GAP != 0 && has_room(state, len) {
        return add(state, buffer, len);
    }
    state.flags |= Connection::GAP;
    state.gathered_len = 0;
    let most = PIECE_BYTES as u32 - 1;
    let skip = len.saturating_sub(most);
    add(state, buffer + u64::from(skip), len - skip)
}

/// Tells what is gathered.
#[inline(always)]
pub fn tell(request: RequestKey, state: &mut Connection, now: u64) -> Result<(), Loss> {
    let mut len = state.gathered_len;
    if len == 0 {
        return Ok(());
    }
    state.gathered_len = 0;
    let mut entry: RingBufEntry<ReadEvent> = REQUEST_EVENTS.reserve(0).ok_or(Loss::RingFull)?;
    let event = entry.as_mut_ptr();
    let tail = state.flags & Connection::GAP != 0;
    // SAFETY: as in `add`.
    unsafe { asm!("{0} += 0", inout(reg) len, options(nomem, nostack, preserves_flags)) };
    len &= GATHERED - 1;
    // SAFETY: `event` points to the reserved entry; all of it is written that is counted.
    unsafe {
        (*event).kind = if tail { RequestEventKind::ReadTail } else { RequestEventKind::Read } as u32;
        (*event).index = state.reads;
        (*event).request = request;
        (*event).at_ns = now;
        (*event).unread_ns = 0;
        (*event).len = len;
        (*event).copied = len;
        (*event).peer = state.peer;
        (*event).tls = u32::from(state.is_tls());
        bpf_probe_read_kernel((&raw mut (*event).data).cast(), len, (&raw const state.gathered).cast());
    }
    entry.submit(0);
    if !tail {
        state.reads += 1;
    }
    Ok(())
}
