//! What the agent knows at one moment, by server. In: targets, plans, readings. Out: a [`Snapshot`]. Pure: times come
//! as arguments.
//!
//! Counters live in a ledger by labels, not by process: a server that restarts on the same address with the same model
//! goes on counting where it was.

mod ledger;
mod overhead;
mod snapshot;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use llamaprobe_common::{batch::Context, probe::ProbeId, sequence::Sequence, target::TargetStats};

pub use self::{
    ledger::KEEP_ENDED,
    snapshot::{Labels, Live, Server, Snapshot},
};
use self::{
    ledger::Ledger,
    overhead::{Overhead, spent},
};
use crate::{
    bpf::{calibrate::Prices, read::Reading},
    discovery::Target,
    plan::{Plan, catalog::Role},
};

/// How long a process may go without listening before it is taken for one that never will (a binding).
const LISTEN_WAIT: Duration = Duration::from_secs(10);

/// A process under observation.
#[derive(Debug)]
struct Watched {
    target: Target,
    plan: Plan,
    served: BTreeSet<(Role, ProbeId)>,
    since: Instant,
    labels: Option<Labels>,
    /// What of its counters is in the ledger already.
    credited: TargetStats,
    sequences: Vec<Sequence>,
    contexts: Vec<(u64, Context)>,
    overhead: Overhead,
}

/// The state behind the snapshots.
#[derive(Debug, Default)]
pub struct Session {
    watched: BTreeMap<u32, Watched>,
    ledger: Ledger,
}

impl Session {
    /// A process is observed from now on.
    pub fn begin(&mut self, now: Instant, target: Target, plan: Plan) {
        let served = served(&plan);
        let pid = target.pid;
        let watched = Watched {
            target,
            plan,
            served,
            since: now,
            labels: None,
            credited: TargetStats::default(),
            sequences: Vec::new(),
            contexts: Vec::new(),
            overhead: Overhead::default(),
        };
        self.watched.insert(pid, watched);
        self.name(now, pid);
    }

    /// A process was looked at again: it may listen now, or have loaded its model or another library.
    pub fn refresh(&mut self, now: Instant, target: Target, plan: Plan) {
        let pid = target.pid;
        let Some(watched) = self.watched.get_mut(&pid) else { return };
        watched.served = served(&plan);
        watched.target = target;
        watched.plan = plan;
        self.name(now, pid);
    }

    /// A process ended; `last` is its last reading.
    pub fn end(&mut self, now: Instant, pid: u32, last: &Reading, prices: Option<Prices>) {
        if let Some(watched) = self.watched.get_mut(&pid) {
            // It will not listen any more.
            let labels = watched.labels.clone().unwrap_or_else(|| labels_of_pid(&watched.target));
            watched.labels = Some(labels);
        }
        self.read(now, pid, last, prices);
        self.watched.remove(&pid);
    }

    /// Books a reading of a process.
    pub fn read(&mut self, now: Instant, pid: u32, reading: &Reading, prices: Option<Prices>) {
        self.name(now, pid);
        let Some(watched) = self.watched.get_mut(&pid) else { return };
        watched.sequences.clone_from(&reading.sequences);
        watched.contexts.clone_from(&reading.contexts);
        if let Some(prices) = prices {
            watched.overhead.update(now, spent(&watched.plan, &reading.stats, prices));
        }
        let Some(labels) = &watched.labels else { return };
        self.ledger.book(now, labels, &watched.served, &reading.stats, &mut watched.credited);
    }

    /// Drops series whose processes ended a while ago.
    pub fn forget_ended(&mut self, now: Instant) {
        let living: BTreeSet<_> = self.watched.values().filter_map(|w| w.labels.clone()).collect();
        self.ledger.forget(now, &living);
    }

    /// The processes under observation.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.watched.values().map(|watched| &watched.target)
    }

    /// The plan of a process.
    pub fn plan(&self, pid: u32) -> Option<&Plan> {
        self.watched.get(&pid).map(|watched| &watched.plan)
    }

    /// Processes whose labels may still change soon: they have not shown where they listen or what they serve.
    pub fn unsettled(&self, now: Instant) -> Vec<u32> {
        let young = |w: &&Watched| now.duration_since(w.since) < 12 * LISTEN_WAIT;
        let open = |w: &&Watched| w.target.listeners.is_empty() || w.target.model.is_none();
        self.watched.values().filter(young).filter(open).map(|watched| watched.target.pid).collect()
    }

    /// The servers, as of the last readings.
    pub fn servers(&self) -> Vec<Server> {
        self.ledger
            .accounts()
            .map(|(labels, account)| {
                let watched = self.watched.values().find(|watched| watched.labels.as_ref() == Some(labels));
                Server {
                    labels: labels.clone(),
                    stats: account.stats,
                    served: account.served.clone(),
                    live: watched.map(live),
                }
            })
            .collect()
    }

    /// Gives a process its labels as soon as they are certain. Two living processes never share them.
    fn name(&mut self, now: Instant, pid: u32) {
        let Some(watched) = self.watched.get(&pid) else { return };
        let target = &watched.target;
        let server = match target.listeners.first() {
            Some(listener) => listener.to_string(),
            None if now.duration_since(watched.since) >= LISTEN_WAIT => format!("pid:{pid}"),
            None => return,
        };
        let model = target.model_name().unwrap_or_default();
        let taken = |labels: &Labels| {
            self.watched.values().any(|w| w.target.pid != pid && w.labels.as_ref() == Some(labels))
        };
        let mut labels = Labels { server, model };
        if taken(&labels) {
            // The same address in another network namespace, or a fork that inherited the socket.
            labels.server = format!("{}#{pid}", labels.server);
        }
        if let Some(watched) = self.watched.get_mut(&pid) {
            watched.labels = Some(labels);
        }
    }
}

fn labels_of_pid(target: &Target) -> Labels {
    Labels { server: format!("pid:{}", target.pid), model: target.model_name().unwrap_or_default() }
}

fn served(plan: &Plan) -> BTreeSet<(Role, ProbeId)> {
    plan.probes.iter().map(|probe| (probe.role, probe.probe)).collect()
}

fn live(watched: &Watched) -> Live {
    let own = |context: &&(u64, Context)| context.1.flags & Context::DRAFT == 0;
    // A server that slept and woke has a new context; positions in an old one are gone.
    let newest = watched.contexts.iter().filter(own).max_by_key(|(_, context)| context.entered_ns);
    let served: Vec<&(u64, Context)> = if watched.served.iter().any(|(role, _)| *role == Role::SlotStart) {
        newest.into_iter().collect()
    } else {
        watched.contexts.iter().filter(own).collect()
    };
    let held = |sequence: &&Sequence| served.iter().any(|(address, _)| *address == sequence.context);
    let mut probes: Vec<ProbeId> = watched.plan.probes.iter().map(|probe| probe.probe).collect();
    probes.sort_unstable();
    probes.dedup();
    Live {
        pid: watched.target.pid,
        context_size: served.iter().map(|(_, context)| u64::from(context.n_ctx)).sum(),
        context_used: watched.sequences.iter().filter(held).map(|s| u64::from(s.n_past)).sum(),
        slots_busy: watched.sequences.iter().filter(|s| s.flags & Sequence::ACTIVE != 0).count() as u64,
        model: watched.target.model.clone(),
        probes,
        missing: watched.plan.missing.iter().map(|missing| missing.role).collect(),
        overhead: watched.overhead.ratio,
    }
}
