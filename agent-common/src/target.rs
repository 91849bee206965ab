//! One observed process: what the programs must know of it and what they count for it.

use crate::{
    histogram::{BUCKETS, Histogram},
    loss::Loss,
    part::{Part, Parts},
    plain,
    probe::ProbeId,
};

/// Processes observed at the same time. Each takes a row of counters on every CPU of the machine, some 5.3 kB.
pub const MAX_TARGETS: u32 = 128;

/// Places by which the programs tell at once that a process is not observed.
pub const PLACES: u32 = 4096;

/// The place of a process among [`PLACES`].
pub const fn place(tgid: u32) -> u32 {
    tgid % PLACES
}

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
    /// Each decode call that checks guesses is told.
    pub const DRAFT_STEPS: u32 = 128;
    /// With [`TargetConfig::SLOTS`]: a server's functions are there, which does not say that it is one. Until a slot
    /// starts it is what it then is, a program that uses the library.
    pub const EITHER: u32 = 512;
    /// Set by the programs: a slot has started.
    pub const STARTED: u32 = 1024;

    /// Each decode call is told.
    pub const STEPS: u32 = 4096;

    /// Set by the programs: before any slot has started a token was counted as a program's that uses the library.
    pub const TOLD: u32 = 2048;

    /// What the programs set, and the agent leaves as it is.
    pub const NOTED: u32 = Self::STARTED | Self::TOLD;

    /// The flags that hold now, of those that are set.
    pub const fn effective(flags: u32) -> u32 {
        if Self::is_undecided(flags) {
            flags & !(Self::SLOTS | Self::SLOT_TOKENS | Self::INFERRED_SLOTS)
        } else {
            flags
        }
    }

    /// Whether it may still turn out to be a server.
    pub const fn is_undecided(flags: u32) -> bool {
        flags & (Self::EITHER | Self::STARTED) == Self::EITHER
    }
    /// Threads that it starts while it serves a request work on that request.
    pub const PREDICTS: u32 = 1 << 16;
}

/// What the programs note of a process for themselves. The agent clears it when it begins to observe, and writes it
/// never again: a flag of [`TargetConfig`] would be lost when the agent replaces that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Notes {
    /// When tokens were last met of which it is not known whose they are, `CLOCK_MONOTONIC` nanoseconds; 0 for never.
    pub incomplete_ns: u64,
    /// The context on which a server computes prompts, to tell a draft model's from it; 0 when it is not known.
    pub main: u64,
    /// When a context of its model was freed last, `CLOCK_MONOTONIC` nanoseconds; 0 for never. A server that sleeps has none.
    pub freed_ns: u64,
    /// [`Notes::MAIN_SEEN`].
    pub flags: u32,
    /// Always 0.
    pub reserved: u32,
}

impl Notes {
    /// Which contexts a server samples slots on is known from [`Context::MAIN`](crate::batch::Context::MAIN).
    pub const MAIN_SEEN: u32 = 1;
}

crate::named! {
    /// Token counters, a partition: computed prompt tokens, reused prompt tokens, generated tokens. The name is the value of
    /// the `type` label.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum TokenType {
        /// Prompt tokens that the engine computed.
        Prompt = "prompt",
        /// Prompt tokens that it reused from the KV cache.
        Cached = "cached",
        /// Tokens generated.
        Generated = "generated",
    }
}

/// What the programs count for one process on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TargetStats {
    /// Probe hits, by [`ProbeId`].
    pub hits: [u64; ProbeId::COUNT],
    /// Losses, by [`Loss`].
    pub losses: [u64; Loss::COUNT],
    /// Tokens, by [`TokenType`].
    pub tokens: [u64; TokenType::COUNT],
    /// Those of them of which it is not known whose they are, since their batch could not be read to its end.
    pub unattributed: [u64; TokenType::COUNT],
    /// Draft tokens that were accepted.
    pub accepted: u64,
    /// Draft tokens that were not.
    pub rejected: u64,
    /// Context shifts: a running request's oldest tokens were cut to make room.
    pub shifts: u64,
    /// Time of decode calls, nanoseconds: also of those whose end is not seen, such as prompt chunks without output.
    pub engine_ns: u64,
    /// Gaps of tokens by [`Part`], nanoseconds.
    pub parts: Parts,
    /// Gaps between consecutive tokens of one request, nanoseconds.
    pub inter_token: Histogram,
    /// Entry of a decode call to its first logits, nanoseconds.
    pub step: Histogram,
    /// Tokens in a decode call.
    pub batch: Histogram,
}

