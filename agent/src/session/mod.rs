//! What the agent knows at one moment, by server. In: targets, plans, readings. Out: a [`Snapshot`]. Pure: times come
//! as arguments.
//!
//! Counters live in a ledger by labels, not by process: a server that restarts on the same address with the same model
//! goes on counting where it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use llamaprobe_common::{batch::Context, probe::ProbeId, sequence::Sequence, target::TargetStats};

use crate::{
    bpf::{calibrate::Prices, read::Reading},
    discovery::{Target, model::Model},
    plan::{Plan, catalog::Role, site::Stepping},
};

/// How long a series outlives its last process: two scrapes of the usual interval and some.
pub const KEEP_ENDED: Duration = Duration::from_secs(45);

/// How long a process may go without listening before it is taken for one that never will (a binding).
const LISTEN_WAIT: Duration = Duration::from_secs(10);

/// What series are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// Where the server listens, or `pid:N` for a process that does not.
    pub server: String,
    /// Alias or file name of the model; empty while unknown.
    pub model: String,
}

/// What has been counted under one set of labels.
#[derive(Debug)]
struct Account {
    stats: TargetStats,
    roles: BTreeSet<Role>,
    touched: Instant,
}

/// A process under observation.
#[derive(Debug)]
struct Watched {
    target: Target,
    plan: Plan,
    roles: BTreeSet<Role>,
    since: Instant,
    labels: Option<Labels>,
    /// What of its counters is in the ledger already.
    credited: TargetStats,
    sequences: Vec<Sequence>,
    contexts: Vec<(u64, Context)>,
    overhead: Overhead,
}

/// The share of time that a process spends in probes, over a sliding interval.
#[derive(Debug, Default)]
struct Overhead {
    from: Option<(Instant, f64)>,
    ratio: f64,
}

/// The shortest interval the overhead is computed over.
const OVERHEAD_INTERVAL: Duration = Duration::from_secs(10);

impl Overhead {
    /// `spent` is the time spent in probes since the process is observed.
    fn update(&mut self, now: Instant, spent: f64) {
        let Some((from, before)) = self.from else {
            self.from = Some((now, spent));
            return;
        };
        let elapsed = now.duration_since(from);
        if elapsed >= OVERHEAD_INTERVAL {
            self.ratio = (spent - before).max(0.0) / elapsed.as_secs_f64();
            self.from = Some((now, spent));
        }
    }
}

/// One server, or other user of llama.cpp, as it is now.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its labels.
    pub labels: Labels,
    /// Its counters.
    pub stats: TargetStats,
    /// The roles whose probes are attached.
    pub roles: BTreeSet<Role>,
    /// What is true only while its process lives.
    pub live: Option<Live>,
}

impl Server {
    /// Whether a role's probe is attached and has fired: only then do its numbers mean anything.
    pub fn is_live(&self, role: Role) -> bool {
        self.roles.contains(&role)
            && crate::plan::catalog::ROWS.iter().any(|row| {
                let serves = row.role == role || role == Role::StepEnd && row.role == Role::Token;
                serves && self.stats.hits[row.probe as usize] > 0
            })
    }
}

/// What is known of a living process.
#[derive(Clone, Debug)]
pub struct Live {
    /// Process id.
    pub pid: u32,
    /// Size of its contexts in tokens, without those of draft models; 0 when unknown.
    pub context_size: u64,
    /// Positions held in them.
    pub context_used: u64,
    /// Slots with a running request.
    pub slots_busy: u64,
    /// Its model.
    pub model: Option<Arc<Model>>,
    /// Probes attached for it.
    pub probes: Vec<ProbeId>,
    /// Roles that no probe serves.
    pub missing: Vec<Role>,
    /// Share of wall time it spends in probes.
    pub overhead: f64,
}

