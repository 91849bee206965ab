//! A server tells a request that it failed. If the request took part in the decode call under way, or that one repeats
//! another that failed, it is the call that failed: nothing of it counts. A server that gives up tells all its requests,
//! also those whose part of the batch was decoded before or never.

use llamaprobe_common::{
    batch::{Context, MAX_RUNS},
    sequence::{Sequence, SequenceKey},
};

use crate::{
    contexts,
    maps::{Contexts, Maps, Memories, Sequences},
    process::Target,
    sequences,
};

/// The request on a slot is told.
#[inline(always)]
pub fn slot(target: &impl Target, maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>, slot: i32) {
    let Some(state) = maps.sequences.find(&sequences::key_of_slot(target, slot)) else { return };
    if state.flags & Sequence::ACTIVE != 0
        && let Some(context) = maps.contexts.find(&contexts::key(target, state.context))
        && context.flags & Context::PENDING != 0
        && (state.step == context.step || contexts::is_retry(context))
    {
        contexts::fail(target, context);
    }
}

/// The request of a task is told: its slot is one of those in the batch.
#[inline(always)]
pub fn task(target: &impl Target, maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>, task: i32) {
    let address = target.main();
    let first = sequences::key(target, address, 0);
    let Some(context) = maps.contexts.find(&contexts::key(target, address)) else { return };
    if context.flags & Context::PENDING == 0 {
        return;
    }
    if contexts::is_retry(context) {
        contexts::fail(target, context);
        return;
    }
    for i in 0..MAX_RUNS {
        if i as u32 >= context.runs_len {
            break;
        }
        let key = SequenceKey { sequence: context.runs[i].sequence, ..first };
        if let Some(state) = maps.sequences.find(&key)
            && state.task == task
            && state.step == context.step
        {
            contexts::fail(target, context);
            return;
        }
    }
}
