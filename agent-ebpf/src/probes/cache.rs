//! Roles cache hit and restore: the KV cache of a sequence is cut back; the first cut of a request tells what it reuses. It
//! is saved, and a saved one is put in its place.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_core::{copies, cuts};

use super::observe;
use crate::{
    contexts::ContextMap,
    machine::Helpers,
    sequences::{MAPS, SequenceMap},
};

/// `seq_rm(memory or context, seq_id, p0, p1)`, the same four arguments in every era.
#[uprobe]
fn lp_cache_hit(probe: ProbeContext) -> u32 {
    observe(&probe, |target, cookie, call| {
        let part = (call.get(1)? as i32, call.get(2)? as i32, call.get(3)? as i32);
        cuts::cut(target, &Helpers, &mut { MAPS }, &mut Helpers, cookie, call.get(0)?, part)
    })
}

/// `llama_state_seq_set_data_ext(context, source, size, seq_id, flags)`.
#[uprobe]
fn lp_restore(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let (bytes, sequence, flags) = (call.get(2)?, call.get(3)? as i32, call.get(4)? as u32);
        copies::restore(target, &Helpers, &mut SequenceMap, &mut Helpers, sequence, flags, bytes)
    })
}

/// `llama_state_seq_get_data_ext(context, destination, size, seq_id, flags)`.
#[uprobe]
fn lp_save(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let (bytes, sequence, flags) = (call.get(2)?, call.get(3)? as i32, call.get(4)? as u32);
        copies::save(target, &Helpers, &mut Helpers, sequence, flags, bytes)
    })
}

/// `llama_state_seq_get_size_ext(context, seq_id, flags)`.
#[uprobe]
fn lp_measure(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let (sequence, flags) = (call.get(1)? as i32, call.get(2)? as u32);
        copies::save(target, &Helpers, &mut Helpers, sequence, flags, 0)
    })
}

/// `llama_context::state_seq_get_data` and `state_seq_set_data`, which the library enters when all is computed.
#[uprobe]
fn lp_copy(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        copies::begin(target, &Helpers, &mut ContextMap, &mut Helpers, call.get(0)?);
        Ok(())
    })
}
