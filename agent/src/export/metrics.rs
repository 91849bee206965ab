//! Every metric that is published: one row each. A new metric is a row here and a test.
//!
//! A metric whose probe is not attached, or has not fired, has no sample: absent is honest, zero would be a lie.

mod hangs;
mod models;
mod quality;
mod stalls;
mod usage;

pub(crate) use usage::token_parts;

use std::collections::BTreeMap;

use llamaprobe_common::{
    histogram::{BATCH_TOKENS, Bounds, Histogram, LATENCY_NS},
    loss::Loss,
    probe::ProbeId,
};

use crate::{
    engines::PROVIDER,
    kubernetes::Workload,
    plan::catalog::Role,
    recorder::Reason,
    session::{
        Live, Server, Snapshot,
        exemplar::Exemplars,
        finished::UNKNOWN,
        snapshot::{Delivery, Output, Recordings},
        tally::{DURATION_NS, FIRST_TOKEN_NS, Latencies, Latency, Phase, REQUEST_TOKENS, Tally},
    },
};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Observations by upper bound.
    Histogram,
}

impl Kind {
    /// As the text formats call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One sample of a metric.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Label names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: Value,
}

/// The value of a sample.
#[derive(Clone, Debug)]
pub enum Value {
    /// A number.
    Number(f64),
    /// A histogram in the unit of its bounds, and what one of that unit is in the metric's unit.
    Histogram {
        /// The counts and the sum.
        histogram: Box<Histogram>,
        /// The bounds.
        bounds: &'static Bounds,
        /// How many of that unit make one of the metric's: 1e9 for nanoseconds published as seconds.
        per_unit: f64,
        /// Requests that stand for a bucket.
        exemplars: Exemplars,
    },
}

/// One metric.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it says, with unit and limits.
    pub help: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The labels of its samples; of one about a server (`llm_`) those beyond `server` and `model`.
    pub labels: &'static [&'static str],
    /// Its samples.
    pub collect: fn(&Snapshot) -> Vec<Sample>,
    /// What OpenTelemetry calls it, where a convention does.
    standard: Option<Standard>,
}

/// A metric of OpenTelemetry's conventions.
struct Standard {
    name: &'static str,
    /// Its samples, where the convention tells apart what we do not.
    collect: Option<fn(&Snapshot) -> Vec<Sample>>,
}

/// How OpenTelemetry names a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtelName {
    /// The name, with dots.
    pub name: String,
    /// The unit, as UCUM writes it.
    pub unit: &'static str,
}

impl Metric {
    /// Its name and unit in OpenTelemetry: the convention's; else such that a Prometheus exporter, which puts `_` for `.`,
    /// the unit and `_total` behind, comes back to [`Metric::name`].
    pub fn otel(&self) -> OtelName {
        let base = if self.kind == Counter { self.name.strip_suffix("_total") } else { None };
        let base = base.unwrap_or(self.name);
        let (base, unit) = match base.rsplit_once('_') {
            Some((base, "seconds")) => (base, "s"),
            Some((base, "bytes")) => (base, "By"),
            Some((base, "ratio")) => (base, "1"),
            // What stands in braces is not put behind the name.
            Some((_, "tokens")) => (base, "{token}"),
            _ => (base, ""),
        };
        let name = self.standard.as_ref().map(|standard| standard.name.to_owned());
        OtelName { name: name.unwrap_or_else(|| base.replacen('_', ".", 1)), unit }
    }

    /// What to collect for OpenTelemetry.
    pub fn otel_samples(&self) -> fn(&Snapshot) -> Vec<Sample> {
        self.standard.as_ref().and_then(|standard| standard.collect).unwrap_or(self.collect)
    }

    const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }

    const fn known_as(self, name: &'static str, collect: Option<fn(&Snapshot) -> Vec<Sample>>) -> Self {
        Self { standard: Some(Standard { name, collect }), ..self }
    }
}

const fn metric(
    kind: Kind,
    name: &'static str,
    help: &'static str,
    collect: fn(&Snapshot) -> Vec<Sample>,
) -> Metric {
    Metric { name, help, kind, labels: &[], collect, standard: None }
}

use Kind::{Counter, Gauge, Histogram as Buckets};

