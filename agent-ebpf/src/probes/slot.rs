//! Roles slot start and slot end: a request takes a server slot and leaves it.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    batch::MAX_SEQUENCE,
    loss::Loss,
    request::{RequestEventKind, RequestKey, SlotEndEvent, SlotStartEvent},
    sequence::Sequence,
    target::TargetConfig,
    task::TaskKey,
};

use super::{now, observe};
use crate::{
    arguments::read,
    connections, contexts,
    maps::{REQUEST_EVENTS, TASKS},
    sequences,
    target::Target,
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
    let state = sequences::find_or_make(&sequences::key_of_slot(target, slot))?;
    let key = TaskKey { tgid: target.tgid, task };
    // SAFETY: the entry is replaced only by the server making a task of the same id anew.
    let request = unsafe { TASKS.get(key) }.copied();
    let request = request.unwrap_or(RequestKey { arrived_ns: 0, tgid: target.tgid, fd: -1 });
    sequences::launch(state, task, request, now);
    if request.arrived_ns != 0
        && connections::take_slot(&request, sequences::key_of_slot(target, slot).sequence)
    {
        // The client went before there was a token.
        state.wanted = 1;
    }
    if !target.has(TargetConfig::HTTP) {
        return Ok(());
    }
    let mut entry = REQUEST_EVENTS.reserve::<SlotStartEvent>(0).ok_or(Loss::RingFull)?;
    entry.write(SlotStartEvent {
        kind: RequestEventKind::SlotStart as u32,
        task,
        request,
        at_ns: now,
        slot,
        reserved: 0,
    });
    entry.submit(0);
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
    if state.flags & Sequence::ACTIVE == 0 {
        return Ok(());
    }
    let task = state.task;
    let now = now();
    state.flags = 0;
    state.task = -1;
    let mut n_ctx = 0;
    // Embeddings and requests cancelled within their prompt have no token that proves the batch.
    if let Some(context) = contexts::find(target, state.context) {
        contexts::count_pending(target, context, now);
        sequences::settle(state, context);
        n_ctx = if context.n_ctx_seq != 0 { context.n_ctx_seq } else { context.n_ctx };
    }
    sequences::judge_draft(target, state);
    let _ = TASKS.remove(TaskKey { tgid: target.tgid, task });
    if !target.has(TargetConfig::HTTP) || state.launched_ns == 0 {
        return Ok(());
    }
    let mut entry = REQUEST_EVENTS.reserve::<SlotEndEvent>(0).ok_or(Loss::RingFull)?;
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
        wasted_tokens: if state.wanted == 0 { 0 } else { state.generated_tokens - (state.wanted - 1) },
        drafted_tokens: state.drafted,
        accepted_tokens: state.accepted,
        reserved: 0,
    });
    entry.submit(0);
    Ok(())
}

/// The id of a slot: its first member (b3485 to b11549).
#[inline(always)]
pub fn slot_id(slot: u64) -> Result<i32, Loss> {
    let id = read::<i32>(slot)?;
    if (0..MAX_SEQUENCE).contains(&id) { Ok(id) } else { Err(Loss::Implausible) }
}
