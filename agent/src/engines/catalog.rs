//! How a row of the catalog is written: what a probe is for, which program runs, where its arguments are. The rows
//! themselves are in the folders of the engines.
//!
//! Facts by build: names and argument layouts were read in sources and binaries from b2029 (January 2024) to b11739
//! (November 2026). Arguments count from 0.

use llamaprobe_common::{
    cookie::{BatchLayout, ContextLayout, Cookie, TokenLayout},
    named,
    probe::ProbeId,
};
use serde::{Deserialize, Serialize};

named! {
    /// What a probe is for. The name is used in labels and in output; journals have the number.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Role {
        /// A decode call is entered.
        Batch = "batch",
        /// The logits of a decode call are looked at.
        StepEnd = "step_end",
        /// A token is ready.
        Token = "token",
        /// The KV cache of a sequence is cut back to what a request reuses.
        CacheHit = "cache_hit",
        /// A request takes a slot.
        SlotStart = "slot_start",
        /// A request leaves its slot.
        SlotEnd = "slot_end",
        /// The server says how many guesses of a draft it took.
        Draft = "draft",
        /// The server gives a request up: if it took part in the last decode call, that failed.
        Failure = "failure",
        /// All that a context holds is dropped, or the context itself.
        ContextEnd = "context_end",
        /// The thread that serves a connection waits for a task of the engine.
        Task = "task",
        /// Bytes are read or written through a TLS library that the process maps.
        Tls = "tls",
        /// A saved state is put into a sequence.
        Restore = "restore",
    }
}

impl Role {
    /// Every role, in the order in which a request meets them.
    pub const MET: [Self; Self::COUNT] = [
        Self::Tls,
        Self::Task,
        Self::Restore,
        Self::SlotStart,
        Self::CacheHit,
        Self::Batch,
        Self::StepEnd,
        Self::Draft,
        Self::Token,
        Self::Failure,
        Self::SlotEnd,
        Self::ContextEnd,
    ];

    /// What an operator does not get when no probe serves the role.
    pub const fn lost(self) -> &'static str {
        match self {
            Self::Batch => "llm_batch_tokens, llm_decode_step_seconds, prompt tokens, context size and use",
            Self::StepEnd => "llm_decode_step_seconds then includes the sampling of the first token",
            Self::Token => "llm_inter_token_latency_seconds, generated tokens",
            Self::CacheHit => "cached tokens",
            Self::Tls => "requests over TLS",
            Self::Task => "the exact join of HTTP requests to slots",
            Self::Restore => {
                "llm_cache_copy_seconds_total; what came from the prompt cache in memory counts as what the slot held"
            }
            Self::Draft => "accepted draft tokens behind a stop word count as rejected",
            Self::Failure => {
                "the last of several tries of a decode call that failed counts as one that did not"
            }
            Self::ContextEnd => "contexts that were freed still count in the size and use of contexts",
            Self::SlotStart | Self::SlotEnd => {
                "llm_slots_busy, cached tokens; warm-up batches count, a prompt is told from its position"
            }
        }
    }
}

