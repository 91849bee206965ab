//! Requests on sockets: their identity, what is kept of a connection in the kernel, and the events of a request's way.

use crate::plain;

/// Bytes of a read that are looked at: the head of a request and the begin of its body.
pub const READ_BYTES: usize = 1024;
/// Reads of one request that are looked at.
pub const READS: u32 = 8;
/// Reads up to this long are gathered before they are told: a slow client sends its head in such pieces, and over TLS
/// the server reads it byte by byte.
pub const SHORT_READ: u32 = 63;
/// Bytes that are gathered.
pub const GATHERED: u32 = READ_BYTES as u32;
/// The longest piece that is added to them at once, and what is kept of the end of a longer one.
pub const PIECE_BYTES: usize = 512;
/// Bytes of a write that are looked at: a status line with its fields, or the begin of an answer.
pub const WRITE_BYTES: usize = 512;
/// Writes of one answer that are looked at; of what follows only the end.
pub const WRITES: u32 = 3;
/// The same where the begin of an answer's text is looked at: a stream brings a token a write.
pub const TEXT_WRITES: u32 = 64;
/// Bytes kept of the end of a write.
pub const TAIL_BYTES: usize = 1024;
/// The shortest write that tells something; shorter ones only frame chunks.
pub const SUBSTANTIAL: u64 = 32;

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ConnectionKey {
    /// The process.
    pub tgid: u32,
    /// Its descriptor.
    pub fd: i32,
}

/// Names a request: a connection carries one at a time, so the time of its first byte tells it from the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RequestKey {
    /// When its first byte was read, `CLOCK_MONOTONIC` nanoseconds; 0 for no request.
    pub arrived_ns: u64,
    /// The process.
    pub tgid: u32,
    /// The connection's descriptor.
    pub fd: i32,
}

/// The other end of a TCP connection. Also the key by which a connection is found when its client closes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Peer {
    /// IPv6 address, or an IPv4 one mapped into IPv6 (`::ffff:a.b.c.d`); zeroes when unknown.
    pub address: [u8; 16],
    /// Its port; 0 when unknown.
    pub port: u32,
}

/// What is kept of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Connection {
    /// When it was accepted; 0 when it was open before the agent came, and once a thread has taken it up.
    pub accepted_ns: u64,
    /// How long it waited until a thread of the server took it up.
    pub unread_ns: u64,
    /// The request under way: when it arrived; 0 when there is none.
    pub arrived_ns: u64,
    /// When the last byte of the answer was handed to the kernel.
    pub last_write_ns: u64,
    /// Bytes of the answer.
    pub bytes_out: u64,
    /// Bytes of the request.
    pub bytes_in: u64,
    /// Reads of the request.
    pub reads: u32,
    /// Writes of the answer.
    pub writes: u32,
    /// How many bytes of each tail are filled.
    pub tail_len: [u32; 2],
    /// The tail that was written last.
    pub tail: u32,
    /// The sequence that the request under way took last; -1 when there is none.
    pub sequence: i32,
    /// The client.
    pub peer: Peer,
    /// 1 once the client has closed it.
    pub gone: u32,
    /// [`Connection::ADOPTED`] and the like.
    pub flags: u32,
    /// How many bytes are gathered.
    pub gathered_len: u32,
    /// What its bytes pass through: 0 when that is not known yet, [`Connection::PLAIN`], else the address of the TLS
    /// session. A thread that serves a connection may have sessions of its own, as a client.
    pub session: u64,
    /// Bytes that were read and are not told yet; with [`Connection::GAP`] the end of all that was read.
    pub gathered: [u8; GATHERED as usize + PIECE_BYTES],
    /// Ends of the last two substantial writes.
    pub tails: [[u8; TAIL_BYTES]; 2],
}

impl Connection {
    /// It was open before the agent came: which thread serves it is not known.
    pub const ADOPTED: u32 = 1;
    /// Bytes of the request under way were read that are not told.
    pub const GAP: u32 = 2;

    /// The session of a connection without TLS.
    pub const PLAIN: u64 = 1;

    /// Whether its bytes pass through a TLS session.
    pub const fn is_tls(&self) -> bool {
        self.session > Self::PLAIN
    }
}

/// What an event is about; the first field of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RequestEventKind {
    /// [`ReadEvent`]
    Read = 1,
    /// [`WriteEvent`]
    Write = 2,
    /// [`EndEvent`]
    End = 3,
    /// [`TaskEvent`]
    Task = 4,
    /// [`SlotStartEvent`]
    SlotStart = 5,
    /// [`SlotEndEvent`]
    SlotEnd = 6,
    /// [`ReadEvent`] of the end of a request whose bytes are not all told.
    ReadTail = 7,
    /// [`DraftEvent`]
    Draft = 8,
}

/// Bytes of a request were read.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ReadEvent {
    /// [`RequestEventKind::Read`] or [`RequestEventKind::ReadTail`]
    pub kind: u32,
    /// Which event of the kind, from 0; a tail has none.
    pub index: u32,
    /// The request.
    pub request: RequestKey,
    /// When.
    pub at_ns: u64,
    /// How long the connection waited, accepted, until a thread of the server took it up; 0 for its later requests.
    pub unread_ns: u64,
    /// Bytes read.
    pub len: u32,
    /// Bytes copied.
    pub copied: u32,
    /// The client.
    pub peer: Peer,
    /// 1 when they came through a TLS session.
    pub tls: u32,
    /// Their begin.
    pub data: [u8; READ_BYTES],
}

