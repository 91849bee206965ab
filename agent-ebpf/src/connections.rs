//! Access to the state of connections, and what a read or a write means for the request under way.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use llamaprobe_common::{
    loss::Loss,
    request::{
        ANSWER_BYTES, ANSWERS_PART, BeginEvent, Connection, ConnectionKey, EndEvent, EndReason, Gap,
        MIDDLES_PART, PAGE_BYTES, Peer, PieceHead, REQUEST_BYTES, RequestEventKind, RequestKey,
        SHORT_READ, Talk, WriteEvent,
    },
};

use crate::{
    arguments::read,
    maps::{BLANK_TALK, CALLS, CONNECTIONS, PEERS, REQUEST_EVENTS, TALKS, THREADS},
    talk,
    target::Target,
    wake,
};

/// `HTTP` and `/1.1 100`: how an answer begins, and one that is none yet.
const HTTP: u32 = u32::from_le_bytes(*b"HTTP");
const CONTINUE: u64 = u64::from_le_bytes(*b"/1.1 100");

const BLANK: Connection = Connection {
    accepted_ns: 0,
    unread_ns: 0,
    arrived_ns: 0,
    last_write_ns: 0,
    gone_ns: 0,
    bytes_out: 0,
    bytes_in: 0,
    session: 0,
    writes: 0,
    sequence: -1,
    flags: Connection::FRESH,
    code: 0,
    peer: Peer { address: [0; 16], port: 0 },
    reserved: 0,
};

/// A connection that was just accepted.
#[inline(always)]
pub fn open(target: &Target, fd: i32, now: u64) -> Result<(), Loss> {
    let key = ConnectionKey { tgid: target.tgid, fd };
    let state = Connection { accepted_ns: now, ..BLANK };
    CONNECTIONS.insert(key, state, 0).map_err(|_| Loss::ConnectionsFull)
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
    state.gone_ns != 0
}

/// The state of a connection, if it is one of the server's.
#[inline(always)]
pub fn find(key: ConnectionKey) -> Option<&'static mut Connection> {
    // SAFETY: one thread owns a connection while it lives; what others write (`lp_gone`, `take_slot`) are fields of their
    // own, and a reference does not outlive the program.
    CONNECTIONS.get_ptr_mut(key).map(|state| unsafe { &mut *state })
}

/// What is kept of the bytes of the request under way.
#[inline(always)]
fn talk_of(key: ConnectionKey) -> Option<&'static mut Talk> {
    // SAFETY: one thread owns a connection while it lives.
    TALKS.get_ptr_mut(key).map(|talk| unsafe { &mut *talk })
}

/// An event of the request under way found no room. Counted once a request.
#[inline(always)]
fn lose_event(target: &Target, state: &mut Connection) {
    if state.flags & Gap::EVENT == 0 {
        target.lose(Loss::RingFull);
    }
    state.flags |= Gap::EVENT;
}

/// Bytes of the request under way found no room. Counted once a request.
#[inline(always)]
fn lose_bytes(target: &Target, state: &mut Connection, gap: u32) {
    if state.flags & (Gap::REQUEST | Gap::ANSWER) == 0 {
        target.lose(Loss::PayloadFull);
    }
    state.flags |= gap;
}

/// Starts a request, by bytes that were read or by what follows from bytes that were read before.
#[inline(always)]
fn begin(target: &Target, key: ConnectionKey, state: &mut Connection, read: bool, now: u64) {
    state.arrived_ns = now;
    state.last_write_ns = 0;
    state.bytes_in = 0;
    state.bytes_out = 0;
    state.writes = 0;
    state.code = 0;
    state.sequence = -1;
    state.flags &= !Gap::ANY;
    if target.keeps_payload() {
        let made = BLANK_TALK.get(0).is_some_and(|blank| TALKS.insert(key, blank, 0).is_ok());
        if !made {
            lose_bytes(target, state, Gap::REQUEST | Gap::ANSWER);
        }
    }
    let Some(mut entry) = REQUEST_EVENTS.reserve::<BeginEvent>(0) else { return lose_event(target, state) };
    let tls = if state.is_tls() { BeginEvent::TLS } else { 0 };
    entry.write(BeginEvent {
        kind: RequestEventKind::Begin as u32,
        flags: tls | if read { BeginEvent::READ } else { 0 },
        request: state.request(key),
        at_ns: now,
        unread_ns: state.unread_ns,
        peer: state.peer,
        reserved: 0,
    });
    entry.submit(wake::for_event());
}

