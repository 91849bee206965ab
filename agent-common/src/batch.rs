//! State of one `llama_context`: its size and its decode call under way.

use crate::{layout::ExtLayout, plain};

/// Runs of consecutive positions of one sequence that are followed in one batch. A server's batch has one run for
/// each busy slot, and llama.cpp allows 256 (`LLAMA_MAX_SEQ`). A power of two.
pub const MAX_RUNS: usize = 512;

/// Decode calls whose duration is kept: a sequence asks for that of the last one it took part in, and it takes part in
/// nearly every one: only while the prompts of others fill the batches it waits. A power of two.
pub const STEPS: usize = 32;

/// Decode calls that failed whose numbers are kept: a server tries again with half of the batch, eleven times with 2,048.
/// A power of two.
pub const FAILURES: usize = 16;

/// The largest context and batch that are believed; anything above is a wrong layout.
pub const MAX_PLAUSIBLE: u32 = 1 << 26;

/// The largest sequence id that is believed (`LLAMA_MAX_SEQ` is 256 in 2026).
pub const MAX_SEQUENCE: i32 = 4096;

/// Names a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ContextKey {
    /// The `llama_context` pointer.
    pub context: u64,
    /// The process.
    pub tgid: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Consecutive tokens of a batch with one sequence and consecutive positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Run {
    /// Index of its first token in the batch.
    pub start: u32,
    /// Its sequence.
    pub sequence: i32,
    /// Its first position until it is attributed. Then index + 1 of the last token of it that was sampled, 0 when none was; with [`Run::SHARED`] in it for a run that
    /// shares token `start` with the run that holds it.
    pub sampled: u32,
}

impl Run {
    /// No tokens of its own: a sequence that was copied from another, whose last token it samples once more.
    pub const SHARED: u32 = 1 << 31;
}

/// The walk over a batch: the run under way and the search for its end. It lives in the map and not in the program's
/// registers because only what the verifier does not know lets it see that one turn of the loop is like the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Walk {
    /// Index of the run's first token.
    pub start: u32,
    /// Its sequence.
    pub sequence: i32,
    /// Its position.
    pub position: i32,
    /// Index of the last token known to be of the run.
    pub inside: u32,
    /// Index of the first token known not to be of it; the batch's length when none is known.
    pub beyond: u32,
    /// How far to look ahead; 0 when looking back by halves.
    pub stride: u32,
    /// How many programs have walked on.
    pub programs: u32,
    /// How many runs are attributed.
    pub closed: u32,
}

/// A decode call that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Step {
    /// From its entry to the first look at its logits, or, without that, to whatever came next on the context.
    pub duration_ns: u64,
    /// Its number, as in [`Context::step`].
    pub number: u32,
    /// Tokens in its batch.
    pub tokens: u32,
    /// How much longer it took for the prompts in it.
    pub excess_ns: u64,
    /// Tokens of those.
    pub prompt: u32,
    /// Always 0.
    pub reserved: u32,
}

/// The search for the run of a token; in the map for the reason of [`Walk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Pick {
    /// Index of the last run known to begin at the token or before it.
    pub own: u32,
    /// Index of the first run known to begin behind it.
    pub end: u32,
    /// Index of the run that shares it and samples it next; [`MAX_RUNS`] when none does.
    pub next: u32,
    /// The sequence of that run.
    pub sequence: i32,
}

/// What is known of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Context {
    /// When the decode call was entered, `CLOCK_MONOTONIC` nanoseconds.
    pub entered_ns: u64,
    /// Tokens in the batch.
    pub tokens: u32,
    /// Those of them that are prompt.
    pub prompt_tokens: u32,
    /// The first token's sequence and position: the mark by which a retry of the same batch is known.
    pub first_sequence: i32,
    /// See `first_sequence`. Of a batch without positions where its sequence stood.
    pub first_position: i32,
    /// `n_ctx`: all sequences together; 0 when unknown.
    pub n_ctx: u32,
    /// `n_ctx_seq`: one sequence; 0 when unknown.
    pub n_ctx_seq: u32,
    /// [`Context::PENDING`] and the like.
    pub flags: u32,
    /// The lowest priority of token events seen on this context, plus 1; 0 before the first.
    pub token_priority: u32,
    /// Decode calls that failed.
    pub failed: u32,
    /// Slots that generate.
    pub decoding: u32,
    /// Those of them that were found in the batch.
    pub met: u32,
    /// Always 0.
    pub reserved: u32,
    /// Tokens sampled since the batch, to tell repeated looks at one token apart.
    pub sampled: u32,
    /// How many of `runs` are filled, in the order of their first tokens.
    pub runs_len: u32,
    /// The number of the decode call, from 1.
    pub step: u32,
    /// How many runs behind those are filled with [`Run::SHARED`] ones.
    pub shares_len: u32,
    /// What its first tokens are and where they lie, where no slots are seen: by it a retry is told from the next text.
    pub mark: u64,
    /// Tokens of the batch that were not walked: whose they are is not known.
    pub rest: u32,
    /// The highest sequence decoded on it, plus 1.
    pub sequences: u32,
    /// Its `llama_memory`, by which the calls that cut it name it; 0 when unknown.
    pub memory: u64,
    /// How the batch of the decode call lies in memory, where it is a `llama_batch_ext`.
    pub layout: ExtLayout,
    /// Used while a batch is entered.
    pub walk: Walk,
    /// Used while a token is sampled.
    pub pick: Pick,
    /// The last decode calls that are over, by their number modulo [`STEPS`].
    pub steps: [Step; STEPS],
    /// The last decode calls that failed, by [`Context::failed`] modulo [`FAILURES`].
    pub failures: [u32; FAILURES],
    /// The batch by sequence.
    pub runs: [Run; MAX_RUNS],
}

impl Context {
    /// A decode call was entered and is not yet counted. It counts with the first event that proves its success;
    /// the same batch again means it failed and is tried anew.
    pub const PENDING: u32 = 1;
    /// The context of a draft model: its batches are not the server's.
    pub const DRAFT: u32 = 2;
    /// A server sets the samplers of its slots on it: no draft model's.
    pub const MAIN: u32 = 4;
    /// A batch of it was counted: one of which no run could be read is the server's, too.
    pub const COUNTED: u32 = 8;
    /// Its last decode call was made before it was known whether the process is a server.
    pub const UNDECIDED: u32 = 16;
}

plain!(
    ContextKey = 16,
    Run = 12,
    Walk = 32,
    Pick = 16,
    Step = 32,
    Context = 152 + 32 * STEPS + 4 * FAILURES + 12 * MAX_RUNS
);
