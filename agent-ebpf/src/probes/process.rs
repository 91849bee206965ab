//! Life of processes: programs started, files mapped for execution; observed processes that listen, and that ended.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid},
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use llamaprobe_common::{
    event::{ProcessEvent, ProcessEventKind},
    loss::Loss,
};

use crate::{
    maps::{CALLS, EVENTS, ONLY, THREADS, TOLD},
    record::{argument, result},
    target::{config, lose_unowned, tgid},
};

const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;
/// Which arguments of `mmap` are `prot`, `flags` and `fd`.
const MMAP_PROT_FLAGS_FD: [usize; 3] = [2, 3, 4];

/// Whether a process is one that is meant.
#[inline(always)]
fn is_meant(tgid: u32) -> bool {
    // SAFETY: only the presence of the entries matters.
    unsafe { ONLY.get(0).is_none() || ONLY.get(tgid).is_some() }
}

/// Sends one process event; returns whether there was room for it.
#[inline(always)]
fn send(kind: ProcessEventKind, tgid: u32) -> bool {
    let owner = bpf_get_current_uid_gid() as u32;
    let comm = bpf_get_current_comm().unwrap_or_default();
    let Some(mut entry) = EVENTS.reserve::<ProcessEvent>(0) else {
        lose_unowned(Loss::ProcessRingFull);
        return false;
    };
    entry.write(ProcessEvent { kind: kind as u32, tgid, owner, comm });
    entry.submit(0);
    true
}

/// Sends an event of a process, if it is one that is meant.
#[inline(always)]
pub fn report(kind: ProcessEventKind, tgid: u32) {
    if is_meant(tgid) {
        send(kind, tgid);
    }
}

/// The same, once until the agent looks at the process: whatever it does in a loop is told once a look. What matters more
/// is told though something was: a new program more than a mapping, and most one that is called like a server.
#[inline(always)]
fn report_once(kind: ProcessEventKind, matters: u32, tgid: u32) {
    // SAFETY: a recycled entry only leads to one event more.
    let told = unsafe { TOLD.get(tgid) }.copied();
    if told.is_none_or(|told| told < matters) && is_meant(tgid) && send(kind, tgid) {
        let _ = TOLD.insert(tgid, matters, 0);
    }
}

/// Whether the running program is called like a server: `llama...`, `ollama...`.
#[inline(always)]
fn is_named() -> bool {
    let comm = bpf_get_current_comm().unwrap_or_default();
    let name = [comm[0], comm[1], comm[2], comm[3]];
    name == *b"llam" || name == *b"olla"
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn lp_exec(_: RawTracePointContext) -> u32 {
    let tgid = tgid();
    if config(tgid).is_some() {
        // What was counted before is not the new program's: nothing may hold this back.
        report(ProcessEventKind::Exec, tgid);
    } else {
        report_once(ProcessEventKind::Exec, if is_named() { 3 } else { 2 }, tgid);
    }
    0
}

/// Runs once a thread; only the leader of an observed process is told, the others leave their connection.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn lp_exit(_: RawTracePointContext) -> u32 {
    let both = bpf_get_current_pid_tgid();
    let tgid = (both >> 32) as u32;
    if both as u32 == tgid {
        let _ = TOLD.remove(tgid);
    }
    if config(tgid).is_some() {
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
    let [prot, flags, fd] = MMAP_PROT_FLAGS_FD.map(|number| argument(&call, number));
    if prot & PROT_EXEC != 0 && flags & MAP_ANONYMOUS == 0 && fd as i32 >= 0 {
        report_once(ProcessEventKind::Map, 1, tgid());
    }
    0
}

/// An observed process has shown where it listens.
#[tracepoint(category = "syscalls", name = "sys_exit_listen")]
fn lp_listen(call: TracePointContext) -> u32 {
    let tgid = tgid();
    if result(&call) == 0 && config(tgid).is_some() {
        report(ProcessEventKind::Listen, tgid);
    }
    0
}
