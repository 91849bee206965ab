//! Role failure: a server tells a request that it failed.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_core::{failures, slots::slot_id};

use super::observe;
use crate::{machine::Helpers, sequences::MAPS};

/// `send_error(this, server_slot const &, ...)`
#[uprobe]
fn lp_slot_error(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        let slot = slot_id(&Helpers, call.get(1)?)?;
        failures::slot(target, &mut { MAPS }, slot);
        Ok(())
    })
}

/// `send_error(this, int id_task, ...)`
#[uprobe]
fn lp_task_error(probe: ProbeContext) -> u32 {
    observe(&probe, |target, _, call| {
        failures::task(target, &mut { MAPS }, call.get(1)? as i32);
        Ok(())
    })
}
