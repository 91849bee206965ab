//! An independent OTLP receiver, and what it has taken.

pub mod calls;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::assets::{Assets, workspace_root};
use crate::process::{Log, Process, tied};
use crate::scratch::Scratch;
use crate::wait_for;

/// How long something may take on its way.
const PATIENCE: Duration = Duration::from_secs(40);

/// The receiver: Python with the official protobuf definitions.
#[derive(Debug)]
pub struct Receiver {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    port: u16,
    _log: Log,
}

/// A file of what receivers have taken, item by item.
#[derive(Debug)]
pub struct Taken {
    _scratch: Scratch,
    file: PathBuf,
}

impl Taken {
    /// Nothing yet.
    pub fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let file = scratch.path().join("taken.jsonl");
        Ok(Self { _scratch: scratch, file })
    }

    /// Starts a receiver that writes here: on a free port, or on this one, with further arguments.
    pub fn receiver(&self, assets: &Assets, port: u16, arguments: &[&str]) -> Result<Receiver> {
        let log = Log::new("receiver");
        let mut command = tied(assets.python());
        command.arg(workspace_root().join("tests/assets/otlp_receiver.py")).arg(&self.file);
        command.args(["--port", &port.to_string()]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.create()?);
        let mut process = Process::start("otlp_receiver", &mut command)?;
        let input = process.child().stdin.take().context("no standard input")?;
        let output = BufReader::new(process.child().stdout.take().context("no standard output")?);
        let mut receiver = Receiver { process, input, output, port, _log: log };
        let line = receiver.line()?;
        let port = line.strip_prefix("READY ").and_then(|port| port.parse().ok());
        receiver.port = port.with_context(|| format!("the receiver says {line:?}"))?;
        Ok(receiver)
    }

    /// The whole text.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.file).unwrap_or_default()
    }

    /// All whole items.
    pub fn items(&self) -> Result<Vec<Item>> {
        let text = self.text();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).with_context(|| format!("a bad line: {line}"))).collect()
    }

    /// The spans.
    pub fn spans(&self) -> Result<Vec<Span>> {
        Ok(self
            .items()?
            .into_iter()
            .filter_map(|it| if let Item::Span(it) = it { Some(it) } else { None })
            .collect())
    }

    /// The log records.
    pub fn records(&self) -> Result<Vec<Record>> {
        Ok(self
            .items()?
            .into_iter()
            .filter_map(|it| if let Item::Log(it) = it { Some(it) } else { None })
            .collect())
    }

    /// The data points.
    pub fn points(&self) -> Result<Vec<Point>> {
        Ok(self
            .items()?
            .into_iter()
            .filter_map(|it| if let Item::Metric(it) = it { Some(it) } else { None })
            .collect())
    }

    /// Waits until what was taken satisfies `wanted`.
    pub fn wait<T>(&self, what: &str, mut wanted: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        wait_for(what, PATIENCE, || wanted(self))
    }
}

impl Receiver {
    /// The URL of the receiver.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets it answer otherwise from now on; the modes are described in the script.
    pub fn set_mode(&mut self, mode: &str) -> Result<()> {
        writeln!(self.input, "{mode}")?;
        let line = self.line()?;
        ensure!(line == mode, "the receiver says {line:?}");
        Ok(())
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

/// Something that was taken.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Item {
    /// A span.
    Span(Span),
    /// A log record.
    Log(Record),
    /// A data point.
    Metric(Point),
}

/// An event of a span.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub name: String,
    /// When, nanoseconds since the epoch.
    pub at_ns: u64,
    /// Its attributes.
    pub attributes: Map<String, Value>,
}

/// A span. Ids are in hexadecimal; empty where there is none.
#[derive(Clone, Debug, Deserialize)]
pub struct Span {
    /// Attributes of the resource.
    pub resource: Map<String, Value>,
    /// Its name.
    pub name: String,
    /// 1 internal, 2 server.
    pub span_kind: u8,
    /// The trace.
    pub trace_id: String,
    /// Its id.
    pub span_id: String,
    /// Its parent.
    pub parent_span_id: String,
    /// The caller's state.
    pub trace_state: String,
    /// Flags; the lower eight bits are W3C's.
    pub flags: u32,
    /// Begin, nanoseconds since the epoch.
    pub start_ns: u64,
    /// End, nanoseconds since the epoch.
    pub end_ns: u64,
    /// Its attributes.
    pub attributes: Map<String, Value>,
    /// Its events.
    pub events: Vec<Event>,
    /// 0 unset, 2 error.
    pub status: u8,
    /// What was sent in the header `api-key`.
    #[serde(rename = "api-key")]
    pub api_key: Option<String>,
}

/// A log record.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    /// Attributes of the resource.
    pub resource: Map<String, Value>,
    /// The name of the event.
    pub name: String,
    /// 9 info, 13 warn.
    pub severity: u8,
    /// The trace.
    pub trace_id: String,
    /// The span.
    pub span_id: String,
    /// Its attributes.
    pub attributes: Map<String, Value>,
}

/// An exemplar of a histogram.
#[derive(Clone, Debug, Deserialize)]
pub struct Exemplar {
    /// The trace.
    pub trace_id: String,
    /// The span.
    pub span_id: String,
    /// What was observed.
    pub value: f64,
}

/// A data point.
#[derive(Clone, Debug, Deserialize)]
pub struct Point {
    /// Attributes of the resource.
    pub resource: Map<String, Value>,
    /// The metric.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// `sum`, `gauge` or `histogram`.
    #[serde(rename = "type")]
    pub data: String,
    /// Whether it counts from `start_ns` on.
    pub cumulative: bool,
    /// Its attributes.
    pub attributes: Map<String, Value>,
    /// From when on it counts, nanoseconds since the epoch.
    pub start_ns: u64,
    /// When it was so.
    pub at_ns: u64,
    /// The value of a sum or gauge.
    #[serde(default)]
    pub value: f64,
    /// Observations of a histogram.
    #[serde(default)]
    pub count: u64,
    /// Their sum.
    #[serde(default)]
    pub sum: f64,
    /// The finite bounds of its buckets.
    #[serde(default)]
    pub bounds: Vec<f64>,
    /// Its exemplars.
    #[serde(default)]
    pub exemplars: Vec<Exemplar>,
}

/// The names in OpenTelemetry's conventions, `attribute` or `metric` before each.
pub fn conventions(assets: &Assets) -> Result<BTreeSet<String>> {
    let script = workspace_root().join("tests/assets/convention_names.py");
    let output = Command::new(assets.python()).arg(script).output().context("cannot run Python")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names: BTreeSet<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    ensure!(names.contains("attribute gen_ai.usage.input_tokens"), "the conventions are not there");
    ensure!(!names.contains("attribute gen_ai.usage.prompt_tokens"), "deprecated names are in the list");
    Ok(names)
}

/// The children of each span, by the parent's id, in the order of their begins.
pub fn children(spans: &[Span]) -> BTreeMap<&str, Vec<&Span>> {
    let mut children: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.span_kind == 1) {
        children.entry(&span.parent_span_id).or_default().push(span);
    }
    children.values_mut().for_each(|spans| spans.sort_by_key(|span| (span.start_ns, span.end_ns)));
    children
}
