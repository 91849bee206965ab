//! The observed process: what is known of it, what is noted of it, and what is counted for it.

use core::ops::DerefMut;

use llamaprobe_common::{
    loss::Loss,
    part::{Clock, Parts},
    target::{TargetConfig, TokenType},
};

/// What is known of the process, and what the programs note of it for themselves.
pub trait Process {
    /// Its thread group id.
    fn tgid(&self) -> u32;

    /// Whether one of the [`TargetConfig`] flags is set.
    fn has(&self, flag: u32) -> bool;

    /// The same of the flags that hold once it is known to be a server.
    fn may(&self, flag: u32) -> bool;

    /// Whether it has a server's functions and may still turn out to be one.
    fn is_undecided(&self) -> bool;

    /// Sets one of the flags.
    fn note(&self, flag: u32);

    /// Writes of one answer that are looked at.
    fn writes(&self) -> u32;

    /// Notes that it is known on which contexts a server samples slots.
    fn note_samplers(&self);

    /// Whether that is known.
    fn knows_samplers(&self) -> bool;

    /// Notes the context on which a server computes prompts.
    fn note_main(&self, address: u64);

    /// That context; 0 when it is not known.
    fn main(&self) -> u64;

    /// Notes that there were tokens of which it is not known whose they are.
    fn note_incomplete(&self, now: u64);

    /// When that was last; 0 for never.
    fn incomplete_ns(&self) -> u64;

    /// Notes that a context of its model is freed.
    fn note_freed(&self, now: u64);

    /// When that was last; 0 for never.
    fn freed_ns(&self) -> u64;

    /// How many decode calls of it could not be read so far.
    fn unread(&self) -> u32;

    /// The clock of its engine.
    fn clock(&self) -> Option<impl DerefMut<Target = Clock>>;

    /// A context is freed.
    #[inline(always)]
    fn forget_main(&self, address: u64) {
        if self.main() == address {
            self.note_main(0);
        }
    }

    /// Whether what it reads and writes may be looked at.
    #[inline(always)]
    fn keeps_payload(&self) -> bool {
        !self.has(TargetConfig::NO_PAYLOAD)
    }
}

/// What is counted for the process.
pub trait Counters {
    /// Counts a loss.
    fn lose(&self, loss: Loss);

    /// Counts tokens of a slot whose end could not be told.
    fn lose_tokens(&self, tokens: u32);

    /// Counts tokens.
    fn tokens(&self, kind: TokenType, n: u64);

    /// Counts tokens of which it is not known whose they are; they are among those of [`Counters::tokens`].
    fn unattributed(&self, kind: TokenType, n: u64);

    /// Counts draft tokens.
    fn draft(&self, accepted: u64, rejected: u64);

    /// Counts a context shift.
    fn shift(&self);

    /// Counts time of decode calls.
    fn engine(&self, ns: u64);

    /// Counts the parts of the gap of a token.
    fn gap(&self, parts: &Parts);

    /// Observes the gap between two tokens of one request.
    fn inter_token(&self, ns: u64);

    /// Observes the time from a decode call's entry to its first logits.
    fn step(&self, ns: u64);

    /// Observes the tokens of a decode call.
    fn batch(&self, tokens: u64);
}

/// Both.
pub trait Target: Process + Counters {}

impl<T: Process + Counters> Target for T {}
