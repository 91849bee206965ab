//! A token is ready; the logits of a step are looked at.

use llamaprobe_common::{batch::Context, loss::Loss, sequence::Sequence, target::TargetConfig};

use crate::{
    contexts,
    events::Events,
    machine::Machine,
    maps::{Contexts, Maps, Memories, Sequences},
    parts, pick,
    process::Target,
    sequences,
};

/// A server has a token for a slot: exactly once a generated token.
#[inline(always)]
pub fn of_slot(
    target: &impl Target,
    machine: &impl Machine,
    maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>,
    events: &mut impl Events,
    slot: i32,
) -> Result<(), Loss> {
    let told = target.is_undecided() && target.has(TargetConfig::TOLD);
    target.note(TargetConfig::STARTED);
    let state = maps.sequences.find_or_make(&sequences::key_of_slot(target, slot))?;
    if told {
        // A request that was running when the agent came: its sampler told the token already, as a program's.
        state.flags |= Sequence::ACTIVE | Sequence::DECODING;
        return Ok(());
    }
    let now = machine.now();
    let sampling = parts::token(target, events, now);
    if let Some(context) = maps.contexts.find(&contexts::key(target, sequences::decoder(target, state))) {
        if !target.has(TargetConfig::STEP_END) {
            contexts::end_step(target, context, now);
        }
        sequences::take_step_share(state, context);
        context.decoding += u32::from(state.flags & Sequence::DECODING == 0);
    }
    let gap = parts::charge(target, state, now, sampling);
    parts::tell_sampling(target, events, state, now, &gap);
    sequences::token(target, state, now, &gap);
    Ok(())
}

/// A server takes guesses of the call before for right, once a call that checked some. Of those behind a stop word no token
/// is told.
#[inline(always)]
pub fn accepted(target: &impl Target, sequences: &mut impl Sequences, sequence: i32, accepted: u16) {
    if let Some(state) = sequences.find(&sequences::key(target, 0, sequence)) {
        state.step_accepted = u32::from(accepted) + 1;
    }
}

/// A sampler, or the look at the logits of one token: of the last batch that with an index, or the last one.
#[inline(always)]
pub fn sample(
    target: &impl Target,
    machine: &impl Machine,
    maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>,
    events: &mut impl Events,
    priority: u8,
    address: u64,
    index: Option<i32>,
) -> Result<(), Loss> {
    let now = machine.now();
    let Some(context) = maps.contexts.find(&contexts::key(target, address)) else {
        // Nothing was decoded since the agent came; where slots are seen they count the token anyway.
        return if target.may(TargetConfig::SLOT_TOKENS) { Ok(()) } else { Err(Loss::TokenUnmatched) };
    };
    if context.flags & Context::DRAFT == 0 {
        parts::sample(target, events, now);
    }
    contexts::end_step(target, context, now);
    if target.has(TargetConfig::SLOT_TOKENS) || !pick::counts(context, priority) {
        return Ok(());
    }
    let tokens = context.tokens;
    let index = match index {
        Some(index) if index >= 0 => index as u32,
        // From the last output: that of the last token. Where more than one is looked at so, as llama-cpp-python does with
        // guesses, every token has one.
        Some(index) if index.unsigned_abs() <= tokens => tokens - index.unsigned_abs(),
        Some(-1) | None => tokens.saturating_sub(1),
        Some(_) => return Err(Loss::TokenUnmatched),
    };
    let run = pick::run_of(machine, context, index).ok_or(Loss::TokenUnmatched)?;
    let run = &mut context.runs[run];
    if !pick::sampled(run, index, priority) {
        return Ok(());
    }
    context.sampled += 1;
    let key = sequences::key(target, address, run.sequence);
    if target.has(TargetConfig::INFERRED_SLOTS) {
        match maps.sequences.find(&key) {
            // Draft models sample on a context of their own.
            Some(state) if state.flags & Sequence::ACTIVE == 0 || state.context != address => return Ok(()),
            Some(_) => {}
            // A request that was running when the agent came.
            None => maps.sequences.find_or_make(&key)?.context = address,
        }
    }
    let state = maps.sequences.find_or_make(&key)?;
    sequences::take_step_share(state, context);
    context.decoding += u32::from(state.flags & Sequence::DECODING == 0);
    let gap = parts::charge(target, state, now, 0);
    sequences::token(target, state, now, &gap);
    if target.is_undecided() {
        target.note(TargetConfig::TOLD);
    }
    Ok(())
}
