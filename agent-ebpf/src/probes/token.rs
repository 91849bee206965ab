//! Roles token and step end: a token is ready; the logits of a step are looked at.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    cookie::{Cookie, TokenLayout},
    loss::Loss,
    sequence::Sequence,
    target::TargetConfig,
};

use llamaprobe_core::pick;

use super::{now, observe, slot::slot_id};
use crate::{contexts, machine::Kernel, sequences, target::Target};

/// `process_token(this, completion_token_output &, server_slot &)`: exactly once a generated token.
#[uprobe]
fn lp_slot_token(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let slot = slot_id(call.get(2)?)?;
        let told = target.is_undecided() && target.has(TargetConfig::TOLD);
        target.note(TargetConfig::STARTED);
        if told {
            // A request that was running when the agent came: its sampler told the token already, as a program's.
            sequences::find_or_make(&sequences::key_of_slot(target, slot))?.flags |=
                Sequence::ACTIVE | Sequence::DECODING;
            return Ok(());
        }
        let state = sequences::find_or_make(&sequences::key_of_slot(target, slot))?;
        let now = now();
        if let Some(context) = contexts::find(target, sequences::decoder(target, state)) {
            if !target.has(TargetConfig::STEP_END) {
                contexts::end_step(target, context, now);
            }
            sequences::settle(state, context);
            context.decoding += u32::from(state.flags & Sequence::DECODING == 0);
        }
        sequences::token(target, state, now);
        Ok(())
    })
}

/// `common_speculative_accept(spec, seq_id, n)`: how many guesses of the call before are taken, once a call that checked
/// some. Of those behind a stop word no token is told.
#[uprobe]
fn lp_accepted(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let (sequence, accepted) = (call.get(1)? as i32, call.get(2)? as u16);
        if let Some(state) = sequences::find(&sequences::key(target, 0, sequence)) {
            state.step_accepted = u32::from(accepted) + 1;
        }
        Ok(())
    })
}

/// A sampler, or the look at one token's logits.
#[uprobe]
fn lp_sample(probe: ProbeContext) -> u32 {
    observe(&probe, |target, cookie, call| {
        let address = call.get(cookie.context_argument())?;
        let index = match cookie.token_layout() {
            Some(TokenLayout::ContextIndex) => Some(call.get(cookie.index_argument())? as i32),
            _ => None,
        };
        sample(target, cookie, address, index)
    })
}

#[inline(always)]
fn sample(target: &Target, cookie: Cookie, address: u64, index: Option<i32>) -> Result<(), Loss> {
    let now = now();
    let Some(context) = contexts::find(target, address) else {
        // Nothing was decoded since the agent came; where slots are seen they count the token anyway.
        return if target.may(TargetConfig::SLOT_TOKENS) { Ok(()) } else { Err(Loss::TokenUnmatched) };
    };
    contexts::end_step(target, context, now);
    if target.has(TargetConfig::SLOT_TOKENS) || !pick::counts(context, cookie.priority()) {
        return Ok(());
    }
    let last = context.tokens.saturating_sub(1);
    let index = match index {
        Some(index) if index >= 0 => index as u32,
        // -1 is the last output; other negative indices are not used by any caller seen.
        Some(-1) | None => last,
        Some(_) => return Err(Loss::TokenUnmatched),
    };
    let run = pick::run_of(&Kernel, context, index).ok_or(Loss::TokenUnmatched)?;
    let run = &mut context.runs[run];
    if !pick::sampled(run, index, cookie.priority()) {
        return Ok(());
    }
    context.sampled += 1;
    let key = sequences::key(target, address, run.sequence);
    if target.has(TargetConfig::INFERRED_SLOTS) {
        match sequences::find(&key) {
            // Draft models sample on a context of their own.
            Some(state) if state.flags & Sequence::ACTIVE == 0 || state.context != address => return Ok(()),
            Some(_) => {}
            // A request that was running when the agent came.
            None => sequences::find_or_make(&key)?.context = address,
        }
    }
    let state = sequences::find_or_make(&key)?;
    sequences::settle(state, context);
    context.decoding += u32::from(state.flags & Sequence::DECODING == 0);
    sequences::token(target, state, now);
    if target.is_undecided() {
        target.note(TargetConfig::TOLD);
    }
    Ok(())
}
