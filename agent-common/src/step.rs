//! One decode call, as it is told where somebody wants every one of them.

use crate::plain;

crate::named! {
    /// On what a decode call is made.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    pub enum Model {
        /// The model that is served.
        Main = "main",
        /// One that guesses for it.
        Draft = "draft",
    }
}

crate::named! {
    /// What became of a decode call.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    pub enum Outcome {
        /// It counts.
        Ok = "ok",
        /// It was of no use: the server tries again with less, or gives up.
        Failed = "failed",
    }
}

/// A decode call of a server, with the tokens that came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct StepEvent {
    /// When it was entered, `CLOCK_MONOTONIC` nanoseconds; 0 where there is none.
    pub start_ns: u64,
    /// From there to the first look at its logits or, without one, to the next call or the end of its request,
    /// nanoseconds. 0 while that is not known.
    pub duration_ns: u64,
    /// The process.
    pub tgid: u32,
    /// Tokens in its batch.
    pub tokens: u32,
    /// Those of them that are prompt.
    pub prompt: u32,
    /// Tokens that were generated from it.
    pub generated: u32,
    /// Sequences in its batch.
    pub sequences: u32,
    /// A [`Model`], by number.
    pub model: u32,
    /// An [`Outcome`], by number.
    pub outcome: u32,
    /// Always 0.
    pub reserved: u32,
}

impl StepEvent {
    /// None.
    pub const NONE: Self = Self {
        start_ns: 0,
        duration_ns: 0,
        tgid: 0,
        tokens: 0,
        prompt: 0,
        generated: 0,
        sequences: 0,
        model: Model::Main as u32,
        outcome: Outcome::Ok as u32,
        reserved: 0,
    };

    /// Whether it counts as one of the model that is served.
    pub const fn is_served(&self) -> bool {
        self.model == Model::Main as u32 && self.outcome == Outcome::Ok as u32
    }

    /// When it was over, `CLOCK_MONOTONIC` nanoseconds.
    pub const fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.duration_ns)
    }
}

plain!(StepEvent = 48);
