//! Roles slot start and slot end: a request takes a server slot and leaves it.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{batch::MAX_SEQUENCE, loss::Loss, sequence::Sequence};

use super::observe;
use crate::{arguments::read, contexts, sequences, target::Target};

/// `launch_slot_with_task(this, server_slot &, server_task)`: the ids are the first members (b3485 to b11549).
#[uprobe]
fn lp_slot_start(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| start(target, call.get(1)?, call.get(2)?))
}

#[inline(always)]
fn start(target: &Target, slot: u64, task: u64) -> Result<(), Loss> {
    let slot = slot_id(slot)?;
    let task = read::<i32>(task)?;
    let state = sequences::find_or_make(&sequences::key_of_slot(target, slot))?;
    // What the slot holds in the KV cache stays: the request may reuse it.
    state.context = 0;
    state.last_token_ns = 0;
    state.flags = Sequence::ACTIVE;
    state.task = task;
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
    state.flags = 0;
    state.task = -1;
    // Embeddings and requests cancelled within their prompt have no token that proves the batch.
    if let Some(context) = contexts::find(target, state.context) {
        contexts::count_pending(target, context);
    }
    Ok(())
}

/// The id of a slot: its first member (b3485 to b11549).
#[inline(always)]
pub fn slot_id(slot: u64) -> Result<i32, Loss> {
    let id = read::<i32>(slot)?;
    if (0..MAX_SEQUENCE).contains(&id) { Ok(id) } else { Err(Loss::Implausible) }
}
