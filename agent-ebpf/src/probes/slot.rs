//! Roles slot start and slot end: a request takes a server slot and leaves it.
//!
//! Where the server's own functions are not visible, three calls into the library tell the same: the sampler of a
//! sequence is set when a slot is taken for a completion, and again when it is left, whatever it ran; and a prompt
//! begins with a cut of the sequence's cache, where the batch that follows goes on. Neither alone will do: samplers are
//! also set when the model is loaded, embeddings set none, and a load cuts once to try whether it can.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    batch::{Context, MAX_SEQUENCE},
    loss::Loss,
    request::{RequestEventKind, RequestKey, SlotEndEvent, SlotStartEvent},
    sequence::Sequence,
    target::{TargetConfig, TokenType},
    task::TaskKey,
};

use llamaprobe_core::pick;

use super::{now, observe};
use crate::{
    connections, contexts, layouts,
    machine::{Kernel, read},
    maps::{REQUEST_EVENTS, TASKS},
    sequences,
    target::Target,
    wake,
};

/// `launch_slot_with_task(this, server_slot &, server_task)`: the ids are the first members (b3485 to b11549).
#[uprobe]
fn lp_slot_start(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| start(target, call.get(1)?, call.get(2)?))
}

#[inline(always)]
fn start(target: &Target, slot: u64, task: u64) -> Result<(), Loss> {
    let slot = slot_id(slot)?;
    let task = read::<i32>(task)?;
    let now = now();
    target.note(TargetConfig::STARTED);
    let state = sequences::find_or_make(&sequences::key_of_slot(target, slot))?;
    let key = TaskKey { tgid: target.tgid, task };
    // SAFETY: the entry is replaced only by the server making a task of the same id anew.
    let request = unsafe { TASKS.get(key) }.copied();
    let request = request.unwrap_or(nobody(target));
    sequences::launch(target, state, task, request, now);
    let sequence = sequences::key_of_slot(target, slot).sequence;
    if request.arrived_ns != 0 && connections::take_slot(&request, sequence) {
        // The client went before there was a token.
        sequences::want(state, 1);
    }
    tell_start(target, state, slot, -1)
}

/// No request that is known, of the target.
#[inline(always)]
fn nobody(target: &Target) -> RequestKey {
    RequestKey { arrived_ns: 0, tgid: target.tgid, fd: -1 }
}

/// Tells that a slot was taken.
#[inline(always)]
fn tell_start(target: &Target, state: &Sequence, slot: i32, origin: i32) -> Result<(), Loss> {
    if !target.has(TargetConfig::HTTP) {
        return Ok(());
    }
    let Some(mut entry) = REQUEST_EVENTS.reserve::<SlotStartEvent>(0) else {
        connections::lost_event(target, &state.request);
        return Ok(());
    };
    entry.write(SlotStartEvent {
        kind: RequestEventKind::SlotStart as u32,
        task: state.task,
        request: state.request,
        at_ns: state.launched_ns,
        slot,
        origin,
    });
    entry.submit(wake::for_event());
    Ok(())
}

/// `server_slot::release()`: also called on idle slots, which is no news.
#[uprobe]
fn lp_slot_end(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| end(target, call.get(0)?))
}

#[inline(always)]
fn end(target: &Target, slot: u64) -> Result<(), Loss> {
    let slot = slot_id(slot)?;
    let Some(state) = sequences::find(&sequences::key_of_slot(target, slot)) else { return Ok(()) };
    if state.flags & Sequence::ACTIVE == 0 { Ok(()) } else { leave(target, state, slot) }
}

/// A running request leaves its slot.
#[inline(always)]
fn leave(target: &Target, state: &mut Sequence, slot: i32) -> Result<(), Loss> {
    let task = state.task;
    let now = now();
    let decoded = state.flags & Sequence::DECODING != 0;
    state.flags = 0;
    state.task = -1;
    let mut n_ctx = 0;
    // Embeddings and requests cancelled within their prompt have no token that proves the batch.
    if let Some(context) = contexts::find(target, state.context) {
        // The last try of a server that gives up: with one token, and no look at what came of it.
        if context.flags & Context::PENDING != 0 && context.tokens == 1 && contexts::is_retry(context) {
            contexts::fail(context);
        }
        contexts::count_pending(target, context, now);
        sequences::undo(state, context);
        sequences::settle(state, context);
        n_ctx = if context.n_ctx_seq != 0 { context.n_ctx_seq } else { context.n_ctx };
    }
    if decoded && let Some(context) = contexts::find(target, sequences::decoder(target, state)) {
        context.decoding = context.decoding.saturating_sub(1);
    }
    sequences::judge_draft(target, state);
    let _ = TASKS.remove(TaskKey { tgid: target.tgid, task });
    if !target.has(TargetConfig::HTTP) || state.launched_ns == 0 {
        return Ok(());
    }
    let Some(mut entry) = REQUEST_EVENTS.reserve::<SlotEndEvent>(0) else {
        connections::lost_event(target, &state.request);
        target.lose_tokens(state.prompt_tokens + state.cached_tokens + state.generated_tokens);
        return Ok(());
    };
    entry.write(SlotEndEvent {
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
        wasted_tokens: sequences::wasted(state),
        drafted_tokens: state.drafted,
        accepted_tokens: state.accepted,
        unread: layouts::unread(target).wrapping_sub(state.unread),
        incomplete: u32::from(is_incomplete(target, state)),
        reserved: 0,
    });
    entry.submit(wake::for_event());
    Ok(())
}

