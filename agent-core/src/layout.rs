//! Which of the layouts that a batch may have is the true one.

use llamaprobe_common::{
    layout::{AGREED, CANDIDATES, ExtLayout, FOUND, LayoutState, fits, is_run},
    loss::Loss,
};

use crate::machine::{Machine, Memory, Words};

/// The layout of `batch`, if it is known or this call proves it.
#[inline(always)]
pub fn choose(machine: &impl Machine, state: &mut LayoutState, batch: u64) -> Result<ExtLayout, Loss> {
    if state.chosen == 0 {
        state.chosen = prove(machine, state, batch);
    }
    // Loaded anew: that it is not 0 the compiler would use for an offset that the verifier of Linux 5.15 takes for negative.
    match machine.load(&state.chosen).wrapping_sub(1) {
        at if at < CANDIDATES as u32 => Ok(state.candidates[at as usize]),
        _ => Err(Loss::LayoutUnknown),
    }
}

/// The one candidate that fits, plus 1. Two that fit prove nothing; one that was found must fit to several calls.
#[inline(always)]
fn prove(memory: &impl Memory, state: &mut LayoutState, batch: u64) -> u32 {
    let (mut chosen, mut fitting) = (0, 0);
    for at in 0..CANDIDATES {
        let layout = state.candidates[at];
        if !fits(layout, batch, &Words(memory)) || (at >= FOUND && !is_run(layout, batch, &Words(memory))) {
            continue;
        }
        fitting += 1;
        chosen = at as u32 + 1;
        if at >= FOUND {
            state.agreed[at - FOUND] += 1;
            if state.agreed[at - FOUND] < AGREED {
                chosen = 0;
            }
        }
    }
    if fitting == 1 { chosen } else { 0 }
}

#[cfg(test)]
mod tests;
