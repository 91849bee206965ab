//! Roles context end and, where no slots are seen, step end: what a context holds is dropped, and embeddings are looked
//! at.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::target::TargetConfig;
use llamaprobe_core::{contexts, process::Process as _};

use super::{now, observe};
use crate::{contexts::find, sequences::MAPS};

/// `llama_free(ctx)`: the next context may have the same address, and another size.
#[uprobe]
fn lp_free(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        contexts::forget(target, &mut { MAPS }, call.get(0)?, true, now());
        Ok(())
    })
}

/// `llama_memory_clear(memory, data)`, `llama_kv_self_clear(ctx)`, `llama_kv_cache_clear(ctx)`.
#[uprobe]
fn lp_clear(probe: ProbeContext) -> u32 {
    observe(&probe, |target, cookie, call| {
        if let Some(address) = contexts::named(target, &MAPS.memories, cookie, call.get(0)?) {
            contexts::forget(target, &mut { MAPS }, address, false, now());
        }
        Ok(())
    })
}

/// `llama_get_embeddings(ctx)`, `llama_get_embeddings_seq(ctx, seq_id)`: the decode call before has succeeded.
#[uprobe]
fn lp_embedded(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        if !target.has(TargetConfig::SLOTS)
            && let Some(context) = find(&contexts::key(target, call.get(0)?))
        {
            contexts::end_step(target, context, now());
        }
        Ok(())
    })
}
