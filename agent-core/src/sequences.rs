//! The account of a sequence: a request takes it, takes part in decode calls, gets tokens.

use llamaprobe_common::{
    batch::{Context, STEPS},
    part::{DOINGS, Part, Parts, largest},
    request::{DraftEvent, RequestEventKind, RequestKey},
    sequence::{Sequence, SequenceKey},
    target::{TargetConfig, TokenType},
};

use crate::{
    contexts,
    events::Requests,
    machine::Machine,
    process::{Process, Target},
};

const NO_REQUEST: RequestKey = RequestKey { arrived_ns: 0, tgid: 0, fd: 0 };

/// A sequence of which nothing is known.
pub const BLANK: Sequence = Sequence {
    context: 0,
    last_token_ns: 0,
    n_past: 0,
    flags: 0,
    task: -1,
    prompt_tokens: 0,
    cached_tokens: 0,
    generated_tokens: 0,
    request: NO_REQUEST,
    launched_ns: 0,
    prefill_ns: 0,
    first_token_ns: 0,
    worst_gap_ns: 0,
    engine_ns: 0,
    step: 0,
    step_tokens: 0,
    step_generated: 0,
    step_drafted: 0,
    drafted: 0,
    accepted: 0,
    wanted: 0,
    unread: 0,
    step_accepted: 0,
    step_prompt: 0,
    spent: [0; DOINGS],
    parts: [0; Part::COUNTED],
    worst_part: 0,
    held: 0,
    restored_ns: 0,
    fate: 0,
    reserved: 0,
};

/// The client has gone when `tokens` - 1 tokens of the request were generated.
#[inline(always)]
pub fn want(machine: &impl Machine, state: &mut Sequence, tokens: u32) {
    machine.store(&mut state.wanted, tokens);
}

/// Whether it is news to a sequence that the client of `request` has gone: it works for it, `running`, and has not heard of
/// it before.
#[inline(always)]
pub const fn is_abandoned(running: u64, request: u64, wanted: u32) -> bool {
    running == request && wanted == 0
}

/// Tokens that were generated for nobody.
#[inline(always)]
pub fn wasted(machine: &impl Machine, state: &Sequence) -> u32 {
    let (wanted, generated) = (machine.load(&state.wanted), state.generated_tokens);
    if wanted == 0 { 0 } else { generated.saturating_sub(wanted - 1) }
}

/// The key of a sequence decoded on `context`.
#[inline(always)]
pub fn key(target: &impl Process, context: u64, sequence: i32) -> SequenceKey {
    let context = if target.has(TargetConfig::SLOTS) { 0 } else { context };
    SequenceKey { context, tgid: target.tgid(), sequence }
}

/// The key of the sequence that a slot sits on.
#[inline(always)]
pub fn key_of_slot(target: &impl Process, slot: i32) -> SequenceKey {
    let shift = i32::from(target.has(TargetConfig::SEQUENCE_SHIFT));
    SequenceKey { context: 0, tgid: target.tgid(), sequence: slot + shift }
}

/// The context that decodes a slot's tokens. Of a slot whose prompt was not found in its batch it is the server's.
#[inline(always)]
pub fn decoder(target: &impl Process, state: &Sequence) -> u64 {
    if state.context == 0 { target.main() } else { state.context }
}

/// A request takes the sequence. What the KV cache holds stays: the request may reuse it.
#[inline(always)]
pub fn launch(target: &impl Process, state: &mut Sequence, task: i32, request: RequestKey, now: u64) {
    let (n_past, spent) = (state.n_past, state.spent);
    let (held, restored_ns, fate) = (state.held, state.restored_ns, state.fate);
    *state = BLANK;
    state.n_past = n_past;
    state.spent = spent;
    state.held = held;
    state.restored_ns = restored_ns;
    state.fate = fate;
    state.flags = Sequence::ACTIVE;
    state.task = task;
    state.request = request;
    state.launched_ns = now;
    state.unread = target.unread();
}

