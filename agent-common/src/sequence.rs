//! State of one sequence: a slot's seat in a llama.cpp server, or a `seq_id` of any other user of libllama.

use crate::{
    part::{Parts, Sums},
    plain,
    request::RequestKey,
};

/// Names a sequence. In a server whose slots are seen, `context` is 0 and `sequence` is the slot's: slot events
/// carry no context pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SequenceKey {
    /// The `llama_context` pointer, or 0.
    pub context: u64,
    /// The process.
    pub tgid: u32,
    /// llama.cpp's `seq_id`.
    pub sequence: i32,
}

/// What is known of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Sequence {
    /// The context that decodes this request's tokens; 0 until its first batch. Batches of the same sequence on
    /// another context are those of a draft model.
    pub context: u64,
    /// When its last token of this request was ready, `CLOCK_MONOTONIC` nanoseconds; 0 before the first.
    pub last_token_ns: u64,
    /// Positions held in the KV cache: the last decoded position + 1.
    pub n_past: u32,
    /// [`Sequence::ACTIVE`] and the like.
    pub flags: u32,
    /// The server's task id of the running request; -1 when unknown.
    pub task: i32,
    /// Prompt tokens computed for the running request.
    pub prompt_tokens: u32,
    /// Prompt tokens it reuses.
    pub cached_tokens: u32,
    /// Tokens generated for it.
    pub generated_tokens: u32,
    /// The HTTP request it serves; `arrived_ns` 0 when that is not known.
    pub request: RequestKey,
    /// When it took the slot.
    pub launched_ns: u64,
    /// When the engine turned to its prompt; 0 before.
    pub prefill_ns: u64,
    /// When its first token was ready; 0 before.
    pub first_token_ns: u64,
    /// The longest gap between two of its tokens.
    pub worst_gap_ns: u64,
    /// Its share of the time of decode calls: each call's time is split by tokens.
    pub engine_ns: u64,
    /// The decode call it took part in last; see [`Context::step`](crate::batch::Context::step).
    pub step: u32,
    /// Its tokens in that call, until the call's time is shared out.
    pub step_tokens: u32,
    /// Tokens generated for it since that call.
    pub step_generated: u32,
    /// Tokens of it in that call that were guesses: those beside the one that goes on.
    pub step_drafted: u32,
    /// Tokens drafted for it in calls that are over.
    pub drafted: u32,
    /// Those of them that were accepted.
    pub accepted: u32,
    /// Tokens generated until the client closed its connection, plus 1; 0 while it is there. Not a flag beside others:
    /// it is written where the client's last packet arrives, on any processor.
    pub wanted: u32,
    /// Decode calls of the process that could not be read when it took the slot.
    pub unread: u32,
    /// Guesses in its last call that the server took for right, plus 1; 0 when it did not say.
    pub step_accepted: u32,
    /// Its tokens in that call that count as its prompt: taken back if the call fails.
    pub step_prompt: u32,
    /// What the engine had spent its time on when the last token of this request was ready, or when it took the slot.
    pub spent: Sums,
    /// The gaps of its tokens, by part. Before the first token, what decode calls took longer for its prompt.
    pub parts: Parts,
    /// The [`Part`](crate::part::Part) that most of its longest gap was.
    pub worst_part: u32,
    /// Positions it held when its last request left it; 0 before, and once its context is gone.
    pub held: u32,
    /// When a saved state was put in its place; 0 when none was since its last request.
    pub restored_ns: u64,
    /// What became of what it held: [`Held`]s.
    pub fate: u32,
    /// Always 0.
    pub reserved: u32,
}

/// What became of what a slot held after its last request, as far as it decides what the next one finds there.
pub struct Held;

impl Held {
    /// All of it was dropped while no request ran.
    pub const CLEARED: u32 = 1;
    /// A state that had been saved was put in its place.
    pub const RESTORED: u32 = 2;
    /// Its last request was shifted: what stands there is at other positions than its client knows.
    pub const SHIFTED: u32 = 4;
    /// The running request is shifted while it generates.
    pub const SHIFTING: u32 = 8;
    /// The running request takes pieces of it to other positions.
    pub const MOVED: u32 = 16;
    /// It could not be cut where the running request's prompt differs: all was dropped.
    pub const REFUSED: u32 = 32;
    /// Of layers that do not keep every position an older state was put in for the running request.
    pub const REWOUND: u32 = 64;
}

impl Sequence {
    /// A request runs on it.
    pub const ACTIVE: u32 = 1;
    /// The running request has produced a token: what is decoded now is no longer prompt.
    pub const DECODING: u32 = 2;
    /// The running request's reused prompt positions have been counted.
    pub const CACHE_COUNTED: u32 = 4;
    /// Where slots are inferred: a request may have taken the slot, but nothing proves it yet.
    pub const LAUNCHED: u32 = 8;
    /// Where slots are inferred: the cache was cut back for a prompt that goes on at `cached_tokens`. The batch that
    /// does proves the start.
    pub const CUT: u32 = 16;
}

plain!(SequenceKey = 16, Sequence = 160 + 64 + 64);
