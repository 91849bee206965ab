//! The record file: all that is known of each finished inference request, one JSON object a line, for analysis.
//!
//! The request log is for whoever runs the server: rounded, without what there was not, and it can be told to leave out
//! what went well. A record has every field in every line, `null` where there was nothing, and what was measured as it was:
//! tokens by type, moments in nanoseconds. Who asked is said by the one name that the operator chose; whatever else was
//! seen that could tell it stays out, and so does all text.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    time::{Duration, Instant},
};

use llamaprobe_api::Workload;
use llamaprobe_common::{copying::Operation, part::Part, stall::Cause};
use serde::Serialize;

use super::{lines::Lines, sink::Sink, snapshot::workload};
use crate::{
    discovery::model::Model,
    session::{
        Record,
        finished::{DraftStep, Finished, UNKNOWN},
        payload::body::Body,
        shown::request_id,
        snapshot::{Delivery, Output},
        waits,
    },
};

/// Grows when a field changes or goes; new ones may come at any time.
const SCHEMA: u32 = 1;

/// A record.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    schema: u32,
    /// When it arrived, microseconds since the Unix epoch.
    arrived_unix_us: u64,
    server: &'a str,
    /// As labels have it; `model_file` says more.
    model: &'a str,
    pid: u32,
    /// Of which pod and container its server is; absent where it is in none.
    workload: Option<Workload>,
    user: Option<&'a str>,
    trace: Trace,
    request: Request<'a>,
    answer: Answer<'a>,
    times: Times,
    /// Where the time of its tokens went, nanoseconds by part; they add up to that from the arrival to the last token. Absent
    /// where they are not known.
    parts_ns: BTreeMap<&'static str, Option<u64>>,
    /// For whose prompts and caches it waited, who cost it most first.
    slowed_by: Vec<Culprit<'a>>,
    tokens: Tokens,
    /// What caches were saved and restored for it, nanoseconds by operation.
    copies_ns: BTreeMap<&'static str, u64>,
    cache: Cache,
    engine: Engine,
    cost: Cost,
    model_file: Option<&'a Model>,
}

/// Where it stands in the caller's trace; ids in hexadecimal digits.
#[derive(Debug, Serialize)]
struct Trace {
    trace_id: Option<String>,
    /// The caller's span.
    parent_id: Option<String>,
    /// Its own, where it was exported.
    span_id: Option<String>,
}

/// What was asked for.
#[derive(Debug, Serialize)]
struct Request<'a> {
    route: &'a str,
    tls: bool,
    /// Bytes of the body; absent where it came in chunks.
    content_length: Option<u64>,
    model: Option<&'a str>,
    stream: Option<bool>,
    max_tokens: Option<u64>,
    /// Answers.
    n: Option<u64>,
    temperature: Option<f64>,
}

/// What was answered.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    status: Option<u16>,
    stream: bool,
    finish_reason: &'static str,
    error_type: Option<&'a str>,
    /// The request whose client went and by whose end the server ended this one, too.
    cancelled_by: Option<String>,
    /// The server says that it was cut for want of context.
    truncated: bool,
    has_text: bool,
    /// It begins with a phrase of the operator's list.
    refused: Option<bool>,
}

/// Moments in nanoseconds after the arrival, absent where there was no such moment; and one duration.
#[derive(Debug, Serialize)]
struct Times {
    /// The server had loaded its model again.
    loaded_ns: Option<u64>,
    /// The engine turned to the prompt.
    prefill_ns: Option<u64>,
    first_token_ns: Option<u64>,
    last_token_ns: Option<u64>,
    /// The server had handed over the last byte, or the client went.
    answered_ns: u64,
    /// The longest time between two tokens.
    worst_gap_ns: Option<u64>,
    /// What most of that was.
    worst_gap_part: Option<&'static str>,
    /// What made it so long, where most of it was lost to one cause.
    worst_gap_cause: Option<&'static str>,
    /// What its decode steps have lost, by cause; empty where nothing was lost, or that is not seen.
    stall_ns: BTreeMap<&'static str, u64>,
}

