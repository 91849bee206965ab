//! Role cache hit: the KV cache of a sequence is cut back; the first cut of a request tells what it reuses.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    loss::Loss,
    sequence::Sequence,
    target::{TargetConfig, TokenType},
};

use super::{now, observe};
use crate::{contexts, sequences, target::Target};

/// `seq_rm(memory or context, seq_id, p0, p1)`, the same four arguments in every era.
#[uprobe]
fn lp_cache_hit(probe: ProbeContext) -> u32 {
    observe(&probe, |target, cookie, call| {
        let (sequence, from, to) = (call.get(1)? as i32, call.get(2)? as i32, call.get(3)? as i32);
        if target.has(TargetConfig::SLOTS) {
            return cut(target, sequence, from, to);
        }
        if target.may(TargetConfig::INFERRED_SLOTS) {
            // A server may show itself by this: the first batch on a slot goes on where its cache was cut.
            cut(target, sequence, from, to)?;
        }
        if let Some(address) = contexts::named(target, cookie, call.get(0)?) {
            shorten(target, address, sequence, from, to);
        }
        Ok(())
    })
}

/// A program without slots cuts a sequence, or all of them.
#[inline(always)]
fn shorten(target: &Target, address: u64, sequence: i32, from: i32, to: i32) {
    if sequence < 0 {
        if from <= 0 && to < 0 {
            contexts::forget(target, address, false, now());
        }
        return;
    }
    if let Some(context) = contexts::find(target, address) {
        let ended = context.entered_ns;
        contexts::count_passed(target, context, ended);
    }
    let Some(state) = sequences::find(&sequences::key(target, address, sequence)) else { return };
    let kept = if from < 0 { 0 } else { from as u32 };
    let to_end = to < 0 || to as u32 >= state.n_past;
    // Of a cut in the middle the next batch tells the new positions.
    if to_end && kept < state.n_past {
        state.n_past = kept;
    }
}

#[inline(always)]
fn cut(target: &Target, sequence: i32, from: i32, to: i32) -> Result<(), Loss> {
    let key = sequences::key(target, 0, sequence);
    if target.may(TargetConfig::INFERRED_SLOTS) && from >= 0 && to < 0 {
        let state = sequences::find_or_make(&key)?;
        if state.flags & Sequence::ACTIVE == 0 {
            // Perhaps the prompt of a request that begins; its first batch tells.
            state.flags |= Sequence::CUT;
            state.cached_tokens = from as u32;
            state.prefill_ns = now();
            state.n_past = from as u32;
            return Ok(());
        }
    }
    let Some(state) = sequences::find(&key) else { return Ok(()) };
    // A cut in the middle: a context shift when the request generates, a reuse of chunks when it begins. The next batch
    // tells the new positions.
    if to >= 0 {
        if state.flags & Sequence::DECODING != 0 {
            target.shift();
        }
        return Ok(());
    }
    if state.flags & (Sequence::ACTIVE | Sequence::CUT) == Sequence::CUT {
        // The cut was not possible, and all is computed anew.
        state.cached_tokens = 0;
    }
    let fresh = state.flags & (Sequence::ACTIVE | Sequence::CACHE_COUNTED | Sequence::DECODING);
    if from >= 0 && fresh == Sequence::ACTIVE {
        state.flags |= Sequence::CACHE_COUNTED;
        target.tokens(TokenType::Cached, from as u64);
        state.cached_tokens = from as u32;
        state.prefill_ns = now();
        // Reuse may come from the prompt cache in memory: then it is more than the slot held.
        state.n_past = from as u32;
    } else {
        let kept = if from < 0 { 0 } else { from as u32 };
        state.n_past = if kept < state.n_past { kept } else { state.n_past };
    }
    Ok(())
}
