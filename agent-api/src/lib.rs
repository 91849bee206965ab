//! What a running agent knows, as one document: what `/snapshot` answers, typed for whoever reads it; and what was in the
//! last quarter of an hour, as `/history` does.
//!
//! A field that is there keeps its name and its meaning. New ones may come at any time, and whoever does not know them
//! steps over them; [`SCHEMA`] grows only when one changes or goes.

mod history;
mod server;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::history::{History, Point, ServerPoint};
pub use self::server::{
    CacheMiss, Context, DraftTokens, EngineThread, Interference, Live, Model, Phases, Request, Requests,
    Server, SlotContext, Step, Times, Tokens, User, WaitedFor, Weights, Workload,
};

/// The number of the schema that these types are.
pub const SCHEMA: u32 = 1;

/// The agent's view at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The schema by which it was written; 0 of an agent that has no number yet.
    #[serde(default)]
    pub schema: u32,
    /// When this was so, seconds since the Unix epoch by the clock of the agent's host; 0 of an agent that does not say it.
    #[serde(default)]
    pub taken_at: f64,
    /// The agent itself.
    pub agent: Agent,
    /// What the host costs; absent without a price.
    pub host: Option<Host>,
    /// The servers, and other users of llama.cpp, sorted by `server` and `model`. One that has ended stays for 45 seconds.
    pub servers: Vec<Server>,
}

impl Document {
    /// Whether fields may mean something else than these types say.
    pub fn is_newer(&self) -> bool {
        self.schema > SCHEMA
    }
}

/// What the agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// When it started, seconds since the Unix epoch; 0 of an agent that does not say it.
    #[serde(default)]
    pub started_at: f64,
    /// Processes under observation.
    pub targets: u64,
    /// Processes that are llama.cpp and cannot be observed.
    pub unobservable: u64,
    /// Probes that could not be attached, since the start.
    pub attach_failures: u64,
    /// Processor time it has used, its child processes included, seconds.
    pub cpu_seconds: f64,
    /// Memory it holds, its child processes included, bytes; what they share counts once.
    pub resident_bytes: u64,
    /// Entries of the kernel's maps that grow with the work, by the map's name.
    pub map_entries: BTreeMap<String, u64>,
    /// What a probe hit costs on this host; absent where that could not be measured.
    pub prices: Option<Prices>,
}

/// What a hit of a probe takes, with a program that only looks up its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// At an instruction that the kernel emulates, nanoseconds.
    pub emulated_ns: u32,
    /// At one that is single-stepped, nanoseconds.
    pub single_stepped_ns: u32,
}

/// What the host costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its price, dollars per hour.
    pub dollars_per_hour: f64,
    /// What of that nobody has used since the agent started, dollars.
    pub idle_dollars: f64,
}