/// What stands before a piece of the request, or of the answer once that has begun.
#[inline(always)]
fn head(key: ConnectionKey, state: &Connection, offset: u64, at_ns: u64) -> PieceHead {
    let fresh = if state.flags & Connection::FRESH != 0 { PieceHead::FRESH } else { 0 };
    let flags = if state.writes > 0 { PieceHead::ANSWER } else { fresh };
    PieceHead { flags, len: 0, request: state.request(key), at_ns, offset }
}

/// Hands over what is kept of the request, or of the answer once that has begun.
#[inline(always)]
fn flush(target: &Target, key: ConnectionKey, state: &mut Connection, at_ns: u64) {
    let Some(kept) = talk_of(key) else { return };
    if kept.lens == [0; 2] {
        return;
    }
    let mut head = head(key, state, 0, at_ns);
    let answers = state.writes > 0;
    let gap = if answers { Gap::ANSWER } else { Gap::REQUEST };
    if answers && wake::is_behind(ANSWERS_PART) || !talk::flush(kept, &mut head) {
        lose_bytes(target, state, gap);
    }
    state.flags &= !Connection::FRESH;
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
        begin(target, key, state, false, now);
    }
    flush(target, key, state, now);
    Some(state.request(key))
}

/// An event of a request could not be told elsewhere.
#[inline(always)]
pub fn lost_event(target: &Target, request: &RequestKey) {
    match find(ConnectionKey { tgid: request.tgid, fd: request.fd }) {
        Some(state) if state.arrived_ns == request.arrived_ns => lose_event(target, state),
        _ => target.lose(Loss::RingFull),
    }
}

/// Bytes were read.
#[inline(always)]
pub fn on_read(target: &Target, key: ConnectionKey, buffer: u64, len: u32, now: u64) -> Result<(), Loss> {
    let Some(state) = find(key) else { return Ok(()) };
    if state.flags & Connection::SHUT != 0 {
        // What the server drains after its last word.
        return Ok(());
    }
    if state.arrived_ns != 0 && state.writes > 0 {
        end(target, key, state, EndReason::NextRequest, now);
    }
    if state.arrived_ns == 0 {
        // Which thread serves it: the tasks that this thread makes are the request's.
        serve(state, key)?;
        take_up(key, now);
        begin(target, key, state, true, now);
    }
    let offset = state.bytes_in;
    state.bytes_in += u64::from(len);
    let Some(kept) = talk_of(key) else { return Ok(()) };
    let budget = REQUEST_BYTES.saturating_sub(kept.told_in);
    let gathers = budget > 0 && len <= SHORT_READ;
    if gathers && talk::has_room(kept, len) || budget == 0 {
        if !talk::keep(kept, offset, buffer, u64::from(len)) {
            lose_bytes(target, state, Gap::REQUEST);
        }
        if gathers {
            kept.told_in += u64::from(len);
        }
        return Ok(());
    }
    flush(target, key, state, now);
    if gathers {
        if !talk::keep(kept, offset, buffer, u64::from(len)) {
            lose_bytes(target, state, Gap::REQUEST);
        }
        kept.told_in += u64::from(len);
        return Ok(());
    }
    let mut piece = head(key, state, offset, now);
    state.flags &= !Connection::FRESH;
    let most = if u64::from(len) > budget { budget as u32 } else { len };
    piece.len = most;
    kept.told_in += u64::from(most);
    let left = talk::hand(&mut piece, buffer);
    if left == u32::MAX {
        lose_bytes(target, state, Gap::REQUEST);
    } else if left > 0 || most < len {
        let told = u64::from(most.saturating_sub(left));
        if !talk::keep(kept, offset + told, buffer + told, u64::from(len) - told) {
            lose_bytes(target, state, Gap::REQUEST);
        }
    }
    Ok(())
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

/// Bytes were written: at `now` the kernel, or the TLS library, has taken them.
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
        begin(target, key, state, false, now);
    }
    let index = state.writes;
    if index == 0 {
        flush(target, key, state, now);
        state.code = if target.keeps_payload() { status(buffer) } else { 0 };
    }
    let offset = state.bytes_out;
    state.writes += 1;
    state.bytes_out += len;
    state.last_write_ns = now;
    let mut told = index < target.writes;
    if let Some(kept) = talk_of(key) {
        let budget = ANSWER_BYTES.saturating_sub(kept.told_out);
        // Where the agent is behind, the middle of a long answer is left out as beyond the budget, and its end is kept.
        let long = len >= PAGE_BYTES as u64 && budget > 0 && !wake::is_behind(MIDDLES_PART);
        if told || long {
            if wake::is_behind(ANSWERS_PART) {
                lose_bytes(target, state, Gap::ANSWER);
            } else {
                hand_over(target, key, state, kept, (buffer, offset, len, budget), now);
                told |= long;
            }
        } else if !talk::keep(kept, offset, buffer, len) {
            lose_bytes(target, state, Gap::ANSWER);
        }
    }
    if told {
        tell_write(target, key, state, index, now);
    }
    // The last chunk: `0\r\n`, with or without the empty line in the same write.
    if (len == 3 || len == 5) && read::<u16>(buffer).unwrap_or(0) == u16::from_le_bytes(*b"0\r") {
        end(target, key, state, EndReason::LastChunk, now);
    }
    Ok(())
}

