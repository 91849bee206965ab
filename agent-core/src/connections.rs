//! A connection: who is at its ends, and what its bytes pass through.

use llamaprobe_common::{
    loss::Loss,
    request::{Connection, ConnectionKey, Peer, RequestKey},
};

use crate::{
    links::{Connections, Ends},
    process::Process,
};

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
pub fn set_peer(
    connections: &mut impl Connections,
    ends: &mut impl Ends,
    key: ConnectionKey,
    peer: Peer,
) -> Result<(), Loss> {
    let Some(state) = connections.find(&key) else { return Ok(()) };
    state.peer = peer;
    if ends.insert(peer, key) { Ok(()) } else { Err(Loss::ConnectionsFull) }
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

#[cfg(test)]
mod tests;
