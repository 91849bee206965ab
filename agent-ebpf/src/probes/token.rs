//! Roles token and step end: a token is ready; the logits of a step are looked at.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    batch::{Context, MAX_RUNS, Pick, Run},
    cookie::{Cookie, TokenLayout},
    loss::Loss,
    sequence::Sequence,
    target::TargetConfig,
};

use super::{now, observe, slot::slot_id};
use crate::{
    contexts::{self, masked},
    sequences,
    target::Target,
};

/// The priority from which on a look at one token's logits may repeat and only the first counts.
const REPEATS_FROM: u8 = 2;

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
    if run.sampled == Run::SHARED {
        run.sampled |= index + 1;
    } else if cookie.priority() >= REPEATS_FROM && index < run.sampled {
        return Ok(());
    } else {
        run.sampled = index + 1;
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

/// The run that token `index` of the last batch belongs to. A token that several sequences share is sampled once for
/// each, in the order of their numbers, as a server goes through its slots.
#[inline(always)]
fn run_of(context: &mut Context, index: u32) -> Option<usize> {
    let (len, shares) = (context.runs_len, context.shares_len);
    if len == 0 {
        return None;
    }
    let none = MAX_RUNS as u32;
    context.pick = Pick { own: 0, end: len, next: none, sequence: i32::MAX };
    let pick = &raw mut context.pick;
    // Runs are in the order of their first tokens. Turns enough for MAX_RUNS of them.
    for _ in 0..MAX_RUNS.trailing_zeros() + 1 {
        // SAFETY: `pick` points into the map value. Volatile, so that it is not kept in registers all the same.
        unsafe {
            let (own, end) =
                ((&raw const (*pick).own).read_volatile(), (&raw const (*pick).end).read_volatile());
            if own + 1 >= end {
                break;
            }
            let middle = own + (end - own) / 2;
            let to = if context.runs[masked(middle)].start <= index {
                &raw mut (*pick).own
            } else {
                &raw mut (*pick).end
            };
            to.write_volatile(middle);
        }
    }
    for i in 0..MAX_RUNS {
        if i as u32 >= shares {
            break;
        }
        let Run { start, sequence, sampled } = context.runs[masked(len.wrapping_add(i as u32))];
        // SAFETY: as above.
        unsafe {
            if start == index
                && sampled == Run::SHARED
                && sequence < (&raw const (*pick).sequence).read_volatile()
            {
                (&raw mut (*pick).next).write_volatile(len.wrapping_add(i as u32));
                (&raw mut (*pick).sequence).write_volatile(sequence);
            }
        }
    }
    // SAFETY: as above.
    let Pick { own, next, sequence, .. } = unsafe { pick.read_volatile() };
    let run = &context.runs[masked(own)];
    let own_first = run.sampled != index.wrapping_add(1) && run.sequence < sequence;
    Some(masked(if own_first || next >= none { own } else { next }))
}