/// Hands over a write as far as the budget goes, and keeps the end of what is left.
#[inline(always)]
fn hand_over(
    target: &Target,
    key: ConnectionKey,
    state: &mut Connection,
    kept: &mut Talk,
    (buffer, offset, len, budget): (u64, u64, u64, u64),
    now: u64,
) {
    // What is kept stands before it, and no end was there.
    talk::forget(kept);
    let mut piece = head(key, state, offset, now);
    let most = if len > budget { budget } else { len };
    piece.len = most as u32;
    kept.told_out += most;
    let left = talk::hand(&mut piece, buffer);
    if left == u32::MAX {
        lose_bytes(target, state, Gap::ANSWER);
    } else if left > 0 || most < len {
        let told = most.saturating_sub(u64::from(left));
        if !talk::keep(kept, offset + told, buffer + told, len - told) {
            lose_bytes(target, state, Gap::ANSWER);
        }
    }
}

#[inline(always)]
fn tell_write(target: &Target, key: ConnectionKey, state: &mut Connection, index: u32, now: u64) {
    let Some(mut entry) = REQUEST_EVENTS.reserve::<WriteEvent>(0) else { return lose_event(target, state) };
    entry.write(WriteEvent {
        kind: RequestEventKind::Write as u32,
        index,
        request: state.request(key),
        at_ns: now,
        bytes_in: state.bytes_in,
        bytes_out: state.bytes_out,
        code: state.code,
        gaps: state.flags & Gap::ANY,
    });
    entry.submit(wake::for_event());
}

/// The code in a status line, `HTTP/1.1 200`; 0 when there is none.
#[inline(always)]
fn status(buffer: u64) -> u32 {
    let Ok([a, b, c]) = read::<[u8; 3]>(buffer + 9) else { return 0 };
    let digit = |byte: u8| u32::from(byte.wrapping_sub(b'0'));
    let (a, b, c) = (digit(a), digit(b), digit(c));
    if a > 9 || b > 9 || c > 9 { 0 } else { a * 100 + b * 10 + c }
}

/// The server ends a connection: `shut` says that it will write no more, `gone` that its descriptor goes.
#[inline(always)]
pub fn on_close(target: &Target, key: ConnectionKey, shut: bool, gone: bool, now: u64) {
    let Some(state) = find(key) else { return };
    if state.arrived_ns != 0 {
        end(target, key, state, EndReason::Closed, now);
    }
    if shut {
        state.flags |= Connection::SHUT;
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
    flush(target, key, state, now);
    let _ = TALKS.remove(key);
    // Written in place: the stack of a program is small.
    let mut entry = REQUEST_EVENTS.reserve::<EndEvent>(0);
    if let Some(entry) = &mut entry {
        entry.write(EndEvent::of(key, state, reason, now));
    }
    state.arrived_ns = 0;
    state.unread_ns = 0;
    match entry {
        Some(entry) => entry.submit(wake::for_event()),
        None => lose_event(target, state),
    }
}
