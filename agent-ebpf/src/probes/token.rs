//! Roles token and step end: a token is ready; the logits of a step are looked at.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    batch::{Context, MAX_RUNS},
    cookie::{Cookie, TokenLayout},
    loss::Loss,
    target::TargetConfig,
};

use super::{now, observe, slot::slot_id};
use crate::{contexts, sequences, target::Target};

/// The priority from which on a look at one token's logits may repeat and only the first counts.
const REPEATS_FROM: u8 = 2;

/// `process_token(this, completion_token_output &, server_slot &)`: exactly once a generated token.
#[uprobe]
fn lp_slot_token(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let slot = slot_id(call.get(2)?)?;
        let state = sequences::find_or_make(&sequences::key_of_slot(target, slot))?;
        let now = now();
        if let Some(context) = contexts::find(target, state.context) {
            if !target.has(TargetConfig::STEP_END) {
                contexts::end_step(target, context, now);
            }
            sequences::settle(state, context);
        }
        sequences::token(target, state, now);
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
        return if target.has(TargetConfig::SLOT_TOKENS) { Ok(()) } else { Err(Loss::TokenUnmatched) };
    };
    contexts::end_step(target, context, now);
    if target.has(TargetConfig::SLOT_TOKENS) || !counts(context, cookie.priority()) {
        return Ok(());
    }
    let last = context.tokens.saturating_sub(1);
    let index = match index {
        Some(index) if index >= 0 => index as u32,
        // -1 is the last output; other negative indices are not used by any caller seen.
        Some(-1) | None => last,
        Some(_) => return Err(Loss::TokenUnmatched),
    };
    let run = run_of(context, index).ok_or(Loss::TokenUnmatched)?;
    let run = &mut context.runs[run];
    if cookie.priority() >= REPEATS_FROM {
        if index < run.sampled {
            return Ok(());
        }
        run.sampled = index + 1;
    }
    context.sampled += 1;
    let sequence = run.sequence;
    let state = sequences::find_or_make(&sequences::key(target, address, sequence))?;
    sequences::settle(state, context);
    sequences::token(target, state, now);
    Ok(())
}

/// Of the token events that fire on one context, those of the lowest priority number count.
#[inline(always)]
fn counts(context: &mut Context, priority: u8) -> bool {
    let priority = u32::from(priority) + 1;
    let best = context.token_priority;
    if best == 0 || priority < best {
        context.token_priority = priority;
        // What a lesser event has counted since the batch is this same token.
        return best == 0 || context.sampled == 0;
    }
    priority == best
}

/// The run that token `index` of the last batch belongs to.
#[inline(always)]
fn run_of(context: &Context, index: u32) -> Option<usize> {
    let mut found = None;
    for i in 0..MAX_RUNS {
        if i as u32 >= context.runs_len || context.runs[i].start > index {
            break;
        }
        found = Some(i);
    }
    found.filter(|&i| i < MAX_RUNS)
}
