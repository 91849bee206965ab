//! What a read or a write means for the request under way on a connection.

use llamaprobe_common::{
    loss::Loss,
    request::{
        ANSWER_BYTES, ANSWERS_PART, BeginEvent, Connection, ConnectionKey, EndEvent, EndReason, Gap,
        MIDDLES_PART, PAGE_BYTES, Peer, PieceHead, REQUEST_BYTES, RequestEventKind, RequestKey, SHORT_READ,
        Talk, TaskEvent, WriteEvent,
    },
};

use crate::{
    events::Requests,
    links::{Connections, Ends, Links, Output, Talks},
    machine::Memory,
    process::{Counters, Process, Target},
    talk,
};

/// `HTTP` and `/1.1 100`: how an answer begins, and one that is none yet.
const HTTP: u32 = u32::from_le_bytes(*b"HTTP");
const CONTINUE: u64 = u64::from_le_bytes(*b"/1.1 100");

/// A connection of which nothing is known.
pub const BLANK: Connection = Connection {
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
pub fn open(
    target: &impl Process,
    connections: &mut impl Connections,
    fd: i32,
    now: u64,
) -> Result<(), Loss> {
    let key = ConnectionKey { tgid: target.tgid(), fd };
    let state = Connection { accepted_ns: now, ..BLANK };
    if connections.insert(&key, state) { Ok(()) } else { Err(Loss::ConnectionsFull) }
}

/// A thread takes up a connection: it asks for its peer first.
#[inline(always)]
pub fn take_up(state: &mut Connection, now: u64) {
    if state.accepted_ns != 0 {
        state.unread_ns = now.saturating_sub(state.accepted_ns);
        state.accepted_ns = 0;
    }
}

/// The client of a connection is known.
#[inline(always)]
pub fn meet(
    connections: &mut impl Connections,
    ends: &mut impl Ends,
    key: ConnectionKey,
    peer: Peer,
) -> Result<(), Loss> {
    let Some(state) = connections.find(&key) else { return Ok(()) };
    state.peer = peer;
    if ends.meet(peer, key) { Ok(()) } else { Err(Loss::ConnectionsFull) }
}

/// The request under way on a connection takes a sequence. Returns whether its client has gone.
#[inline(always)]
pub fn take_slot(connections: &mut impl Connections, request: &RequestKey, sequence: i32) -> bool {
    let key = ConnectionKey { tgid: request.tgid, fd: request.fd };
    let Some(state) = connections.find(&key) else { return false };
    if state.arrived_ns != request.arrived_ns {
        return false;
    }
    state.sequence = sequence;
    state.gone_ns != 0
}

/// Whether a connection of the process carries HTTP as it is.
#[inline(always)]
pub fn is_plain(connections: &mut impl Connections, key: ConnectionKey) -> bool {
    let Some(state) = connections.find(&key) else { return false };
    if state.session == 0 {
        state.session = Connection::PLAIN;
    }
    state.session == Connection::PLAIN
}

/// An event of the request under way found no room. Counted once a request.
#[inline(always)]
fn lose_event(target: &impl Counters, state: &mut Connection) {
    if state.flags & Gap::EVENT == 0 {
        target.lose(Loss::RingFull);
    }
    state.flags |= Gap::EVENT;
}

/// Bytes of the request under way found no room. Counted once a request.
#[inline(always)]
fn lose_bytes(target: &impl Counters, state: &mut Connection, gap: u32) {
    if state.flags & (Gap::REQUEST | Gap::ANSWER) == 0 {
        target.lose(Loss::PayloadFull);
    }
    state.flags |= gap;
}

/// Starts a request, by bytes that were read or by what follows from bytes that were read before.
#[inline(always)]
fn begin(
    target: &impl Target,
    talks: &mut impl Talks,
    output: &mut impl Output,
    key: ConnectionKey,
    state: &mut Connection,
    read: bool,
    now: u64,
) {
    state.arrived_ns = now;
    state.last_write_ns = 0;
    state.bytes_in = 0;
    state.bytes_out = 0;
    state.writes = 0;
    state.code = 0;
    state.sequence = -1;
    state.flags &= !Gap::ANY;
    if target.keeps_payload() && !talks.begin(&key) {
        lose_bytes(target, state, Gap::REQUEST | Gap::ANSWER);
    }
    let tls = if state.is_tls() { BeginEvent::TLS } else { 0 };
    let told = output.tell(|| BeginEvent {
        kind: RequestEventKind::Begin as u32,
        flags: tls | if read { BeginEvent::READ } else { 0 },
        request: state.request(key),
        at_ns: now,
        unread_ns: state.unread_ns,
        peer: state.peer,
        reserved: 0,
    });
    if !told {
        lose_event(target, state);
    }
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
fn flush(
    target: &impl Counters,
    talks: &mut impl Talks,
    output: &mut impl Output,
    key: ConnectionKey,
    state: &mut Connection,
    at_ns: u64,
) {
    if let Some(kept) = talks.find(&key) {
        flush_kept(target, output, key, state, kept, at_ns);
    }
}

/// The same, with what is kept.
#[inline(always)]
fn flush_kept(
    target: &impl Counters,
    output: &mut impl Output,
    key: ConnectionKey,
    state: &mut Connection,
    kept: &mut Talk,
    at_ns: u64,
) {
    if kept.lens == [0; 2] {
        return;
    }
    let mut head = head(key, state, 0, at_ns);
    let answers = state.writes > 0;
    let gap = if answers { Gap::ANSWER } else { Gap::REQUEST };
    if answers && output.is_behind(ANSWERS_PART) || !output.flush(kept, &mut head) {
        lose_bytes(target, state, gap);
    }
    state.flags &= !Connection::FRESH;
}

/// The request under way of a connection that the running thread serves; one whose bytes came together with the
/// request before it begins here.
#[inline(always)]
pub fn served(
    target: &impl Target,
    links: &mut Links<impl Connections, impl Talks, impl Ends, impl Output>,
    now: u64,
) -> Option<RequestKey> {
    let Links { connections, talks, ends, output } = links;
    let &key = ends.served()?;
    let state = connections.find(&key)?;
    if state.arrived_ns != 0 && state.writes > 0 {
        end(target, talks, output, key, state, EndReason::NextRequest, now);
    }
    if state.arrived_ns == 0 {
        begin(target, talks, output, key, state, false, now);
    }
    flush(target, talks, output, key, state, now);
    Some(state.request(key))
}

/// An event of a request could not be told elsewhere.
#[inline(always)]
pub fn lost_event(target: &impl Counters, connections: &mut impl Connections, request: &RequestKey) {
    match connections.find(&ConnectionKey { tgid: request.tgid, fd: request.fd }) {
        Some(state) if state.arrived_ns == request.arrived_ns => lose_event(target, state),
        _ => target.lose(Loss::RingFull),
    }
}

/// A request was given a task of the engine.
#[inline(always)]
pub fn tell_task(
    target: &impl Counters,
    requests: &mut impl Requests,
    task: i32,
    request: &RequestKey,
    now: u64,
) {
    let told = requests.tell(|| TaskEvent {
        kind: RequestEventKind::Task as u32,
        task,
        request: *request,
        at_ns: now,
    });
    if !told {
        requests.lose_event(target, request);
    }
}

/// Bytes were read.
#[inline(always)]
pub fn on_read(
    target: &impl Target,
    links: &mut Links<impl Connections, impl Talks, impl Ends, impl Output>,
    key: ConnectionKey,
    (buffer, len): (u64, u32),
    now: u64,
) -> Result<(), Loss> {
    let Links { connections, talks, ends, output } = links;
    let Some(state) = connections.find(&key) else { return Ok(()) };
    if state.flags & Connection::SHUT != 0 {
        // What the server drains after its last word.
        return Ok(());
    }
    if state.arrived_ns != 0 && state.writes > 0 {
        end(target, talks, output, key, state, EndReason::NextRequest, now);
    }
    if state.arrived_ns == 0 {
        // Which thread serves it: the tasks that this thread makes are the request's.
        serve(ends, state, key)?;
        take_up(state, now);
        begin(target, talks, output, key, state, true, now);
    }
    let offset = state.bytes_in;
    state.bytes_in += u64::from(len);
    let Some(kept) = talks.find(&key) else { return Ok(()) };
    let budget = REQUEST_BYTES.saturating_sub(kept.told_in);
    let gathers = budget > 0 && len <= SHORT_READ;
    if gathers && talk::has_room(kept, len) || budget == 0 {
        if !output.keep(kept, offset, buffer, u64::from(len)) {
            lose_bytes(target, state, Gap::REQUEST);
        }
        if gathers {
            kept.told_in += u64::from(len);
        }
        return Ok(());
    }
    flush_kept(target, output, key, state, kept, now);
    if gathers {
        if !output.keep(kept, offset, buffer, u64::from(len)) {
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
    let left = output.hand(&mut piece, buffer);
    if left == u32::MAX {
        lose_bytes(target, state, Gap::REQUEST);
    } else if left > 0 || most < len {
        let told = u64::from(most.saturating_sub(left));
        if !output.keep(kept, offset + told, buffer + told, u64::from(len) - told) {
            lose_bytes(target, state, Gap::REQUEST);
        }
    }
    Ok(())
}

/// The running thread serves a connection.
#[inline(always)]
pub fn serve(ends: &mut impl Ends, state: &mut Connection, key: ConnectionKey) -> Result<(), Loss> {
    state.flags &= !Connection::ADOPTED;
    if ends.serve(&key) { Ok(()) } else { Err(Loss::ThreadsFull) }
}

/// The connection that the running thread serves, if `session` is what its bytes pass through; the first session that
/// the thread uses is.
#[inline(always)]
pub fn of_session(
    connections: &mut impl Connections,
    ends: &impl Ends,
    session: u64,
) -> Option<ConnectionKey> {
    let &key = ends.served()?;
    let state = connections.find(&key)?;
    if state.session == 0 {
        state.session = session;
    }
    (state.session == session).then_some(key)
}

/// Bytes were written: at `now` the kernel, or the TLS library, has taken them.
#[inline(always)]
pub fn on_write(
    target: &impl Target,
    links: &mut Links<impl Connections, impl Talks, impl Ends, impl Output>,
    key: ConnectionKey,
    (buffer, len): (u64, u64),
    now: u64,
) -> Result<(), Loss> {
    let Links { connections, talks, output, .. } = links;
    let Some(state) = connections.find(&key) else { return Ok(()) };
    if len == 0 {
        return Ok(());
    }
    let begins = len >= 12 && output.read::<u32>(buffer).unwrap_or(0) == HTTP;
    if begins && output.read::<u64>(buffer + 4).unwrap_or(0) == CONTINUE {
        return Ok(());
    }
    // An answer begins with its status line: what comes before, or after the last chunk, frames something else.
    let under_way = state.arrived_ns != 0 && state.writes > 0;
    if !begins && !under_way {
        return Ok(());
    }
    if begins && under_way {
        // The answer to a request that came in the same bytes as the one before it.
        end(target, talks, output, key, state, EndReason::NextRequest, now);
    }
    if state.arrived_ns == 0 {
        begin(target, talks, output, key, state, false, now);
    }
    let index = state.writes;
    if index == 0 {
        flush(target, talks, output, key, state, now);
        state.code = if target.keeps_payload() { status(output, buffer) } else { 0 };
    }
    let offset = state.bytes_out;
    state.writes += 1;
    state.bytes_out += len;
    state.last_write_ns = now;
    let mut told = index < target.writes();
    if let Some(kept) = talks.find(&key) {
        let budget = ANSWER_BYTES.saturating_sub(kept.told_out);
        // Where the agent is behind, the middle of a long answer is left out as beyond the budget, and its end is kept.
        let long = len >= PAGE_BYTES as u64 && budget > 0 && !output.is_behind(MIDDLES_PART);
        if told || long {
            if output.is_behind(ANSWERS_PART) {
                lose_bytes(target, state, Gap::ANSWER);
            } else {
                hand_over(target, output, key, state, kept, (buffer, offset, len, budget), now);
                told |= long;
            }
        } else if !output.keep(kept, offset, buffer, len) {
            lose_bytes(target, state, Gap::ANSWER);
        }
    }
    if told {
        tell_write(target, output, key, state, index, now);
    }
    // The last chunk: `0\r\n`, with or without the empty line in the same write.
    if (len == 3 || len == 5) && output.read::<u16>(buffer).unwrap_or(0) == u16::from_le_bytes(*b"0\r") {
        end(target, talks, output, key, state, EndReason::LastChunk, now);
    }
    Ok(())
}

/// Hands over a write as far as the budget goes, and keeps the end of what is left.
#[inline(always)]
fn hand_over(
    target: &impl Counters,
    output: &mut impl Output,
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
    let left = output.hand(&mut piece, buffer);
    if left == u32::MAX {
        lose_bytes(target, state, Gap::ANSWER);
    } else if left > 0 || most < len {
        let told = most.saturating_sub(u64::from(left));
        if !output.keep(kept, offset + told, buffer + told, len - told) {
            lose_bytes(target, state, Gap::ANSWER);
        }
    }
}

#[inline(always)]
fn tell_write(
    target: &impl Counters,
    output: &mut impl Output,
    key: ConnectionKey,
    state: &mut Connection,
    index: u32,
    now: u64,
) {
    let told = output.tell(|| WriteEvent {
        kind: RequestEventKind::Write as u32,
        index,
        request: state.request(key),
        at_ns: now,
        bytes_in: state.bytes_in,
        bytes_out: state.bytes_out,
        code: state.code,
        gaps: state.flags & Gap::ANY,
    });
    if !told {
        lose_event(target, state);
    }
}

/// The code in a status line, `HTTP/1.1 200`; 0 when there is none.
#[inline(always)]
fn status(memory: &impl Memory, buffer: u64) -> u32 {
    let Ok([a, b, c]) = memory.read::<[u8; 3]>(buffer + 9) else { return 0 };
    let digit = |byte: u8| u32::from(byte.wrapping_sub(b'0'));
    let (a, b, c) = (digit(a), digit(b), digit(c));
    if a > 9 || b > 9 || c > 9 { 0 } else { a * 100 + b * 10 + c }
}

/// The server ends a connection: `shut` says that it will write no more, `gone` that its descriptor goes.
#[inline(always)]
pub fn on_close(
    target: &impl Target,
    links: &mut Links<impl Connections, impl Talks, impl Ends, impl Output>,
    key: ConnectionKey,
    (shut, gone): (bool, bool),
    now: u64,
) {
    let Links { connections, talks, ends, output } = links;
    let Some(state) = connections.find(&key) else { return };
    if state.arrived_ns != 0 {
        end(target, talks, output, key, state, EndReason::Closed, now);
    }
    if shut {
        state.flags |= Connection::SHUT;
    }
    if gone {
        if state.peer.port != 0 {
            ends.part(&state.peer, &key);
        }
        connections.remove(&key);
        ends.leave();
    }
}

/// The request under way is over.
#[inline(always)]
fn end(
    target: &impl Target,
    talks: &mut impl Talks,
    output: &mut impl Output,
    key: ConnectionKey,
    state: &mut Connection,
    reason: EndReason,
    now: u64,
) {
    flush(target, talks, output, key, state, now);
    talks.remove(&key);
    let told = output.tell(|| EndEvent::of(key, state, reason, now));
    state.arrived_ns = 0;
    state.unread_ns = 0;
    if !told {
        lose_event(target, state);
    }
}

#[cfg(test)]
mod tests;
