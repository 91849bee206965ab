//! The agent's request log, and the trace ids by which its lines are found.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::scratch::Scratch;
use crate::wait_for;

/// How long a line may be late: the agent waits 10 s for a slot that a cancelled request does not leave.
const PATIENCE: Duration = Duration::from_secs(15);

/// Names a request, once and for all in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TraceId(u64);

impl TraceId {
    /// An id that no request had before.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The header that carries it.
    pub fn header(self) -> String {
        format!("traceparent: 00-{self}-00f067aa0ba902b7-01\r\n")
    }
}

impl Default for TraceId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "7e57{:08x}{:020x}", std::process::id(), self.0)
    }
}

/// The lines of a record file by trace id: one a request that was named so.
pub fn by_trace(records: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(records).unwrap_or_default();
    // The last line may be on its way.
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let records = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.filter_map(|it| Some((it.pointer("/trace/trace_id")?.as_str()?.to_owned(), it))).collect()
}

/// A line: one finished request. Times are milliseconds; none where there was no such moment.
#[derive(Clone, Debug, Deserialize)]
pub struct Line {
    /// `info`, or `warn` when the request failed.
    pub level: String,
    /// The trace id of the request's `traceparent`.
    pub trace_id: Option<String>,
    /// The address of the server.
    pub server: String,
    /// The file name of the model.
    pub model: String,
    /// Who asked: a header, the body's `user`, or a hash of the API key.
    pub user_id: Option<String>,
    /// The canonical path.
    pub route: String,
    /// The status code; 499 when the client went before there was one, none if it was not seen.
    pub status: Option<u16>,
    /// Whether the answer was a stream.
    pub stream: bool,
    /// How it ended: stop, length, `tool_calls`, error, cancelled or none.
    pub finish_reason: String,
    /// The type of the error.
    pub error_type: Option<String>,
    /// Tokens of the prompt, computed and cached.
    pub prompt_tokens: u64,
    /// Tokens of the prompt that were found in the cache.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
    /// From arrival until the engine turned to it.
    pub queue_ms: Option<f64>,
    /// From arrival to the first token.
    pub ttft_ms: Option<f64>,
    /// From there to the first token.
    pub prefill_ms: Option<f64>,
    /// From the first token to the last.
    pub decode_ms: Option<f64>,
    /// From arrival to the last byte of the answer.
    pub latency_ms: f64,
    /// The longest gap between two tokens.
    pub worst_gap_ms: Option<f64>,
    /// What made that gap so long.
    pub worst_gap_cause: Option<String>,
    /// What its decode steps have lost, by cause.
    #[serde(default)]
    pub stall_ms: BTreeMap<String, f64>,
    /// The request by whose end the server ended this one, too.
    pub cancelled_by: Option<String>,
    /// The slot of its first task.
    pub slot: Option<i32>,
    /// Its first task.
    pub task: Option<i32>,
    /// How it was joined to its slots, as docs/joins.md has it.
    pub join: String,
}

/// A request log in a directory of its own.
#[derive(Debug)]
pub struct RequestLog {
    _scratch: Scratch,
    file: PathBuf,
}

impl RequestLog {
    /// A log that is not there yet.
    pub fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let file = scratch.path().join("requests.jsonl");
        Ok(Self { _scratch: scratch, file })
    }

    /// The arguments that let the agent write all requests here.
    pub fn arguments(&self) -> Result<[&str; 4]> {
        let file = self.file.to_str().context("the path of the log is no text")?;
        Ok(["--log-requests", "all", "--log-file", file])
    }

    /// The whole log as it is.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.file).unwrap_or_default()).into_owned()
    }

    /// The lines that are whole.
    pub fn lines(&self) -> Result<Vec<Line>> {
        let text = self.text();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).with_context(|| format!("a bad line: {line}"))).collect()
    }

    /// Waits until there are lines of all `traces`, and returns the lines by trace. Lines of other requests are left
    /// out; a trace that stays without a line is missing in the result.
    pub fn wait(&self, traces: &[TraceId]) -> Result<BTreeMap<TraceId, Vec<Line>>> {
        let names: BTreeMap<String, TraceId> =
            traces.iter().map(|trace| (trace.to_string(), *trace)).collect();
        let found = || {
            let mut found: BTreeMap<TraceId, Vec<Line>> = BTreeMap::new();
            for line in self.lines()? {
                if let Some(trace) = line.trace_id.as_ref().and_then(|id| names.get(id)) {
                    found.entry(*trace).or_default().push(line);
                }
            }
            Ok::<_, anyhow::Error>(found)
        };
        let all =
            wait_for("all lines of the log", PATIENCE, || found().ok().filter(|it| it.len() == names.len()));
        all.or_else(|_| found())
    }
}
