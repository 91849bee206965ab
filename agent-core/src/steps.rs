//! Each decode call as a record of its own, where somebody wants them: begun when its batch is known, told with the tokens
//! that came of it once no more can come, which is at the next call, or when no request is left. An engine makes one call
//! at a time, of its model or of one that guesses for it.

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

/// Where the records are that are under way, if such are wanted.
#[inline(always)]
fn clock(target: &impl Process) -> Option<impl DerefMut<Target = Clock>> {
    if target.has(TargetConfig::STEPS) { parts::clock(target) } else { None }
}

/// Which of them is a context's.
#[inline(always)]
fn model(context: &Context) -> Model {
    if context.flags & Context::DRAFT != 0 { Model::Draft } else { Model::Main }
}

/// Changes the record of a context's last decode call, if that is not told.
#[inline(always)]
fn change(target: &impl Process, context: &Context, change: impl FnOnce(&mut StepEvent)) {
    if let Some(mut clock) = clock(target) {
        let step = &mut clock.steps[model(context) as usize];
        if step.start_ns == context.entered_ns {
            change(step);
        }
    }
}

/// It is over, if it was not.
#[inline(always)]
fn close(step: &mut StepEvent, now: u64) {
    if step.duration_ns == 0 {
        step.duration_ns = now.saturating_sub(step.start_ns);
    }
}

/// A decode call is entered: whatever was under way is over.
#[inline(always)]
pub fn enter(target: &impl Process, now: u64) {
    if let Some(mut clock) = clock(target) {
        close(&mut clock.steps[Model::Main as usize], now);
        close(&mut clock.steps[Model::Draft as usize], now);
    }
}

/// The batch of the decode call under way is known.
#[inline(always)]
pub fn begin(target: &impl Target, events: &mut impl Events, context: &Context) {
    let Some(mut clock) = clock(target) else { return };
    let model = model(context);
    if model == Model::Main && context.flags & Context::PENDING == 0 {
        // The warm-up, or another use of the context.
        return;
    }
    let steps = &mut clock.steps;
    // While a draft model guesses, tokens may still come of the call before.
    if model == Model::Main {
        tell(target, events, &mut steps[Model::Main as usize]);
    }
    tell(target, events, &mut steps[Model::Draft as usize]);
    steps[model as usize] = StepEvent {
        start_ns: context.entered_ns,
        tgid: target.tgid(),
        tokens: context.tokens,
        prompt: if model == Model::Draft { 0 } else { context.prompt_tokens + unread_prompt(context) },
        sequences: context.runs_len,
        model: model as u32,
        ..StepEvent::NONE
    };
}

/// The last decode call of a context is over; tokens may still come of it.
#[inline(always)]
pub fn over(target: &impl Process, context: &Context, now: u64) {
    change(target, context, |step| close(step, now));
}

/// It has failed.
#[inline(always)]
pub fn fail(target: &impl Process, context: &Context) {
    change(target, context, |step| step.outcome = Outcome::Failed as u32);
}

/// It does not count.
#[inline(always)]
pub fn dismiss(target: &impl Process, context: &Context) {
    change(target, context, |step| step.start_ns = 0);
}

/// A request has left its slot. If it was the last one nothing more comes of the last calls.
#[inline(always)]
pub fn leave(target: &impl Target, events: &mut impl Events, now: u64) {
    if let Some(mut clock) = clock(target)
        && clock.running == 0
    {
        for model in Model::ALL {
            let step = &mut clock.steps[model as usize];
            close(step, now);
            tell(target, events, step);
        }
    }
}

/// Nothing more comes of a decode call.
#[inline(always)]
fn tell(target: &impl Target, events: &mut impl Events, step: &mut StepEvent) {
    if step.start_ns == 0 {
        return;
    }
    let told = events.tell_step(step);
    step.start_ns = 0;
    if !told {
        target.lose(Loss::StepRingFull);
    }
}

#[cfg(test)]
mod tests;
