//! What is handed to exporters: the agent's view at one moment.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use llamaprobe_common::{probe::ProbeId, step::StepEvent, target::TargetStats};
use serde::{Deserialize, Serialize};

use super::{shown::ShownRequest, stalls::Lost, tally::Tally, usage::Usage};
use crate::{
    bpf::{calibrate::Prices, read::Untold},
    discovery::{model::Model, process::Thread, resources::Resources},
    kubernetes::Workload,
    plan::catalog::Role,
};

/// What series are told apart by.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// Where the server listens, or `pid:N` for a process that does not.
    pub server: String,
    /// Alias or file name of the model; empty while unknown.
    pub model: String,
}

/// One server, or other user of llama.cpp, as it is now.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// Its labels.
    pub labels: Labels,
    /// Its counters.
    pub stats: TargetStats,
    /// The roles that are served, each with every probe that serves it.
    pub served: BTreeSet<(Role, ProbeId)>,
    /// What is counted of its requests.
    pub tally: Tally,
    /// Who has used what of it.
    pub usage: Usage,
    /// What its decode steps have lost, where that is seen.
    pub lost: Option<Lost>,
    /// What single threads have lost beside, and was not told.
    pub untold: Option<Untold>,
    /// Whether its use has a price, by [`Basis`](super::cost::Basis).
    pub priced: [bool; 2],
    /// What happened lately.
    pub recent: Option<Recent>,
    /// Its inference requests that are under way, the oldest first, and then the last ones that are over, the latest first.
    pub requests: Vec<ShownRequest>,
    /// What is true only while its process lives.
    pub live: Option<Live>,
    /// Of which pod and container it is, where it is of one.
    pub workload: Option<Workload>,
}

impl Server {
    /// Whether a role's probe is attached and has fired: only then do its numbers mean anything.
    pub fn is_live(&self, role: Role) -> bool {
        self.served.iter().any(|(served, probe)| *served == role && self.stats.hits[*probe as usize] > 0)
    }
}

/// What happened within the sliding window.
#[derive(Clone, Copy, Debug)]
pub struct Recent {
    /// The length of the window: [`WINDOW`](super::WINDOW), less in the beginning.
    pub span: Duration,
    /// Tokens by type.
    pub tokens: [u64; 3],
    /// What they cost, dollars, by [`Basis`](super::cost::Basis).
    pub dollars: [f64; 2],
}

/// A slot and what it holds.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// Its number.
    pub slot: i32,
    /// A request runs on it.
    pub busy: bool,
    /// Positions it holds.
    pub context_used: u64,
    /// How long its request has had it, nanoseconds, where that was seen to begin.
    pub age_ns: Option<u64>,
}

