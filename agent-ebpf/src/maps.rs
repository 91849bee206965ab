//! Every map, each with its bound.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use llamaprobe_common::{
    batch::{Context, ContextKey},
    call::Call,
    event::MAX_ONLY,
    layout::{LayoutKey, LayoutState},
    part::Clock,
    request::{Connection, ConnectionKey, Peer, RequestKey, Talk},
    sequence::{Sequence, SequenceKey},
    stall::{CALLS as SYSTEM_CALLS, Step, Thread},
    target::{self, MAX_TARGETS, Notes, TargetConfig, TargetStats},
    task::TaskKey,
};

/// The observed processes by thread group id. Who is not here is not measured.
#[map]
pub static TARGETS: HashMap<u32, TargetConfig> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Whether there are observed processes at a place, see `llamaprobe_common::target::place`. Most processes are not observed,
/// and to see that here takes a tenth of a look-up in [`TARGETS`].
#[map]
pub static PLACES: Array<u32> = Array::with_max_entries(target::PLACES, 0);

/// What the programs note of the observed processes, by `TargetConfig::index`.
#[map]
pub static NOTES: Array<Notes> = Array::with_max_entries(MAX_TARGETS, 0);

/// The clocks of their engines, by `TargetConfig::index`.
#[map]
pub static CLOCKS: Array<Clock> = Array::with_max_entries(MAX_TARGETS, 0);

/// What is counted, by `TargetConfig::index`; the row after the last target is the agent's own.
#[map]
pub static STATS: PerCpuArray<TargetStats> = PerCpuArray::with_max_entries(MAX_TARGETS + 1, 0);

/// Sequences of the targets. Entries go with their context, those of slots with the process.
#[map]
pub static SEQUENCES: HashMap<SequenceKey, Sequence> = HashMap::with_max_entries(8192, 0);

/// One of which nothing is known: a value this large does not fit on the stack of a program beside the rest.
#[map]
pub static BLANK_SEQUENCE: Array<Sequence> = Array::with_max_entries(1, 0);

/// Contexts of the targets. Entries go when the context is freed, or with the process.
#[map]
pub static CONTEXTS: HashMap<ContextKey, Context> = HashMap::with_max_entries(256, 0);

/// How batches lie in memory, by file of each target. Entries go when their process ends.
#[map]
pub static LAYOUTS: HashMap<LayoutKey, LayoutState> = HashMap::with_max_entries(4 * MAX_TARGETS, 0);

/// The context that a `llama_memory` belongs to, by the address of the memory. Entries go with the context.
#[map]
pub static MEMORIES: HashMap<ContextKey, u64> = HashMap::with_max_entries(256, 0);

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

/// The programs that go on where one is not enough; the agent puts them there.
#[map]
pub static FOLLOW: ProgramArray = ProgramArray::with_max_entries(3, 0);
/// The place of `lp_walk`.
pub const FOLLOW_WALK: u32 = 0;
/// The place of `lp_follow`.
pub const FOLLOW_BATCH: u32 = 1;
/// The place of `lp_tasks_on`.
pub const FOLLOW_TASKS: u32 = 2;

/// Where a thread stands in the tasks of its request, between two programs.
#[map]
pub static TASK_WALKS: HashMap<u64, u64> = HashMap::with_max_entries(256, 0);

/// The program that shows a batch of unknown layout to the agent; the agent puts `lp_show` at 0.
#[map]
pub static SHOW: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Connections that observed servers accepted. Entries go with the connection.
#[map]
pub static CONNECTIONS: HashMap<ConnectionKey, Connection> = HashMap::with_max_entries(32768, 0);

/// What is kept of the bytes of requests under way. Entries go with the request.
#[map]
pub static TALKS: HashMap<ConnectionKey, Talk> = HashMap::with_max_entries(1024, 0);

/// One that holds nothing: a value this large does not fit on the stack of a program.
#[map]
pub static BLANK_TALK: Array<Talk> = Array::with_max_entries(1, 0);

/// The connections of clients, to find the one that a client closes. Entries go with the connection.
#[map]
pub static PEERS: HashMap<Peer, ConnectionKey> = HashMap::with_max_entries(32768, 0);

/// The connection that a thread serves, by process and thread id. Entries go with the connection or the thread.
#[map]
pub static THREADS: HashMap<u64, ConnectionKey> = HashMap::with_max_entries(4096, 0);

/// Reads, questions for the peer and TLS handshakes under way, by process and thread id.
#[map]
pub static CALLS: HashMap<u64, Call> = HashMap::with_max_entries(4096, 0);

/// The request that a task of the engine serves. Entries go with the slot, or when the agent has closed the request.
#[map]
pub static TASKS: HashMap<TaskKey, RequestKey> = HashMap::with_max_entries(16_384, 0);

/// What happens to requests: some 450 bytes each, thousands of requests.
#[map]
pub static REQUEST_EVENTS: RingBuf = RingBuf::with_byte_size(2 * 1024 * 1024, 0);

/// When the agent was last woken for [`REQUEST_EVENTS`] or [`PAYLOAD`], `CLOCK_MONOTONIC` nanoseconds.
#[map]
pub static WOKEN: Array<u64> = Array::with_max_entries(1, 0);

/// Bytes of [`PAYLOAD`].
pub const PAYLOAD_BYTES: u64 = 2 * 1024 * 1024;

/// Bytes of requests and answers, in pieces.
#[map]
pub static PAYLOAD: RingBuf = RingBuf::with_byte_size(PAYLOAD_BYTES as u32, 0);

/// The decode step of each observed process, by `TargetConfig::index`.
#[map]
pub static STEPS: Array<Step> = Array::with_max_entries(MAX_TARGETS, 0);

/// Threads of observed processes, by thread id. Entries go with the thread, or with the process.
#[map]
pub static SCHEDULED: HashMap<u32, Thread> = HashMap::with_max_entries(8192, 0);

/// What a thread waits for that sleeps in a system call, by the number of the call; the agent fills it.
#[map]
pub static CALL_CLASSES: Array<u32> = Array::with_max_entries(SYSTEM_CALLS, 0);

/// What held steps back. The agent looks once a second, if not for something else: room for a few processes that are told
/// as much as may be.
#[map]
pub static STALLS: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

/// Decode calls that are over, of processes of which they are wanted; where they never are the agent makes it a page long.
/// It looks once a second, if not for something else: room for the calls of some 18,000 tokens.
#[map]
pub static STEP_EVENTS: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);