/// Takes part in the decode call under way, with `tokens` of its batch, of which `prompt` are its prompt's and `drafted`
/// are guesses.
#[inline(always)]
pub fn take_part(
    target: &impl Target,
    requests: &mut impl Requests,
    state: &mut Sequence,
    context: &Context,
    tokens: u32,
    prompt: u32,
    drafted: u32,
) {
    if state.step == context.step && state.step_tokens > 0 {
        state.step_tokens += tokens;
        state.step_prompt += prompt;
        return;
    }
    take_step_share(state, context);
    judge_draft(target, requests, state);
    state.step_drafted = drafted;
    state.step_accepted = 0;
    state.step = context.step;
    state.step_tokens = tokens;
    state.step_prompt = prompt;
    state.step_generated = 0;
}

/// If the decode call that it took part in last has failed, what it took from it is taken back.
#[inline(always)]
pub fn undo(state: &mut Sequence, context: &Context) {
    if state.step_tokens == 0 || !contexts::has_failed(context, state.step) {
        return;
    }
    state.n_past = state.n_past.saturating_sub(state.step_tokens);
    state.prompt_tokens = state.prompt_tokens.saturating_sub(state.step_prompt);
    state.step_tokens = 0;
    state.step_prompt = 0;
    state.step_drafted = 0;
}

/// The decode call it took part in last is over: each token beyond the first that it gave had been guessed right.
#[inline(always)]
pub fn judge_draft(target: &impl Target, requests: &mut impl Requests, state: &mut Sequence) {
    let drafted = state.step_drafted;
    if drafted == 0 {
        return;
    }
    state.step_drafted = 0;
    // A stop word may end the answer within what was accepted: then the server's own word is more.
    let accepted = state.step_generated.max(state.step_accepted).saturating_sub(1).min(drafted);
    state.step_accepted = 0;
    state.drafted += drafted;
    state.accepted += accepted;
    target.draft(u64::from(accepted), u64::from(drafted - accepted));
    if target.has(TargetConfig::DRAFT_STEPS) && state.request.arrived_ns != 0 {
        let told = requests.tell(|| DraftEvent {
            kind: RequestEventKind::Draft as u32,
            drafted,
            request: state.request,
            at_ns: state.last_token_ns,
            accepted,
            reserved: 0,
        });
        if !told {
            requests.lose_event(target, &state.request);
        }
    }
}

/// Takes its share of the time of the decode call it took part in last, once that is over.
#[inline(always)]
pub fn take_step_share(state: &mut Sequence, context: &Context) {
    let step = context.steps[state.step as usize & (STEPS - 1)];
    let part = state.step_tokens | state.step_prompt;
    if part == 0 || step.number != state.step || step.tokens == 0 {
        return;
    }
    state.engine_ns += step.duration_ns * u64::from(state.step_tokens) / u64::from(step.tokens);
    state.step_tokens = 0;
    // What is known only after the first token is in its gap already.
    if step.prompt != 0 && state.first_token_ns == 0 {
        let own = step.excess_ns * u64::from(state.step_prompt) / u64::from(step.prompt);
        state.parts[Part::OwnPrefill as usize] += own;
    }
    state.step_prompt = 0;
}

/// A token of `state` is ready, whose gap has `parts`.
#[inline(always)]
pub fn token(target: &impl Target, state: &mut Sequence, now: u64, parts: &Parts) {
    target.tokens(TokenType::Generated, 1);
    if state.last_token_ns != 0 {
        let gap = now.saturating_sub(state.last_token_ns);
        target.inter_token(gap);
        if gap > state.worst_gap_ns {
            state.worst_gap_ns = gap;
            state.worst_part = largest(parts);
        }
    } else {
        state.first_token_ns = now;
    }
    state.generated_tokens += 1;
    state.step_generated += 1;
    state.last_token_ns = now;
    // A request that was running when the agent came is taken up here, with its first token seen.
    state.flags |= Sequence::ACTIVE | Sequence::DECODING;
}

#[cfg(test)]
mod tests;
