//! A finished request as spans: one of kind SERVER, with queue, prefill and decode beneath it. Pure.
//!
//! OpenTelemetry's GenAI conventions define spans of clients only. This one is an HTTP server span with their attributes.
//! The three phases lie within the request's span and fill it: the last one ends with the last byte of the answer, and an
//! event in it says when the last token was ready.

#[cfg(test)]
mod tests;

use llamaprobe_common::part::Part;
use opentelemetry_proto::tonic::trace::v1::{
    Span, Status,
    span::{Event, SpanKind},
    status::StatusCode,
};

use llamaprobe_common::stall::Cause;

use super::attribute::Attributes;
use crate::engines::PROVIDER;
use crate::session::{
    Record,
    finished::{CLIENT_GONE, Finished, Join, Outcome, UNKNOWN},
    identity::NONE,
    shown::request_id,
    tally::Phase,
    tracer::Trace,
};

/// Says that the next flag means something.
const HAS_REMOTE: u32 = 0x100;
/// The parent is in another process.
const REMOTE: u32 = 0x200;

/// The spans of a request whose trace is kept. `epoch_ns` is the kernel's time 0 since the Unix epoch.
pub(super) fn spans(record: &Record, trace: &Trace, epoch_ns: u64) -> Vec<Span> {
    let request = &record.request;
    let mut spans = vec![server(record, trace, epoch_ns)];
    spans.extend(phases(request).into_iter().map(|(phase, from, to)| Span {
        trace_id: trace.trace_id.to_vec(),
        span_id: trace.phase_ids[phase as usize].to_vec(),
        parent_span_id: trace.span_id.to_vec(),
        trace_state: tracestate(request),
        flags: u32::from(trace.flags) | HAS_REMOTE,
        name: phase.name().to_owned(),
        kind: SpanKind::Internal as i32,
        start_time_unix_nano: epoch_ns + from,
        end_time_unix_nano: epoch_ns + to,
        attributes: phase_attributes(request, phase).0,
        events: if phase == Phase::Decode {
            let last = event("last_token", request.last_token_ns, to, epoch_ns);
            drafts(request, to, epoch_ns).chain(last).collect()
        } else {
            Vec::new()
        },
        ..Span::default()
    }));
    spans
}

/// How many spans [`spans`] makes.
pub(super) fn count(request: &Finished) -> u64 {
    1 + phases(request).len() as u64
}

/// The phases of a request, with begin and end in the kernel's nanoseconds: each begins where the one before ends, the
/// first with the request, and the last ends with it. None for what never came as far as the engine.
fn phases(request: &Finished) -> Vec<(Phase, u64, u64)> {
    // Of one whose end was not awaited it is not known where the phases end.
    let ran = request.join != Join::None || !request.stale_tasks.is_empty();
    if !ran || request.outcome == Outcome::Interrupted {
        return Vec::new();
    }
    // A client can go before the engine notices; what it does then is not the request's time any more.
    let end = request.answered_ns.max(request.arrived_ns);
    let mut from = request.arrived_ns;
    let mut phases = Vec::new();
    for phase in Phase::ALL {
        let until = match phase {
            Phase::Load if request.loaded_ns == 0 => continue,
            Phase::Load => request.loaded_ns,
            Phase::Queue => request.prefill_ns,
            Phase::Prefill => request.first_token_ns,
            // The end.
            Phase::Decode => 0,
        };
        let to = if until == 0 { end } else { until.clamp(from, end) };
        phases.push((phase, from, to));
        if until == 0 {
            break;
        }
        from = to;
    }
    phases
}

