//! Every map, each with its bound.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use llamaprobe_common::{
    batch::{Context, ContextKey},
    call::Call,
    event::MAX_ONLY,
    request::{Connection, ConnectionKey, Peer, RequestKey},
    sequence::{Sequence, SequenceKey},
    target::{MAX_TARGETS, TargetConfig, TargetStats},
    task::TaskKey,
};

/// The observed processes by thread group id. Who is not here is not measured.
#[map]
pub static TARGETS: HashMap<u32, TargetConfig> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// What is counted, by `TargetConfig::index`; the row after the last target is the agent's own.
#[map]
pub static STATS: PerCpuArray<TargetStats> = PerCpuArray::with_max_entries(MAX_TARGETS + 1, 0);

/// Sequences of the targets. Entries go when their process ends.
#[map]
pub static SEQUENCES: HashMap<SequenceKey, Sequence> = HashMap::with_max_entries(8192, 0);

/// Contexts of the targets. Entries go when their process ends.
#[map]
pub static CONTEXTS: HashMap<ContextKey, Context> = HashMap::with_max_entries(256, 0);

/// One zeroed context: a value this large does not fit on the stack of a program.
#[map]
pub static BLANK_CONTEXT: Array<Context> = Array::with_max_entries(1, 0);

/// Process events.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// How much what was told of each process mattered, until the agent looks at it.
#[map]
pub static TOLD: LruHashMap<u32, u32> = LruHashMap::with_max_entries(8192, 0);

/// The processes that are meant; all, unless 0 is among them.
#[map]
pub static ONLY: HashMap<u32, u8> = HashMap::with_max_entries(MAX_ONLY, 0);

/// When each unobserved process that ran a probed function was last reported, `CLOCK_MONOTONIC` nanoseconds.
#[map]
pub static STRANGERS: LruHashMap<u32, u64> = LruHashMap::with_max_entries(256, 0);

/// The program that goes on with a batch; the agent puts `lp_follow` at 0.
#[map]
pub static FOLLOW: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Connections that observed servers accepted. Entries go with the connection.
#[map]
pub static CONNECTIONS: HashMap<ConnectionKey, Connection> = HashMap::with_max_entries(2048, 0);

/// One zeroed connection.
#[map]
pub static BLANK_CONNECTION: Array<Connection> = Array::with_max_entries(1, 0);

/// The connections of clients, to find the one that a client closes. Entries go with the connection.
#[map]
pub static PEERS: HashMap<Peer, ConnectionKey> = HashMap::with_max_entries(2048, 0);

/// The connection that a thread serves, by process and thread id. Entries go with the connection or the thread.
#[map]
pub static THREADS: HashMap<u64, ConnectionKey> = HashMap::with_max_entries(4096, 0);

/// Reads, questions for the peer and TLS handshakes under way, by process and thread id.
#[map]
pub static CALLS: HashMap<u64, Call> = HashMap::with_max_entries(4096, 0);

/// The request that a task of the engine serves. Entries go with the slot, or when the agent has closed the request.
#[map]
pub static TASKS: HashMap<TaskKey, RequestKey> = HashMap::with_max_entries(8192, 0);

/// What happens to requests.
#[map]
pub static REQUEST_EVENTS: RingBuf = RingBuf::with_byte_size(2 * 1024 * 1024, 0);