/// Bytes of an answer were written.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct WriteEvent {
    /// [`RequestEventKind::Write`]
    pub kind: u32,
    /// Which write of the answer, from 0.
    pub index: u32,
    /// The request.
    pub request: RequestKey,
    /// When.
    pub at_ns: u64,
    /// Bytes written.
    pub len: u32,
    /// Bytes copied.
    pub copied: u32,
    /// Their begin.
    pub data: [u8; WRITE_BYTES],
    /// How many bytes of the tail are filled.
    pub tail_len: u32,
    /// Always 0.
    pub reserved: u32,
    /// Their end.
    pub tail: [u8; TAIL_BYTES],
}

/// Why a request is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EndReason {
    /// The last chunk of the answer was written.
    LastChunk = 1,
    /// The next request on the connection begins.
    NextRequest = 2,
    /// The connection is closed or shut down.
    Closed = 3,
}

impl EndReason {
    /// The reason of a number from the wire.
    pub const fn from_wire(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::LastChunk),
            2 => Some(Self::NextRequest),
            3 => Some(Self::Closed),
            _ => None,
        }
    }
}

/// A request is over on its socket.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EndEvent {
    /// [`RequestEventKind::End`]
    pub kind: u32,
    /// An [`EndReason`].
    pub reason: u32,
    /// The request.
    pub request: RequestKey,
    /// When.
    pub at_ns: u64,
    /// When the last byte of the answer was written; 0 when none was.
    pub last_write_ns: u64,
    /// Bytes of the answer.
    pub bytes_out: u64,
    /// Writes of the answer.
    pub writes: u32,
    /// The tail that was written last.
    pub tail: u32,
    /// How many bytes of each tail are filled.
    pub tail_len: [u32; 2],
    /// Ends of the last two substantial writes.
    pub tails: [[u8; TAIL_BYTES]; 2],
}

/// A request was given a task of the engine.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TaskEvent {
    /// [`RequestEventKind::Task`]
    pub kind: u32,
    /// The server's task id.
    pub task: i32,
    /// The request.
    pub request: RequestKey,
    /// When.
    pub at_ns: u64,
}

/// A task took a slot.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SlotStartEvent {
    /// [`RequestEventKind::SlotStart`]
    pub kind: u32,
    /// The server's task id.
    pub task: i32,
    /// The request; `arrived_ns` 0 when none is known.
    pub request: RequestKey,
    /// When.
    pub at_ns: u64,
    /// The slot.
    pub slot: i32,
    /// The slot that it has its prompt from, which runs for the same request; -1 for none.
    pub origin: i32,
}

/// A task left its slot: all that the engine did for it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SlotEndEvent {
    /// [`RequestEventKind::SlotEnd`]
    pub kind: u32,
    /// The server's task id.
    pub task: i32,
    /// The request; `arrived_ns` 0 when none is known.
    pub request: RequestKey,
    /// When.
    pub at_ns: u64,
    /// When it took the slot.
    pub launched_ns: u64,
    /// When the engine turned to its prompt; 0 when it never did.
    pub prefill_ns: u64,
    /// When its first token was ready; 0 when there was none.
    pub first_token_ns: u64,
    /// When its last token was ready.
    pub last_token_ns: u64,
    /// The longest gap between two of its tokens.
    pub worst_gap_ns: u64,
    /// The slot.
    pub slot: i32,
    /// Prompt tokens computed.
    pub prompt_tokens: u32,
    /// Prompt tokens reused.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// Positions its slot holds.
    pub n_past: u32,
    /// Tokens its slot can hold; 0 when unknown.
    pub n_ctx: u32,
    /// Its share of the time of decode calls.
    pub engine_ns: u64,
    /// Tokens generated after the client had gone.
    pub wasted_tokens: u32,
    /// Tokens drafted for it.
    pub drafted_tokens: u32,
    /// Drafted tokens that were accepted.
    pub accepted_tokens: u32,
    /// Decode calls of the process that could not be read while it ran: its prompt tokens are not known then.
    pub unread: u32,
    /// 1 when tokens of its prompt may be missing: while it was computed there was a batch that could not be read to its
    /// end.
    pub incomplete: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A decode call that checked guesses is over. Sent only where it was asked for: it comes once a step.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DraftEvent {
    /// [`RequestEventKind::Draft`]
    pub kind: u32,
    /// Tokens that had been guessed.
    pub drafted: u32,
    /// The request.
    pub request: RequestKey,
    /// When the last token of the call was ready.
    pub at_ns: u64,
    /// Those of them that were right.
    pub accepted: u32,
    /// Always 0.
    pub reserved: u32,
}

plain!(
    ConnectionKey = 8,
    RequestKey = 16,
    Peer = 20,
    Connection = 112 + GATHERED as usize + PIECE_BYTES + 2 * TAIL_BYTES,
    ReadEvent = 72 + READ_BYTES,
    WriteEvent = 48 + WRITE_BYTES + TAIL_BYTES,
    EndEvent = 64 + 2 * TAIL_BYTES,
    TaskEvent = 32,
    DraftEvent = 40,
    SlotStartEvent = 40,
    SlotEndEvent = 128,
);