/// The table.
pub static METRICS: &[Metric] = &[
    metric(
        Buckets,
        "llm_inter_token_latency_seconds",
        "Time between two consecutive tokens of one request, from sampler to sampler.",
        |all| latency(all, Role::Token, |server| server.stats.inter_token),
    ),
    metric(
        Buckets,
        "llm_decode_step_seconds",
        "Time from the entry of a decode call to the first look at its logits. Prompt chunks without output are not observed: their end is not seen.",
        |all| latency(all, Role::StepEnd, |server| server.stats.step),
    ),
    metric(
        Buckets,
        "llm_batch_tokens",
        "Tokens in one decode call of the served model, prompt and generated together. Warm-up and draft models do not count.",
        |all| {
            by_server(all, Role::Batch, |server| {
                vec![(vec![], buckets(server.stats.batch, &BATCH_TOKENS, 1.0))]
            })
        },
    ),
    metric(
        Counter,
        "llm_stall_seconds_total",
        "Time lost by running requests while a thread was off its processor that computes their decode step, or works for the engine between two steps, by cause. Each moment counts once a server, to the first cause that holds.",
        stalls::lost,
    )
    .by(&["cause"]),
    metric(
        Counter,
        "llm_tokens_total",
        "Tokens by user and type: prompt tokens computed, prompt tokens reused from the cache, tokens generated. Running requests count as they go; user `none`: no name is known.",
        usage::tokens,
    )
    .by(&["user", "type"]),
    metric(
        Counter,
        "llm_token_seconds_total",
        "Gaps of tokens, by part: each from the token before of the same request, or from its arrival. The parts add up to the gaps; sampling is told apart where the server's tokens are seen.",
        usage::token_time,
    )
    .by(&["part"]),
    metric(
        Counter,
        "llm_interference_seconds_total",
        "Time that requests of one user waited for another request, by its user: for its prompt, the server's work beside that, copies of caches for it, and tokens of it that took long to choose; counted at the end of the request that waited.",
        usage::interference,
    )
    .by(&["victim", "culprit"]),
    metric(
        Counter,
        "llm_engine_seconds_total",
        "Time of decode calls by user; each call is split by the tokens in it. Draft models do not count.",
        usage::engine_time,
    )
    .by(&["user"]),
    metric(
        Counter,
        "llm_cost_dollars_total",
        "Cost by user: on the basis `tokens` from the price list, on the basis `host` from the share of the engine's time.",
        usage::cost,
    )
    .by(&["user", "basis"]),
    metric(
        Counter,
        "llm_idle_cost_dollars_total",
        "Cost of the host while no engine worked; with the cost of all users on the basis `host` it is the whole.",
        usage::idle_cost,
    ),
    metric(
        Gauge,
        "llm_tokens_per_dollar",
        "Tokens of all types per dollar of cost over the last 5 minutes.",
        usage::tokens_per_dollar,
    )
    .by(&["basis"]),
    metric(
        Gauge,
        "llm_tokens_per_second",
        "Tokens generated per second, all requests together, over the last 5 minutes; idle time counts.",
        usage::tokens_per_second,
    ),
    metric(
        Gauge,
        "llm_cache_hit_ratio",
        "Share of prompt tokens that were reused from the cache over the last 5 minutes.",
        usage::cache_hit_ratio,
    ),
    metric(
        Counter,
        "llm_cache_misses_total",
        "Requests with tokens whose prompt, or a part of it, was not found in the cache, by reason.",
        |all| usage::cache_misses(all, |(requests, _)| requests),
    )
    .by(&["reason"]),
    metric(
        Counter,
        "llm_cache_missed_tokens_total",
        "Prompt tokens that such requests computed, what was new in them included, by reason.",
        |all| usage::cache_misses(all, |(_, tokens)| tokens),
    )
    .by(&["reason"]),
    metric(
        Counter,
        "llm_cache_copies_total",
        "Caches of slots that the server copied between decode calls, while all slots wait: what a slot held into the prompt cache in memory (save) or back (restore), and of layers that cannot be cut (checkpoint, rewind).",
        |all| usage::copies(all, |copied| copied.count as f64),
    )
    .by(&["operation"]),
    metric(
        Counter,
        "llm_cache_copy_seconds_total",
        "Time of these copies, from the question for the size until the engine does the next thing that is seen.",
        |all| usage::copies(all, |copied| copied.ns as f64 / 1e9),
    )
    .by(&["operation"]),
    metric(
        Counter,
        "llm_cache_copied_bytes_total",
        "Bytes of these copies.",
        |all| usage::copies(all, |copied| copied.bytes as f64),
    )
    .by(&["operation"]),
    metric(Gauge, "llm_users", "Users that are told apart; the rest is counted as `other`.", usage::users),
    metric(
        Counter,
        "llm_draft_tokens_total",
        "Tokens that speculative decoding guessed, by outcome.",
        quality::draft_tokens,
    )
    .by(&["outcome"]),
    metric(
        Gauge,
        "llm_context_size_tokens",
        "Tokens that the context of the served model can hold, all slots together.",
        |all| context(all, |size, _| size as f64),
    ),
    metric(
        Gauge,
        "llm_context_used_tokens",
        "Positions held in the context, all slots together; idle slots keep theirs for reuse.",
        |all| context(all, |_, used| used as f64),
    ),
    metric(
        Gauge,
        "llm_context_utilisation_ratio",
        "Positions held in the context as a share of its size.",
        |all| context(all, |size, used| used as f64 / size as f64),
    ),
    metric(
        Gauge,
        "llm_context_active_ratio",
        "Positions held by running requests as a share of the context's size; what idle slots keep for reuse does not count.",
        usage::active_context,
    ),
    metric(
        Gauge,
        "llm_context_resident_tokens",
        "Positions that idle slots keep for the next request with the same beginning.",
        usage::resident,
    ),
    metric(Gauge, "llm_slot_context_used_tokens", "Positions held by a slot.", usage::slot_context)
    .by(&["slot"]),
    metric(
        Gauge,
        "llm_slot_context_size_tokens",
        "Tokens that one slot can hold; where slots share the context, all of it.",
        usage::slot_size,
    ),
    metric(
        Counter,
        "llm_context_shifts_total",
        "Times that a running request's oldest tokens were cut to make room.",
        quality::shifts,
    ),
    metric(
        Counter,
        "llm_context_overflows_total",
        "Requests refused because their prompt does not fit into the context.",
        |all| quality::seen(all, |tally| tally.overflows),
    ),
    metric(
        Counter,
        "llm_context_truncations_total",
        "Answers in which the server says that it cut prompt or answer for want of context.",
        |all| quality::seen(all, |tally| tally.truncations),
    ),
    metric(
        Counter,
        "llm_wasted_tokens_total",
        "Tokens generated after the client had closed its connection (TCP only; of a request with several choices, those of its last slot).",
        quality::wasted,
    ),
    metric(
        Counter,
        "llm_empty_answers_total",
        "Answers without text: the model ended them with its first token.",
        |all| quality::seen(all, |tally| tally.empty_answers),
    ),
    metric(
        Counter,
        "llm_refusals_total",
        "Answers that begin with a phrase of the operator's list (--refusal-file).",
        quality::refusals,
    ),
    metric(
        Counter,
        "llm_requests_total",
        "Finished HTTP requests by route, status code and reason of the end; 499 when the client went before an answer.",
        requests,
    )
    .by(&["route", "code", "finish_reason"]),
    metric(
        Buckets,
        "llm_request_duration_seconds",
        "Time of inference requests from the moment a thread of the server could read them to the last byte of the answer.",
        |all| exemplified(all, &DURATION_NS, |tally| tally.duration, |of| &of.duration),
    )
    .known_as("gen_ai.server.request.duration", Some(|all| by_operation(all, &DURATION_NS, |of| &of.duration))),
    metric(
        Buckets,
        "llm_time_to_first_token_seconds",
        "Time of inference requests from arrival to their first token, from the kernel's view of socket and sampler.",
        |all| exemplified(all, &FIRST_TOKEN_NS, |tally| tally.first_token, |of| &of.first_token),
    )
    .known_as("gen_ai.server.time_to_first_token", Some(|all| by_operation(all, &FIRST_TOKEN_NS, |of| &of.first_token))),
    metric(
        Buckets,
        "llm_time_per_output_token_seconds",
        "Time per token after the first, one observation a request.",
        |all| exemplified(all, &LATENCY_NS, |tally| tally.per_token, |of| &of.per_token),
    )
    .known_as("gen_ai.server.time_per_output_token", Some(|all| by_operation(all, &LATENCY_NS, |of| &of.per_token))),
    metric(
        Buckets,
        "llm_request_phase_seconds",
        "Phases of inference requests: load (arrival until a server that slept has its model again), queue (from there, or from arrival, until the engine turns to the prompt), prefill (until the first token), decode (until the last).",
        phases,
    )
    .by(&["phase"]),
    metric(
        Buckets,
        "llm_request_prompt_tokens",
        "Prompt tokens of a request, reused ones included.",
        |all| tallied(all, |tally| (tally.prompt_tokens, &REQUEST_TOKENS, 1.0)),
    ),
    metric(Buckets, "llm_request_generated_tokens", "Tokens generated for a request.", |all| {
        tallied(all, |tally| (tally.generated_tokens, &REQUEST_TOKENS, 1.0))
    }),
    metric(Gauge, "llm_requests_in_flight", "Inference requests that are not answered yet.", in_flight),
    metric(
        Gauge,
        "llm_queue_depth",
        "Inference requests that wait for a slot, and connections that no thread of the server has taken up.",
        queue_depth,
    ),
    metric(
        Gauge,
        "llm_last_decode_age_seconds",
        "Time since the last decode call was entered, also while nobody asks for anything.",
        hangs::last_decode,
    ),
    metric(
        Gauge,
        "llm_slot_age_seconds",
        "How long the request on a slot has had it; absent where none runs.",
        hangs::slots,
    )
    .by(&["slot"]),
    metric(
        Gauge,
        "llm_untaken_request_age_seconds",
        "Time since the last byte was read of the oldest inference request that got no task of the engine; 0 without one.",
        hangs::untaken,
    ),
    metric(Gauge, "llm_slots", "Slots the server was told to have.", slots),
    metric(Gauge, "llm_slots_busy", "Slots with a running request.", |all| {
        by_server(all, Role::SlotStart, |server| {
            let busy = server.live.iter().filter_map(|live| live.slots_busy);
            busy.map(|busy| (vec![], Value::Number(busy as f64))).collect()
        })
    }),
    metric(
        Gauge,
        "llm_model_info",
        "The served model, from the header of its file, and what computes it: the backend whose device the server holds open, cpu without one, and the backends other than the CPU that it is built for (built_for); the value is 1.",
        model_info,
    )
    .by(&["architecture", "quantisation", "parameters", "context_train", "backend", "built_for"]),
    metric(
        Gauge,
        "llm_model_load_seconds",
        "From the start of the server's process to its first decode call, by which it warms up, or, of one that slept since, from the request that woke it to its task; absent where neither was seen.",
        models::load,
    ),
    metric(
        Counter,
        "llm_model_reloads_total",
        "Times that the server loaded its model again for a request after it had slept (--sleep-idle-seconds).",
        models::reloads,
    ),
    metric(
        Gauge,
        "llm_model_mapped_bytes",
        "Bytes of model files that the server has mapped: what was moved to a device is mapped no more. As of the last look, every half minute.",
        models::mapped,
    ),
    metric(
        Gauge,
        "llm_model_resident_ratio",
        "Share of the mapped bytes of model files that is in memory; the rest is read from disk when it is needed. Absent with --no-mmap, and before Linux 6.5.",
        models::resident,
    ),
    metric(
        Gauge,
        "llm_model_reload_forecast_seconds",
        "How much longer the next first token takes for what of the mapped model is not in memory: those bytes at the pace at which decode steps waited for weights last. Absent until the server was seen to wait for some.",
        models::forecast,
    ),
    metric(
        Gauge,
        "llm_model_evicted_bytes",
        "Mapped bytes of model files that the kernel put out of memory and that were not read again, as far as it remembers; recent: so lately that reading them again means that memory is short.",
        models::evicted,
    )
    .by(&["recency"]),
    metric(
        Counter,
        "llm_cpu_seconds_total",
        "Processor time of all threads of the server since its start, seconds. As of the last look, every half minute.",
        models::cpu,
    ),
    metric(
        Gauge,
        "llm_server_info",
        "Of which pod and container a server is, where it is of one: names with --kubernetes, ids in any case; the value is 1.",
        server_info,
    )
    .by(&["pod_uid", "container_id"]),
    metric(Gauge, "llamaprobe_build_info", "The agent's build; the value is 1.", |_| {
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("arch", std::env::consts::ARCH.to_owned()),
        ];
        vec![Sample { labels, value: Value::Number(1.0) }]
    })
    .by(&["version", "arch"]),
    metric(Gauge, "llamaprobe_targets", "Processes under observation.", |all| number(all.targets as f64)),
    metric(
        Gauge,
        "llamaprobe_unobservable_processes",
        "Processes that are llama.cpp but cannot be observed: no symbols, or too old. `llamaprobe plan` says why.",
        |all| number(all.unobservable as f64),
    ),
    metric(
        Gauge,
        "llamaprobe_waiting_processes",
        "Processes that map llama.cpp and wait for a seat: all are taken by such as work or listen, and these do not.",
        |all| number(all.waiting as f64),
    ),
    metric(
        Counter,
        "llamaprobe_looks_abandoned_total",
        "Looks at processes that did not end, as on a file system that hangs: these are not observed for a while.",
        |all| number(all.looks_abandoned as f64),
    ),
    metric(
        Counter,
        "llamaprobe_looks_cut_total",
        "Looks at processes that were broken off because there was more to read than may be spent on one.",
        |all| number(all.looks_cut as f64),
    ),
    metric(
        Gauge,
        "llamaprobe_looks_waiting",
        "Processes that wait for a look that is due: more happens on the host than may be spent on looking.",
        |all| number(all.looks_waiting as f64),
    ),
    metric(
        Gauge,
        "llamaprobe_probe_attached",
        "Whether a probe is attached for a server, and for roles that no probe serves 0 with the role's name.",
        attached,
    )
    .by(&["server", "model", "probe"]),
    metric(
        Gauge,
        "llamaprobe_layout_info",
        "Where a build keeps what is read: the tokens of a batch as the first calls have proved it, the sizes of a context as its own code says. `unknown`: what hangs on it is absent; the value is 1.",
        |all| {
            per_server(all, |server| {
                let layouts = server.live.iter().flat_map(|live| &live.layouts);
                let labels = layouts.map(|(part, layout)| {
                    vec![("part", (*part).to_owned()), ("layout", layout.clone())]
                });
                labels.map(|labels| (labels, Value::Number(1.0))).collect()
            })
        },
    )
    .by(&["server", "model", "part", "layout"]),
    metric(
        Counter,
        "llamaprobe_probe_hits_total",
        "Hits of a probe. Attached without hits while the server works: the build does not call that function.",
        |all| {
            per_server(all, |server| {
                let rows = ProbeId::ALL.iter().map(|id| (id, server.stats.hits[*id as usize]));
                let seen = rows.filter(|(id, hits)| {
                    *hits > 0 || server.live.as_ref().is_some_and(|live| live.probes.contains(id))
                });
                seen.map(|(id, hits)| (vec![("probe", id.name().to_owned())], Value::Number(hits as f64)))
                    .collect()
            })
        },
    )
    .by(&["server", "model", "probe"]),
    metric(
        Counter,
        "llamaprobe_lost_total",
        "Things measured but not delivered, by reason; `server` is empty for what belongs to none.",
        lost,
    )
    .by(&["server", "model", "reason"]),
    metric(
        Counter,
        "llamaprobe_untold_stall_seconds_total",
        "Time that single threads were off their processors within decode steps and that is not in llm_stall_seconds_total, since each time was too short (`short`) or there were too many (`many`).",
        stalls::untold,
    )
    .by(&["server", "model", "reason"]),
    metric(
        Counter,
        "llamaprobe_unattributed_tokens_total",
        "Tokens among those of llm_tokens_total of which it is not known whose they are: their batch could not be read to its end.",
        usage::unattributed,
    )
    .by(&["server", "model", "type"]),
    metric(
        Counter,
        "llamaprobe_join_total",
        "Requests that ran on a slot by how they were joined to it; ambiguous ones were not, unmatched are slots, of partial ones prompt tokens may be missing.",
        joins,
    )
    .by(&["server", "model", "method"]),
    metric(Gauge, "llamaprobe_map_entries", "Entries of the kernel's maps that grow with the work.", |all| {
        let rows = all.occupancy.iter();
        rows.map(|(map, n)| Sample {
            labels: vec![("map", map.to_string())],
            value: Value::Number(*n as f64),
        })
        .collect()
    })
    .by(&["map"]),
    metric(
        Counter,
        "llamaprobe_requests_given_up_total",
        "Requests that were given up: too many were under way, or ended before their server had a name.",
        |all| number(all.given_up as f64),
    ),
    metric(
        Counter,
        "llamaprobe_log_lines_lost_total",
        "Request log lines that were not written because the log could not keep up.",
        |all| number(log_lost(all) as f64),
    ),
    metric(Counter, "llamaprobe_attach_failures_total", "Probes that could not be attached.", |all| {
        number(all.attach_failures as f64)
    }),
    metric(
        Counter,
        "llamaprobe_reload_failures_total",
        "Times that SIGHUP found a bad file of names, prices or phrases; what was read before stays.",
        |all| number(all.reload_failures as f64),
    ),
    metric(
        Gauge,
        "llamaprobe_overhead_ratio",
        "Share of one processor's time that observing a server takes: hits of probes times the calibrated price of one and the measured run time of its program, over the last 10 seconds or more, and its part of what programs at system calls and switches of threads take on the whole host, as measured for a second of every half minute.",
        |all| living(all, |live| Some(live.overhead)),
    )
    .by(&["server", "model"]),
    metric(
        Gauge,
        "llamaprobe_programs_cpu_ratio",
        "Time that all kernel programs of the agent ran, at probes and system calls of whichever process, per time of one processor: measured by the kernel for a second of every half minute.",
        |all| all.programs_cpu.map_or(vec![], number),
    ),
    metric(
        Gauge,
        "llamaprobe_probe_price_seconds",
        "Time of one probe hit by how the kernel executes the probed instruction, measured at the agent's start on itself.",
        |all| {
            let prices = all.prices.iter().flat_map(|prices| {
                [("emulated", prices.emulated_ns), ("single_stepped", prices.single_stepped_ns)]
            });
            prices
                .map(|(stepping, ns)| Sample {
                    labels: vec![("stepping", stepping.to_owned())],
                    value: Value::Number(f64::from(ns) / 1e9),
                })
                .collect()
        },
    )
    .by(&["stepping"]),
    metric(
        Counter,
        "llamaprobe_traceparent_invalid_total",
        "Requests with a traceparent header that is none: they start a trace of their own.",
        |all| {
            per_server(all, |server| {
                let followed = server.live.as_ref().is_some_and(|live| live.http);
                let invalid = server.tally.traceparent_invalid;
                if followed || invalid > 0 { vec![(vec![], Value::Number(invalid as f64))] } else { vec![] }
            })
        },
    )
    .by(&["server", "model"]),
    metric(
        Counter,
        "llamaprobe_otlp_exported_total",
        "Spans, data points and log records that a collector has taken.",
        |all| signals(all, |of| vec![(None, of.exported)]),
    )
    .by(&["signal"]),
    metric(
        Counter,
        "llamaprobe_otlp_dropped_total",
        "Spans, data points and log records that no collector got, by reason.",
        |all| signals(all, |of| of.lost.iter().map(|(reason, n)| (Some(&**reason), *n)).collect()),
    )
    .by(&["signal", "reason"]),
    metric(
        Gauge,
        "llamaprobe_otlp_waiting",
        "Spans, data points and log records that wait or are on their way.",
        |all| signals(all, |of| vec![(None, of.waiting)]),
    )
    .by(&["signal"]),
    metric(
        Counter,
        "llamaprobe_output_lost_total",
        "What an output was given and did not deliver, by output and reason; the request log and OTLP have metrics of their own.",
        other_outputs,
    )
    .by(&["output", "reason"]),
    metric(
        Counter,
        "llamaprobe_recordings_total",
        "Recordings that were written, by what they were made for.",
        |all| recordings(all, |of| &of.made),
    )
    .by(&["reason"]),
    metric(
        Counter,
        "llamaprobe_recordings_limited_total",
        "Recordings that were not made, since one had been made a moment before.",
        |all| recordings(all, |of| &of.limited),
    )
    .by(&["reason"]),
    metric(Counter, "process_cpu_seconds_total", "CPU time the agent has used, seconds.", |all| {
        number(all.cpu.as_secs_f64())
    })
    .known_as("process.cpu.time", None),
    metric(
        Gauge,
        "process_resident_memory_bytes",
        "Resident memory of the agent's processes, bytes: what several of them share counts once. As of the last half minute.",
        |all| if all.resident_bytes > 0 { number(all.resident_bytes as f64) } else { Vec::new() },
    )
    .known_as("process.memory.usage", None),
    metric(Gauge, "process_start_time_seconds", "When the agent started, seconds since the epoch.", |all| {
        number(all.started)
    }),
];

