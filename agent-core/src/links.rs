//! What is kept of connections, and the way of their bytes.

use llamaprobe_common::request::{Connection, ConnectionKey, PAGE_BYTES, Peer, PieceHead, Talk};

use crate::{events::Events, machine::Machine, talk};

/// The connections that the process accepted.
pub trait Connections {
    /// The state of a connection, if it is one of the process's.
    fn find(&mut self, key: &ConnectionKey) -> Option<&mut Connection>;

    /// A connection of the process. Returns whether there was room for it.
    fn insert(&mut self, key: &ConnectionKey, state: Connection) -> bool;

    /// Forgets a connection.
    fn remove(&mut self, key: &ConnectionKey);
}

/// What is kept of the bytes of requests under way.
pub trait Talks {
    /// Of the request under way on a connection.
    fn find(&mut self, key: &ConnectionKey) -> Option<&mut Talk>;

    /// Begins it anew, with [`Talk::BLANK`]. Returns whether there was room for it.
    fn begin(&mut self, key: &ConnectionKey) -> bool;

    /// Forgets it.
    fn remove(&mut self, key: &ConnectionKey);
}

/// Who is at the two ends of connections.
pub trait Ends {
    /// A client is at one end. Returns whether there was room to note it.
    fn insert(&mut self, peer: Peer, key: ConnectionKey) -> bool;

    /// The client of a connection goes with it, unless it was noted for another since.
    fn remove(&mut self, peer: &Peer, key: &ConnectionKey);

    /// The running thread is at the other. Returns whether there was room to note it.
    fn serve(&mut self, key: &ConnectionKey) -> bool;

    /// The connection that the running thread serves.
    fn served(&self) -> Option<&ConnectionKey>;

    /// The running thread serves none any more.
    fn leave(&mut self);
}

/// The way of bytes to the agent.
pub trait Output: Events + Machine {
    /// Whether more than so many eighths of the bytes that find room wait for the agent.
    fn is_behind(&self, eighths: u64) -> bool;

    /// Hands over `head.len` bytes at `from` of the process, no more than
    /// [`PIECE_BYTES`](llamaprobe_common::request::PIECE_BYTES). Returns whether they could be read and found room.
    fn put(&mut self, head: &PieceHead, from: u64) -> bool;

    /// The same where they are that many.
    fn put_whole(&mut self, head: &PieceHead, from: u64) -> bool;

    /// The same of the begin of a page.
    fn put_page<const PAGE: usize>(&mut self, head: &PieceHead, pages: &[u8; 3 * PAGE_BYTES]) -> bool;

    /// Copies `size` bytes at `from` of the process to a place in the pages. Returns whether they could be read. The place is
    /// in the first two pages, and the size below one.
    fn copy(&self, pages: &mut [u8; 3 * PAGE_BYTES], place: u64, size: u64, from: u64) -> bool;

    /// [`talk::hand`], where that is a function of its own.
    #[inline(always)]
    fn hand(&mut self, head: &mut PieceHead, from: u64) -> u32
    where
        Self: Sized,
    {
        talk::hand(self, head, from)
    }

    /// [`talk::flush`], where that is a function of its own.
    #[inline(always)]
    fn flush(&mut self, kept: &mut Talk, head: &mut PieceHead) -> bool
    where
        Self: Sized,
    {
        talk::flush(self, kept, head)
    }

    /// [`talk::keep`], where that is a function of its own.
    #[inline(always)]
    fn keep(&self, kept: &mut Talk, offset: u64, buffer: u64, len: u64) -> bool
    where
        Self: Sized,
    {
        talk::keep(self, kept, offset, buffer, len)
    }
}

/// All that is kept of connections, and the way to the agent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Links<C, T, E, O> {
    /// The connections.
    pub connections: C,
    /// What is kept of their bytes.
    pub talks: T,
    /// Who is at their ends.
    pub ends: E,
    /// The way to the agent.
    pub output: O,
}