fn server(record: &Record, trace: &Trace, epoch_ns: u64) -> Span {
    let request = &record.request;
    let end = request.answered_ns.max(request.arrived_ns);
    let first = event("first_token", request.first_token_ns, end, epoch_ns);
    let cancelled = (request.outcome == Outcome::Cancelled).then_some(request.answered_ns);
    let cancelled = cancelled.and_then(|at_ns| event("cancelled", at_ns, end, epoch_ns));
    let error = error(request);
    let mut attributes = attributes(record);
    attributes.put_some("error.type", error.clone());
    let operation = request.route.operation().unwrap_or("request");
    let model = request.body.model.as_deref().unwrap_or(&record.labels.model);
    Span {
        trace_id: trace.trace_id.to_vec(),
        span_id: trace.span_id.to_vec(),
        parent_span_id: trace.parent_id.map_or(Vec::new(), |parent| parent.to_vec()),
        trace_state: tracestate(request),
        flags: u32::from(trace.flags) | HAS_REMOTE | if trace.parent_id.is_some() { REMOTE } else { 0 },
        name: format!("{operation} {model}").trim_end().to_owned(),
        kind: SpanKind::Server as i32,
        start_time_unix_nano: epoch_ns + request.arrived_ns,
        end_time_unix_nano: epoch_ns + end,
        attributes: attributes.0,
        events: first.into_iter().chain(cancelled).collect(),
        status: error.map(|message| Status { message, code: StatusCode::Error as i32 }),
        ..Span::default()
    }
}

/// The type of the error that makes a server's span one: the client's mistakes do not, as the HTTP conventions say.
fn error(request: &Finished) -> Option<String> {
    if request.outcome != Outcome::Error || (400..500).contains(&request.code) {
        return None;
    }
    let code = (request.code != UNKNOWN).then(|| request.code.to_string());
    Some(request.error_type.clone().or(code).unwrap_or_else(|| "_OTHER".to_owned()))
}

fn attributes(record: &Record) -> Attributes {
    let (request, mut it) = (&record.request, Attributes::default());
    // Only a POST runs on a slot.
    it.put("http.request.method", "POST");
    it.put("url.scheme", if request.tls { "https" } else { "http" });
    it.put_some("url.path", request.head.as_ref().map(|head| head.path.as_str()));
    it.put("http.route", request.route.name());
    // The code for a client that went is of our making.
    let answered = !matches!(request.code, UNKNOWN | CLIENT_GONE);
    it.put_some("http.response.status_code", answered.then_some(u64::from(request.code)));
    it.put_server(&record.labels.server);

    it.put_some("gen_ai.operation.name", request.route.operation());
    it.put("gen_ai.provider.name", PROVIDER);
    it.put_some("gen_ai.request.model", request.body.model.as_deref());
    let served = Some(record.labels.model.as_str()).filter(|model| !model.is_empty());
    it.put_some("gen_ai.response.model", served);
    it.put_some("gen_ai.request.max_tokens", request.body.max_tokens);
    it.put_some("gen_ai.request.temperature", request.body.temperature);
    it.put_some("gen_ai.request.choice.count", request.body.n.filter(|n| *n != 1));
    it.put_some("gen_ai.request.stream", request.body.stream);
    let conversation = request.head.as_ref().and_then(|head| head.conversation.as_deref());
    it.put_some("gen_ai.conversation.id", conversation);
    if matches!(request.outcome, Outcome::Stop | Outcome::Length | Outcome::ToolCalls) {
        it.put("gen_ai.response.finish_reasons", &[request.outcome.name()][..]);
    }

    it.put("llamaprobe.request_id", request_id(request.key).as_str());
    it.put("llamaprobe.finish_reason", request.outcome.name());
    it.put("llamaprobe.join", request.join.name());
    it.put_some("llama_cpp.slot", request.slot);
    it.put_some("llama_cpp.task", request.task);
    it.put_some("llama_cpp.quantisation", record.model.as_ref().map(|model| model.quantisation.as_str()));
    for (key, ns) in [
        ("llamaprobe.load_ms", request.load_ns()),
        ("llamaprobe.queue_ms", request.queue_ns()),
        ("llamaprobe.prefill_ms", request.prefill_ns()),
        ("llamaprobe.decode_ms", request.decode_ns()),
        ("llamaprobe.ttft_ms", request.ttft_ns()),
        ("llamaprobe.worst_gap_ms", request.worst_gap()),
    ] {
        it.put_some(key, ns.map(ms));
    }
    it.put_some("llamaprobe.worst_gap_part", request.worst_part().map(Part::name));
    for (part, ns) in request.parts() {
        it.put(&format!("llamaprobe.part.{}_ms", part.name()), ms(ns));
    }
    let waited = request.waited();
    for (name, ns) in [
        ("llamaprobe.neighbour_host_ms", waited.host_ns),
        ("llamaprobe.neighbour_copy_ms", waited.copy_ns),
        ("llamaprobe.neighbour_sampling_ms", waited.sampling_ns),
    ] {
        it.put_some(name, (ns > 0).then(|| ms(ns)));
    }
    let culprit = request.slowed_by.first();
    it.put_some("llamaprobe.slowed_by", culprit.map(|it| it.user.as_deref().unwrap_or(NONE)));
    it.put_some("llamaprobe.worst_gap_cause", request.worst_gap_cause().map(Cause::name));
    it.put_some("llamaprobe.cancelled_by", request.cancelled_by.map(request_id).as_deref());
    for (cause, ns) in request.losses.all().causes() {
        it.put(&format!("llamaprobe.stall_ms.{}", cause.name()), ms(ns));
    }
    for (operation, ns) in request.copies() {
        it.put(&format!("llamaprobe.cache_copies_ms.{}", operation.name()), ms(ns));
    }
    let miss = request.cache_miss.as_ref();
    it.put_some("llamaprobe.cache_miss", miss.map(|miss| miss.reason.name()));
    it.put_some("llamaprobe.cache_differs_at", miss.and_then(|miss| miss.differs_at));
    it.put_some("llamaprobe.cache_held_tokens", miss.map(|miss| miss.held_tokens));
    it.put_some("user.id", request.user.as_deref());
    let [drafted, accepted] = request.draft_tokens;
    it.put_some("llamaprobe.draft_tokens", (drafted > 0).then_some(drafted));
    it.put_some("llamaprobe.accepted_tokens", (drafted > 0).then_some(accepted));
    it.put_some("llamaprobe.wasted_tokens", Some(request.wasted_tokens).filter(|n| *n > 0));
    it.put_some("llamaprobe.cost_dollars", record.cost.into_iter().flatten().next());
    it.put_some("llamaprobe.recording", record.recording.as_deref());
    if request.join.is_joined() {
        it.put_some("gen_ai.usage.input_tokens", request.input_tokens());
        it.put("gen_ai.usage.cache_read.input_tokens", request.cached_tokens);
        it.put("gen_ai.usage.output_tokens", request.generated_tokens);
        it.put("llama_cpp.context_used", request.context_used);
    }
    it
}