fn requests(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let rows = server.tally.requests.iter();
        rows.map(|((route, code, outcome), n)| {
            let labels = vec![
                ("route", route.name().to_owned()),
                ("code", if *code == UNKNOWN { "unknown".to_owned() } else { code.to_string() }),
                ("finish_reason", outcome.name().to_owned()),
            ];
            (labels, Value::Number(*n as f64))
        })
        .collect()
    })
}

fn queue_depth(all: &Snapshot) -> Vec<Sample> {
    living(all, |live| live.queue_depth.map(|depth| depth as f64))
}

fn in_flight(all: &Snapshot) -> Vec<Sample> {
    living(all, |live| live.in_flight.map(|requests| requests as f64))
}

fn phases(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let rows = Phase::ALL.into_iter().map(|phase| (phase, &server.tally.phases[phase as usize]));
        rows.filter(|(_, histogram)| histogram.count() > 0)
            .map(|(phase, histogram)| {
                (vec![("phase", phase.name().to_owned())], buckets(*histogram, &FIRST_TOKEN_NS, 1e9))
            })
            .collect()
    })
}

fn slots(all: &Snapshot) -> Vec<Sample> {
    living(all, |live| live.slots.map(|slots| slots as f64))
}

fn joins(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let rows = server.tally.joins.iter();
        rows.map(|(join, n)| (vec![("method", join.name().to_owned())], Value::Number(*n as f64))).collect()
    })
}

