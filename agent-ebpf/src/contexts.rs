//! Access to the state of contexts, and the life of a decode call: pending, then counted or retried.

use llamaprobe_common::{
    batch::{Context, ContextKey, STEPS, Step},
    loss::Loss,
    target::TokenType,
};

use crate::{
    maps::{BLANK_CONTEXT, CONTEXTS},
    target::Target,
};

/// The state of a context, if a batch was seen on it.
#[inline(always)]
pub fn find(target: &Target, context: u64) -> Option<&'static mut Context> {
    let key = ContextKey { context, tgid: target.tgid, reserved: 0 };
    // SAFETY: a context is used by one thread at a time; entries are removed only after their process has ended.
    CONTEXTS.get_ptr_mut(key).map(|state| unsafe { &mut *state })
}

/// The state of a context, made when there is none.
#[inline(always)]
pub fn find_or_make(target: &Target, context: u64) -> Result<&'static mut Context, Loss> {
    if let Some(state) = find(target, context) {
        return Ok(state);
    }
    let key = ContextKey { context, tgid: target.tgid, reserved: 0 };
    let blank = BLANK_CONTEXT.get(0).ok_or(Loss::ContextsFull)?;
    CONTEXTS.insert(key, blank, 0).map_err(|_| Loss::ContextsFull)?;
    find(target, context).ok_or(Loss::ContextsFull)
}

/// Counts a pending decode call that is over now. Returns whether there was one.
#[inline(always)]
pub fn count_pending(target: &Target, context: &mut Context, now: u64) -> bool {
    if context.flags & Context::PENDING == 0 {
        return false;
    }
    context.flags &= !Context::PENDING;
    target.batch(u64::from(context.tokens));
    target.tokens(TokenType::Prompt, u64::from(context.prompt_tokens));
    let duration_ns = now.saturating_sub(context.entered_ns);
    target.engine(duration_ns);
    let (number, tokens) = (context.step, context.tokens);
    context.steps[number as usize & (STEPS - 1)] = Step { duration_ns, number, tokens };
    true
}

/// The first logits of a decode call are looked at: it succeeded, and this is how long it took.
#[inline(always)]
pub fn end_step(target: &Target, context: &mut Context, now: u64) {
    if count_pending(target, context, now) {
        target.step(now.saturating_sub(context.entered_ns));
    }
}
