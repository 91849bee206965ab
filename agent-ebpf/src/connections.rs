//! Access to the state of connections, and what a read or a write means for the request under way.

use core::arch::asm;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_user},
    maps::ring_buf::RingBufEntry,
};
use llamaprobe_common::{
    loss::Loss,
    request::{
        Connection, ConnectionKey, EndEvent, EndReason, Peer, READ_BYTES, READS, ReadEvent, RequestEventKind,
        RequestKey, SHORT_READ, SUBSTANTIAL, TAIL_BYTES, WRITE_BYTES, WriteEvent,
    },
};

use crate::{
    arguments::read,
    gather,
    maps::{BLANK_CONNECTION, CALLS, CONNECTIONS, PEERS, REQUEST_EVENTS, THREADS},
    target::Target,
};

/// `HTTP` and `/1.1 100`: how an answer begins, and one that is none yet.
const HTTP: u32 = u32::from_le_bytes(*b"HTTP");
const CONTINUE: u64 = u64::from_le_bytes(*b"/1.1 100");

/// A connection that was just accepted.
#[inline(always)]
pub fn open(target: &Target, fd: i32, now: u64) -> Result<(), Loss> {
    let key = ConnectionKey { tgid: target.tgid, fd };
    let blank = BLANK_CONNECTION.get(0).ok_or(Loss::ConnectionsFull)?;
    CONNECTIONS.insert(key, blank, 0).map_err(|_| Loss::ConnectionsFull)?;
    if let Some(state) = find(key) {
        state.accepted_ns = now;
    }
    Ok(())
}

/// A thread takes up a connection: it asks for its peer first.
#[inline(always)]
pub fn take_up(key: ConnectionKey, now: u64) {
    if let Some(state) = find(key)
        && state.accepted_ns != 0
    {
        state.unread_ns = now.saturating_sub(state.accepted_ns);
        state.accepted_ns = 0;
    }
}

/// The client of a connection is known.
#[inline(always)]
pub fn meet(key: ConnectionKey, peer: Peer) -> Result<(), Loss> {
    let Some(state) = find(key) else { return Ok(()) };
    state.peer = peer;
    PEERS.insert(peer, key, 0).map_err(|_| Loss::ConnectionsFull)
}

/// The request under way on a connection takes a sequence. Returns whether its client has gone.
#[inline(always)]
pub fn take_slot(request: &RequestKey, sequence: i32) -> bool {
    let Some(state) = find(ConnectionKey { tgid: request.tgid, fd: request.fd }) else { return false };
    if state.arrived_ns != request.arrived_ns {
        return false;
    }
    state.sequence = sequence;
    state.gone != 0
}

/// The state of a connection, if it is one of the server's.
#[inline(always)]
pub fn find(key: ConnectionKey) -> Option<&'static mut Connection> {
    // SAFETY: one thread owns a connection while it lives, so no two programs write one entry.
    CONNECTIONS.get_ptr_mut(key).map(|state| unsafe { &mut *state })
}

/// The request under way on a connection.
#[inline(always)]
fn request(key: ConnectionKey, state: &Connection) -> RequestKey {
    RequestKey { arrived_ns: state.arrived_ns, tgid: key.tgid, fd: key.fd }
}

/// Starts a request.
#[inline(always)]
fn begin(state: &mut Connection, now: u64) {
    state.arrived_ns = now;
    state.last_write_ns = 0;
    state.bytes_in = 0;
    state.bytes_out = 0;
    state.reads = 0;
    state.writes = 0;
    state.sequence = -1;
    state.tail_len = [0; 2];
    state.flags &= !Connection::GAP;
    state.gathered_len = 0;
}

/// The request under way of a connection that the running thread serves; one whose bytes came together with the
/// request before it begins here.
#[inline(always)]
pub fn served(target: &Target, now: u64) -> Option<RequestKey> {
    // SAFETY: a torn read is not possible, the entry is written by this thread only.
    let &key = unsafe { THREADS.get(bpf_get_current_pid_tgid()) }?;
    let state = find(key)?;
    if state.arrived_ns != 0 && state.writes > 0 {
        end(target, key, state, EndReason::NextRequest, now);
    }
    if state.arrived_ns == 0 {
        begin(state, now);
    }
    let request = request(key, state);
    if let Err(loss) = gather::tell(request, state, now) {
        target.lose(loss);
    }
    Some(request)
}

