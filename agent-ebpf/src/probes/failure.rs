//! Role failure: a server tells a request that it failed. If the request took part in the decode call under way, or that
//! one repeats another that failed, it is the call that failed: nothing of it counts. A server that gives up tells all
//! its requests, also those whose part of the batch was decoded before or never.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    batch::{Context, MAX_RUNS},
    loss::Loss,
    sequence::{Sequence, SequenceKey},
};

use super::{observe, slot::slot_id};
use crate::{contexts, sequences, target::Target};

/// `send_error(this, server_slot const &, ...)`
#[uprobe]
fn lp_slot_error(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let slot = slot_id(call.get(1)?)?;
        if let Some(state) = sequences::find(&sequences::key_of_slot(target, slot)) {
            failed(target, state);
        }
        Ok(())
    })
}

/// `send_error(this, int id_task, ...)`: the slot is one of those in the batch.
#[uprobe]
fn lp_task_error(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let task = call.get(1)? as i32;
        let address = target.main();
        let first = sequences::key(target, address, 0);
        let Some(context) = contexts::find(target, address) else { return Ok(()) };
        if context.flags & Context::PENDING == 0 {
            return Ok(());
        }
        if contexts::is_retry(context) {
            contexts::fail(context);
            return Ok(());
        }
        for i in 0..MAX_RUNS {
            if i as u32 >= context.runs_len {
                break;
            }
            let key = SequenceKey { sequence: context.runs[i].sequence, ..first };
            if let Some(state) = sequences::find(&key)
                && state.task == task
                && state.step == context.step
            {
                contexts::fail(context);
                return Ok(());
            }
        }
        Ok::<(), Loss>(())
    })
}

#[inline(always)]
fn failed(target: &Target, state: &Sequence) {
    let address = state.context;
    if state.flags & Sequence::ACTIVE != 0
        && let Some(context) = contexts::find(target, address)
        && context.flags & Context::PENDING != 0
        && (state.step == context.step || contexts::is_retry(context))
    {
        contexts::fail(context);
    }
}
