//! Life of processes: programs started, files mapped for execution, observed processes ended.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use llamaprobe_common::{
    event::{ProcessEvent, ProcessEventKind},
    loss::Loss,
};

use crate::{
    maps::{CALLS, EVENTS, TARGETS, THREADS},
    target::{lose_unowned, tgid},
};

const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;
/// Offsets of `prot`, `flags` and `fd` in the record of `sys_enter_mmap`: 8 common bytes, the number, then the
/// arguments, 8 bytes each.
const MMAP_PROT: usize = 16 + 2 * 8;
const MMAP_FLAGS: usize = 16 + 3 * 8;
const MMAP_FD: usize = 16 + 4 * 8;

/// Sends one process event.
#[inline(always)]
pub fn report(kind: ProcessEventKind, tgid: u32) {
    match EVENTS.reserve::<ProcessEvent>(0) {
        Some(mut entry) => {
            entry.write(ProcessEvent { kind: kind as u32, tgid });
            entry.submit(0);
        }
        None => lose_unowned(Loss::ProcessRingFull),
    }
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn lp_exec(_: RawTracePointContext) -> u32 {
    report(ProcessEventKind::Exec, tgid());
    0
}

/// Runs once a thread; only the leader of an observed process is told, the others leave their connection.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn lp_exit(_: RawTracePointContext) -> u32 {
    let both = bpf_get_current_pid_tgid();
    let tgid = (both >> 32) as u32;
    // SAFETY: only the presence of the entry matters.
    if unsafe { TARGETS.get(tgid) }.is_some() {
        let _ = THREADS.remove(both);
        let _ = CALLS.remove(both);
        if both as u32 == tgid {
            report(ProcessEventKind::Exit, tgid);
        }
    }
    0
}

/// A library loaded late (`dlopen`) shows itself as an executable file mapping.
#[tracepoint(category = "syscalls", name = "sys_enter_mmap")]
fn lp_mmap(call: TracePointContext) -> u32 {
    // SAFETY: the offsets lie within the record of this tracepoint.
    let fields = unsafe {
        (call.read_at::<u64>(MMAP_PROT), call.read_at::<u64>(MMAP_FLAGS), call.read_at::<u64>(MMAP_FD))
    };
    if let (Ok(prot), Ok(flags), Ok(fd)) = fields
        && prot & PROT_EXEC != 0
        && flags & MAP_ANONYMOUS == 0
        && fd as i32 >= 0
    {
        report(ProcessEventKind::Map, tgid());
    }
    0
}
