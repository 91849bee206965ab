//! The life of a decode call on its context: pending, then counted, retried or failed.

use llamaprobe_common::{
    batch::{Context, ContextKey, FAILURES, STEPS, Step},
    cookie::Cookie,
    sequence::{Sequence, SequenceKey},
    target::{TargetConfig, TokenType},
};

use crate::{
    events::Events,
    maps::{Contexts, Maps, Memories, Sequences},
    parts,
    process::{Process, Target},
    sequences, steps,
};

/// Tokens that a server decodes to warm up or to try its cache.
const WARM_UP: u32 = 2;

/// Sequences of a context that are forgotten with it: llama.cpp's `LLAMA_MAX_SEQ`.
const FORGOTTEN: u32 = 256;

/// The key of a context.
#[inline(always)]
pub fn key(target: &impl Process, address: u64) -> ContextKey {
    ContextKey { context: address, tgid: target.tgid(), reserved: 0 }
}

/// The context that the first argument of a call names, itself or by its memory. Unknown where slots are seen: there
/// sequences are named by their slots.
#[inline(always)]
pub fn named(target: &impl Process, memories: &impl Memories, cookie: Cookie, argument: u64) -> Option<u64> {
    if cookie.by_memory() { memories.find(&key(target, argument)) } else { Some(argument) }
}

/// Counts a pending decode call that is over now. Returns whether there was one.
#[inline(always)]
pub fn count_pending(target: &impl Target, context: &mut Context, now: u64) -> bool {
    if context.flags & Context::PENDING == 0 {
        return false;
    }
    context.flags &= !Context::PENDING;
    context.flags |= Context::COUNTED;
    target.batch(u64::from(context.tokens));
    let rest = unread_prompt(context);
    target.tokens(TokenType::Prompt, u64::from(context.prompt_tokens + rest));
    if rest != 0 {
        target.unattributed(TokenType::Prompt, u64::from(rest));
    }
    let duration_ns = now.saturating_sub(context.entered_ns);
    target.engine(duration_ns);
    steps::over(target, context, now);
    let (number, tokens) = (context.step, context.tokens);
    let (excess_ns, prompt) = parts::excess(target, context);
    context.steps[number as usize & (STEPS - 1)] =
        Step { duration_ns, number, tokens, excess_ns, prompt, reserved: 0 };
    true
}

/// Tokens of the batch that are prompt of nobody knows whom: of those that could not be read the others are no prompt, with
/// which slots go on that generate.
#[inline(always)]
pub fn unread_prompt(context: &Context) -> u32 {
    let unmet = context.decoding.saturating_sub(context.met);
    context.rest.saturating_sub(unmet)
}

/// The same before what the call has put into the context is cut or cleared: whatever was decoded before is decoded, but
/// for the warm-up of a server to be.
#[inline(always)]
pub fn count_passed(target: &impl Target, context: &mut Context, ended: u64) {
    if target.is_undecided() && is_warm_up(context) {
        dismiss(target, context);
    }
    count_pending(target, context, ended);
}

/// The decode call under way, if there is one, is none that counts.
#[inline(always)]
pub fn dismiss(target: &impl Target, context: &mut Context) {
    context.flags &= !Context::PENDING;
    steps::dismiss(target, context);
}

/// The first logits of a decode call are looked at: it succeeded, and this is how long it took.
#[inline(always)]
pub fn end_step(target: &impl Target, context: &mut Context, now: u64) {
    if count_pending(target, context, now) {
        target.step(now.saturating_sub(context.entered_ns));
    } else if context.flags & Context::DRAFT != 0 {
        steps::over(target, context, now);
    }
}

/// Whether a decode call of which nothing came may be one by which a server to be warms up or tries its cache: a few
/// tokens at the beginning.
#[inline(always)]
pub fn is_warm_up(context: &Context) -> bool {
    context.first_position == 0 && context.tokens <= WARM_UP
}

/// The decode call under way has failed. Its sequences take back what they took from it when they are met again.
#[inline(always)]
pub fn fail(target: &impl Target, context: &mut Context) {
    steps::fail(target, context);
    context.flags &= !Context::PENDING;
    context.failures[context.failed as usize & (FAILURES - 1)] = context.step;
    context.failed = context.failed.wrapping_add(1);
}

/// Whether a decode call that a sequence took part in has failed.
#[inline(always)]
pub fn has_failed(context: &Context, step: u32) -> bool {
    if context.failed == 0 || context.steps[step as usize & (STEPS - 1)].number == step {
        return false;
    }
    for number in &context.failures {
        if *number == step {
            return true;
        }
    }
    false
}

/// Whether the decode call under way repeats part of one that failed.
#[inline(always)]
pub fn is_retry(context: &Context) -> bool {
    let last = context.failures[context.failed.wrapping_sub(1) as usize & (FAILURES - 1)];
    context.failed != 0 && last.wrapping_add(1) == context.step
}

/// The batch under way is walked as far as possible. If that was not to its end the decode call counts all the same, if
/// the context is one whose calls do.
#[inline(always)]
pub fn walked(target: &impl Target, events: &mut impl Events, context: &mut Context) {
    incomplete(target, context);
    parts::describe(target, context);
    steps::begin(target, events, context);
}

/// Its end was not reached.
#[inline(always)]
fn incomplete(target: &impl Target, context: &mut Context) {
    if context.rest == 0 {
        return;
    }
    if context.flags & (Context::COUNTED | Context::DRAFT) == Context::COUNTED {
        context.flags |= Context::PENDING;
    }
    if context.flags & Context::PENDING != 0 {
        target.note_incomplete(context.entered_ns);
    }
}

/// Forgets all that a context holds; with `freed` the context, too, and sequences that are no slots.
#[inline(always)]
pub fn forget(
    target: &impl Target,
    maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>,
    address: u64,
    freed: bool,
    now: u64,
) {
    let Some(context) = maps.contexts.find(&key(target, address)) else { return };
    let slots = target.has(TargetConfig::SLOTS);
    let ended = if slots { now } else { context.entered_ns };
    count_passed(target, context, ended);
    let (count, memory) = (context.sequences, context.memory);
    let kept_flags = if slots { u32::MAX } else { !Sequence::DECODING };
    let kept_address = if freed { 0 } else { address };
    let first = sequences::key(target, address, 0);
    for sequence in 0..FORGOTTEN {
        if sequence >= count {
            break;
        }
        let key = SequenceKey { sequence: sequence as i32, ..first };
        if let Some(state) = maps.sequences.find(&key)
            && state.context == address
        {
            state.n_past = 0;
            state.held = 0;
            state.fate = 0;
            state.flags &= kept_flags;
            state.context = kept_address;
            if freed {
                // Slots are under no context: of them none is removed. Without a branch, which would be one more for
                // the verifier in every turn.
                maps.sequences.remove(&SequenceKey { context: address, ..key });
            }
        }
    }
    if freed {
        if memory != 0 {
            maps.memories.remove(&key(target, memory));
        }
        if context.flags & Context::DRAFT == 0 {
            target.note_freed(now);
        }
        target.forget_main(address);
        maps.contexts.remove(&key(target, address));
    }
}