/// Bytes were read.
#[inline(always)]
pub fn on_read(target: &Target, key: ConnectionKey, buffer: u64, len: u32, now: u64) -> Result<(), Loss> {
    let Some(state) = find(key) else { return Ok(()) };
    if state.arrived_ns != 0 && state.writes > 0 {
        end(target, key, state, EndReason::NextRequest, now);
    }
    let first = state.arrived_ns == 0;
    if first {
        begin(state, now);
        // Which thread serves it: the tasks that this thread makes are the request's.
        serve(state, key)?;
        take_up(key, now);
    }
    state.bytes_in += u64::from(len);
    let (keeps, whole) = (target.keeps_payload(), state.flags & Connection::GAP == 0);
    if !first && keeps && whole && len <= SHORT_READ {
        if !gather::has_room(state, len) {
            gather::tell(request(key, state), state, now)?;
        }
        return gather::add(state, buffer, len);
    }
    if whole {
        gather::tell(request(key, state), state, now)?;
    }
    if !whole || state.reads >= READS {
        return if keeps { gather::add_end(state, buffer, len) } else { Ok(()) };
    }
    let mut entry: RingBufEntry<ReadEvent> = REQUEST_EVENTS.reserve(0).ok_or(Loss::RingFull)?;
    let event = entry.as_mut_ptr();
    // SAFETY: `event` points to the reserved entry; all of it is written that is counted.
    let copied = unsafe {
        (*event).kind = RequestEventKind::Read as u32;
        (*event).index = state.reads;
        (*event).request = request(key, state);
        (*event).at_ns = now;
        (*event).unread_ns = state.unread_ns;
        (*event).len = len;
        (*event).peer = state.peer;
        (*event).tls = u32::from(state.is_tls());
        let data = (&raw mut (*event).data).cast();
        let copied = if keeps { copy::<READ_BYTES>(data, buffer, u64::from(len)) } else { 0 };
        (*event).copied = copied;
        copied
    };
    entry.submit(0);
    state.reads += 1;
    if keeps && copied < len { gather::add_end(state, buffer, len) } else { Ok(()) }
}

/// The running thread serves a connection.
#[inline(always)]
pub fn serve(state: &mut Connection, key: ConnectionKey) -> Result<(), Loss> {
    state.flags &= !Connection::ADOPTED;
    THREADS.insert(bpf_get_current_pid_tgid(), key, 0).map_err(|_| Loss::ThreadsFull)
}

/// The connection that the running thread serves, if `session` is what its bytes pass through; the first session that
/// the thread uses is.
#[inline(always)]
pub fn of_session(session: u64) -> Option<ConnectionKey> {
    // SAFETY: the entry is written by this thread only.
    let &key = unsafe { THREADS.get(bpf_get_current_pid_tgid()) }?;
    let state = find(key)?;
    if state.session == 0 {
        state.session = session;
    }
    (state.session == session).then_some(key)
}

/// Bytes are about to be written.
#[inline(always)]
pub fn on_write(target: &Target, key: ConnectionKey, buffer: u64, len: u64, now: u64) -> Result<(), Loss> {
    let Some(state) = find(key) else { return Ok(()) };
    if len == 0 {
        return Ok(());
    }
    let begins = len >= 12 && read::<u32>(buffer).unwrap_or(0) == HTTP;
    if begins && read::<u64>(buffer + 4).unwrap_or(0) == CONTINUE {
        return Ok(());
    }
    // An answer begins with its status line: what comes before, or after the last chunk, frames something else.
    let under_way = state.arrived_ns != 0 && state.writes > 0;
    if !begins && !under_way {
        return Ok(());
    }
    if begins && under_way {
        // The answer to a request that came in the same bytes as the one before it.
        end(target, key, state, EndReason::NextRequest, now);
    }
    if state.arrived_ns == 0 {
        begin(state, now);
    }
    let index = state.writes;
    if index == 0 {
        // They were read before the engine began; when is not kept, and the time of the answer would be too late.
        gather::tell(request(key, state), state, state.arrived_ns)?;
    }
    state.writes += 1;
    state.bytes_out += len;
    state.last_write_ns = now;
    let substantial = len >= SUBSTANTIAL && target.keeps_payload();
    if substantial {
        keep_tail(state, buffer, len);
    }
    if index < target.writes {
        let mut entry: RingBufEntry<WriteEvent> = REQUEST_EVENTS.reserve(0).ok_or(Loss::RingFull)?;
        let event = entry.as_mut_ptr();
        // SAFETY: as above.
        unsafe {
            (*event).kind = RequestEventKind::Write as u32;
            (*event).index = index;
            (*event).request = request(key, state);
            (*event).at_ns = now;
            (*event).len = if len > u64::from(u32::MAX) { u32::MAX } else { len as u32 };
            (*event).reserved = 0;
            if target.keeps_payload() {
                (*event).copied = copy::<WRITE_BYTES>((&raw mut (*event).data).cast(), buffer, len);
                (*event).tail_len = copy_tail((&raw mut (*event).tail).cast(), buffer, len);
            } else {
                (*event).copied = 0;
                (*event).tail_len = 0;
            }
        }
        entry.submit(0);
    }
    // The last chunk: `0\r\n`, with or without the empty line in the same write.
    if (len == 3 || len == 5) && read::<u16>(buffer).unwrap_or(0) == u16::from_le_bytes(*b"0\r") {
        end(target, key, state, EndReason::LastChunk, now);
    }
    Ok(())
}

