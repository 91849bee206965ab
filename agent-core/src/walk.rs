//! The walk over a batch: where each run of consecutive positions of one sequence begins and ends.

use llamaprobe_common::{
    batch::{Context, MAX_RUNS, Run, Walk},
    loss::Loss,
};

use crate::{
    machine::Machine,
    source::{Place, Source},
};

/// A walk that has yet to look at the first token, which is at `first`.
#[inline(always)]
pub const fn begun(first: Place, source: &Source) -> Walk {
    Walk {
        start: 0,
        sequence: first.sequence,
        position: first.position,
        // Of a batch without positions all tokens are one run.
        inside: if source.automatic { source.len - 1 } else { 0 },
        beyond: source.len,
        stride: 1,
        programs: 0,
        closed: 0,
    }
}

/// Finds the runs of the batch, from each one's first token in doubling strides to a token that is not of the run, then
/// back by halving. Exact because llama.cpp fills a batch sequence by sequence in order of position, so that two tokens
/// of one sequence whose distance in position is their distance in the batch have only their like between.
///
/// Returns whether the end was reached, in as many looks.
#[inline(always)]
pub fn walk<const LOOKS: usize>(
    machine: &impl Machine,
    context: &mut Context,
    source: &Source,
) -> Result<bool, Loss> {
    for _ in 0..LOOKS {
        let Walk { start, sequence, position, inside, beyond, stride, .. } = machine.load(&context.walk);
        if inside.wrapping_add(1) >= beyond {
            let at = machine.load(&context.runs_len);
            if at >= MAX_RUNS as u32 {
                return Err(Loss::BatchTooComplex);
            }
            context.runs[machine.run_index(at)] = Run { start, sequence, sampled: position as u32 };
            machine.store(&mut context.runs_len, at + 1);
            // Also where the last run that was found ends.
            machine.store(&mut context.walk.start, beyond);
            if beyond >= source.len {
                return Ok(true);
            }
            let Place { sequence, position } = source.place(machine, beyond)?;
            machine.store(&mut context.walk.sequence, sequence);
            machine.store(&mut context.walk.position, position);
            machine.store(&mut context.walk.inside, beyond);
            machine.store(&mut context.walk.beyond, source.len);
            machine.store(&mut context.walk.stride, 1);
            continue;
        }
        let ahead = inside.wrapping_add(stride);
        let look = if stride == 0 { inside + (beyond - inside) / 2 } else { ahead.min(beyond - 1) };
        let same = source.continues(machine, look, start, Place { sequence, position })?;
        let end = if same { &mut context.walk.inside } else { &mut context.walk.beyond };
        machine.store(end, look);
        machine.store(&mut context.walk.stride, if same { stride * 2 } else { 0 });
    }
    Ok(false)
}

/// A run that was found, as it is attributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its sequence.
    pub sequence: i32,
    /// Its first position.
    pub position: u32,
    /// How many tokens it has.
    pub tokens: u32,
}

/// Takes run `at` of those that were found: from then on it notes what of it was sampled.
#[inline(always)]
pub fn take(machine: &impl Machine, context: &mut Context, at: u32) -> Found {
    let Run { start, sequence, sampled: position } = context.runs[machine.run_index(at)];
    let next = at.wrapping_add(1);
    let end = if next < context.runs_len {
        context.runs[machine.run_index(next)].start
    } else {
        context.walk.start
    };
    context.runs[machine.run_index(at)].sampled = 0;
    Found { sequence, position, tokens: end.wrapping_sub(start) }
}

#[cfg(test)]
mod tests;
