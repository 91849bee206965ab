//! The request log: one JSON line a finished request, for whoever runs the server.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use clap::ValueEnum;
use llamaprobe_common::{part::Part, stall::Cause};
use serde::Serialize;

use super::{lines::Lines, sink::Sink};
use crate::{
    kubernetes::Workload,
    session::{
        Record,
        finished::{Finished, Outcome, UNKNOWN},
        identity::NONE,
        shown::request_id,
        snapshot::{Delivery, Output},
    },
};

/// Which requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Logged {
    /// None.
    Off,
    /// Those that failed or were cancelled, and slow ones.
    Errors,
    /// All inference requests.
    All,
}

/// One line. Absent is what there was not; times are milliseconds.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    timestamp: String,
    level: &'static str,
    event: &'static str,
    /// What `llamaprobe explain` takes.
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    server: &'a str,
    model: &'a str,
    /// Of its pod, by the names of labels; nothing where it is in none.
    #[serde(flatten)]
    pod: BTreeMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantisation: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    route: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    stream: bool,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_type: Option<&'a str>,
    /// `null` where it is not known.
    prompt_tokens: Option<u64>,
    cached_tokens: u64,
    completion_tokens: u64,
    /// From arrival until its server had loaded its model again.
    #[serde(skip_serializing_if = "Option::is_none")]
    load_ms: Option<f64>,
    /// From there, or from arrival, until the engine turned to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttft_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_ms: Option<f64>,
    latency_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    worst_gap_ms: Option<f64>,
    /// What most of it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    worst_gap_part: Option<&'static str>,
    /// Where the time of its tokens went, from arrival to the last; only what is not 0.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parts_ms: BTreeMap<&'static str, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    neighbour_prefill_ms: Option<f64>,
    /// How much longer the server's own work took for the prompts of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    neighbour_host_ms: Option<f64>,
    /// While caches were saved and restored for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    neighbour_copy_ms: Option<f64>,
    /// While tokens of others were chosen that took long.
    #[serde(skip_serializing_if = "Option::is_none")]
    neighbour_sampling_ms: Option<f64>,
    /// The user for whom it waited longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    slowed_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worst_gap_cause: Option<&'static str>,
    /// The request whose client went and by whose end the server ended this one, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancelled_by: Option<String>,
    /// Time that its decode steps lost, by cause.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stall_ms: BTreeMap<&'static str, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    context_used: u64,
    cached: bool,
    /// Why its prompt, or a part of it, was not found in the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_miss: Option<&'static str>,
    /// Where its prompt differs first from what its slot held.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_differs_at: Option<u64>,
    /// What its slot held, tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_held_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_restore_ms: Option<f64>,
    /// What caches were saved and restored for it, by operation.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cache_copies_ms: BTreeMap<&'static str, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wasted_tokens: Option<u64>,
    engine_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_dollars: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_cost_dollars: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<i32>,
    join: &'static str,
    /// The recording that was made since it took so long: the name of its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    recording: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// The line of a request; `to_wall` turns the kernel's time into that of the wall.
    pub fn new(record: &'a Record, to_wall: impl Fn(u64) -> SystemTime) -> Self {
        let request = &record.request;
        let failed = matches!(request.outcome, Outcome::Error | Outcome::Cancelled);
        let seconds = request.decode_ns().filter(|ns| *ns > 0).map(|ns| ns as f64 / 1e9);
        let drafted = Some(request.draft_tokens).filter(|[drafted, _]| *drafted > 0);
        let [by_tokens, by_time] = record.cost;
        let miss = request.cache_miss.as_ref();
        let waited = request.waited();
        let some_ms = |ns: u64| (ns > 0).then(|| ms(ns));
        Self {
            timestamp: timestamp(to_wall(request.answered_ns)),
            level: if failed { "warn" } else { "info" },
            event: "inference_complete",
            request_id: request_id(request.key),
            trace_id: record.trace_id().map(|id| hex(&id)),
            server: &record.labels.server,
            model: &record.labels.model,
            pod: record.workload.iter().flat_map(Workload::of_pod).collect(),
            quantisation: record.model.as_ref().map(|model| model.quantisation.as_str()),
            user_id: request.user.as_deref(),
            route: request.route.name(),
            status: (request.code != UNKNOWN).then_some(request.code),
            stream: request.stream,
            finish_reason: request.outcome.name(),
            error_type: request.error_type.as_deref(),
            prompt_tokens: request.input_tokens(),
            cached_tokens: request.cached_tokens,
            completion_tokens: request.generated_tokens,
            load_ms: request.load_ns().map(ms),
            queue_ms: request.queue_ns().map(ms),
            ttft_ms: request.ttft_ns().map(ms),
            prefill_ms: request.prefill_ns().map(ms),
            decode_ms: request.decode_ns().map(ms),
            latency_ms: ms(request.latency_ns()),
            worst_gap_ms: request.worst_gap().map(ms),
            worst_gap_part: request.worst_part().map(Part::name),
            parts_ms: request.parts().map(|(part, ns)| (part.name(), ms(ns))).collect(),
            neighbour_prefill_ms: request.neighbour_prefill_ns().map(ms),
            neighbour_host_ms: some_ms(waited.host_ns),
            neighbour_copy_ms: some_ms(waited.copy_ns),
            neighbour_sampling_ms: some_ms(waited.sampling_ns),
            slowed_by: request.slowed_by.first().map(|it| it.user.as_deref().unwrap_or(NONE)),
            worst_gap_cause: request.worst_gap_cause().map(Cause::name),
            cancelled_by: request.cancelled_by.map(request_id),
            stall_ms: request.losses.all().causes().map(|(cause, ns)| (cause.name(), ms(ns))).collect(),
            tokens_per_second: seconds
                .map(|seconds| request.generated_tokens.saturating_sub(1) as f64 / seconds)
                .map(|rate| (rate * 10.0).round() / 10.0),
            context_used: request.context_used,
            cached: request.cached_tokens > 0,
            cache_miss: miss.map(|miss| miss.reason.name()),
            cache_differs_at: miss.and_then(|miss| miss.differs_at),
            cache_held_tokens: miss.map(|miss| miss.held_tokens),
            cache_restore_ms: miss.and_then(|miss| miss.restore_ns).map(ms),
            cache_copies_ms: request.copies().map(|(operation, ns)| (operation.name(), ms(ns))).collect(),
            draft_tokens: drafted.map(|[drafted, _]| drafted),
            accepted_tokens: drafted.map(|[_, accepted]| accepted),
            wasted_tokens: Some(request.wasted_tokens).filter(|n| *n > 0),
            engine_ms: ms(request.used.engine_ns),
            cost_dollars: by_tokens.or(by_time).map(dollars),
            host_cost_dollars: by_time.filter(|_| by_tokens.is_some()).map(dollars),
            slot: request.slot,
            task: request.task,
            join: request.join.name(),
            recording: record.recording.as_deref(),
        }
    }
}