/// A histogram's value.
fn buckets(histogram: Histogram, bounds: &'static Bounds, per_unit: f64) -> Value {
    Value::Histogram { histogram: Box::new(histogram), bounds, per_unit, exemplars: Exemplars::default() }
}

/// A histogram of finished requests, where there are any.
fn tallied(all: &Snapshot, of: fn(&Tally) -> (Histogram, &'static Bounds, f64)) -> Vec<Sample> {
    per_server(all, |server| {
        let (histogram, bounds, per_unit) = of(&server.tally);
        if histogram.count() == 0 {
            return vec![];
        }
        vec![(vec![], buckets(histogram, bounds, per_unit))]
    })
}

/// The same for a latency, with requests that stand for its buckets.
fn exemplified(
    all: &Snapshot,
    bounds: &'static Bounds,
    of: fn(&Tally) -> Histogram,
    latency: fn(&Latencies) -> &Latency,
) -> Vec<Sample> {
    per_server(all, |server| {
        let (histogram, exemplars) = (of(&server.tally), server.tally.exemplars(latency));
        let value = Value::Histogram { histogram: Box::new(histogram), bounds, per_unit: 1e9, exemplars };
        if histogram.count() == 0 { vec![] } else { vec![(vec![], value)] }
    })
}

/// A latency as the GenAI conventions tell it apart. What a client calls the model is no attribute: it could be anything.
fn by_operation(all: &Snapshot, bounds: &'static Bounds, of: fn(&Latencies) -> &Latency) -> Vec<Sample> {
    per_server(all, |server| {
        let rows = server.tally.operations.iter().map(|(key, latencies)| (key, of(latencies)));
        rows.filter(|(_, latency)| latency.histogram.count() > 0)
            .map(|((operation, failure), Latency { histogram, exemplars })| {
                let mut labels = vec![
                    ("gen_ai.operation.name", (*operation).to_owned()),
                    ("gen_ai.provider.name", PROVIDER.to_owned()),
                ];
                labels.extend(failure.map(|failure| ("error.type", failure.name())));
                let (histogram, exemplars) = (Box::new(*histogram), exemplars.clone());
                (labels, Value::Histogram { histogram, bounds, per_unit: 1e9, exemplars })
            })
            .collect()
    })
}

type Row = (Vec<(&'static str, String)>, Value);

fn number(value: f64) -> Vec<Sample> {
    vec![Sample { labels: vec![], value: Value::Number(value) }]
}

/// A count, with its reason.
type Counted<'a> = (Option<&'a str>, u64);

/// Lines of the request log that were not written, for whatever reason.
fn log_lost(all: &Snapshot) -> u64 {
    let logs = all.outputs.iter().filter(|delivery| delivery.output == Output::Log);
    logs.flat_map(|delivery| &delivery.lost).map(|(_, n)| n).sum()
}

/// Losses of the outputs that have no metric of their own.
fn other_outputs(all: &Snapshot) -> Vec<Sample> {
    let losses = all.outputs.iter().filter_map(|delivery| match &delivery.output {
        Output::Other(name) => Some(delivery.lost.iter().map(move |(reason, n)| (name, reason, *n))),
        Output::Log | Output::Otlp(_) => None,
    });
    losses
        .flatten()
        .map(|(name, reason, n)| Sample {
            labels: vec![("output", name.to_string()), ("reason", reason.to_string())],
            value: Value::Number(n as f64),
        })
        .collect()
}

/// Recordings by reason: each of them, so that a rate sees the first.
fn recordings(all: &Snapshot, of: fn(&Recordings) -> &BTreeMap<&'static str, u64>) -> Vec<Sample> {
    let sample = |counts: &BTreeMap<&str, u64>, reason: &str| Sample {
        labels: vec![("reason", reason.to_owned())],
        value: Value::Number(counts.get(reason).copied().unwrap_or(0) as f64),
    };
    let all = all.recordings.iter();
    all.flat_map(|counts| Reason::ALL.map(|reason| sample(of(counts), reason.name()))).collect()
}

/// Counts of each signal that is on, some of them by reason.
fn signals(all: &Snapshot, of: fn(&Delivery) -> Vec<Counted<'_>>) -> Vec<Sample> {
    let sample = |signal: &str, reason: Option<&str>, n: u64| {
        let labels = [("signal", signal)].into_iter().chain(reason.map(|reason| ("reason", reason)));
        let labels = labels.map(|(name, value)| (name, value.to_owned())).collect();
        Sample { labels, value: Value::Number(n as f64) }
    };
    let signals = all.outputs.iter().filter_map(|delivery| match &delivery.output {
        Output::Otlp(signal) => Some((signal, of(delivery))),
        Output::Log | Output::Other(_) => None,
    });
    signals
        .flat_map(|(signal, counted)| counted.into_iter().map(move |(reason, n)| sample(signal, reason, n)))
        .collect()
}

/// Samples of every server, under its labels.
fn per_server(all: &Snapshot, rows: impl Fn(&Server) -> Vec<Row>) -> Vec<Sample> {
    let mut samples = Vec::new();
    for server in &all.servers {
        for (more, value) in rows(server) {
            let mut labels =
                vec![("server", server.labels.server.clone()), ("model", server.labels.model.clone())];
            let names = server.workload.iter().flat_map(Workload::labels);
            labels.extend(names.map(|(name, value)| (name, value.to_owned())));
            labels.extend(more);
            samples.push(Sample { labels, value });
        }
    }
    samples
}

/// What a living server tells.
fn living(all: &Snapshot, row: impl Fn(&Live) -> Option<f64>) -> Vec<Sample> {
    per_server(all, |server| {
        server.live.iter().filter_map(|live| Some((vec![], Value::Number(row(live)?)))).collect()
    })
}

/// Samples of the servers where the probe of `role` is live.
fn by_server(all: &Snapshot, role: Role, rows: impl Fn(&Server) -> Vec<Row>) -> Vec<Sample> {
    per_server(all, |server| if server.is_live(role) { rows(server) } else { vec![] })
}

fn latency(all: &Snapshot, role: Role, of: fn(&Server) -> Histogram) -> Vec<Sample> {
    by_server(all, role, |server| vec![(vec![], buckets(of(server), &LATENCY_NS, 1e9))])
}

fn context(all: &Snapshot, value: fn(u64, u64) -> f64) -> Vec<Sample> {
    by_server(all, Role::Batch, |server| {
        let known = server.live.iter().filter(|live| live.context_size > 0);
        known.map(|live| (vec![], Value::Number(value(live.context_size, live.context_used)))).collect()
    })
}

fn model_info(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let models = server.live.iter().filter_map(|live| Some((live, live.model.as_ref()?)));
        models
            .map(|(live, model)| {
                let labels = vec![
                    ("architecture", model.architecture.clone()),
                    ("quantisation", model.quantisation.clone()),
                    ("parameters", model.parameters.to_string()),
                    ("context_train", model.context_train.map_or(String::new(), |n| n.to_string())),
                    ("backend", live.resources.backend.clone()),
                    ("built_for", live.resources.built_for.clone()),
                ];
                (labels, Value::Number(1.0))
            })
            .collect()
    })
}

