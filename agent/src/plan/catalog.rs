//! What can be hooked: one row a symbol. A new probe is an id, a kernel program, a row here and a test.
//!
//! Facts by build: names and argument layouts were read in sources and binaries from b2029 (January 2024) to b11739
//! (November 2026). Arguments count from 0.

use llamaprobe_common::{
    cookie::{BatchLayout, ContextLayout, Cookie, TokenLayout},
    probe::ProbeId,
};
use serde::{Deserialize, Serialize};

use super::site::Needs;
use crate::discovery::Wanted;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A decode call is entered.
    Batch,
    /// The logits of a decode call are looked at.
    StepEnd,
    /// A token is ready.
    Token,
    /// The KV cache of a sequence is cut back to what a request reuses.
    CacheHit,
    /// A request takes a slot.
    SlotStart,
    /// A request leaves its slot.
    SlotEnd,
    /// The server says how many guesses of a draft it took.
    Draft,
    /// The server gives a request up: if it took part in the last decode call, that failed.
    Failure,
    /// All that a context holds is dropped, or the context itself.
    ContextEnd,
    /// The thread that serves a connection waits for a task of the engine.
    Task,
    /// Bytes are read or written through a TLS library that the process maps.
    Tls,
}

impl Role {
    /// Every role, in the order in which a request meets them.
    pub const ALL: [Self; 11] = [
        Self::Tls,
        Self::Task,
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

    /// The name used in labels and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::StepEnd => "step_end",
            Self::Token => "token",
            Self::CacheHit => "cache_hit",
            Self::SlotStart => "slot_start",
            Self::SlotEnd => "slot_end",
            Self::Draft => "draft",
            Self::Failure => "failure",
            Self::ContextEnd => "context_end",
            Self::Task => "task",
            Self::Tls => "tls",
        }
    }

    /// What an operator does not get when no probe serves the role.
    pub const fn lost(self) -> &'static str {
        match self {
            Self::Batch => "llm_batch_tokens, llm_decode_step_seconds, prompt tokens, context size and use",
            Self::StepEnd => "llm_decode_step_seconds then includes the sampling of the first token",
            Self::Token => "llm_inter_token_latency_seconds, generated tokens",
            Self::CacheHit => "cached tokens",
            Self::Tls => "requests over TLS",
            Self::Task => "the exact join of HTTP requests to slots",
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

/// A kernel program, by the name of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// `lp_batch`
    Batch,
    /// `lp_sample`
    Sample,
    /// `lp_slot_token`
    SlotToken,
    /// `lp_cache_hit`
    CacheHit,
    /// `lp_slot_start`
    SlotStart,
    /// `lp_slot_end`
    SlotEnd,
    /// `lp_slot_turn`
    SlotTurn,
    /// `lp_slot_fork`
    SlotFork,
    /// `lp_embedded`
    Embedded,
    /// `lp_accepted`
    Accepted,
    /// `lp_slot_error`
    SlotError,
    /// `lp_task_error`
    TaskError,
    /// `lp_clear`
    Clear,
    /// `lp_free`
    Free,
    /// `lp_task`
    Task,
    /// `lp_tasks`
    Tasks,
    /// `lp_tls_read`, and `lp_tls_readend` or `lp_tls_readen` where the function returns
    TlsRead,
    /// `lp_tls_write`
    TlsWrite,
    /// `lp_tls_accept`
    TlsAccept,
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 19] = [
        Self::Batch,
        Self::Sample,
        Self::SlotToken,
        Self::CacheHit,
        Self::SlotStart,
        Self::SlotEnd,
        Self::SlotTurn,
        Self::SlotFork,
        Self::Embedded,
        Self::Accepted,
        Self::SlotError,
        Self::TaskError,
        Self::Clear,
        Self::Free,
        Self::Task,
        Self::Tasks,
        Self::TlsRead,
        Self::TlsWrite,
        Self::TlsAccept,
    ];

    /// The name of its function in the object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Batch => "lp_batch",
            Self::Sample => "lp_sample",
            Self::SlotToken => "lp_slot_token",
            Self::CacheHit => "lp_cache_hit",
            Self::SlotStart => "lp_slot_start",
            Self::SlotEnd => "lp_slot_end",
            Self::SlotTurn => "lp_slot_turn",
            Self::SlotFork => "lp_slot_fork",
            Self::Embedded => "lp_embedded",
            Self::Accepted => "lp_accepted",
            Self::SlotError => "lp_slot_error",
            Self::TaskError => "lp_task_error",
            Self::Clear => "lp_clear",
            Self::Free => "lp_free",
            Self::Task => "lp_task",
            Self::Tasks => "lp_tasks",
            Self::TlsRead => "lp_tls_read",
            Self::TlsWrite => "lp_tls_write",
            Self::TlsAccept => "lp_tls_accept",
        }
    }

    /// The program that runs where the probed function returns.
    pub const fn at_return(self) -> Option<&'static str> {
        match self {
            Self::TlsRead => Some("lp_tls_readen"),
            _ => None,
        }
    }

    /// The program that does the same at an instruction before the end that every return passes.
    pub const fn at_end(self) -> Option<&'static str> {
        match self {
            Self::TlsRead => Some("lp_tls_readend"),
            _ => None,
        }
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

