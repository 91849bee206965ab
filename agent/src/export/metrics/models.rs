//! What a server computes on, and what of its model is in memory.

use super::{Row, Sample, Value, by_server, living, per_server};
use crate::{discovery::resources::Weights, plan::catalog::Role, session::Snapshot};

fn weights(all: &Snapshot, rows: impl Fn(&Weights) -> Vec<Row>) -> Vec<Sample> {
    per_server(all, |server| {
        let weights = server.live.as_ref().and_then(|live| live.resources.weights.as_ref());
        weights.map_or_else(Vec::new, &rows)
    })
}

pub(super) fn load(all: &Snapshot) -> Vec<Sample> {
    living(all, |live| live.load_ns.map(|ns| ns as f64 / 1e9))
}

pub(super) fn reloads(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::Task, |server| vec![(vec![], Value::Number(server.tally.reloads as f64))])
}

pub(super) fn cpu(all: &Snapshot) -> Vec<Sample> {
    living(all, |live| Some(live.resources.cpu.as_secs_f64()).filter(|seconds| *seconds > 0.0))
}

pub(super) fn mapped(all: &Snapshot) -> Vec<Sample> {
    weights(all, |of| vec![(vec![], Value::Number(of.mapped as f64))])
}

pub(super) fn resident(all: &Snapshot) -> Vec<Sample> {
    weights(all, |of| vec![(vec![], Value::Number(of.resident as f64 / of.mapped as f64))])
}

pub(super) fn forecast(all: &Snapshot) -> Vec<Sample> {
    living(all, |live| live.reload_forecast_ns.map(|ns| ns as f64 / 1e9))
}

pub(super) fn evicted(all: &Snapshot) -> Vec<Sample> {
    weights(all, |of| {
        let row = |recency: &str, bytes| (vec![("recency", recency.to_owned())], Value::Number(bytes as f64));
        vec![row("recent", of.recently_evicted), row("older", of.evicted.saturating_sub(of.recently_evicted))]
    })
}
