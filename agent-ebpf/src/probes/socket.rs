//! Role socket: the system calls by which a server talks to its clients. Filtered to observed servers and to
//! connections that they accepted.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::tracepoint, programs::TracePointContext};
use llamaprobe_common::{
    call::{Call, HANDSHAKE},
    loss::Loss,
    request::{Connection, ConnectionKey},
    target::TargetConfig,
};

use super::now;
use crate::{
    connections::{find, on_close, on_read, on_write, open, serve, take_up},
    maps::CALLS,
    target::Target,
};

/// Offsets in the records: of a call's arguments, and of its result.
const ARGUMENT: usize = 16;
const RESULT: usize = 16;
const MSG_PEEK: u64 = 2;
const SHUT_RDWR: u64 = 2;

#[inline(always)]
pub(super) fn server() -> Option<Target> {
    Target::current().filter(|target| target.has(TargetConfig::HTTP))
}

#[inline(always)]
pub(super) fn argument(call: &TracePointContext, number: usize) -> u64 {
    // SAFETY: the record of a system call has six arguments.
    unsafe { call.read_at::<u64>(ARGUMENT + number * 8) }.unwrap_or(0)
}

#[inline(always)]
fn result(call: &TracePointContext) -> i64 {
    // SAFETY: the record of a result has one.
    unsafe { call.read_at::<i64>(RESULT) }.unwrap_or(-1)
}

/// Whether a connection of the server carries HTTP as it is.
#[inline(always)]
fn is_plain(key: ConnectionKey) -> bool {
    let Some(state) = find(key) else { return false };
    if state.session == 0 {
        state.session = Connection::PLAIN;
    }
    state.session == Connection::PLAIN
}

#[inline(always)]
pub(super) fn settle(target: &Target, done: Result<(), Loss>) -> u32 {
    if let Err(loss) = done {
        target.lose(loss);
    }
    0
}

#[tracepoint(category = "syscalls", name = "sys_exit_accept4")]
fn lp_accept(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let fd = result(&call);
    if fd < 0 {
        return 0;
    }
    settle(&target, open(&target, fd as i32, now()))
}

/// The server's HTTP library asks for the peer when a thread takes up a connection.
#[tracepoint(category = "syscalls", name = "sys_enter_getpeername")]
fn lp_take_up(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let key = ConnectionKey { tgid: target.tgid, fd: argument(&call, 0) as i32 };
    let Some(state) = find(key) else { return 0 };
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the entry is written and read by this thread only.
    let taken = match unsafe { CALLS.get(thread) } {
        Some(&Call { key: ConnectionKey { fd: HANDSHAKE, .. }, buffer, .. }) => {
            let _ = CALLS.remove(thread);
            buffer
        }
        _ => now(),
    };
    take_up(key, taken);
    settle(&target, serve(state, key))
}

#[tracepoint(category = "syscalls", name = "sys_enter_recvfrom")]
fn lp_recv(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let key = ConnectionKey { tgid: target.tgid, fd: argument(&call, 0) as i32 };
    if argument(&call, 3) & MSG_PEEK != 0 || !is_plain(key) {
        return 0;
    }
    let entry = Call { key, buffer: argument(&call, 1), session: 0 };
    settle(&target, CALLS.insert(bpf_get_current_pid_tgid(), entry, 0).map_err(|_| Loss::ThreadsFull))
}

#[tracepoint(category = "syscalls", name = "sys_exit_recvfrom")]
fn lp_received(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the entry is written and read by this thread only.
    let Some(&Call { key, buffer, session: 0 }) = (unsafe { CALLS.get(thread) }) else { return 0 };
    let _ = CALLS.remove(thread);
    let len = result(&call);
    if len <= 0 {
        return 0;
    }
    settle(&target, on_read(&target, key, buffer, len as u32, now()))
}

#[tracepoint(category = "syscalls", name = "sys_enter_sendto")]
fn lp_send(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let key = ConnectionKey { tgid: target.tgid, fd: argument(&call, 0) as i32 };
    if !is_plain(key) {
        return 0;
    }
    settle(&target, on_write(&target, key, argument(&call, 1), argument(&call, 2), now()))
}

#[tracepoint(category = "syscalls", name = "sys_enter_shutdown")]
fn lp_shutdown(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let key = ConnectionKey { tgid: target.tgid, fd: argument(&call, 0) as i32 };
    on_close(&target, key, argument(&call, 1) == SHUT_RDWR, now());
    0
}

#[tracepoint(category = "syscalls", name = "sys_enter_close")]
fn lp_close(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let key = ConnectionKey { tgid: target.tgid, fd: argument(&call, 0) as i32 };
    on_close(&target, key, true, now());
    0
}
