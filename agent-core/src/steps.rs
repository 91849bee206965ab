//! Each decode call as a record of its own, where somebody wants them: begun when its batch is known, told with the tokens
//! that came of it once no more can come, which is at the next call, or when no request is left. An engine makes one call
//! at a time, on whatever context.

use core::ops::DerefMut;

use llamaprobe_common::{
    batch::Context,
    loss::Loss,
    part::Clock,
    step::{Model, Outcome, StepEvent},
    target::TargetConfig,
};

use crate::{
    contexts::unread_prompt,
    events::Events,
    parts,
    process::{Process, Target},
};

/// Where the record is that is under way, if records are wanted.
#[inline(always)]
fn clock(target: &impl Process) -> Option<impl DerefMut<Target = Clock>> {
    if target.has(TargetConfig::STEPS) { parts::clock(target) } else { None }
}

/// The same, if it is of the last decode call of a context.
#[inline(always)]
fn clock_of(target: &impl Process, context: &Context) -> Option<impl DerefMut<Target = Clock>> {
    clock(target).filter(|clock| clock.step.start_ns == context.entered_ns)
}

/// The batch of the decode call under way is known.
#[inline(always)]
pub fn begin(target: &impl Process, context: &Context) {
    let Some(mut clock) = clock(target) else { return };
    let draft = context.flags & Context::DRAFT != 0;
    if !draft && context.flags & Context::PENDING == 0 {
        // The warm-up, or another use of the context.
        return;
    }
    clock.step = StepEvent {
        start_ns: context.entered_ns,
        tgid: target.tgid(),
        tokens: context.tokens,
        prompt: if draft { 0 } else { context.prompt_tokens + unread_prompt(context) },
        sequences: context.runs_len,
        model: if draft { Model::Draft } else { Model::Main } as u32,
        ..StepEvent::NONE
    };
}

/// The last decode call of a context is over; tokens may still come of it.
#[inline(always)]
pub fn over(target: &impl Process, context: &Context, now: u64) {
    if let Some(mut clock) = clock_of(target, context)
        && clock.step.duration_ns == 0
    {
        clock.step.duration_ns = now.saturating_sub(context.entered_ns);
    }
}

/// It has failed.
#[inline(always)]
pub fn fail(target: &impl Process, context: &Context) {
    if let Some(mut clock) = clock_of(target, context) {
        clock.step.outcome = Outcome::Failed as u32;
    }
}

/// It does not count.
#[inline(always)]
pub fn dismiss(target: &impl Process, context: &Context) {
    if let Some(mut clock) = clock_of(target, context) {
        clock.step.start_ns = 0;
    }
}

/// Nothing more comes of the last decode call.
#[inline(always)]
pub fn tell(target: &impl Target, events: &mut impl Events, now: u64) {
    let Some(mut clock) = clock(target) else { return };
    if clock.step.start_ns == 0 {
        return;
    }
    if clock.step.duration_ns == 0 {
        clock.step.duration_ns = now.saturating_sub(clock.step.start_ns);
    }
    let told = events.tell_step(&clock.step);
    clock.step.start_ns = 0;
    if !told {
        target.lose(Loss::StepRingFull);
    }
}

/// A request has left its slot.
#[inline(always)]
pub fn leave(target: &impl Target, events: &mut impl Events, now: u64) {
    if clock(target).is_some_and(|clock| clock.running == 0) {
        tell(target, events, now);
    }
}

#[cfg(test)]
mod tests;
