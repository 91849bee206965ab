//! What a request, or a user, has used of a server.

use llamaprobe_common::{
    request::SlotEndEvent,
    sequence::Sequence,
    target::{TargetStats, TokenType},
};

/// Tokens and engine time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Tokens by [`TokenType`].
    pub tokens: [u64; TokenType::COUNT],
    /// Share of the time of decode calls, each split by the tokens in it; nanoseconds.
    pub engine_ns: u64,
}

impl Charge {
    /// What the running request of a sequence has used so far.
    pub fn of_sequence(sequence: &Sequence) -> Self {
        let tokens = [sequence.prompt_tokens, sequence.cached_tokens, sequence.generated_tokens];
        Self { tokens: tokens.map(u64::from), engine_ns: sequence.engine_ns }
    }

    /// What a task has used.
    pub fn of_task(end: &SlotEndEvent) -> Self {
        let tokens = [end.prompt_tokens, end.cached_tokens, end.generated_tokens];
        Self { tokens: tokens.map(u64::from), engine_ns: end.engine_ns }
    }

    /// All that a process has used.
    pub fn of_process(stats: &TargetStats) -> Self {
        Self { tokens: stats.tokens, engine_ns: stats.engine_ns }
    }

    /// Adds another charge.
    pub fn add(&mut self, other: Self) {
        self.tokens.iter_mut().zip(other.tokens).for_each(|(mine, more)| *mine += more);
        self.engine_ns += other.engine_ns;
    }

    /// What came since `before`; nothing where that was more.
    pub fn since(self, before: Self) -> Self {
        let mut rest = self;
        rest.tokens.iter_mut().zip(before.tokens).for_each(|(mine, less)| *mine = mine.saturating_sub(less));
        rest.engine_ns = rest.engine_ns.saturating_sub(before.engine_ns);
        rest
    }

    /// Tokens of all types.
    pub fn all_tokens(self) -> u64 {
        self.tokens.iter().sum()
    }

    /// Nothing was used.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}
