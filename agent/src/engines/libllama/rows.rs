//! What is hooked of the library and of the helpers that llama.cpp's own programs share (libllama-common), which some
//! bindings bring along.

use llamaprobe_common::{
    cookie::{
        BatchLayout::{ExtArg1, ExtArg2, Pointer, Value},
        TokenLayout::{Context, ContextIndex},
    },
    probe::ProbeId,
    target::TargetConfig,
};

use crate::engines::catalog::{
    Layout::{Batch, Cut, Plain, Token},
    Name::{Exact, Prefix},
    Program, Row, row,
};

/// The rows.
pub(super) static ROWS: &[Row] = &[
    // From b11181 on both entry points lead to this one; the wrapper for `llama_batch` builds a batch of the new kind.
    row(
        0,
        ProbeId::DecodeExt,
        Program::Batch,
        Batch(ExtArg1),
        &[Exact("_ZN13llama_context6decodeERK15llama_batch_ext")],
    ),
    row(
        1,
        ProbeId::DecodeBatch,
        Program::Batch,
        Batch(Pointer),
        &[
            Exact("_ZN13llama_context6decodeERK11llama_batch"),
            Exact("_ZN13llama_context6decodeER11llama_batch"),
        ],
    ),
    // Only where the methods are hidden: then the two do not nest.
    row(2, ProbeId::LlamaProcess, Program::Batch, Batch(ExtArg2), &[Exact("llama_process")]),
    row(2, ProbeId::LlamaDecode, Program::Batch, Batch(Value), &[Exact("llama_decode")]),
    // Context-level token events nest (a sampler looks at logits); the lowest priority that fires counts.
    row(
        0,
        ProbeId::CommonSample,
        Program::Sample,
        Token(ContextIndex, 1, 2, 0),
        &[Prefix("_Z21common_sampler_sampleP14common_samplerP13llama_contexti")],
    )
    .sampler(),
    row(
        0,
        ProbeId::GptSample,
        Program::Sample,
        Token(ContextIndex, 1, 2, 0),
        &[Prefix("_Z18gpt_sampler_sampleP11gpt_samplerP13llama_contexti")],
    )
    .sampler()
    .setting(TargetConfig::SEQUENCE_SHIFT),
    row(
        0,
        ProbeId::SamplingSample,
        Program::Sample,
        Token(ContextIndex, 1, 3, 0),
        &[Prefix("_Z21llama_sampling_sampleP22llama_sampling_contextP13llama_contextS2_i")],
    )
    .sampler()
    .setting(TargetConfig::SEQUENCE_SHIFT),
    row(
        0,
        ProbeId::SamplerSample,
        Program::Sample,
        Token(ContextIndex, 1, 2, 0),
        &[Exact("llama_sampler_sample")],
    ),
    row(
        0,
        ProbeId::SampleToken,
        Program::Sample,
        Token(Context, 0, 0, 1),
        &[
            Exact("llama_sample_token"),
            Exact("llama_sample_token_greedy"),
            Exact("llama_sample_token_mirostat"),
            Exact("llama_sample_token_mirostat_v2"),
        ],
    ),
    row(
        0,
        ProbeId::LogitsIth,
        Program::Sample,
        Token(ContextIndex, 0, 1, 2),
        &[Exact("llama_get_logits_ith")],
    ),
    row(
        0,
        ProbeId::SampledTokenIth,
        Program::Sample,
        Token(ContextIndex, 0, 1, 2),
        &[Exact("llama_get_sampled_token_ith")],
    ),
    row(0, ProbeId::Logits, Program::Sample, Token(Context, 0, 0, 3), &[Exact("llama_get_logits")]),
    row(
        0,
        ProbeId::CommonSeqRm,
        Program::CacheHit,
        Plain,
        &[Prefix("_ZNK13common_memory6seq_rmEiii"), Prefix("_ZN13common_memory6seq_rmEiii")],
    ),
    row(1, ProbeId::MemorySeqRm, Program::CacheHit, Cut(true), &[Exact("llama_memory_seq_rm")]),
    row(2, ProbeId::KvSelfSeqRm, Program::CacheHit, Cut(false), &[Exact("llama_kv_self_seq_rm")]),
    row(3, ProbeId::KvCacheSeqRm, Program::CacheHit, Cut(false), &[Exact("llama_kv_cache_seq_rm")]),
    row(0, ProbeId::StateSeqSet, Program::Restore, Plain, &[Exact("llama_state_seq_set_data_ext")]),
    row(0, ProbeId::StateSeqGet, Program::Save, Plain, &[Exact("llama_state_seq_get_data_ext")]),
    row(0, ProbeId::StateSeqSize, Program::Measure, Plain, &[Exact("llama_state_seq_get_size_ext")]),
    row(
        0,
        ProbeId::ContextSeqGet,
        Program::Copy,
        Plain,
        &[Exact("_ZN13llama_context18state_seq_get_dataEiPhmj")],
    ),
    row(
        0,
        ProbeId::ContextSeqSet,
        Program::Copy,
        Plain,
        &[Exact("_ZN13llama_context18state_seq_set_dataEiPKhmj")],
    ),
    // Where the server's own functions are not visible: its calls into the library. The same probe is the end, too.
    row(0, ProbeId::SetSampler, Program::SlotTurn, Plain, &[Exact("llama_set_sampler")]),
    row(0, ProbeId::MemorySeqCp, Program::SlotFork, Plain, &[Exact("llama_memory_seq_cp")]),
    // Where no slots are seen: a program looks at its embeddings when they are computed.
    row(0, ProbeId::Embeddings, Program::Embedded, Plain, &[Exact("llama_get_embeddings")]),
    row(0, ProbeId::EmbeddingsSeq, Program::Embedded, Plain, &[Exact("llama_get_embeddings_seq")]),
    // The sequence of the argument is the slot's.
    row(
        0,
        ProbeId::SpeculativeAccept,
        Program::Accepted,
        Plain,
        &[Exact("_Z25common_speculative_acceptP18common_speculativeit")],
    ),
    row(0, ProbeId::Free, Program::Free, Plain, &[Exact("llama_free")]),
    row(0, ProbeId::MemoryClear, Program::Clear, Cut(true), &[Exact("llama_memory_clear")]),
    row(0, ProbeId::KvSelfClear, Program::Clear, Cut(false), &[Exact("llama_kv_self_clear")]),
    row(0, ProbeId::KvCacheClear, Program::Clear, Cut(false), &[Exact("llama_kv_cache_clear")]),
];