/// Another request of the same server.
#[derive(Debug, Serialize)]
struct Culprit<'a> {
    user: Option<&'a str>,
    /// When it arrived; absent where it is not known, and for the rest of many.
    arrived_unix_us: Option<u64>,
    ns: u64,
    /// Decode calls in which prompt tokens of it were.
    calls: u64,
    prompt_tokens: u64,
    /// How much longer the server's own work beside those calls took.
    host_ns: u64,
    /// While the server saved and restored caches for it.
    copy_ns: u64,
    /// While its tokens were chosen, in steps of 8.4 ms.
    sampling_ns: u64,
}

impl<'a> Culprit<'a> {
    fn new(culprit: &'a waits::Culprit, epoch: Duration) -> Self {
        let arrived_ns = culprit.request.arrived_ns;
        let arrived = epoch + Duration::from_nanos(arrived_ns);
        Self {
            user: culprit.user.as_deref(),
            arrived_unix_us: u64::try_from(arrived.as_micros()).ok().filter(|_| arrived_ns != 0),
            ns: culprit.waited.prefill_ns,
            calls: culprit.calls,
            prompt_tokens: culprit.tokens,
            host_ns: culprit.waited.host_ns,
            copy_ns: culprit.waited.copy_ns,
            sampling_ns: culprit.waited.sampling_ns,
        }
    }
}

#[derive(Debug, Serialize)]
struct Tokens {
    /// Of the prompt, computed; absent where that is not known.
    prompt: Option<u64>,
    /// Of the prompt, found in the cache.
    cached: u64,
    generated: u64,
    /// Of these, those after the client had gone.
    wasted: u64,
    /// Guessed.
    drafted: u64,
    /// Of these, those that were right.
    accepted: u64,
}

/// What it missed in the cache; all absent where it missed nothing, or that is not known.
#[derive(Debug, Serialize)]
struct Cache {
    /// Why.
    miss: Option<&'static str>,
    /// Tokens that its slot held.
    held: Option<u64>,
    /// Where its prompt differs from them first, counted from 0.
    differs_at: Option<u64>,
    /// How long it took to put in what was restored.
    restore_ns: Option<u64>,
}

/// The engine's side of it.
#[derive(Debug, Serialize)]
struct Engine {
    /// How it was joined to the rest.
    join: &'static str,
    slot: Option<i32>,
    task: Option<i32>,
    /// Tokens that its slots held at the end.
    context_used: u64,
    /// Its share of the time of decode calls.
    busy_ns: u64,
    /// Decode calls that checked guesses, where these are told.
    draft_steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    /// After the arrival.
    at_ns: u64,
    drafted: u32,
    accepted: u32,
}

/// Dollars; absent without a price.
#[derive(Debug, Serialize)]
struct Cost {
    by_tokens: Option<f64>,
    by_host: Option<f64>,
}

impl<'a> Entry<'a> {
    fn new(record: &'a Record, epoch: Duration) -> Self {
        let request = &record.request;
        let [by_tokens, by_host] = record.cost;
        let arrived = epoch + Duration::from_nanos(request.arrived_ns);
        Self {
            schema: SCHEMA,
            arrived_unix_us: u64::try_from(arrived.as_micros()).unwrap_or(u64::MAX),
            server: &record.labels.server,
            model: &record.labels.model,
            pid: request.key.tgid,
            workload: record.workload.as_ref().map(workload),
            user: request.user.as_deref(),
            trace: Trace::new(record),
            request: Request::new(request),
            answer: Answer::new(request),
            times: Times::new(request),
            parts_ns: Part::ALL
                .map(|part| (part.name(), request.token_time.as_ref().map(|time| time.get(part))))
                .into(),
            slowed_by: request.slowed_by.iter().map(|culprit| Culprit::new(culprit, epoch)).collect(),
            tokens: Tokens::new(request),
            copies_ns: Operation::ALL.map(|it| (it.name(), request.copies[it as usize])).into(),
            cache: Cache::new(request),
            engine: Engine::new(request),
            cost: Cost { by_tokens, by_host },
            model_file: record.model.as_deref(),
        }
    }
}

