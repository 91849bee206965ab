//! What held decode steps back.

use llamaprobe_common::stall::Cause;

use super::{Sample, Value, by_server};
use crate::{bpf::read::Untold, plan::catalog::Role, session::Snapshot};

/// A label and nanoseconds as seconds.
fn seconds(label: &'static str, value: &str, ns: u64) -> (Vec<(&'static str, String)>, Value) {
    (vec![(label, value.to_owned())], Value::Number(ns as f64 / 1e9))
}

/// Every cause, where the switches of threads are followed.
pub(super) fn lost(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::Batch, |server| {
        let causes = server.lost.iter().flat_map(|lost| Cause::ALL.map(|cause| (cause, lost.to(cause))));
        causes.map(|(cause, ns)| seconds("cause", cause.name(), ns)).collect()
    })
}

pub(super) fn untold(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::Batch, |server| {
        let reasons = |untold: Untold| [("short", untold.short_ns), ("many", untold.many_ns)];
        let untold = server.untold.iter().flat_map(|untold| reasons(*untold));
        untold.map(|(reason, ns)| seconds("reason", reason, ns)).collect()
    })
}