/// One symbol that can be hooked.
#[derive(Debug)]
pub struct Row {
    /// Its identity.
    pub probe: ProbeId,
    /// What it is for.
    pub role: Role,
    /// Alternatives of a role: the lowest group with a symbol present is used, all of it.
    pub group: u8,
    /// Its spellings.
    pub names: &'static [Name],
    /// The program that runs.
    pub program: Program,
    /// Where its arguments are.
    pub layout: Layout,
    /// What the program reads at the site.
    pub needs: Needs,
}

impl Row {
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

use BatchLayout::{ExtArg1, ExtArg2, Pointer, Value};
use Name::{Exact, Prefix};
use TokenLayout::{Context, ContextIndex, Slot};

/// Arguments read by the program, as bits.
const fn arguments(bits: u8) -> Needs {
    Needs { arguments: bits, stack: false }
}

const fn row(
    role: Role,
    group: u8,
    probe: ProbeId,
    program: Program,
    layout: Layout,
    needs: Needs,
    names: &'static [Name],
) -> Row {
    Row { probe, role, group, names, program, layout, needs }
}

/// The catalog.
pub static ROWS: &[Row] = &[
    // From b11181 on both entry points lead to this one; the wrapper for `llama_batch` builds a batch of the new kind.
    row(
        Role::Batch,
        0,
        ProbeId::DecodeExt,
        Program::Batch,
        Layout::Batch(ExtArg1),
        arguments(0b011),
        &[Exact("_ZN13llama_context6decodeERK15llama_batch_ext")],
    ),
    row(
        Role::Batch,
        1,
        ProbeId::DecodeBatch,
        Program::Batch,
        Layout::Batch(Pointer),
        arguments(0b011),
        &[
            Exact("_ZN13llama_context6decodeERK11llama_batch"),
            Exact("_ZN13llama_context6decodeER11llama_batch"),
        ],
    ),
    // Only where the methods are hidden: then the two do not nest.
    row(
        Role::Batch,
        2,
        ProbeId::LlamaProcess,
        Program::Batch,
        Layout::Batch(ExtArg2),
        arguments(0b111),
        &[Exact("llama_process")],
    ),
    row(
        Role::Batch,
        2,
        ProbeId::LlamaDecode,
        Program::Batch,
        Layout::Batch(Value),
        Needs { arguments: 0b011, stack: true },
        &[Exact("llama_decode")],
    ),
    row(
        Role::Token,
        0,
        ProbeId::ProcessToken,
        Program::SlotToken,
        Layout::Token(Slot, 0, 0, 0),
        arguments(0b100),
        &[
            Prefix("_ZN19server_context_impl13process_tokenER23completion_token_outputR11server_slot"),
            Prefix("_ZN14server_context13process_tokenER23completion_token_outputR11server_slot"),
        ],
    ),
    // Context-level token events nest (a sampler looks at logits); the lowest priority that fires counts.
    row(
        Role::Token,
        1,
        ProbeId::CommonSample,
        Program::Sample,
        Layout::Token(ContextIndex, 1, 2, 0),
        arguments(0b110),
        &[Prefix("_Z21common_sampler_sampleP14common_samplerP13llama_contexti")],
    ),
    row(
        Role::Token,
        1,
        ProbeId::GptSample,
        Program::Sample,
        Layout::Token(ContextIndex, 1, 2, 0),
        arguments(0b110),
        &[Prefix("_Z18gpt_sampler_sampleP11gpt_samplerP13llama_contexti")],
    ),
    row(
        Role::Token,
        1,
        ProbeId::SamplingSample,
        Program::Sample,
        Layout::Token(ContextIndex, 1, 3, 0),
        arguments(0b1010),
        &[Prefix("_Z21llama_sampling_sampleP22llama_sampling_contextP13llama_contextS2_i")],
    ),
    row(
        Role::Token,
        1,
        ProbeId::SamplerSample,
        Program::Sample,
        Layout::Token(ContextIndex, 1, 2, 0),
        arguments(0b110),
        &[Exact("llama_sampler_sample")],
    ),
    row(
        Role::Token,
        1,
        ProbeId::SampleToken,
        Program::Sample,
        Layout::Token(Context, 0, 0, 1),
        arguments(0b001),
        &[
            Exact("llama_sample_token"),
            Exact("llama_sample_token_greedy"),
            Exact("llama_sample_token_mirostat"),
            Exact("llama_sample_token_mirostat_v2"),
        ],
    ),
    row(
        Role::Token,
        1,
        ProbeId::LogitsIth,
        Program::Sample,
        Layout::Token(ContextIndex, 0, 1, 2),
        arguments(0b011),
        &[Exact("llama_get_logits_ith")],
    ),
    row(
        Role::Token,
        1,
        ProbeId::SampledTokenIth,
        Program::Sample,
        Layout::Token(ContextIndex, 0, 1, 2),
        arguments(0b011),
        &[Exact("llama_get_sampled_token_ith")],
    ),
    row(
        Role::Token,
        1,
        ProbeId::Logits,
        Program::Sample,
        Layout::Token(Context, 0, 0, 3),
        arguments(0b001),
        &[Exact("llama_get_logits")],
    ),
    row(
        Role::CacheHit,
        0,
        ProbeId::CommonSeqRm,
        Program::CacheHit,
        Layout::Plain,
        arguments(0b1110),
        &[Prefix("_ZNK13common_memory6seq_rmEiii"), Prefix("_ZN13common_memory6seq_rmEiii")],
    ),
    row(
        Role::CacheHit,
        1,
        ProbeId::MemorySeqRm,
        Program::CacheHit,
        Layout::Cut(true),
        arguments(0b1111),
        &[Exact("llama_memory_seq_rm")],
    ),
    row(
        Role::CacheHit,
        2,
        ProbeId::KvSelfSeqRm,
        Program::CacheHit,
        Layout::Cut(false),
        arguments(0b1111),
        &[Exact("llama_kv_self_seq_rm")],
    ),
    row(
        Role::CacheHit,
        3,
        ProbeId::KvCacheSeqRm,
        Program::CacheHit,
        Layout::Cut(false),
        arguments(0b1111),
        &[Exact("llama_kv_cache_seq_rm")],
    ),
    row(
        Role::SlotStart,
        0,
        ProbeId::LaunchSlot,
        Program::SlotStart,
        Layout::Plain,
        arguments(0b110),
        &[
            Prefix("_ZN19server_context_impl21launch_slot_with_taskER11server_slot"),
            Prefix("_ZN14server_context21launch_slot_with_taskER11server_slot"),
        ],
    ),
    // Where the server's own functions are not visible: its calls into the library. The same probe is the end, too.
    row(
        Role::SlotStart,
        1,
        ProbeId::SetSampler,
        Program::SlotTurn,
        Layout::Plain,
        arguments(0b011),
        &[Exact(SET_SAMPLER)],
    ),
    row(
        Role::SlotStart,
        1,
        ProbeId::MemorySeqCp,
        Program::SlotFork,
        Layout::Plain,
        arguments(0b110),
        &[Exact("llama_memory_seq_cp")],
    ),
    row(
        Role::SlotEnd,
        0,
        ProbeId::ReleaseSlot,
        Program::SlotEnd,
        Layout::Plain,
        arguments(0b001),
        &[Exact("_ZN11server_slot7releaseEv")],
    ),
    // Where no slots are seen: a program looks at its embeddings when they are computed.
    row(
        Role::StepEnd,
        0,
        ProbeId::Embeddings,
        Program::Embedded,
        Layout::Plain,
        arguments(0b001),
        &[Exact("llama_get_embeddings")],
    ),
    row(
        Role::StepEnd,
        0,
        ProbeId::EmbeddingsSeq,
        Program::Embedded,
        Layout::Plain,
        arguments(0b001),
        &[Exact("llama_get_embeddings_seq")],
    ),
    // The sequence of the argument is the slot's.
    row(
        Role::Draft,
        0,
        ProbeId::SpeculativeAccept,
        Program::Accepted,
        Layout::Plain,
        arguments(0b110),
        &[Exact("_Z25common_speculative_acceptP18common_speculativeit")],
    ),
    // One calls the other, or has it inlined.
    row(
        Role::Failure,
        0,
        ProbeId::SlotError,
        Program::SlotError,
        Layout::Plain,
        arguments(0b010),
        &[
            Prefix("_ZN19server_context_impl10send_errorERK11server_slot"),
            Prefix("_ZN14server_context10send_errorERK11server_slot"),
        ],
    ),
    row(
        Role::Failure,
        0,
        ProbeId::TaskError,
        Program::TaskError,
        Layout::Plain,
        arguments(0b010),
        &[Prefix("_ZN19server_context_impl10send_errorEi"), Prefix("_ZN14server_context10send_errorEi")],
    ),
    row(
        Role::ContextEnd,
        0,
        ProbeId::Free,
        Program::Free,
        Layout::Plain,
        arguments(0b001),
        &[Exact("llama_free")],
    ),
    row(
        Role::ContextEnd,
        0,
        ProbeId::MemoryClear,
        Program::Clear,
        Layout::Cut(true),
        arguments(0b001),
        &[Exact("llama_memory_clear")],
    ),
    row(
        Role::ContextEnd,
        0,
        ProbeId::KvSelfClear,
        Program::Clear,
        Layout::Cut(false),
        arguments(0b001),
        &[Exact("llama_kv_self_clear")],
    ),
    row(
        Role::ContextEnd,
        0,
        ProbeId::KvCacheClear,
        Program::Clear,
        Layout::Cut(false),
        arguments(0b001),
        &[Exact("llama_kv_cache_clear")],
    ),
    row(
        Role::Task,
        0,
        ProbeId::WaitingTask,
        Program::Task,
        Layout::Plain,
        arguments(0b010),
        &[Exact("_ZN15server_response19add_waiting_task_idEi")],
    ),
    row(
        Role::Task,
        0,
        ProbeId::WaitingTasks,
        Program::Tasks,
        Layout::Plain,
        arguments(0b010),
        &[Prefix("_ZN15server_response20add_waiting_task_idsERKSt13unordered_setIi")],
    ),
    // Where the return is probed the stack pointer must be that of the entry.
    row(
        Role::Tls,
        0,
        ProbeId::SslRead,
        Program::TlsRead,
        Layout::Plain,
        Needs { arguments: 0b011, stack: true },
        &[Exact("SSL_read")],
    ),
    row(
        Role::Tls,
        0,
        ProbeId::SslWrite,
        Program::TlsWrite,
        Layout::Plain,
        arguments(0b111),
        &[Exact("SSL_write")],
    ),
    row(
        Role::Tls,
        0,
        ProbeId::SslAccept,
        Program::TlsAccept,
        Layout::Plain,
        arguments(0b001),
        &[Exact("SSL_accept")],
    ),
];

/// What a server calls when a slot is taken or left, and no other program that was seen.
pub const SET_SAMPLER: &str = "llama_set_sampler";
/// The functions whose code says where the size of a context is: the interface's, and the method that it calls from
/// ~b4882 on.
pub const CONTEXT_SIZE: [&str; 2] = ["llama_n_ctx", "_ZNK13llama_context5n_ctxEv"];
/// The same for the size of one sequence, from ~b6900 on.
pub const CONTEXT_SIZE_PER_SEQUENCE: [&str; 2] = ["llama_n_ctx_seq", "_ZNK13llama_context9n_ctx_seqEv"];
/// The same for the pointer to its memory.
pub const CONTEXT_MEMORY: [&str; 1] = ["_ZNK13llama_context10get_memoryEv"];
/// Says which layout of `llama_batch_ext` is to be expected: that of ~b11500 on.
pub const HAS_TOKEN_STATE: &str = "_ZN15llama_batch_ext15set_token_stateEi10llama_embd";
/// The entry point before `llama_decode` (up to August 2023): recognised to be refused.
pub const TOO_OLD: &str = "llama_eval";

/// What discovery looks for in files.
pub const WANTED: Wanted = Wanted { symbol: wanted, strings: marked, beside: is_tls };

/// Whether discovery should keep a symbol.
pub fn wanted(symbol: &str) -> bool {
    [HAS_TOKEN_STATE, TOO_OLD].contains(&symbol)
        || CONTEXT_SIZE.contains(&symbol)
        || CONTEXT_SIZE_PER_SEQUENCE.contains(&symbol)
        || CONTEXT_MEMORY.contains(&symbol)
        || ROWS.iter().any(|row| row.matches(symbol))
}

/// Whether a symbol is of a TLS library: such a library alone is nothing to observe.
pub fn is_tls(symbol: &str) -> bool {
    ROWS.iter().any(|row| row.role == Role::Tls && row.matches(symbol))
}

/// Whether a string table can hold a wanted symbol at all: tells a library apart without walking its symbols.
pub fn marked(strings: &[u8]) -> bool {
    [
        b"llama_".as_slice(),
        b"server_slot",
        b"server_response",
        b"server_context",
        b"common_memory",
        b"common_speculative",
        b"SSL_",
    ]
    .iter()
    .any(|mark| memchr::memmem::find(strings, mark).is_some())
}

#[cfg(test)]
mod tests;
