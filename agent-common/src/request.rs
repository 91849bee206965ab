//! Requests on sockets: their identity, what is kept of a connection in the kernel, and the events of a request's way.

use crate::{part::Parts, plain};

/// The longest piece of a request or an answer that is handed over at once; longer reads and writes make several.
pub const PIECE_BYTES: usize = 16 * 1024;
/// Room of the pieces, smallest first: a piece takes the first that it fits into. Close together where most answers are:
/// one of a single token takes 1,300 to 1,900 bytes.
pub const PIECE_ROOMS: [usize; 11] = [128, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, PIECE_BYTES];
/// Pieces of one read or write; what lies between them and its end is left out.
pub const PIECES: u32 = 16;
/// Bytes of one request that are handed over; of what follows only the end. Images stand behind such a length.
pub const REQUEST_BYTES: u64 = 1 << 20;
/// Bytes of one answer that are handed over; of what follows only the end.
pub const ANSWER_BYTES: u64 = 1 << 20;
/// Reads up to this long are gathered before they are handed over: a slow client sends its head in such pieces, and
/// over TLS the server reads it byte by byte.
pub const SHORT_READ: u32 = 63;
/// Writes of one answer that are handed over whatever their length; of what follows only long ones and the end.
pub const WRITES: u32 = 4;
/// The same where the begin of an answer's text is looked at: a stream brings a token a write.
pub const TEXT_WRITES: u32 = 64;
/// Bytes of a page of what is kept of a request or an answer. A write that does not fit into one is long.
pub const PAGE_BYTES: usize = 2048;
/// When more of their ring than this waits for the agent, in eighths, what stands between the begin and the end of a long
/// answer is left out.
pub const MIDDLES_EIGHTHS: u64 = 2;
/// When more than this waits, in eighths, begins and ends of answers are lost: who asked matters more.
pub const ANSWERS_EIGHTHS: u64 = 6;

/// How often the agent is woken for what happens to requests, at most, nanoseconds. What happens meanwhile waits so long.
pub const WAKE_NS: u64 = 10_000_000;

/// How long tokens of a request are chosen, nanoseconds, until that is told: a token takes some microseconds, with a large
/// grammar milliseconds. A power of two. One thread chooses, so it is told at most 120 times a second.
pub const SAMPLING_QUANTUM_NS: u64 = 1 << 23;

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
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Peer {
    /// IPv6 address, or an IPv4 one mapped into IPv6 (`::ffff:a.b.c.d`); zeroes when unknown.
    pub address: [u8; 16],
    /// Its port; 0 when unknown.
    pub port: u32,
}

/// What is kept of a connection, from its accept on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// When the client has closed it; 0 as long as it has not.
    pub gone_ns: u64,
    /// Bytes of the answer.
    pub bytes_out: u64,
    /// Bytes of the request.
    pub bytes_in: u64,
    /// What its bytes pass through: 0 when that is not known yet, [`Connection::PLAIN`], else the address of the TLS
    /// session. A thread that serves a connection may have sessions of its own, as a client.
    pub session: u64,
    /// Writes of the answer.
    pub writes: u32,
    /// The sequence that the request under way took last; -1 when there is none.
    pub sequence: i32,
    /// [`Connection::ADOPTED`] and the like, and [`Gap`]s of the request under way.
    pub flags: u32,
    /// Status code of the answer; 0 when it is not known.
    pub code: u32,
    /// The client.
    pub peer: Peer,
    /// Always 0.
    pub reserved: u32,
}

impl Connection {
    /// It was open before the agent came: which thread serves it is not known.
    pub const ADOPTED: u32 = 1;
    /// No request was read on it yet.
    pub const FRESH: u32 = 2;
    /// The server has said its last word: what it reads from now on is no request.
    pub const SHUT: u32 = 4;

    /// The session of a connection without TLS.
    pub const PLAIN: u64 = 1;

    /// The request under way.
    #[inline(always)]
    pub const fn request(&self, key: ConnectionKey) -> RequestKey {
        RequestKey { arrived_ns: self.arrived_ns, tgid: key.tgid, fd: key.fd }
    }

    /// Whether its bytes pass through a TLS session.
    pub const fn is_tls(&self) -> bool {
        self.session > Self::PLAIN
    }
}

