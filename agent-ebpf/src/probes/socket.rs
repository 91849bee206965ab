//! Role socket: the system calls by which a server talks to its clients. Filtered to observed servers and to
//! connections that they accepted. And the end of a TCP connection by its client, the moment its last packet arrives.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::tracepoint, programs::TracePointContext};
use llamaprobe_common::{
    call::{Call, HANDSHAKE, UNKNOWN},
    loss::Loss,
    request::{ConnectionKey, Peer},
    sequence::SequenceKey,
    target::TargetConfig,
};
use llamaprobe_core::{
    connections::{is_plain, open, serve, set_peer, take_up},
    exchange::on_close,
    process::{Counters as _, Process as _},
    traffic::{on_read, on_write},
};

use super::now;
use crate::{
    connections::{ConnectionMap, EndMap, LINKS, find},
    kernel,
    machine::read,
    maps::{CALLS, PEERS},
    record::{argument, field, result},
    sequences,
    target::{Target, config},
};

const MSG_PEEK: u64 = 2;
const SHUT_RD: u64 = 0;
const SHUT_RDWR: u64 = 2;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Offsets in the record of `inet_sock_set_state` (Linux 5.6 on): new state, local port, peer's port and address.
const NEW_STATE: usize = 20;
const LOCAL_PORT: usize = 24;
const PEER_PORT: usize = 26;
const PEER_ADDRESS: usize = 56;
/// The client has sent its last packet, or has reset the connection.
const TCP_CLOSE_WAIT: i32 = 8;
const TCP_CLOSE: i32 = 7;

#[inline(always)]
pub(super) fn server() -> Option<Target> {
    Target::current().filter(|target| target.has(TargetConfig::HTTP))
}

#[inline(always)]
pub(super) fn count_loss(target: &Target, done: Result<(), Loss>) -> u32 {
    if let Err(loss) = done {
        target.lose(loss);
    }
    0
}

/// Notes what the running thread calls, for where the call ends. The entry stays with the thread: writing into it costs
/// less than making it.
#[inline(always)]
pub(super) fn note(call: Call) -> Result<(), Loss> {
    let thread = bpf_get_current_pid_tgid();
    if let Some(noted) = CALLS.get_ptr_mut(thread) {
        // SAFETY: the entry is written and read by this thread only.
        unsafe { *noted = call };
        return Ok(());
    }
    CALLS.insert(thread, call, 0).map_err(|_| Loss::ThreadsFull)
}

/// The system call that the running thread makes, and no call after it.
#[inline(always)]
fn taken() -> Option<Call> {
    let noted = CALLS.get_ptr_mut(bpf_get_current_pid_tgid())?;
    // SAFETY: the entry is written and read by this thread only.
    let noted = unsafe { &mut *noted };
    let call = *noted;
    if call.session != 0 || call.key.fd < 0 {
        return None;
    }
    noted.key.fd = UNKNOWN;
    Some(call)
}

// Attached to `sys_exit_accept`, too: the records are alike.
#[tracepoint(category = "syscalls", name = "sys_exit_accept4")]
fn lp_accept(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let fd = result(&call);
    if fd < 0 {
        return 0;
    }
    count_loss(&target, open(&target, &mut ConnectionMap, fd as i32, now()))
}

/// The server's HTTP library asks for the peer when a thread takes up a connection.
#[tracepoint(category = "syscalls", name = "sys_enter_getpeername")]
fn lp_take_up(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let key = ConnectionKey { tgid: target.tgid, fd: argument(&call, 0) as i32 };
    let Some(state) = find(&key) else { return 0 };
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the entry is written and read by this thread only.
    let taken = match unsafe { CALLS.get(thread) } {
        Some(&Call { key: ConnectionKey { fd: HANDSHAKE, .. }, buffer, .. }) => buffer,
        _ => now(),
    };
    take_up(state, taken);
    let noted = note(Call { key, buffer: argument(&call, 1), session: 0 });
    count_loss(&target, noted.and_then(|()| serve(&mut EndMap, state, key)))
}

#[tracepoint(category = "syscalls", name = "sys_exit_getpeername")]
fn lp_taken_up(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let Some(Call { key, buffer, .. }) = taken() else { return 0 };
    if result(&call) != 0 {
        return 0;
    }
    let met = peer(buffer)
        .and_then(|peer| peer.map_or(Ok(()), |peer| set_peer(&mut ConnectionMap, &mut EndMap, key, peer)));
    count_loss(&target, met)
}

/// The address in a `sockaddr` of the target; none of a Unix socket.
#[inline(always)]
fn peer(address: u64) -> Result<Option<Peer>, Loss> {
    let [family, port] = read::<[u16; 2]>(address)?;
    let port = u32::from(u16::from_be(port));
    Ok(match family {
        AF_INET => {
            let mut mapped = [0; 16];
            (mapped[10], mapped[11]) = (0xff, 0xff);
            let [a, b, c, d] = read::<[u8; 4]>(address + 4)?;
            (mapped[12], mapped[13], mapped[14], mapped[15]) = (a, b, c, d);
            Some(Peer { address: mapped, port })
        }
        AF_INET6 => Some(Peer { address: read(address + 8)?, port }),
        _ => None,
    })
}