fn phase_attributes(request: &Finished, phase: Phase) -> Attributes {
    let mut it = Attributes::default();
    match phase {
        Phase::Load | Phase::Queue => {}
        Phase::Prefill => {
            let computed = request.input_tokens().map(|_| request.prompt_tokens);
            it.put_some("llama_cpp.prompt_tokens.computed", computed);
            it.put("llama_cpp.prompt_tokens.cached", request.cached_tokens);
        }
        Phase::Decode => it.put("llama_cpp.generated_tokens", request.generated_tokens),
    }
    it
}

/// What each decode call guessed, where that was asked for.
fn drafts(request: &Finished, end_ns: u64, epoch_ns: u64) -> impl Iterator<Item = Event> {
    request.draft_steps.iter().filter_map(move |step| {
        let mut attributes = Attributes::default();
        attributes.put("llamaprobe.draft_tokens", u64::from(step.drafted));
        attributes.put("llamaprobe.accepted_tokens", u64::from(step.accepted));
        let event = event("draft", step.at_ns, end_ns, epoch_ns)?;
        Some(Event { attributes: attributes.0, ..event })
    })
}

/// A moment within the span, if there was one.
fn event(name: &str, at_ns: u64, end_ns: u64, epoch_ns: u64) -> Option<Event> {
    let time_unix_nano = epoch_ns + at_ns;
    (at_ns != 0 && at_ns <= end_ns).then(|| Event {
        time_unix_nano,
        name: name.to_owned(),
        ..Event::default()
    })
}

fn tracestate(request: &Finished) -> String {
    request.head.as_ref().and_then(|head| head.tracestate.clone()).unwrap_or_default()
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}