/// The agent's view at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Servers, sorted by labels.
    pub servers: Vec<Server>,
    /// What belongs to no server.
    pub own: TargetStats,
    /// Prices of a probe hit, when measured.
    pub prices: Option<Prices>,
    /// Processes under observation.
    pub targets: usize,
    /// Processes that look like servers of llama.cpp but show no symbols, or are too old.
    pub unobservable: usize,
    /// Probes that could not be attached, since the start.
    pub attach_failures: u64,
    /// CPU time the agent has used.
    pub cpu: Duration,
    /// Memory the agent holds, bytes.
    pub resident_bytes: u64,
    /// When the agent started, seconds since the epoch.
    pub started: f64,
}

/// The state behind the snapshots.
#[derive(Debug, Default)]
pub struct Session {
    watched: BTreeMap<u32, Watched>,
    ledger: BTreeMap<Labels, Account>,
}

impl Session {
    /// A process is observed from now on.
    pub fn begin(&mut self, now: Instant, target: Target, plan: Plan) {
        let roles = plan.probes.iter().map(|probe| probe.role).collect();
        let pid = target.pid;
        let watched = Watched {
            target,
            plan,
            roles,
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
        watched.roles = plan.probes.iter().map(|probe| probe.role).collect();
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
        let account = self.ledger.entry(labels.clone()).or_insert_with(|| Account {
            stats: TargetStats::default(),
            roles: BTreeSet::new(),
            touched: now,
        });
        account.stats.add(&difference(&reading.stats, &watched.credited));
        account.roles.clone_from(&watched.roles);
        account.touched = now;
        watched.credited = reading.stats;
    }

    /// Drops series whose processes ended a while ago.
    pub fn forget_ended(&mut self, now: Instant) {
        let living: BTreeSet<_> = self.watched.values().filter_map(|w| w.labels.clone()).collect();
        self.ledger.retain(|labels, account| {
            living.contains(labels) || now.duration_since(account.touched) < KEEP_ENDED
        });
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
            .iter()
            .map(|(labels, account)| {
                let watched = self.watched.values().find(|watched| watched.labels.as_ref() == Some(labels));
                Server {
                    labels: labels.clone(),
                    stats: account.stats,
                    roles: account.roles.clone(),
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

fn live(watched: &Watched) -> Live {
    let own = |context: &&(u64, Context)| context.1.flags & Context::DRAFT == 0;
    // A server that slept and woke has a new context; positions in an old one are gone.
    let newest = watched.contexts.iter().filter(own).max_by_key(|(_, context)| context.entered_ns);
    let served: Vec<&(u64, Context)> = if watched.roles.contains(&Role::SlotStart) {
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

/// Seconds spent in probes: hits times the price of the site each was attached to.
fn spent(plan: &Plan, stats: &TargetStats, prices: Prices) -> f64 {
    ProbeId::ALL
        .iter()
        .map(|&id| {
            let site = plan.probes.iter().find(|probe| probe.probe == id).map(|probe| probe.site.stepping);
            let price = prices.of(site.unwrap_or(Stepping::Emulated));
            stats.hits[id as usize] as f64 * f64::from(price) * 1e-9
        })
        .sum()
}

/// What was counted since `before`. Counters of one process never go back.
fn difference(now: &TargetStats, before: &TargetStats) -> TargetStats {
    let mut difference = *now;
    let minus = |mine: &mut u64, theirs: &u64| *mine = mine.saturating_sub(*theirs);
    difference.hits.iter_mut().zip(&before.hits).for_each(|(a, b)| minus(a, b));
    difference.losses.iter_mut().zip(&before.losses).for_each(|(a, b)| minus(a, b));
    difference.tokens.iter_mut().zip(&before.tokens).for_each(|(a, b)| minus(a, b));
    for (mine, theirs) in [
        (&mut difference.inter_token, &before.inter_token),
        (&mut difference.step, &before.step),
        (&mut difference.batch, &before.batch),
    ] {
        mine.counts.iter_mut().zip(&theirs.counts).for_each(|(a, b)| minus(a, b));
        minus(&mut mine.sum, &theirs.sum);
    }
    difference
}

#[cfg(test)]
mod tests;