/// The state of a TCP socket changes: notes how far a request was when its client went.
///
/// Runs wherever the packet arrives, so the running process says nothing: the peer's address does.
#[tracepoint(category = "sock", name = "inet_sock_set_state")]
fn lp_gone(change: TracePointContext) -> u32 {
    let state: i32 = field(&change, NEW_STATE);
    if state != TCP_CLOSE_WAIT && state != TCP_CLOSE {
        return 0;
    }
    let local: u16 = field(&change, LOCAL_PORT);
    let halves: [u64; 2] = [PEER_ADDRESS, PEER_ADDRESS + 8].map(|offset| field(&change, offset));
    let mut address = [0; 16];
    address[..8].copy_from_slice(&halves[0].to_ne_bytes());
    address[8..].copy_from_slice(&halves[1].to_ne_bytes());
    let peer = Peer { address, port: u32::from(field::<u16>(&change, PEER_PORT)) };
    // SAFETY: the entry is written before the connection is served, and removed with it.
    let Some(&key) = (unsafe { PEERS.get(peer) }) else { return 0 };
    let Some(config) = config(key.tgid) else { return 0 };
    let Some(connection) = find(&key) else { return 0 };
    // A client may use one port of its own for two servers.
    let other = config.port != 0 && config.port != u32::from(local);
    // What the server itself has closed ends in the same state.
    if other || (state == TCP_CLOSE && connection.arrived_ns == 0) {
        return 0;
    }
    if connection.gone_ns == 0 {
        connection.gone_ns = now();
    }
    if connection.arrived_ns == 0 || connection.sequence < 0 {
        return 0;
    }
    let sequence = SequenceKey { context: 0, tgid: key.tgid, sequence: connection.sequence };
    sequences::abandon(&sequence, connection.arrived_ns);
    0
}

/// Notes a read where the kernel does not say, as it ends, with what it was called. The same for a write below.
#[tracepoint(category = "syscalls", name = "sys_enter_recvfrom")]
fn lp_recv(call: TracePointContext) -> u32 {
    note_transfer(&call, argument(&call, 3) & MSG_PEEK != 0)
}

#[tracepoint(category = "syscalls", name = "sys_enter_sendto")]
fn lp_send(call: TracePointContext) -> u32 {
    note_transfer(&call, false)
}

#[inline(always)]
fn note_transfer(call: &TracePointContext, peeks: bool) -> u32 {
    let Some(target) = server().filter(|_| !peeks) else { return 0 };
    let key = ConnectionKey { tgid: target.tgid, fd: argument(call, 0) as i32 };
    if !is_plain(&mut ConnectionMap, key) {
        return 0;
    }
    count_loss(&target, note(Call { key, buffer: argument(call, 1), session: 0 }))
}

/// A read or write that ends: its connection, if it is one that carries HTTP as it is, the address of the bytes, their
/// number. None where there are none.
#[inline(always)]
fn transferred(call: &TracePointContext, target: &Target, reads: bool) -> Option<(ConnectionKey, u64, u64)> {
    let len = result(call);
    if len <= 0 {
        return None;
    }
    if !kernel::is_described() {
        return taken().map(|Call { key, buffer, .. }| (key, buffer, len as u64));
    }
    let [fd, buffer, flags] = kernel::call_arguments();
    let key = ConnectionKey { tgid: target.tgid, fd: fd as i32 };
    let peeks = reads && flags & MSG_PEEK != 0;
    (!peeks && is_plain(&mut ConnectionMap, key)).then_some((key, buffer, len as u64))
}

#[tracepoint(category = "syscalls", name = "sys_exit_recvfrom")]
fn lp_received(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let Some((key, buffer, len)) = transferred(&call, &target, true) else { return 0 };
    count_loss(&target, on_read(&target, &mut { LINKS }, key, (buffer, len as u32), now()))
}

/// What was written, and when, is known when the call returns: to a slow reader it may take long, and not all at once.
#[tracepoint(category = "syscalls", name = "sys_exit_sendto")]
fn lp_sent(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let Some((key, buffer, len)) = transferred(&call, &target, false) else { return 0 };
    count_loss(&target, on_write(&target, &mut { LINKS }, key, (buffer, len), now()))
}

#[tracepoint(category = "syscalls", name = "sys_enter_shutdown")]
fn lp_shutdown(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let key = ConnectionKey { tgid: target.tgid, fd: argument(&call, 0) as i32 };
    let how = argument(&call, 1);
    on_close(&target, &mut { LINKS }, key, (how != SHUT_RD, how == SHUT_RDWR), now());
    0
}

#[tracepoint(category = "syscalls", name = "sys_enter_close")]
fn lp_close(call: TracePointContext) -> u32 {
    let Some(target) = server() else { return 0 };
    let key = ConnectionKey { tgid: target.tgid, fd: argument(&call, 0) as i32 };
    on_close(&target, &mut { LINKS }, key, (true, true), now());
    0
}
