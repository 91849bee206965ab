//! How much a server has to do at this moment: what decides where the next request goes. In: what the session knows, and the
//! sequences and connections as they are now. Changes nothing.

use std::collections::BTreeMap;

use llamaprobe_common::sequence::Sequence;

use super::{Labels, Session, live::is_busy};
use crate::plan::catalog::Role;

/// The load of a server. Nothing of it waits for the next reading of all maps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// The server.
    pub labels: Labels,
    /// Inference requests that wait for a slot, and connections that wait for a thread.
    pub queued: u64,
    /// Slots with a running request.
    pub running: u64,
    /// Its slots; `None` when it does not say how many.
    pub slots: Option<u64>,
    /// Positions that running requests hold, as a share of the context's size; 0 before the first decode call.
    pub context: f64,
}

impl Session {
    /// The load of the servers whose requests and slots are seen. `sequences` and `unread` are by process; a slot is a
    /// sequence here.
    pub fn loads(
        &self,
        sequences: &BTreeMap<u32, Vec<Sequence>>,
        unread: &BTreeMap<u32, usize>,
    ) -> Vec<Load> {
        let seen = self.watched.iter().filter(|(_, watched)| {
            let joined = watched.observed.joining.reaches_slots();
            joined && watched.observed.has(Role::SlotStart) && !watched.is_router()
        });
        let load = seen.filter_map(|(pid, watched)| {
            let own = sequences.get(pid).map_or(&[][..], Vec::as_slice);
            let (address, size) =
                watched.newest_context().map_or((0, 0), |(address, context)| (*address, context.n_ctx));
            let running = || own.iter().filter(|sequence| is_busy(sequence));
            let held = running().filter(|sequence| sequence.context == address);
            let held: u64 = held.map(|sequence| u64::from(sequence.n_past)).sum();
            Some(Load {
                labels: watched.labels.clone()?,
                queued: (self.requests.queued(*pid) + unread.get(pid).copied().unwrap_or(0)) as u64,
                running: running().count() as u64,
                slots: watched.observed.target.told.slots,
                context: if size == 0 { 0.0 } else { held as f64 / f64::from(size) },
            })
        });
        load.collect()
    }
}
