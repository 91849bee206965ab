//! One observed process: what the programs must know of it and what they count for it.

use crate::{histogram::Histogram, loss::Loss, plain, probe::ProbeId};

/// Processes observed at the same time. Each takes a row of counters on every CPU of the machine, some 1.2 kB.
pub const MAX_TARGETS: u32 = 128;

/// What the programs must know of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TargetConfig {
    /// Index of its [`TargetStats`].
    pub index: u32,
    /// [`TargetConfig::SLOTS`] and the like.
    pub flags: u32,
    /// The TCP port it listens on; 0 when there is none, or several.
    pub port: u32,
    /// Writes of one answer that are looked at; see [`WRITES`](crate::request::WRITES).
    pub writes: u32,
}

impl TargetConfig {
    /// Starts and ends of slots are seen: sequences are keyed without context, and only batches of running
    /// requests count (not the warm-up).
    pub const SLOTS: u32 = 1;
    /// Tokens are reported by slot (`process_token`): sampler events end steps and count nothing.
    pub const SLOT_TOKENS: u32 = 2;
    /// Sampler events are seen: they end a step. Otherwise the token does.
    pub const STEP_END: u32 = 4;
    /// The sequence of a slot is its id + 1 (~b3485 to ~b3930).
    pub const SEQUENCE_SHIFT: u32 = 8;
    /// Its HTTP connections are followed.
    pub const HTTP: u32 = 16;
    /// Nothing of what it reads and writes is looked at.
    pub const NO_PAYLOAD: u32 = 32;
    /// With [`TargetConfig::SLOTS`]: the server's own functions are not visible, and starts and ends of slots are
    /// inferred from its calls into the library.
    pub const INFERRED_SLOTS: u32 = 64;
    /// Set by the programs: which contexts a server samples slots on is known from [`Context::MAIN`](crate::batch::Context::MAIN).
    pub const MAIN_SEEN: u32 = 256;
    /// Each decode call that checks guesses is told.
    pub const DRAFT_STEPS: u32 = 128;
}

/// Token counters, a partition: computed prompt tokens, reused prompt tokens, generated tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenType {
    /// Prompt tokens that the engine computed.
    Prompt,
    /// Prompt tokens that it reused from the KV cache.
    Cached,
    /// Tokens generated.
    Generated,
}

impl TokenType {
    /// Every type, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Prompt, Self::Cached, Self::Generated];

    /// The value of the `type` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Cached => "cached",
            Self::Generated => "generated",
        }
    }
}

/// What the programs count for one process on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TargetStats {
    /// Probe hits, by [`ProbeId`].
    pub hits: [u64; ProbeId::COUNT],
    /// Losses, by [`Loss`].
    pub losses: [u64; Loss::COUNT],
    /// Tokens, by [`TokenType`].
    pub tokens: [u64; 3],
    /// Draft tokens that were accepted.
    pub accepted: u64,
    /// Draft tokens that were not.
    pub rejected: u64,
    /// Context shifts: a running request's oldest tokens were cut to make room.
    pub shifts: u64,
    /// Time of decode calls, nanoseconds: also of those whose end is not seen, such as prompt chunks without output.
    pub engine_ns: u64,
    /// Gaps between consecutive tokens of one request, nanoseconds.
    pub inter_token: Histogram,
    /// Entry of a decode call to its first logits, nanoseconds.
    pub step: Histogram,
    /// Tokens in a decode call.
    pub batch: Histogram,
}

plain!(TargetConfig = 16, TargetStats = (ProbeId::COUNT + Loss::COUNT + 3 + 4 + 3 * 33) * 8);

impl TargetStats {
    /// Adds what another CPU, or another process, counted.
    pub fn add(&mut self, other: &Self) {
        let mine = self.hits.iter_mut().chain(&mut self.losses).chain(&mut self.tokens);
        let theirs = other.hits.iter().chain(&other.losses).chain(&other.tokens);
        for (mine, theirs) in mine.zip(theirs) {
            *mine += theirs;
        }
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.shifts += other.shifts;
        self.engine_ns += other.engine_ns;
        self.inter_token.add(&other.inter_token);
        self.step.add(&other.step);
        self.batch.add(&other.batch);
    }
}
