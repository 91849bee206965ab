//! What may hang: how long ago something last moved.

use super::{Row, Sample, Value, by_server};
use crate::{
    plan::catalog::Role,
    session::{Live, Snapshot},
};

fn seconds(ns: u64) -> Value {
    Value::Number(ns as f64 / 1e9)
}

/// What a living server tells where a role is served.
fn living(all: &Snapshot, role: Role, rows: impl Fn(&Live) -> Vec<Row>) -> Vec<Sample> {
    by_server(all, role, |server| server.live.as_ref().map_or_else(Vec::new, &rows))
}

pub(super) fn last_decode(all: &Snapshot) -> Vec<Sample> {
    living(all, Role::Batch, |live| live.decoded_ago_ns.map(|ns| (vec![], seconds(ns))).into_iter().collect())
}

pub(super) fn slots(all: &Snapshot) -> Vec<Sample> {
    living(all, Role::SlotStart, |live| {
        let row = |slot: i32, ns| (vec![("slot", slot.to_string())], seconds(ns));
        live.seats.iter().filter_map(|seat| Some(row(seat.slot, seat.age_ns?))).collect()
    })
}

pub(super) fn untaken(all: &Snapshot) -> Vec<Sample> {
    living(all, Role::Task, |live| live.untaken_ns.map(|ns| (vec![], seconds(ns))).into_iter().collect())
}