/// What was lost of a request, as flags of its connection and of its events.
pub struct Gap;

impl Gap {
    /// An event.
    pub const EVENT: u32 = 1 << 8;
    /// Bytes that were read.
    pub const REQUEST: u32 = 1 << 9;
    /// Bytes of the answer.
    pub const ANSWER: u32 = 1 << 10;
    /// All of them.
    pub const ANY: u32 = Self::EVENT | Self::REQUEST | Self::ANSWER;
}

/// What is kept of the bytes of a request under way, from its first byte to its end: those that wait to be handed over,
/// later the last ones that were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Talk {
    /// Bytes of the request that were handed over.
    pub told_in: u64,
    /// Bytes of the answer that were handed over.
    pub told_out: u64,
    /// Where in the request or the answer each page begins.
    pub starts: [u64; 2],
    /// How far each page is filled.
    pub lens: [u32; 2],
    /// The page that is written to.
    pub page: u32,
    /// Bit 0 and 1: the page begins within a read or a write.
    pub cut: u32,
    /// The pages, and room for a write that begins at the end of the second one.
    pub pages: [u8; 3 * PAGE_BYTES],
}

impl Talk {
    /// Nothing yet.
    pub const BLANK: Self = Self {
        told_in: 0,
        told_out: 0,
        starts: [0; 2],
        lens: [0; 2],
        page: 0,
        cut: 0,
        pages: [0; 3 * PAGE_BYTES],
    };
}

/// What goes before the bytes of a request or an answer that are handed over. Behind it is one of the
/// [`PIECE_ROOMS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct PieceHead {
    /// [`PieceHead::ANSWER`] and the like.
    pub flags: u32,
    /// Bytes that follow.
    pub len: u32,
    /// The request.
    pub request: RequestKey,
    /// When they were read or written.
    pub at_ns: u64,
    /// Bytes of the request or the answer before them.
    pub offset: u64,
}

impl PieceHead {
    /// They are of the answer.
    pub const ANSWER: u32 = 1;
    /// They begin within a read or a write of which the begin is left out.
    pub const CUT: u32 = 2;
    /// They are the first on their connection.
    pub const FRESH: u32 = 4;
}

/// What an event is about; the first field of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RequestEventKind {
    /// [`BeginEvent`]
    Begin = 1,
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
    /// [`DraftEvent`]
    Draft = 8,
    /// [`PromptEvent`]
    Prompt = 9,
    /// [`PrefillEvent`]
    Prefill = 10,
    /// [`CopyEvent`]
    Copy = 11,
    /// [`WorkEvent`]
    Work = 12,
}

/// A request begins.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct BeginEvent {
    /// [`RequestEventKind::Begin`]
    pub kind: u32,
    /// [`BeginEvent::READ`] and the like.
    pub flags: u32,
    /// The request.
    pub request: RequestKey,
    /// When.
    pub at_ns: u64,
    /// How long the connection waited, accepted, until a thread of the server took it up; 0 for its later requests.
    pub unread_ns: u64,
    /// The client.
    pub peer: Peer,
    /// Always 0.
    pub reserved: u32,
}

impl BeginEvent {
    /// By bytes that were read; otherwise they came together with the request before it.
    pub const READ: u32 = 1;
    /// They came through a TLS session.
    pub const TLS: u32 = 2;
}

/// Bytes of an answer were written, and handed over as far as there was room.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
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
    /// Bytes of the request up to here.
    pub bytes_in: u64,
    /// Bytes of the answer up to here.
    pub bytes_out: u64,
    /// Its status code; 0 when it is not known.
    pub code: u32,
    /// [`Gap`]s.
    pub gaps: u32,
}

crate::numbered! {
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
}

/// A request is over on its socket.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
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
    /// When the client closed the connection; 0 when it has not so far.
    pub gone_ns: u64,
    /// Bytes of the request.
    pub bytes_in: u64,
    /// Bytes of the answer.
    pub bytes_out: u64,
    /// Writes of the answer.
    pub writes: u32,
    /// Its status code; 0 when it is not known.
    pub code: u32,
    /// [`Gap`]s.
    pub gaps: u32,
    /// Always 0.
    pub reserved: u32,
}

