//! An agent that watches one server and writes a record of each request.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent::Agent;
use crate::client::{Answer, Call, run};
use crate::request_log::{TraceId, by_trace};
use crate::scratch::Scratch;
use crate::server::LlamaServer;
use crate::wait_for;

/// How long a record may be late: the agent waits 10 s for a slot that a cancelled request does not leave.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An agent with a record file, and the server it watches.
#[derive(Debug)]
pub struct Watch {
    /// The agent.
    pub agent: Agent,
    /// The server.
    pub server: LlamaServer,
    /// The records.
    pub file: PathBuf,
    _scratch: Scratch,
}

impl Watch {
    /// Starts an agent for a server.
    pub fn new(server: LlamaServer) -> Result<Self> {
        let scratch = Scratch::new()?;
        let file = scratch.path().join("records.ndjson");
        let (path, pid) = (file.display().to_string(), server.pid().to_string());
        let agent = Agent::start(&["--record-file", &path, "--user-from", "body", "--pid", &pid])?;
        agent.wait_observed(&server)?;
        Ok(Self { agent, server, file, _scratch: scratch })
    }

    /// Sends requests; returns their records, in their order.
    pub fn ask(&self, calls: &[Call], clients: usize) -> Result<Vec<Value>> {
        let answers = run(self.server.endpoint(), calls, clients)?;
        self.told(&answers)
    }

    /// The records of requests, in their order.
    pub fn told(&self, answers: &[Answer]) -> Result<Vec<Value>> {
        self.records(answers.iter().map(|answer| answer.call.trace))
    }

    /// The same by their names.
    pub fn records(&self, traces: impl Iterator<Item = TraceId> + Clone) -> Result<Vec<Value>> {
        let told = || {
            let mut told = by_trace(&self.file);
            traces.clone().map(|trace| told.remove(&trace.to_string())).collect()
        };
        wait_for("a record of each request", PATIENCE, told)
    }
}

/// The parts of the time of a request's tokens, nanoseconds; none where they are not known.
pub fn parts(record: &Value) -> Option<BTreeMap<&str, u64>> {
    let parts = record["parts_ns"].as_object()?;
    parts.iter().map(|(name, ns)| Some((name.as_str(), ns.as_u64()?))).collect()
}

/// One of them, seconds.
pub fn part(record: &Value, name: &str) -> f64 {
    record["parts_ns"][name].as_u64().map_or(f64::NAN, |ns| ns as f64 / 1e9)
}

/// Fails unless the parts of a request with one slot are all of its time. Returns how many tokens it generated.
pub fn check(record: &Value) -> Result<u64> {
    let parts = parts(record).with_context(|| format!("no parts: {record}"))?;
    let last = record["times"]["last_token_ns"].as_u64().context("no token")?;
    let sum: u64 = parts.values().sum();
    ensure!(sum == last, "{sum} ns of {last}: {record:#}");
    Ok(record["tokens"]["generated"].as_u64().unwrap_or(0))
}
