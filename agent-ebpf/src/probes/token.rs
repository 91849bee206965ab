//! Roles token and step end: a token is ready; the logits of a step are looked at.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::cookie::TokenLayout;
use llamaprobe_core::{slots::slot_id, tokens};

use super::{observe, sched::end_step};
use crate::{
    machine::Helpers,
    sequences::{MAPS, SequenceMap},
};

/// `process_token(this, completion_token_output &, server_slot &)`: exactly once a generated token.
#[uprobe]
fn lp_slot_token(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        end_step(target);
        let slot = slot_id(&Helpers, call.get(2)?)?;
        tokens::of_slot(target, &Helpers, &mut { MAPS }, &mut Helpers, slot)
    })
}

/// `common_speculative_accept(spec, seq_id, n)`: how many guesses of the call before are taken.
#[uprobe]
fn lp_accepted(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        tokens::accepted(target, &mut SequenceMap, call.get(1)? as i32, call.get(2)? as u16);
        Ok(())
    })
}

/// A sampler, or the look at one token's logits.
#[uprobe]
fn lp_sample(probe: ProbeContext) -> u32 {
    observe(&probe, |target, cookie, call| {
        end_step(target);
        let address = call.get(cookie.context_argument())?;
        let index = match cookie.token_layout() {
            Some(TokenLayout::ContextIndex) => Some(call.get(cookie.index_argument())? as i32),
            _ => None,
        };
        tokens::sample(target, &Helpers, &mut { MAPS }, &mut Helpers, cookie.priority(), address, index)
    })
}