impl Trace {
    fn new(record: &Record) -> Self {
        let span = |id: [u8; 8]| format!("{:016x}", u64::from_be_bytes(id));
        let caller = record.request.head.as_ref().and_then(|head| head.traceparent);
        let kept = record.trace.filter(|trace| trace.kept);
        Self {
            trace_id: record.trace_id().map(|id| format!("{:032x}", u128::from_be_bytes(id))),
            parent_id: caller.map(|caller| span(caller.parent_id)),
            span_id: kept.map(|trace| span(trace.span_id)),
        }
    }
}

impl<'a> Request<'a> {
    fn new(request: &'a Finished) -> Self {
        let Body { model, stream, max_tokens, n, temperature, .. } = &request.body;
        Self {
            route: request.route.name(),
            tls: request.tls,
            content_length: request.head.as_ref().and_then(|head| head.content_length),
            model: model.as_deref(),
            stream: *stream,
            max_tokens: *max_tokens,
            n: *n,
            temperature: *temperature,
        }
    }
}

impl<'a> Answer<'a> {
    fn new(request: &'a Finished) -> Self {
        Self {
            status: (request.code != UNKNOWN).then_some(request.code),
            stream: request.stream,
            finish_reason: request.outcome.name(),
            error_type: request.error_type.as_deref(),
            cancelled_by: request.cancelled_by.map(request_id),
            truncated: request.truncated,
            has_text: request.has_text,
            refused: request.refused,
        }
    }
}

impl Times {
    fn new(request: &Finished) -> Self {
        let after = |at_ns: u64| (at_ns != 0).then(|| at_ns.saturating_sub(request.arrived_ns));
        Self {
            loaded_ns: after(request.loaded_ns),
            prefill_ns: after(request.prefill_ns),
            first_token_ns: after(request.first_token_ns),
            last_token_ns: after(request.last_token_ns),
            answered_ns: request.latency_ns(),
            worst_gap_ns: request.worst_gap(),
            worst_gap_part: request.worst_part().map(Part::name),
            worst_gap_cause: request.worst_gap_cause().map(Cause::name),
            stall_ns: request.losses.all().causes().map(|(cause, ns)| (cause.name(), ns)).collect(),
        }
    }
}

impl Tokens {
    fn new(request: &Finished) -> Self {
        let [drafted, accepted] = request.draft_tokens;
        Self {
            prompt: (!request.prompt_unknown).then_some(request.prompt_tokens),
            cached: request.cached_tokens,
            generated: request.generated_tokens,
            wasted: request.wasted_tokens,
            drafted,
            accepted,
        }
    }
}

impl Cache {
    fn new(request: &Finished) -> Self {
        let miss = request.cache_miss.as_ref();
        Self {
            miss: miss.map(|miss| miss.reason.name()),
            held: miss.map(|miss| miss.held_tokens),
            differs_at: miss.and_then(|miss| miss.differs_at),
            restore_ns: miss.and_then(|miss| miss.restore_ns),
        }
    }
}

impl Engine {
    fn new(request: &Finished) -> Self {
        let step = |step: &DraftStep| Step {
            at_ns: step.at_ns.saturating_sub(request.arrived_ns),
            drafted: step.drafted,
            accepted: step.accepted,
        };
        Self {
            join: request.join.name(),
            slot: request.slot,
            task: request.task,
            context_used: request.context_used,
            busy_ns: request.used.engine_ns,
            draft_steps: request.draft_steps.iter().map(step).collect(),
        }
    }
}

/// The record file.
pub struct Records(Lines);

impl Records {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, or no thread can be started.
    pub fn open(file: &Path) -> io::Result<Self> {
        Lines::open("record file", Some(file)).map(Self)
    }
}

impl Sink for Records {
    fn record(&mut self, record: &Record, epoch: Duration) {
        if record.request.is_inference() {
            self.0.put(&Entry::new(record, epoch));
        }
    }

    fn reopen(&mut self) {
        self.0.reopen();
    }

    fn finish(&mut self) {
        self.0.finish();
    }

    fn close(&mut self, deadline: Instant) {
        self.0.close(deadline);
    }

    fn deliveries(&self) -> Vec<Delivery> {
        vec![self.0.delivery(Output::Other("records".into()))]
    }
}