plain!(
    TargetConfig = 16,
    Notes = 32,
    TargetStats =
        (ProbeId::COUNT + Loss::COUNT + 2 * TokenType::COUNT + 4 + Part::COUNTED + 3 * (BUCKETS + 1)) * 8
);

impl Default for TargetStats {
    fn default() -> Self {
        Self {
            hits: [0; ProbeId::COUNT],
            losses: [0; Loss::COUNT],
            tokens: [0; TokenType::COUNT],
            unattributed: [0; TokenType::COUNT],
            accepted: 0,
            rejected: 0,
            shifts: 0,
            engine_ns: 0,
            parts: [0; Part::COUNTED],
            inter_token: Histogram::default(),
            step: Histogram::default(),
            batch: Histogram::default(),
        }
    }
}

// All of it is counters of 64 bits: what is added or subtracted is so element by element, whatever fields there are.
const _: () = assert!(size_of::<TargetStats>().is_multiple_of(8) && align_of::<TargetStats>() == 8);

impl TargetStats {
    /// Adds what another CPU, or another process, counted.
    pub fn add(&mut self, other: &Self) {
        self.words_mut().iter_mut().zip(other.words()).for_each(|(mine, more)| *mine += more);
    }

    /// What was counted since `before`. Counters of one process never go back: where one did, nothing.
    pub fn since(&self, before: &Self) -> Self {
        let mut rest = *self;
        let words = rest.words_mut().iter_mut().zip(before.words());
        words.for_each(|(mine, less)| *mine = mine.saturating_sub(*less));
        rest
    }

    fn words(&self) -> &[u64] {
        // SAFETY: `repr(C)` with nothing but `u64` in it, without padding (`plain!` asserts the size).
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>() / 8) }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as above, and any value is a counter.
        unsafe { core::slice::from_raw_parts_mut(core::ptr::from_mut(self).cast(), size_of::<Self>() / 8) }
    }
}

/// As its counters, one after the other.
#[cfg(feature = "user")]
impl serde::Serialize for TargetStats {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.words())
    }
}

#[cfg(feature = "user")]
impl<'de> serde::Deserialize<'de> for TargetStats {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> serde::de::Visitor<'de> for Words {
            type Value = TargetStats;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("the counters of a process")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut words: A) -> Result<TargetStats, A::Error> {
                let mut stats = TargetStats::default();
                for (at, word) in stats.words_mut().iter_mut().enumerate() {
                    let next = words.next_element()?;
                    *word = next.ok_or_else(|| serde::de::Error::invalid_length(at, &self))?;
                }
                match words.next_element::<u64>()? {
                    None => Ok(stats),
                    Some(_) => Err(serde::de::Error::custom("more counters than this build knows")),
                }
            }
        }
        deserializer.deserialize_seq(Words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_added_and_subtracted() {
        let mut one = TargetStats::default();
        one.words_mut().iter_mut().zip(1..).for_each(|(word, n)| *word = n);
        assert_eq!((one.hits[0], one.tokens[0]), (1, 1 + (ProbeId::COUNT + Loss::COUNT) as u64));
        assert_eq!(one.words().last(), Some(&one.batch.sum), "the last field");
        let mut two = one;
        two.add(&one);
        assert!(two.words().iter().zip(one.words()).all(|(two, one)| *two == 2 * one));
        assert_eq!((two.since(&one), one.since(&two)), (one, TargetStats::default()));
    }
}