impl EndEvent {
    /// The end of the request under way on a connection.
    #[inline(always)]
    pub const fn of(key: ConnectionKey, state: &Connection, reason: EndReason, at_ns: u64) -> Self {
        Self {
            kind: RequestEventKind::End as u32,
            reason: reason as u32,
            request: state.request(key),
            at_ns,
            last_write_ns: state.last_write_ns,
            gone_ns: state.gone_ns,
            bytes_in: state.bytes_in,
            bytes_out: state.bytes_out,
            writes: state.writes,
            code: state.code,
            gaps: state.flags & Gap::ANY,
            reserved: 0,
        }
    }
}

/// A request was given a task of the engine.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
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
    /// When the server freed a context of its model last; 0 for never.
    pub freed_ns: u64,
}

/// A task took a slot.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
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
    /// The [`Part`](crate::part::Part) that most of its longest gap was.
    pub worst_part: u32,
    /// When a saved state was put into its slot before it started; 0 when none was.
    pub restored_ns: u64,
    /// Positions that its slot held when the request before left it.
    pub held_tokens: u32,
    /// What became of them: [`Held`](crate::sequence::Held)s.
    pub fate: u32,
    /// The gaps of its tokens, by [`Part`](crate::part::Part), without the time before it took the slot.
    pub parts: Parts,
}

/// A decode call that checked guesses is over. Sent only where it was asked for: it comes once a step.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
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

/// A request's prompt goes into a decode call of an engine that works for others, too.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct PromptEvent {
    /// [`RequestEventKind::Prompt`]
    pub kind: u32,
    /// Tokens of it.
    pub tokens: u32,
    /// The request; `arrived_ns` 0 when none is known.
    pub request: RequestKey,
    /// When the call was entered: so is it named.
    pub at_ns: u64,
}

/// A decode call with prompts is over, of an engine that works for several; or the one after it, which has none.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct PrefillEvent {
    /// [`RequestEventKind::Prefill`]
    pub kind: u32,
    /// Prompt tokens in it; 0 when it is the one after it that is over.
    pub prompt: u32,
    /// No request: the process.
    pub request: RequestKey,
    /// When.
    pub at_ns: u64,
    /// When it was entered, the one with prompts.
    pub entered_ns: u64,
    /// How much longer it took for its prompts.
    pub excess_ns: u64,
    /// How much longer than between calls without prompts the server's own work took before the call that is over.
    pub host_ns: u64,
}

crate::numbered! {
    /// What a server did for one request while others waited.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    pub enum Work {
        /// It gave the request a slot: from there to the next thing that is seen, as far as that is more than usual.
        Launch,
        /// Its tokens were chosen, for another [`SAMPLING_QUANTUM_NS`].
        Sampling,
    }
}

/// An engine that works for several has worked for one request alone.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct WorkEvent {
    /// [`RequestEventKind::Work`]
    pub kind: u32,
    /// A [`Work`].
    pub work: u32,
    /// The request.
    pub request: RequestKey,
    /// When.
    pub at_ns: u64,
    /// Since when: who came later has not waited. Sampling: 0, since that was told last.
    pub from_ns: u64,
    /// How long; sampling: in whole quanta.
    pub ns: u64,
}

/// A server has saved or restored the cache of a slot.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct CopyEvent {
    /// [`RequestEventKind::Copy`]
    pub kind: u32,
    /// An [`Operation`](crate::copying::Operation).
    pub operation: u32,
    /// No request: the process.
    pub request: RequestKey,
    /// When it was over: when the engine did the next thing that is seen.
    pub at_ns: u64,
    /// When it began.
    pub entered_ns: u64,
    /// Bytes that were copied.
    pub bytes: u64,
    /// The slot.
    pub slot: i32,
    /// Always 0.
    pub reserved: u32,
}

plain!(
    ConnectionKey = 8,
    RequestKey = 16,
    Peer = 20,
    Connection = 104,
    Talk = 48 + 3 * PAGE_BYTES,
    PieceHead = 40,
    BeginEvent = 64,
    WriteEvent = 56,
    EndEvent = 80,
    TaskEvent = 40,
    DraftEvent = 40,
    SlotStartEvent = 40,
    SlotEndEvent = 144 + 64,
    PromptEvent = 32,
    PrefillEvent = 56,
    CopyEvent = 56,
    WorkEvent = 48,
);
