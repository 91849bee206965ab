//! A request takes a server slot and leaves it; how it shares one's prompt; what of it is found in the cache.

use llamaprobe_common::{
    batch::{Context, MAX_SEQUENCE},
    loss::Loss,
    part::Part,
    request::{RequestEventKind, RequestKey, SlotEndEvent, SlotStartEvent},
    sequence::{Held, Sequence},
    target::{TargetConfig, TokenType},
    task::TaskKey,
};

use crate::{
    contexts,
    events::Requests,
    machine::{Machine, Memory},
    maps::{Contexts, Maps, Memories, Sequences},
    parts, pick,
    process::{Process, Target},
    sequences, steps,
};

/// A task takes a slot.
#[inline(always)]
pub fn start(
    target: &impl Target,
    machine: &impl Machine,
    sequences: &mut impl Sequences,
    requests: &mut impl Requests,
    slot: u64,
    task: u64,
) -> Result<(), Loss> {
    let slot = slot_id(machine, slot)?;
    let task = machine.read::<i32>(task)?;
    let now = machine.now();
    target.note(TargetConfig::STARTED);
    // What was saved and restored was for this one.
    parts::turn(target, requests, now);
    let state = sequences.find_or_make(&sequences::key_of_slot(target, slot))?;
    parts::begin(target, state, now);
    parts::run(target, state);
    let key = TaskKey { tgid: target.tgid(), task };
    let request = requests.of_task(&key).unwrap_or(nobody(target));
    parts::launch(target, requests, request, now);
    sequences::launch(target, state, task, request, now);
    let sequence = sequences::key_of_slot(target, slot).sequence;
    if request.arrived_ns != 0 && requests.take_slot(&request, sequence) {
        // The client went before there was a token.
        sequences::want(machine, state, 1);
    }
    tell_start(target, requests, state, slot, -1);
    Ok(())
}

/// No request that is known, of the target.
#[inline(always)]
fn nobody(target: &impl Process) -> RequestKey {
    RequestKey { arrived_ns: 0, tgid: target.tgid(), fd: -1 }
}

/// Tells that a slot was taken.
#[inline(always)]
fn tell_start(target: &impl Target, requests: &mut impl Requests, state: &Sequence, slot: i32, origin: i32) {
    if !target.has(TargetConfig::HTTP) {
        return;
    }
    let told = requests.tell(|| SlotStartEvent {
        kind: RequestEventKind::SlotStart as u32,
        task: state.task,
        request: state.request,
        at_ns: state.launched_ns,
        slot,
        origin,
    });
    if !told {
        requests.lose_event(target, &state.request);
    }
}

/// A slot is left. That of one where nothing runs is no news.
#[inline(always)]
pub fn end(
    target: &impl Target,
    machine: &impl Machine,
    maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>,
    requests: &mut impl Requests,
    slot: u64,
) -> Result<(), Loss> {
    let slot = slot_id(machine, slot)?;
    let key = sequences::key_of_slot(target, slot);
    if let Some(state) = maps.sequences.find(&key)
        && state.flags & Sequence::ACTIVE != 0
    {
        leave(target, machine, &mut maps.contexts, requests, state, slot);
    }
    Ok(())
}

/// A running request leaves its slot.
#[inline(always)]
fn leave(
    target: &impl Target,
    machine: &impl Machine,
    contexts: &mut impl Contexts,
    requests: &mut impl Requests,
    state: &mut Sequence,
    slot: i32,
) {
    let task = state.task;
    let now = machine.now();
    let decoded = state.flags & Sequence::DECODING != 0;
    parts::leave(target, requests, now);
    state.flags = 0;
    state.task = -1;
    let mut n_ctx = 0;
    // Embeddings and requests cancelled within their prompt have no token that proves the batch.
    if let Some(context) = contexts.find(&contexts::key(target, state.context)) {
        // The last try of a server that gives up: with one token, and no look at what came of it.
        if context.flags & Context::PENDING != 0 && context.tokens == 1 && contexts::is_retry(context) {
            contexts::fail(target, context);
        }
        contexts::count_pending(target, context, now);
        sequences::undo(state, context);
        sequences::take_step_share(state, context);
        n_ctx = if context.n_ctx_seq != 0 { context.n_ctx_seq } else { context.n_ctx };
    }
    if decoded && let Some(context) = contexts.find(&contexts::key(target, sequences::decoder(target, state)))
    {
        context.decoding = context.decoding.saturating_sub(1);
    }
    sequences::judge_draft(target, requests, state);
    steps::leave(target, requests, now);
    let (held_tokens, fate, restored_ns) = (state.held, state.fate, state.restored_ns);
    state.held = state.n_past;
    state.restored_ns = 0;
    state.fate = if fate & Held::SHIFTING != 0 { Held::SHIFTED } else { 0 };
    requests.forget_task(&TaskKey { tgid: target.tgid(), task });
    if !target.has(TargetConfig::HTTP) || state.launched_ns == 0 {
        return;
    }
    let told = requests.tell(|| SlotEndEvent {
        kind: RequestEventKind::SlotEnd as u32,
        task,
        request: state.request,
        at_ns: now,
        launched_ns: state.launched_ns,
        prefill_ns: state.prefill_ns,
        first_token_ns: state.first_token_ns,
        last_token_ns: state.last_token_ns,
        worst_gap_ns: state.worst_gap_ns,
        slot,
        prompt_tokens: state.prompt_tokens,
        cached_tokens: state.cached_tokens,
        generated_tokens: state.generated_tokens,
        n_past: state.n_past,
        n_ctx,
        engine_ns: state.engine_ns,
        wasted_tokens: sequences::wasted(machine, state),
        drafted_tokens: state.drafted,
        accepted_tokens: state.accepted,
        unread: target.unread().wrapping_sub(state.unread),
        incomplete: u32::from(is_incomplete(target, state)),
        worst_part: state.worst_part,
        restored_ns,
        held_tokens,
        fate,
        parts: state.parts,
    });
    if !told {
        requests.lose_event(target, &state.request);
        target.lose_tokens(state.prompt_tokens + state.cached_tokens + state.generated_tokens);
    }
}

