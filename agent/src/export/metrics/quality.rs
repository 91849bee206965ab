//! What went wrong, or was in vain.

use super::{Sample, Value, by_server, per_server};
use crate::{
    plan::catalog::Role,
    session::{Server, Snapshot, tally::Tally},
};

pub(super) fn draft_tokens(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::SlotStart, |server| {
        let rows = [("accepted", server.stats.accepted), ("rejected", server.stats.rejected)];
        rows.map(|(outcome, n)| (vec![("outcome", outcome.to_owned())], Value::Number(n as f64))).into()
    })
}

pub(super) fn shifts(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::CacheHit, |server| vec![(vec![], Value::Number(server.stats.shifts as f64))])
}

/// Whether requests of a server are, or were, followed.
fn followed(server: &Server) -> bool {
    server.live.as_ref().map_or(!server.tally.requests.is_empty(), |live| live.http)
}

/// What answers say: nothing where they are not looked at.
pub(super) fn seen(all: &Snapshot, of: fn(&Tally) -> u64) -> Vec<Sample> {
    per_server(all, |server| {
        let looked_at = server.live.as_ref().is_none_or(|live| live.payload);
        let value = (looked_at && followed(server)).then(|| of(&server.tally));
        value.map(|n| (vec![], Value::Number(n as f64))).into_iter().collect()
    })
}

pub(super) fn wasted(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let known = followed(server) && server.is_live(Role::Task);
        known.then(|| (vec![], Value::Number(server.tally.wasted_tokens as f64))).into_iter().collect()
    })
}

pub(super) fn refusals(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let refusals = server.tally.refusals.iter();
        refusals.map(|n| (vec![], Value::Number(*n as f64))).collect()
    })
}
