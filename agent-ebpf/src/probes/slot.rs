//! Roles slot start and slot end: a request takes a server slot and leaves it.
//!
//! Where the server's own functions are not visible, three calls into the library tell the same: the sampler of a
//! sequence is set when a slot is taken for a completion, and again when it is left, whatever it ran; and a prompt
//! begins with a cut of the sequence's cache, where the batch that follows goes on. Neither alone will do: samplers are
//! also set when the model is loaded, embeddings set none, and a load cuts once to try whether it can.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_core::slots;

use super::{observe, sched::rest};
use crate::{
    machine::Helpers,
    sequences::{MAPS, SequenceMap},
};

/// `launch_slot_with_task(this, server_slot &, server_task)`: the ids are the first members (b3485 to b11549).
#[uprobe]
fn lp_slot_start(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        slots::start(target, &Helpers, &mut SequenceMap, &mut Helpers, call.get(1)?, call.get(2)?)
    })
}

/// `server_slot::release()`: also called on idle slots.
#[uprobe]
fn lp_slot_end(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let slot = call.get(0)?;
        let ended = slots::end(target, &Helpers, &mut { MAPS }, &mut Helpers, slot);
        rest(target);
        ended
    })
}

/// `llama_set_sampler(ctx, seq_id, sampler)`: a server calls it for a slot that is taken for a completion, and for any
/// slot that is left.
#[uprobe]
fn lp_slot_turn(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let (context, sequence) = (call.get(0)?, call.get(1)? as i32);
        let turned = slots::turn(target, &Helpers, &mut { MAPS }, &mut Helpers, context, sequence);
        rest(target);
        turned
    })
}

/// `llama_memory_seq_cp(memory, from, to, p0, p1)`.
#[uprobe]
fn lp_slot_fork(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let (from, to) = (call.get(1)? as i32, call.get(2)? as i32);
        slots::fork(target, &Helpers, &mut { MAPS }, &mut Helpers, from, to)
    })
}
