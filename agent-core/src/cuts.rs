//! The KV cache of a sequence is cut back.

use llamaprobe_common::{
    cookie::Cookie,
    loss::Loss,
    sequence::{Held, Sequence},
    target::{TargetConfig, TokenType},
};

use crate::{
    contexts,
    events::Events,
    machine::Machine,
    maps::{Contexts, Maps, Memories, Sequences},
    parts,
    process::Target,
    sequences,
};

/// `seq_rm(memory or context, seq_id, p0, p1)`, with what is cut as its last three arguments.
#[inline(always)]
pub fn cut(
    target: &impl Target,
    machine: &impl Machine,
    maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>,
    events: &mut impl Events,
    cookie: Cookie,
    owner: u64,
    part: (i32, i32, i32),
) -> Result<(), Loss> {
    parts::cleared(target, events, machine.now());
    if target.has(TargetConfig::SLOTS) {
        return cut_slot(target, machine, &mut maps.sequences, part);
    }
    if target.may(TargetConfig::INFERRED_SLOTS) {
        // A server may show itself by this: the first batch on a slot goes on where its cache was cut.
        cut_slot(target, machine, &mut maps.sequences, part)?;
    }
    if let Some(address) = contexts::named(target, &maps.memories, cookie, owner) {
        shorten(target, machine, maps, address, part);
    }
    Ok(())
}

/// A program without slots cuts a sequence, or all of them.
#[inline(always)]
fn shorten(
    target: &impl Target,
    machine: &impl Machine,
    maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>,
    address: u64,
    (sequence, from, to): (i32, i32, i32),
) {
    if sequence < 0 {
        if from <= 0 && to < 0 {
            contexts::forget(target, maps, address, false, machine.now());
        }
        return;
    }
    if let Some(context) = maps.contexts.find(&contexts::key(target, address)) {
        let ended = context.entered_ns;
        contexts::count_passed(target, context, ended);
    }
    let Some(state) = maps.sequences.find(&sequences::key(target, address, sequence)) else { return };
    let kept = if from < 0 { 0 } else { from as u32 };
    let to_end = to < 0 || to as u32 >= state.n_past;
    // Of a cut in the middle the next batch tells the new positions.
    if to_end && kept < state.n_past {
        state.n_past = kept;
    }
}

/// A server cuts a sequence: the first cut of a request tells what it reuses.
#[inline(always)]
fn cut_slot(
    target: &impl Target,
    machine: &impl Machine,
    sequences: &mut impl Sequences,
    (sequence, from, to): (i32, i32, i32),
) -> Result<(), Loss> {
    let key = sequences::key(target, 0, sequence);
    if target.may(TargetConfig::INFERRED_SLOTS) && from >= 0 && to < 0 {
        let state = sequences.find_or_make(&key)?;
        if state.flags & Sequence::ACTIVE == 0 {
            // Perhaps the prompt of a request that begins; its first batch tells.
            state.flags |= Sequence::CUT;
            state.cached_tokens = from as u32;
            state.prefill_ns = machine.now();
            state.n_past = from as u32;
            if state.flags & Sequence::LAUNCHED == 0 {
                parts::begin(target, state, state.prefill_ns);
            }
            return Ok(());
        }
    }
    let Some(state) = sequences.find(&key) else { return Ok(()) };
    // A cut in the middle: a context shift when the request generates, a reuse of chunks when it begins. The next batch
    // tells the new positions.
    if to >= 0 {
        if state.flags & Sequence::DECODING != 0 {
            target.shift();
            state.fate |= Held::SHIFTING;
        } else if state.flags & Sequence::ACTIVE != 0 {
            state.fate |= Held::MOVED;
        }
        return Ok(());
    }
    if from < 0 {
        let asked = state.flags & (Sequence::CACHE_COUNTED | Sequence::CUT) != 0;
        let idle = state.flags & Sequence::ACTIVE == 0;
        state.fate |= match (asked, idle) {
            (true, _) => Held::REFUSED,
            (false, true) => Held::CLEARED,
            _ => 0,
        };
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
        state.prefill_ns = machine.now();
        // Reuse may come from the prompt cache in memory: then it is more than the slot held.
        state.n_past = from as u32;
    } else {
        let kept = if from < 0 { 0 } else { from as u32 };
        state.n_past = if kept < state.n_past { kept } else { state.n_past };
    }
    Ok(())
}
