//! Connections, and what of their bytes reaches the agent.

use std::{boxed::Box, collections::HashMap, vec::Vec};

use llamaprobe_common::{
    loss::Loss,
    request::{
        BeginEvent, Connection, ConnectionKey, EndEvent, PAGE_BYTES, PIECE_BYTES, Peer, PieceHead,
        RequestKey, Talk, WriteEvent,
    },
    step::StepEvent,
};

use super::{
    host::Host,
    maps::Bounded,
    process::{Fake, TGID},
    requests::Told,
};
use crate::{
    connections::open,
    events::{Event, Events},
    exchange::on_close,
    links::{Connections, Ends, Links, Output, Talks},
    machine::{Machine, Memory, Plain},
    traffic::{on_read, on_write},
};

/// Where the bytes of a call are.
pub const BUFFER: u64 = 0x5000_0000;

/// A piece as it reached the agent.
#[derive(Clone, Debug)]
pub struct Piece {
    /// What stands before it.
    pub head: PieceHead,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Piece {
    /// Whether it is of the answer.
    pub fn is_answer(&self) -> bool {
        self.head.flags & PieceHead::ANSWER != 0
    }
}

/// The way to the agent.
#[derive(Default)]
pub struct Wire {
    /// Memory and time.
    pub host: Host,
    /// The events.
    pub told: Told,
    /// The pieces.
    pub pieces: Vec<Piece>,
    /// Whether there is no room for more of them.
    pub full: bool,
    /// How much of the bytes that find room waits, in eighths.
    pub behind: u64,
}

impl Wire {
    fn hand_bytes(&mut self, head: &PieceHead, bytes: Option<Vec<u8>>) -> bool {
        assert!(head.len as usize <= PIECE_BYTES, "a piece of {} bytes", head.len);
        let Some(bytes) = bytes.filter(|_| !self.full) else { return false };
        self.pieces.push(Piece { head: *head, bytes });
        true
    }
}

impl Memory for Wire {
    fn read<T: Plain>(&self, address: u64) -> Result<T, Loss> {
        self.host.read(address)
    }
}

impl Machine for Wire {
    fn now(&self) -> u64 {
        self.host.now()
    }
}

impl Events for Wire {
    fn tell<E: Into<Event> + 'static>(&mut self, event: impl FnOnce() -> E) -> bool {
        self.told.tell(event)
    }

    fn tell_step(&mut self, step: &StepEvent) -> bool {
        self.told.tell_step(step)
    }
}

impl Output for Wire {
    fn is_behind(&self, eighths: u64) -> bool {
        self.behind > eighths
    }

    fn put(&mut self, head: &PieceHead, from: u64) -> bool {
        let bytes = self.host.bytes(from, head.len as usize).map(Vec::from);
        self.hand_bytes(head, bytes)
    }

    fn put_whole(&mut self, head: &PieceHead, from: u64) -> bool {
        assert_eq!(head.len as usize, PIECE_BYTES);
        self.put(head, from)
    }

    fn put_page<const PAGE: usize>(&mut self, head: &PieceHead, pages: &[u8; 3 * PAGE_BYTES]) -> bool {
        let bytes = pages[PAGE * PAGE_BYTES..][..head.len as usize].to_vec();
        self.hand_bytes(head, Some(bytes))
    }

    fn copy(&self, pages: &mut [u8; 3 * PAGE_BYTES], place: u64, size: u64, from: u64) -> bool {
        assert!(place < 2 * PAGE_BYTES as u64 && size < PAGE_BYTES as u64);
        let Some(bytes) = self.host.bytes(from, size as usize) else { return false };
        pages[place as usize..][..bytes.len()].copy_from_slice(bytes);
        true
    }
}

impl Connections for Bounded<ConnectionKey, Connection> {
    fn find(&mut self, key: &ConnectionKey) -> Option<&mut Connection> {
        self.entries.get_mut(key)
    }

    fn insert(&mut self, key: &ConnectionKey, state: Connection) -> bool {
        self.put(*key, state)
    }

    fn remove(&mut self, key: &ConnectionKey) {
        self.entries.remove(key);
    }
}

impl Talks for Bounded<ConnectionKey, Box<Talk>> {
    fn find(&mut self, key: &ConnectionKey) -> Option<&mut Talk> {
        self.entries.get_mut(key).map(Box::as_mut)
    }

    fn begin(&mut self, key: &ConnectionKey) -> bool {
        self.put(*key, Box::new(Talk::BLANK))
    }

