//! The request under way on a connection: how it begins and ends, what goes to the agent meanwhile, and what is lost of it.

use llamaprobe_common::{
    loss::Loss,
    request::{
        ANSWERS_EIGHTHS, BeginEvent, Connection, ConnectionKey, EndEvent, EndReason, Gap, PieceHead,
        RequestEventKind, RequestKey, Talk, TaskEvent,
    },
};

use crate::{
    events::Requests,
    links::{Connections, Ends, Links, Output, Talks},
    process::{Counters, Target},
};

/// An event of the request under way found no room. Counted once a request.
#[inline(always)]
pub(crate) fn lose_event(target: &impl Counters, state: &mut Connection) {
    if state.flags & Gap::EVENT == 0 {
        target.lose(Loss::RingFull);
    }
    state.flags |= Gap::EVENT;
}

/// Bytes of the request under way found no room. Counted once a request.
#[inline(always)]
pub(crate) fn lose_bytes(target: &impl Counters, state: &mut Connection, gap: u32) {
    if state.flags & (Gap::REQUEST | Gap::ANSWER) == 0 {
        target.lose(Loss::PayloadFull);
    }
    state.flags |= gap;
}

/// Starts a request, by bytes that were read or by what follows from bytes that were read before.
#[inline(always)]
pub(crate) fn begin(
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
pub(crate) fn head(key: ConnectionKey, state: &Connection, offset: u64, at_ns: u64) -> PieceHead {
    let fresh = if state.flags & Connection::FRESH != 0 { PieceHead::FRESH } else { 0 };
    let flags = if state.writes > 0 { PieceHead::ANSWER } else { fresh };
    PieceHead { flags, len: 0, request: state.request(key), at_ns, offset }
}

/// Hands over what is kept of the request, or of the answer once that has begun.
#[inline(always)]
pub(crate) fn flush(
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
pub(crate) fn flush_kept(
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
    if answers && output.is_behind(ANSWERS_EIGHTHS) || !output.flush(kept, &mut head) {
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

/// A request was given a task of the engine, which had freed its model last at `freed_ns`. That is asked for once by who tells
/// many: a look-up in each turn is too much for the verifier of Linux 5.15.
#[inline(always)]
pub fn tell_task(
    target: &impl Counters,
    requests: &mut impl Requests,
    task: i32,
    request: &RequestKey,
    (now, freed_ns): (u64, u64),
) {
    let told = requests.tell(|| TaskEvent {
        kind: RequestEventKind::Task as u32,
        task,
        request: *request,
        at_ns: now,
        freed_ns,
    });
    if !told {
        requests.lose_event(target, request);
    }
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
            ends.remove(&state.peer, &key);
        }
        connections.remove(&key);
        ends.leave();
    }
}

/// The request under way is over.
#[inline(always)]
pub(crate) fn end(
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