fn server_info(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let workloads = server.workload.iter();
        workloads
            .map(|workload| {
                let ids =
                    [("pod_uid", &workload.pod_uid), ("container_id", &workload.container_id)].into_iter();
                let ids = ids.filter_map(|(name, id)| Some((name, id.clone()?)));
                (ids.collect(), Value::Number(1.0))
            })
            .collect()
    })
}

fn attached(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let Some(live) = &server.live else { return vec![] };
        let there = live.probes.iter().map(|probe| (probe.name(), 1.0));
        let missing = live.missing.iter().map(|role| (role.name(), 0.0));
        there
            .chain(missing)
            .map(|(name, value)| (vec![("probe", name.to_owned())], Value::Number(value)))
            .collect()
    })
}

fn lost(all: &Snapshot) -> Vec<Sample> {
    let rows = |losses: &[u64; Loss::COUNT]| -> Vec<Row> {
        let row = |reason: Loss| {
            let n = losses[reason as usize];
            (vec![("reason", reason.name().to_owned())], Value::Number(n as f64))
        };
        Loss::ALL.map(row).into()
    };
    let mut samples = per_server(all, |server| rows(&server.stats.losses));
    samples.extend(rows(&all.own.losses).into_iter().map(|(mut labels, value)| {
        labels.splice(0..0, [("server", String::new()), ("model", String::new())]);
        Sample { labels, value }
    }));
    samples
}