/// What is known of a living process.
#[derive(Clone, Debug)]
pub struct Live {
    /// Process id.
    pub pid: u32,
    /// How long ago its last decode call was entered, nanoseconds; `None` before one was.
    pub decoded_ago_ns: Option<u64>,
    /// How long the oldest inference request waits that was read and got no task, nanoseconds, 0 without one; `None` where
    /// tasks are not seen.
    pub untaken_ns: Option<u64>,
    /// Size of its contexts in tokens, without those of draft models; 0 when unknown.
    pub context_size: u64,
    /// Positions held in them.
    pub context_used: u64,
    /// The slots of a server that have served a request, each with what it holds.
    pub seats: Vec<Seat>,
    /// Tokens that one slot can hold; 0 when unknown.
    pub seat_size: u64,
    /// Slots with a running request; `None` where no slot is seen.
    pub slots_busy: Option<u64>,
    /// Its slots; `None` when it does not say how many.
    pub slots: Option<u64>,
    /// Whether its HTTP requests are followed.
    pub http: bool,
    /// Whether what it reads and writes is looked at.
    pub payload: bool,
    /// Inference requests without their answer; `None` where HTTP is not followed.
    pub in_flight: Option<u64>,
    /// Inference requests that wait for a slot, and connections that wait for a thread; `None` where it is not known which of
    /// them wait.
    pub queue_depth: Option<u64>,
    /// Its model.
    pub model: Option<Arc<Model>>,
    /// How long it took to load that the last time, nanoseconds: from its start to its first decode call, or from the request
    /// that woke it to its task; `None` where neither was seen.
    pub load_ns: Option<u64>,
    /// How much longer the next first token takes for what of its weights is not in memory, nanoseconds; `None` where
    /// it was not seen to read such.
    pub reload_forecast_ns: Option<u64>,
    /// Where the thread of its engine is, if it has had a request for seconds and has entered no decode call.
    pub engine_thread: Option<Thread>,
    /// Its last decode calls that count, the oldest first, where each is told.
    pub steps: Vec<StepEvent>,
    /// What it has of its machine, as of the last look at it.
    pub resources: Resources,
    /// Probes attached for it.
    pub probes: Vec<ProbeId>,
    /// Where batches and contexts are read: part and layout, `unknown` where that is not known.
    pub layouts: Vec<(&'static str, String)>,
    /// Roles that no probe serves.
    pub missing: Vec<Role>,
    /// Share of wall time it spends in probes.
    pub overhead: f64,
}

/// Where something goes beside the endpoint, as the agent's own metrics tell it apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// The request log, which has a metric of its own.
    Log,
    /// A signal of OTLP, by name; they have metrics of their own.
    Otlp(Cow<'static, str>),
    /// Any other, by name: they share a metric.
    Other(Cow<'static, str>),
}

/// What has become of what one output was given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delivery {
    /// Which.
    pub output: Output,
    /// What was written, or a collector has taken.
    pub exported: u64,
    /// What waits, or is on its way.
    pub waiting: u64,
    /// What was lost, by reason.
    pub lost: Vec<(Cow<'static, str>, u64)>,
}

/// How many recordings were made, and how many were not since one had been made a moment before, by reason.
#[derive(Clone, Debug, Default)]
pub struct Recordings {
    /// Made.
    pub made: BTreeMap<&'static str, u64>,
    /// Not made.
    pub limited: BTreeMap<&'static str, u64>,
}

/// The agent's view at one moment.
/// What the agent knows of itself can be written down; the rest follows from what the session was told.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Servers, sorted by labels.
    #[serde(skip)]
    pub servers: Vec<Server>,
    /// What belongs to no server.
    pub own: TargetStats,
    /// Prices of a probe hit, when measured.
    #[serde(skip)]
    pub prices: Option<Prices>,
    /// Time of all programs in the kernel per time of one processor, when measured.
    pub programs_cpu: Option<f64>,
    /// What the host costs an hour and what of that nobody has used so far, dollars.
    #[serde(skip)]
    pub host: Option<(f64, f64)>,
    /// Users told apart.
    #[serde(skip)]
    pub users: usize,
    /// Processes under observation.
    pub targets: usize,
    /// Processes that look like servers of llama.cpp but show no symbols, or are too old.
    pub unobservable: usize,
    /// Processes that map llama.cpp and wait for a seat: others work, they do not.
    pub waiting: usize,
    /// Looks at processes that did not end.
    pub looks_abandoned: u64,
    /// Looks at processes that were broken off because there was more to read than may be spent on one.
    pub looks_cut: u64,
    /// Processes that wait for a look that is due.
    pub looks_waiting: usize,
    /// Entries of the kernel's maps, by name.
    pub occupancy: Vec<(Cow<'static, str>, usize)>,
    /// Requests under way that were given up because too many were.
    #[serde(skip)]
    pub given_up: u64,
    /// Probes that could not be attached, since the start.
    pub attach_failures: u64,
    /// Times that files of names, prices or phrases were bad when they were to be read again.
    pub reload_failures: u64,
    /// CPU time the agent has used.
    pub cpu: Duration,
    /// Memory the agent holds, bytes; 0 when that is not known.
    pub resident_bytes: u64,
    /// When the agent started, seconds since the Unix epoch.
    pub started: f64,
    /// When this was so, seconds since the Unix epoch.
    pub taken: f64,
    /// The kernel's monotonic time 0, since the Unix epoch.
    pub epoch: Duration,
    /// What has become of what was told to the outputs that are on.
    pub outputs: Vec<Delivery>,
    /// Recordings, where such are made.
    #[serde(skip)]
    pub recordings: Option<Recordings>,
}
