//! An observed process.

use std::{
    cell::{Cell, RefCell},
    ops::DerefMut,
};

use llamaprobe_common::{
    histogram::{BATCH_TOKENS, LATENCY_NS},
    loss::Loss,
    part::{Clock, Parts},
    target::{TargetConfig, TargetStats, TokenType},
};

use crate::process::{Counters, Process};

/// Its thread group id.
pub const TGID: u32 = 4711;

/// The process.
pub struct Fake {
    /// Flags of [`TargetConfig`].
    pub flags: Cell<u32>,
    /// The context on which it computes prompts.
    pub main: Cell<u64>,
    /// Whether it is known on which contexts it samples slots.
    pub samplers: Cell<bool>,
    /// When it last had tokens of which it is not known whose they are.
    pub incomplete: Cell<u64>,
    /// When a context was freed last.
    pub freed: Cell<u64>,
    /// Decode calls that could not be read.
    pub unread: Cell<u32>,
    /// Writes of an answer that are looked at.
    pub writes: Cell<u32>,
    /// The clock of its engine.
    pub clock: RefCell<Clock>,
    /// What is counted.
    pub stats: RefCell<TargetStats>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            flags: Cell::default(),
            main: Cell::default(),
            samplers: Cell::default(),
            incomplete: Cell::default(),
            freed: Cell::default(),
            unread: Cell::default(),
            writes: Cell::default(),
            clock: RefCell::new(Clock::BLANK),
            stats: RefCell::default(),
        }
    }
}

impl Fake {
    /// One with flags of [`TargetConfig`].
    pub fn with(flags: u32) -> Self {
        Self { flags: Cell::new(flags), ..Self::default() }
    }

    /// Tokens that were counted.
    pub fn counted(&self, kind: TokenType) -> u64 {
        self.stats.borrow().tokens[kind as usize]
    }

    /// Losses that were counted.
    pub fn lost(&self, loss: Loss) -> u64 {
        self.stats.borrow().losses[loss as usize]
    }
}

impl Process for Fake {
    fn tgid(&self) -> u32 {
        TGID
    }

    fn has(&self, flag: u32) -> bool {
        TargetConfig::effective(self.flags.get()) & flag != 0
    }

    fn may(&self, flag: u32) -> bool {
        self.flags.get() & flag != 0
    }

    fn is_undecided(&self) -> bool {
        TargetConfig::is_undecided(self.flags.get())
    }

    fn note(&self, flag: u32) {
        self.flags.set(self.flags.get() | flag);
    }

    fn writes(&self) -> u32 {
        self.writes.get()
    }

    fn note_samplers(&self) {
        self.samplers.set(true);
    }

    fn knows_samplers(&self) -> bool {
        self.samplers.get()
    }

    fn note_main(&self, address: u64) {
        self.main.set(address);
    }

    fn main(&self) -> u64 {
        self.main.get()
    }

    fn note_incomplete(&self, now: u64) {
        self.incomplete.set(now);
    }

    fn incomplete_ns(&self) -> u64 {
        self.incomplete.get()
    }

    fn note_freed(&self, now: u64) {
        self.freed.set(now);
    }

    fn freed_ns(&self) -> u64 {
        self.freed.get()
    }

    fn unread(&self) -> u32 {
        self.unread.get()
    }

    fn clock(&self) -> Option<impl DerefMut<Target = Clock>> {
        Some(self.clock.borrow_mut())
    }
}

impl Counters for Fake {
    fn lose(&self, loss: Loss) {
        self.stats.borrow_mut().losses[loss as usize] += 1;
    }

    fn lose_tokens(&self, tokens: u32) {
        self.stats.borrow_mut().losses[Loss::TokensUntold as usize] += u64::from(tokens);
    }

    fn tokens(&self, kind: TokenType, n: u64) {
        self.stats.borrow_mut().tokens[kind as usize] += n;
    }

    fn unattributed(&self, kind: TokenType, n: u64) {
        self.stats.borrow_mut().unattributed[kind as usize] += n;
    }

    fn draft(&self, accepted: u64, rejected: u64) {
        let mut stats = self.stats.borrow_mut();
        (stats.accepted, stats.rejected) = (stats.accepted + accepted, stats.rejected + rejected);
    }

    fn shift(&self) {
        self.stats.borrow_mut().shifts += 1;
    }

    fn engine(&self, ns: u64) {
        self.stats.borrow_mut().engine_ns += ns;
    }

    fn gap(&self, parts: &Parts) {
        let mut stats = self.stats.borrow_mut();
        stats.parts.iter_mut().zip(parts).for_each(|(sum, ns)| *sum += ns);
    }

    fn inter_token(&self, ns: u64) {
        self.stats.borrow_mut().inter_token.observe(&LATENCY_NS, ns);
    }

    fn step(&self, ns: u64) {
        self.stats.borrow_mut().step.observe(&LATENCY_NS, ns);
    }

    fn batch(&self, tokens: u64) {
        self.stats.borrow_mut().batch.observe(&BATCH_TOKENS, tokens);
    }
}