/// How a symbol is spelled in a symbol table.
#[derive(Clone, Copy, Debug)]
pub enum Name {
    /// Exactly so.
    Exact(&'static str),
    /// So at its beginning: what follows are arguments that vary with the build or the string ABI.
    Prefix(&'static str),
}

impl Name {
    /// Whether a symbol is spelled so.
    pub fn matches(self, symbol: &str) -> bool {
        match self {
            Self::Exact(name) => symbol == name,
            // Compilers put parts and variants of a function under its name with a point: `.cold`, `.isra.0`.
            Self::Prefix(prefix) => symbol.starts_with(prefix) && !symbol.contains('.'),
        }
    }
}

named! {
    /// A kernel program, by the name of its function in the object.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub enum Program {
        /// Where a decode call is entered.
        Batch = "lp_batch",
        /// Where a token is taken from a context.
        Sample = "lp_sample",
        /// Where a slot has a token.
        SlotToken = "lp_slot_token",
        /// Where a sequence is cut back.
        CacheHit = "lp_cache_hit",
        /// Where a saved state is put into a sequence.
        Restore = "lp_restore",
        /// Where the state of a sequence is saved.
        Save = "lp_save",
        /// Where its size is asked for.
        Measure = "lp_measure",
        /// Where a state is copied.
        Copy = "lp_copy",
        /// Where a slot is taken.
        SlotStart = "lp_slot_start",
        /// Where a slot is left.
        SlotEnd = "lp_slot_end",
        /// Where a slot is taken or left.
        SlotTurn = "lp_slot_turn",
        /// Where a sequence is copied.
        SlotFork = "lp_slot_fork",
        /// Where embeddings are looked at.
        Embedded = "lp_embedded",
        /// Where guesses of a draft are accepted.
        Accepted = "lp_accepted",
        /// Where a slot is told that its request failed.
        SlotError = "lp_slot_error",
        /// Where a task is.
        TaskError = "lp_task_error",
        /// Where all sequences of a context are dropped.
        Clear = "lp_clear",
        /// Where a context is freed.
        Free = "lp_free",
        /// Where a thread waits for a task.
        Task = "lp_task",
        /// Where it waits for several.
        Tasks = "lp_tasks",
        /// Where a TLS session is read; `lp_tls_read_end` or `lp_tls_read_ret` run where the function returns.
        TlsRead = "lp_tls_read",
        /// Where a TLS session is written.
        TlsWrite = "lp_tls_write",
        /// Where a TLS session is accepted.
        TlsAccept = "lp_tls_accept",
    }
}

impl Program {
    /// The program that runs where the probed function returns.
    pub const fn at_return(self) -> Option<&'static str> {
        match self {
            Self::TlsRead => Some("lp_tls_read_ret"),
            _ => None,
        }
    }

    /// The program that does the same at an instruction before the end that every return passes.
    pub const fn at_end(self) -> Option<&'static str> {
        match self {
            Self::TlsRead => Some("lp_tls_read_end"),
            _ => None,
        }
    }

    /// What it is for.
    pub const fn role(self) -> Role {
        match self {
            Self::Batch => Role::Batch,
            Self::Sample | Self::SlotToken => Role::Token,
            Self::CacheHit => Role::CacheHit,
            Self::Restore | Self::Save | Self::Measure | Self::Copy => Role::Restore,
            Self::SlotStart | Self::SlotTurn | Self::SlotFork => Role::SlotStart,
            Self::SlotEnd => Role::SlotEnd,
            Self::Embedded => Role::StepEnd,
            Self::Accepted => Role::Draft,
            Self::SlotError | Self::TaskError => Role::Failure,
            Self::Clear | Self::Free => Role::ContextEnd,
            Self::Task | Self::Tasks => Role::Task,
            Self::TlsRead | Self::TlsWrite | Self::TlsAccept => Role::Tls,
        }
    }

    /// What it reads of a function whose arguments lie so.
    const fn needs(self, layout: Layout) -> Needs {
        let (arguments, stack) = match (self, layout) {
            (Self::Batch, Layout::Batch(BatchLayout::Value)) => (0b011, true),
            (Self::Batch, Layout::Batch(BatchLayout::ExtArg2)) => (0b111, false),
            (Self::Sample, Layout::Token(TokenLayout::ContextIndex, context, index, _)) => {
                (1 << context | 1 << index, false)
            }
            (Self::Sample, Layout::Token(_, context, ..)) => (1 << context, false),
            (Self::CacheHit, Layout::Cut(_)) => (0b1111, false),
            (Self::CacheHit, _) => (0b1110, false),
            (Self::Restore | Self::Save, _) => (0b1_1100, false),
            // Where the return is probed the stack pointer must be that of the entry.
            (Self::TlsRead, _) => (0b011, true),
            (Self::TlsWrite, _) => (0b111, false),
            (Self::Batch | Self::SlotTurn, _) => (0b011, false),
            (Self::SlotStart | Self::SlotFork | Self::Accepted | Self::Measure, _) => (0b110, false),
            (Self::Sample | Self::SlotToken, _) => (0b100, false),
            (Self::SlotError | Self::TaskError | Self::Task | Self::Tasks, _) => (0b010, false),
            (Self::SlotEnd | Self::Embedded | Self::Clear | Self::Free | Self::TlsAccept | Self::Copy, _) => {
                (0b001, false)
            }
        };
        Needs { arguments, stack }
    }

    /// Whether it is attached for one process alone, rather than for whoever maps the file: a library that is not
    /// llama.cpp's is everybody's, and a return probe can be the end of a process under a seccomp filter.
    pub const fn is_for_one_process(self) -> bool {
        matches!(self, Self::TlsRead | Self::TlsWrite | Self::TlsAccept)
    }
}

