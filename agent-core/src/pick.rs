//! Which run of the last batch a token that is sampled belongs to.

use llamaprobe_common::batch::{Context, MAX_RUNS, Pick, Run};

use crate::machine::Machine;

/// The priority from which on a look at one token's logits may repeat and only the first counts.
const REPEATS_FROM: u8 = 2;

/// Of the token events that fire on one context, those of the lowest priority number count.
#[inline(always)]
pub fn counts(context: &mut Context, priority: u8) -> bool {
    let priority = u32::from(priority) + 1;
    let best = context.token_priority;
    if best == 0 || priority < best {
        context.token_priority = priority;
        // What a lesser event has counted since the batch is this same token.
        return best == 0 || context.sampled == 0;
    }
    priority == best
}

/// The run that token `index` of the last batch belongs to. A token that several sequences share is sampled once for
/// each, in the order of their numbers, as a server goes through its slots.
#[inline(always)]
pub fn run_of(machine: &impl Machine, context: &mut Context, index: u32) -> Option<usize> {
    let (len, shares) = (context.runs_len, context.shares_len);
    if len == 0 {
        return None;
    }
    let none = MAX_RUNS as u32;
    context.pick = Pick { own: 0, end: len, next: none, sequence: i32::MAX };
    // Runs are in the order of their first tokens. Turns enough for MAX_RUNS of them.
    for _ in 0..MAX_RUNS.trailing_zeros() + 1 {
        let (own, end) = (machine.load(&context.pick.own), machine.load(&context.pick.end));
        if own + 1 >= end {
            break;
        }
        let middle = own + (end - own) / 2;
        let before = context.runs[machine.run_index(middle)].start <= index;
        let to = if before { &mut context.pick.own } else { &mut context.pick.end };
        machine.store(to, middle);
    }
    for i in 0..MAX_RUNS {
        if i as u32 >= shares {
            break;
        }
        let Run { start, sequence, sampled } = context.runs[machine.run_index(len.wrapping_add(i as u32))];
        if start == index && sampled == Run::SHARED && sequence < machine.load(&context.pick.sequence) {
            machine.store(&mut context.pick.next, len.wrapping_add(i as u32));
            machine.store(&mut context.pick.sequence, sequence);
        }
    }
    let Pick { own, next, sequence, .. } = machine.load(&context.pick);
    let run = &context.runs[machine.run_index(own)];
    let own_first = run.sampled != index.wrapping_add(1) && run.sequence < sequence;
    Some(machine.run_index(if own_first || next >= none { own } else { next }))
}

/// Notes that token `index` of a run was sampled. Returns whether that is news: an event of a high priority number may
/// repeat for one token.
#[inline(always)]
pub fn sampled(run: &mut Run, index: u32, priority: u8) -> bool {
    if run.sampled == Run::SHARED {
        run.sampled |= index + 1;
    } else if priority >= REPEATS_FROM && index < run.sampled {
        return false;
    } else {
        run.sampled = index + 1;
    }
    true
}

/// Notes that sequence `to` samples the last token of sequence `from`, too.
#[inline(always)]
pub fn share(machine: &impl Machine, context: &mut Context, from: i32, to: i32) {
    let (len, shares) = (context.runs_len, context.shares_len);
    let mut end = context.tokens;
    let mut found = false;
    for i in 0..MAX_RUNS {
        if i as u32 >= len {
            break;
        }
        let run = &context.runs[i];
        if found {
            end = run.start;
            break;
        }
        found = run.sequence == from;
    }
    let at = len.wrapping_add(shares);
    if found && at < MAX_RUNS as u32 {
        context.runs[machine.run_index(at)] =
            Run { start: end.saturating_sub(1), sequence: to, sampled: Run::SHARED };
        context.shares_len += 1;
    }
}

#[cfg(test)]
mod tests;