/// Whether tokens of its prompt may be among those of which it is not known whose they are.
#[inline(always)]
fn is_incomplete(target: &impl Process, state: &Sequence) -> bool {
    let at = target.incomplete_ns();
    at != 0 && at >= state.launched_ns && (state.first_token_ns == 0 || state.first_token_ns >= at)
}

/// The sampler of a slot is set. On one that has worked that is the end; otherwise the last call before the work is the
/// start.
#[inline(always)]
pub fn turn(
    target: &impl Target,
    machine: &impl Machine,
    maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>,
    requests: &mut impl Requests,
    address: u64,
    slot: i32,
) -> Result<(), Loss> {
    if !target.may(TargetConfig::INFERRED_SLOTS) {
        // Another process that maps the same file.
        return Ok(());
    }
    maps.contexts.find_or_make(&contexts::key(target, address))?.flags |= Context::MAIN;
    target.note_samplers();
    let slot = plausible(slot)?;
    let state = maps.sequences.find_or_make(&sequences::key(target, 0, slot))?;
    if state.flags & Sequence::ACTIVE != 0 {
        leave(target, machine, &mut maps.contexts, requests, state, slot);
        return Ok(());
    }
    state.flags = Sequence::LAUNCHED;
    state.launched_ns = machine.now();
    parts::copied(target, requests, state.launched_ns);
    parts::begin(target, state, state.launched_ns);
    Ok(())
}

/// A server copies the prompt of a request with several choices from the slot that computed it to one that waits for it.
#[inline(always)]
pub fn fork(
    target: &impl Target,
    machine: &impl Machine,
    maps: &mut Maps<impl Contexts, impl Memories, impl Sequences>,
    requests: &mut impl Requests,
    from: i32,
    to: i32,
) -> Result<(), Loss> {
    let (from, to) = (plausible(from)?, plausible(to)?);
    let Some(origin) = maps.sequences.find(&sequences::key(target, 0, from)) else { return Ok(()) };
    if origin.flags & Sequence::ACTIVE == 0 {
        return Ok(());
    }
    let (decoder, n_past) = (origin.context, origin.n_past);
    let (step, prompt, own) = (origin.step, origin.step_prompt, origin.parts[Part::OwnPrefill as usize]);
    let state = maps.sequences.find_or_make(&sequences::key(target, 0, to))?;
    let active = state.flags & Sequence::ACTIVE != 0;
    if target.has(TargetConfig::INFERRED_SLOTS) && !active {
        let launched = if state.flags & Sequence::LAUNCHED != 0 {
            state.launched_ns
        } else {
            let now = machine.now();
            parts::begin(target, state, now);
            now
        };
        parts::run(target, state);
        sequences::launch(target, state, -1, nobody(target), launched);
        state.flags |= Sequence::CACHE_COUNTED;
        state.context = decoder;
        state.n_past = n_past;
        if let Some(context) = maps.contexts.find(&contexts::key(target, decoder)) {
            pick::share(machine, context, from, to);
        }
    } else if !active {
        return Ok(());
    }
    if state.first_token_ns == 0 {
        // The prompt that it waits for is its own request's.
        state.step = step;
        state.step_prompt = prompt;
        state.parts[Part::OwnPrefill as usize] = own;
    }
    tell_start(target, requests, state, to, from);
    Ok(())
}

/// The batch that proves the start of an inferred slot: the prompt goes on where the cache was cut. Returns whether
/// there was such a cut.
#[inline(always)]
pub fn prove(
    target: &impl Target,
    requests: &mut impl Requests,
    state: &mut Sequence,
    slot: i32,
    position: u32,
) -> bool {
    if state.flags & Sequence::CUT == 0 || state.cached_tokens != position {
        return false;
    }
    let (cached, prefill) = (state.cached_tokens, state.prefill_ns);
    let launched = if state.flags & Sequence::LAUNCHED != 0 { state.launched_ns } else { prefill };
    parts::run(target, state);
    sequences::launch(target, state, -1, nobody(target), launched);
    state.flags |= Sequence::CACHE_COUNTED;
    state.cached_tokens = cached;
    state.prefill_ns = prefill;
    target.tokens(TokenType::Cached, u64::from(cached));
    tell_start(target, requests, state, slot, -1);
    true
}

/// A sequence number that can be one.
#[inline(always)]
pub(crate) fn plausible(sequence: i32) -> Result<i32, Loss> {
    if (0..MAX_SEQUENCE).contains(&sequence) { Ok(sequence) } else { Err(Loss::Implausible) }
}

/// The id of a slot: its first member (b3485 to b11549).
#[inline(always)]
pub fn slot_id(memory: &impl Memory, slot: u64) -> Result<i32, Loss> {
    plausible(memory.read::<i32>(slot)?)
}

#[cfg(test)]
mod tests;