/// What a row's cookie says besides the probe's id.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    /// Nothing.
    Plain,
    /// A cut of what a context holds: whether the first argument is its memory rather than the context.
    Cut(bool),
    /// A decode call; where the context size is depends on the file.
    Batch(BatchLayout),
    /// A token event: layout, number of the context argument, number of the index argument, priority.
    Token(TokenLayout, u8, u8, u8),
}

/// What a probe's program reads when it is hit, hence what must be as it was at the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bit i: integer argument i is read (rdi, rsi, rdx, rcx, r8, r9; x0 to x7).
    pub arguments: u8,
    /// Memory relative to the stack pointer is read, such as a structure passed by value.
    pub stack: bool,
}

/// One function that can be hooked.
#[derive(Debug)]
pub struct Row {
    /// Its identity.
    pub probe: ProbeId,
    /// Alternatives of a role within an engine: the lowest group with a symbol present is used, all of it.
    pub group: u8,
    /// Its spellings.
    pub names: &'static [Name],
    /// The program that runs.
    pub program: Program,
    /// Where its arguments are.
    pub layout: Layout,
    /// A server samples each token by it: it ends the step where tokens are told by slot.
    pub samples: bool,
    /// Flags of a server's [`TargetConfig`](llamaprobe_common::target::TargetConfig) that go with its presence.
    pub flags: u32,
}

/// A row of the catalog.
pub(super) const fn row(
    group: u8,
    probe: ProbeId,
    program: Program,
    layout: Layout,
    names: &'static [Name],
) -> Row {
    Row { probe, group, names, program, layout, samples: false, flags: 0 }
}

impl Row {
    /// The same; a server samples each token by it.
    pub(super) const fn sampler(self) -> Self {
        Self { samples: true, ..self }
    }

    /// The same; a server that has it has these flags.
    pub(super) const fn setting(self, flags: u32) -> Self {
        Self { flags, ..self }
    }

    /// What it is for.
    pub const fn role(&self) -> Role {
        self.program.role()
    }

    /// What its program reads at the site.
    pub const fn needs(&self) -> Needs {
        self.program.needs(self.layout)
    }

    /// The cookie to attach with.
    pub fn cookie(&self, context: ContextLayout, image: u32) -> Cookie {
        match self.layout {
            Layout::Plain => Cookie::plain(self.probe),
            Layout::Cut(by_memory) => Cookie::cut(self.probe, by_memory),
            Layout::Batch(layout) => Cookie::batch(self.probe, layout, context, image),
            Layout::Token(layout, context, index, priority) => {
                Cookie::token(self.probe, layout, context, index, priority)
            }
        }
    }

    /// Whether `symbol` is this row's.
    pub fn matches(&self, symbol: &str) -> bool {
        self.names.iter().any(|name| name.matches(symbol))
    }
}

#[cfg(test)]
mod tests;