    fn remove(&mut self, key: &ConnectionKey) {
        self.entries.remove(key);
    }
}

/// Who is at the ends.
#[derive(Default)]
pub struct HostEnds {
    /// The connections of clients.
    pub peers: HashMap<Peer, ConnectionKey>,
    /// The connection that the one thread serves.
    pub served: Option<ConnectionKey>,
    /// Whether there is no room for more.
    pub full: bool,
}

impl Ends for HostEnds {
    fn insert(&mut self, peer: Peer, key: ConnectionKey) -> bool {
        if !self.full {
            self.peers.insert(peer, key);
        }
        !self.full
    }

    fn remove(&mut self, peer: &Peer, key: &ConnectionKey) {
        if self.peers.get(peer) == Some(key) {
            self.peers.remove(peer);
        }
    }

    fn serve(&mut self, key: &ConnectionKey) -> bool {
        if !self.full {
            self.served = Some(*key);
        }
        !self.full
    }

    fn served(&self) -> Option<&ConnectionKey> {
        self.served.as_ref()
    }

    fn leave(&mut self) {
        self.served = None;
    }
}

/// The connections of a process, and the calls it makes on them. Each call takes a nanosecond.
#[derive(Default)]
pub struct Net {
    /// The process.
    pub target: Fake,
    /// All that is kept, and the way to the agent.
    pub links: Links<Bounded<ConnectionKey, Connection>, Bounded<ConnectionKey, Box<Talk>>, HostEnds, Wire>,
}

/// The connection with a descriptor.
pub fn key(fd: i32) -> ConnectionKey {
    ConnectionKey { tgid: TGID, fd }
}

impl Net {
    /// A process of which so many writes of an answer are looked at.
    pub fn with(writes: u32) -> Self {
        let net = Self::default();
        net.target.writes.set(writes);
        net.links.output.host.now.set(1);
        net
    }

    /// The time of the next call.
    pub fn tick(&self) -> u64 {
        let now = &self.links.output.host.now;
        now.set(now.get() + 1);
        now.get()
    }

    /// A connection is accepted.
    pub fn open(&mut self, fd: i32) -> Result<(), Loss> {
        let now = self.tick();
        open(&self.target, &mut self.links.connections, fd, now)
    }

    /// Bytes are read.
    pub fn read(&mut self, fd: i32, bytes: &[u8]) -> Result<(), Loss> {
        let now = self.tick();
        self.links.output.host.put(BUFFER, bytes);
        on_read(&self.target, &mut self.links, key(fd), (BUFFER, bytes.len() as u32), now)
    }

    /// Bytes are written.
    pub fn write(&mut self, fd: i32, bytes: &[u8]) -> Result<(), Loss> {
        let now = self.tick();
        self.links.output.host.put(BUFFER, bytes);
        on_write(&self.target, &mut self.links, key(fd), (BUFFER, bytes.len() as u64), now)
    }

    /// The connection is closed.
    pub fn close(&mut self, fd: i32) {
        let now = self.tick();
        on_close(&self.target, &mut self.links, key(fd), (true, true), now);
    }

    /// The server says its last word.
    pub fn shut(&mut self, fd: i32) {
        let now = self.tick();
        on_close(&self.target, &mut self.links, key(fd), (true, false), now);
    }

    /// The state of a connection.
    pub fn state(&mut self, fd: i32) -> Option<&mut Connection> {
        self.links.connections.find(&key(fd))
    }

    /// The requests that began.
    pub fn begins(&self) -> Vec<BeginEvent> {
        let begin = |event: &Event| if let Event::Begin(event) = event { Some(*event) } else { None };
        self.links.output.told.events.iter().filter_map(begin).collect()
    }

    /// The writes that were told.
    pub fn writes(&self) -> Vec<WriteEvent> {
        let write = |event: &Event| if let Event::Write(event) = event { Some(*event) } else { None };
        self.links.output.told.events.iter().filter_map(write).collect()
    }

    /// The requests that ended.
    pub fn ends(&self) -> Vec<EndEvent> {
        let end = |event: &Event| if let Event::End(event) = event { Some(*event) } else { None };
        self.links.output.told.events.iter().filter_map(end).collect()
    }

    /// The pieces of a request or of its answer.
    pub fn pieces(&self, request: RequestKey, answer: bool) -> Vec<&Piece> {
        let of = |piece: &&Piece| piece.head.request == request && piece.is_answer() == answer;
        self.links.output.pieces.iter().filter(of).collect()
    }
}