/// Whether tokens of its prompt may be among those of which it is not known whose they are.
#[inline(always)]
fn is_incomplete(target: &Target, state: &Sequence) -> bool {
    let at = target.incomplete_ns();
    at != 0 && at >= state.launched_ns && (state.first_token_ns == 0 || state.first_token_ns >= at)
}

/// `llama_set_sampler(ctx, seq_id, sampler)`: a server calls it for a slot that is taken for a completion, and for any
/// slot that is left. On one that has worked it is the end; otherwise the last call before the work is the start.
#[uprobe]
fn lp_slot_turn(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        if !target.may(TargetConfig::INFERRED_SLOTS) {
            // Another process that maps the same file.
            return Ok(());
        }
        contexts::find_or_make(target, call.get(0)?)?.flags |= Context::MAIN;
        target.note_samplers();
        let slot = plausible(call.get(1)? as i32)?;
        let state = sequences::find_or_make(&sequences::key(target, 0, slot))?;
        if state.flags & Sequence::ACTIVE != 0 {
            return leave(target, state, slot);
        }
        state.flags = Sequence::LAUNCHED;
        state.launched_ns = now();
        Ok(())
    })
}

/// `llama_memory_seq_cp(memory, from, to, p0, p1)`: a server copies the prompt of a request with several choices from
/// the slot that computed it to those that wait for it.
#[uprobe]
fn lp_slot_fork(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| fork(target, call.get(1)? as i32, call.get(2)? as i32))
}

#[inline(always)]
fn fork(target: &Target, from: i32, to: i32) -> Result<(), Loss> {
    let (from, to) = (plausible(from)?, plausible(to)?);
    let Some(origin) = sequences::find(&sequences::key(target, 0, from)) else { return Ok(()) };
    if origin.flags & Sequence::ACTIVE == 0 {
        return Ok(());
    }
    let state = sequences::find_or_make(&sequences::key(target, 0, to))?;
    let active = state.flags & Sequence::ACTIVE != 0;
    if target.has(TargetConfig::INFERRED_SLOTS) && !active {
        let launched = if state.flags & Sequence::LAUNCHED != 0 { state.launched_ns } else { now() };
        sequences::launch(target, state, -1, nobody(target), launched);
        state.flags |= Sequence::CACHE_COUNTED;
        state.context = origin.context;
        state.n_past = origin.n_past;
        if let Some(context) = contexts::find(target, state.context) {
            pick::share(&Kernel, context, from, to);
        }
    } else if !active {
        return Ok(());
    }
    tell_start(target, state, to, from)
}

/// The batch that proves the start of an inferred slot: the prompt goes on where the cache was cut. Returns whether
/// there was such a cut.
#[inline(always)]
pub fn prove(target: &Target, state: &mut Sequence, slot: i32, position: u32) -> bool {
    if state.flags & Sequence::CUT == 0 || state.cached_tokens != position {
        return false;
    }
    let (cached, prefill) = (state.cached_tokens, state.prefill_ns);
    let launched = if state.flags & Sequence::LAUNCHED != 0 { state.launched_ns } else { prefill };
    sequences::launch(target, state, -1, nobody(target), launched);
    state.flags |= Sequence::CACHE_COUNTED;
    state.cached_tokens = cached;
    state.prefill_ns = prefill;
    target.tokens(TokenType::Cached, u64::from(cached));
    if let Err(loss) = tell_start(target, state, slot, -1) {
        target.lose(loss);
    }
    true
}

/// A sequence number that can be one.
#[inline(always)]
fn plausible(sequence: i32) -> Result<i32, Loss> {
    if (0..MAX_SEQUENCE).contains(&sequence) { Ok(sequence) } else { Err(Loss::Implausible) }
}

/// The id of a slot: its first member (b3485 to b11549).
#[inline(always)]
pub fn slot_id(slot: u64) -> Result<i32, Loss> {
    plausible(read::<i32>(slot)?)
}