/// Turns the kernel's time into that of the wall; `epoch` is its 0 since the Unix epoch.
pub(crate) fn to_wall(epoch: Duration) -> impl Fn(u64) -> SystemTime {
    move |ns| SystemTime::UNIX_EPOCH + epoch + Duration::from_nanos(ns)
}

fn ms(ns: u64) -> f64 {
    // Microseconds are as fine as anybody reads.
    (ns as f64 / 1e3).round() / 1e3
}

/// A millionth of a cent is as fine as anybody pays.
fn dollars(dollars: f64) -> f64 {
    (dollars * 1e8).round() / 1e8
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Civil date from days since 1970, by eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis()
    )
}

/// What to log, and where.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Which requests.
    pub logged: Logged,
    /// The file; standard output when absent.
    pub file: Option<PathBuf>,
    /// Requests at least this slow are logged with the errors.
    pub slow: Option<Duration>,
}

impl LogOptions {
    /// Whether anything is logged.
    pub fn is_on(&self) -> bool {
        self.logged != Logged::Off
    }

    fn wants(&self, request: &Finished) -> bool {
        let failed = matches!(request.outcome, Outcome::Error | Outcome::Cancelled);
        let slow = self.slow.is_some_and(|limit| u128::from(request.latency_ns()) >= limit.as_nanos());
        let chosen = match self.logged {
            Logged::Off => false,
            Logged::Errors => failed || slow,
            Logged::All => true,
        };
        chosen && request.is_inference()
    }
}

/// The request log.
pub struct RequestLog {
    options: LogOptions,
    lines: Lines,
}

impl RequestLog {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, or no thread can be started.
    pub fn open(options: LogOptions) -> io::Result<Self> {
        let lines = Lines::open("request log", options.file.as_deref())?;
        Ok(Self { options, lines })
    }
}

impl Sink for RequestLog {
    fn record(&mut self, record: &Record, epoch: Duration) {
        if self.options.wants(&record.request) {
            self.lines.put(&Line::new(record, to_wall(epoch)));
        }
    }

    fn reopen(&mut self) {
        self.lines.reopen();
    }

    fn finish(&mut self) {
        self.lines.finish();
    }

    fn close(&mut self, deadline: Instant) {
        self.lines.close(deadline);
    }

    fn deliveries(&self) -> Vec<Delivery> {
        vec![self.lines.delivery(Output::Log)]
    }
}

#[cfg(test)]
mod tests;