/// The connection is shut down or closed; with `gone` its descriptor is, too.
#[inline(always)]
pub fn on_close(target: &Target, key: ConnectionKey, gone: bool, now: u64) {
    let Some(state) = find(key) else { return };
    if state.arrived_ns != 0 {
        end(target, key, state, EndReason::Closed, now);
    }
    if gone {
        // SAFETY: only whose it is matters.
        if state.peer.port != 0 && unsafe { PEERS.get(state.peer) } == Some(&key) {
            let _ = PEERS.remove(state.peer);
        }
        let _ = CONNECTIONS.remove(key);
        let thread = bpf_get_current_pid_tgid();
        let _ = THREADS.remove(thread);
        let _ = CALLS.remove(thread);
    }
}

/// The request under way is over.
#[inline(always)]
fn end(target: &Target, key: ConnectionKey, state: &mut Connection, reason: EndReason, now: u64) {
    let request = request(key, state);
    if let Err(loss) = gather::tell(request, state, state.arrived_ns) {
        target.lose(loss);
    }
    state.arrived_ns = 0;
    state.unread_ns = 0;
    let Some(mut entry) = REQUEST_EVENTS.reserve::<EndEvent>(0) else {
        target.lose(Loss::RingFull);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: as above.
    unsafe {
        (*event).kind = RequestEventKind::End as u32;
        (*event).reason = reason as u32;
        (*event).request = request;
        (*event).at_ns = now;
        (*event).last_write_ns = state.last_write_ns;
        (*event).bytes_out = state.bytes_out;
        (*event).writes = state.writes;
        (*event).tail = state.tail;
        (*event).tail_len = state.tail_len;
        let (to, from) = (&raw mut (*event).tails, &raw const state.tails);
        // A helper copies what would be 256 instructions.
        let size = (2 * TAIL_BYTES) as u32;
        aya_ebpf::helpers::generated::bpf_probe_read_kernel(to.cast(), size, from.cast());
    }
    entry.submit(0);
}

#[inline(always)]
fn keep_tail(state: &mut Connection, buffer: u64, len: u64) {
    let at = (state.tail & 1) ^ 1;
    state.tail = at;
    let (tail, filled) = if at == 0 {
        (&raw mut state.tails[0], &raw mut state.tail_len[0])
    } else {
        (&raw mut state.tails[1], &raw mut state.tail_len[1])
    };
    // SAFETY: both point into the map value.
    unsafe { *filled = copy_tail(tail.cast(), buffer, len) };
}

/// Copies the end of a write. Returns how much.
#[inline(always)]
fn copy_tail(to: *mut u8, buffer: u64, len: u64) -> u32 {
    let skip = len.saturating_sub(TAIL_BYTES as u64 - 1);
    copy::<TAIL_BYTES>(to, buffer + skip, len - skip)
}

/// Copies the begin of what the target wrote, at most `N - 1` bytes. Returns how much.
#[inline(always)]
fn copy<const N: usize>(to: *mut u8, from: u64, len: u64) -> u32 {
    let mut size = if len >= N as u64 { N as u64 - 1 } else { len };
    // The compiler knows the bound and would drop the check below, which is there for the verifier.
    // SAFETY: adds nothing; an empty text would leave two lines for one instruction, which the kernel refuses.
    unsafe { asm!("{0} += 0", inout(reg) size, options(nomem, nostack, preserves_flags)) };
    if size == 0 || size >= N as u64 {
        return 0;
    }
    // SAFETY: `to` has room for `N` bytes; the helper checks the source.
    let failed = unsafe { bpf_probe_read_user(to.cast(), size as u32, from as *const _) };
    if failed == 0 { size as u32 } else { 0 }
}
