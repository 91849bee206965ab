//! Every metric that is published: one row each. A new metric is a row here and a test.
//!
//! A metric whose probe is not attached, or has not fired, has no sample: absent is honest, zero would be a lie.

use llamaprobe_common::{
    histogram::{BATCH_TOKENS, Bounds, Histogram, LATENCY_NS},
    loss::Loss,
    probe::ProbeId,
    target::TokenType,
};

use crate::{
    plan::catalog::Role,
    session::{
        Server, Snapshot,
        request::UNKNOWN,
        tally::{DURATION_NS, FIRST_TOKEN_NS, Phase, REQUEST_TOKENS, Tally},
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
    /// Its samples.
    pub collect: fn(&Snapshot) -> Vec<Sample>,
}

const fn metric(
    kind: Kind,
    name: &'static str,
    help: &'static str,
    collect: fn(&Snapshot) -> Vec<Sample>,
) -> Metric {
    Metric { name, help, kind, collect }
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
                let (bounds, per_unit) = (&BATCH_TOKENS, 1.0);
                vec![(vec![], Value::Histogram { histogram: Box::new(server.stats.batch), bounds, per_unit })]
            })
        },
    ),
    metric(
        Counter,
        "llm_tokens_total",
        "Tokens by type: prompt tokens computed, prompt tokens reused from the cache, tokens generated.",
        tokens,
    ),
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
        Counter,
        "llm_requests_total",
        "Finished HTTP requests by route, status code and reason of the end; 499 when the client went before an answer.",
        requests,
    ),
    metric(
        Buckets,
        "llm_request_duration_seconds",
        "Time of inference requests from the moment a thread of the server could read them to the last byte of the answer.",
        |all| tallied(all, |tally| (tally.duration, &DURATION_NS, 1e9)),
    ),
    metric(
        Buckets,
        "llm_time_to_first_token_seconds",
        "Time of inference requests from arrival to their first token, from the kernel's view of socket and sampler.",
        |all| tallied(all, |tally| (tally.first_token, &FIRST_TOKEN_NS, 1e9)),
    ),
    metric(
        Buckets,
        "llm_time_per_output_token_seconds",
        "Time per token after the first, one observation a request.",
        |all| tallied(all, |tally| (tally.per_token, &LATENCY_NS, 1e9)),
    ),
    metric(
        Buckets,
        "llm_request_phase_seconds",
        "Phases of inference requests: queue (arrival until the engine turns to the prompt), prefill (until the first token), decode (until the last).",
        phases,
    ),
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
    metric(Gauge, "llm_slots", "Slots the server was told to have.", slots),
    metric(Gauge, "llm_slots_busy", "Slots with a running request.", |all| {
        by_server(all, Role::SlotStart, |server| {
            server.live.iter().map(|live| (vec![], Value::Number(live.slots_busy as f64))).collect()
        })
    }),
    metric(
        Gauge,
        "llm_model_info",
        "The served model, from the header of its file; the value is 1.",
        model_info,
    ),
    metric(Gauge, "llamaprobe_build_info", "The agent's build; the value is 1.", |_| {
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("arch", std::env::consts::ARCH.to_owned()),
        ];
        vec![Sample { labels, value: Value::Number(1.0) }]
    }),
    metric(Gauge, "llamaprobe_targets", "Processes under observation.", |all| number(all.targets as f64)),
    metric(
        Gauge,
        "llamaprobe_unobservable_processes",
        "Processes that are llama.cpp but cannot be observed: no symbols, or too old. `llamaprobe plan` says why.",
        |all| number(all.unobservable as f64),
    ),
    metric(
        Gauge,
        "llamaprobe_probe_attached",
        "Whether a probe is attached for a server, and for roles that no probe serves 0 with the role's name.",
        attached,
    ),
    metric(
        Counter,
        "llamaprobe_probe_hits_total",
        "Hits of a probe. Attached without hits while the server works: the build does not call that function.",
        |all| {
            per_server(all, |server| {
                let rows = ProbeId::ALL.iter().zip(server.stats.hits);
                let seen = rows.filter(|(id, hits)| {
                    *hits > 0 || server.live.as_ref().is_some_and(|live| live.probes.contains(id))
                });
                seen.map(|(id, hits)| (vec![("probe", id.name().to_owned())], Value::Number(hits as f64)))
                    .collect()
            })
        },
    ),
    metric(
        Counter,
        "llamaprobe_lost_total",
        "Things measured but not delivered, by reason; `server` is empty for what belongs to none.",
        lost,
    ),
    metric(
        Counter,
        "llamaprobe_join_total",
        "Requests that ran on a slot by how they were joined to it; ambiguous ones were not, unmatched are slots.",
        joins,
    ),
    metric(Gauge, "llamaprobe_map_entries", "Entries of the kernel's maps that grow with the work.", |all| {
        let rows = all.occupancy.iter();
        rows.map(|(map, n)| Sample {
            labels: vec![("map", (*map).to_owned())],
            value: Value::Number(*n as f64),
        })
        .collect()
    }),
    metric(
        Counter,
        "llamaprobe_requests_given_up_total",
        "Requests under way that were given up because too many were.",
        |all| number(all.given_up as f64),
    ),
    metric(
        Counter,
        "llamaprobe_log_lines_lost_total",
        "Request log lines that were not written because the log could not keep up.",
        |all| number(all.log_lost as f64),
    ),
    metric(Counter, "llamaprobe_attach_failures_total", "Probes that could not be attached.", |all| {
        number(all.attach_failures as f64)
    }),
    metric(
        Gauge,
        "llamaprobe_overhead_ratio",
        "Share of wall time that a server's threads spend in probes: hits times the calibrated price, over the last 10 seconds or more.",
        |all| {
            per_server(all, |server| {
                server.live.iter().map(|live| (vec![], Value::Number(live.overhead))).collect()
            })
        },
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
    ),
    metric(Counter, "process_cpu_seconds_total", "CPU time the agent has used, seconds.", |all| {
        number(all.cpu.as_secs_f64())
    }),
    metric(Gauge, "process_resident_memory_bytes", "Resident memory of the agent, bytes.", |all| {
        number(all.resident_bytes as f64)
    }),
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
    per_server(all, |server| {
        let live = server.live.iter().filter(|live| live.joined);
        live.map(|live| (vec![], Value::Number(live.queue_depth as f64))).collect()
    })
}

fn in_flight(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let live = server.live.iter().filter(|live| live.http);
        live.map(|live| (vec![], Value::Number(live.in_flight as f64))).collect()
    })
}

fn phases(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let rows = Phase::ALL.into_iter().zip(&server.tally.phases);
        rows.filter(|(_, histogram)| histogram.count() > 0)
            .map(|(phase, histogram)| {
                (vec![("phase", phase.name().to_owned())], buckets(*histogram, &FIRST_TOKEN_NS, 1e9))
            })
            .collect()
    })
}

fn slots(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let slots = server.live.iter().filter_map(|live| live.slots);
        slots.map(|slots| (vec![], Value::Number(slots as f64))).collect()
    })
}

fn joins(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let rows = server.tally.joins.iter();
        rows.map(|(join, n)| (vec![("method", join.name().to_owned())], Value::Number(*n as f64))).collect()
    })
}

/// A histogram's value.
fn buckets(histogram: Histogram, bounds: &'static Bounds, per_unit: f64) -> Value {
    Value::Histogram { histogram: Box::new(histogram), bounds, per_unit }
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

type Row = (Vec<(&'static str, String)>, Value);

fn number(value: f64) -> Vec<Sample> {
    vec![Sample { labels: vec![], value: Value::Number(value) }]
}

/// Samples of every server, under its labels.
fn per_server(all: &Snapshot, rows: impl Fn(&Server) -> Vec<Row>) -> Vec<Sample> {
    let mut samples = Vec::new();
    for server in &all.servers {
        for (more, value) in rows(server) {
            let mut labels =
                vec![("server", server.labels.server.clone()), ("model", server.labels.model.clone())];
            labels.extend(more);
            samples.push(Sample { labels, value });
        }
    }
    samples
}

/// Samples of the servers where the probe of `role` is live.
fn by_server(all: &Snapshot, role: Role, rows: impl Fn(&Server) -> Vec<Row>) -> Vec<Sample> {
    per_server(all, |server| if server.is_live(role) { rows(server) } else { vec![] })
}

fn latency(all: &Snapshot, role: Role, of: fn(&Server) -> Histogram) -> Vec<Sample> {
    by_server(all, role, |server| {
        vec![(
            vec![],
            Value::Histogram { histogram: Box::new(of(server)), bounds: &LATENCY_NS, per_unit: 1e9 },
        )]
    })
}

fn tokens(all: &Snapshot) -> Vec<Sample> {
    let role = |kind| match kind {
        TokenType::Prompt => Role::Batch,
        TokenType::Cached => Role::CacheHit,
        TokenType::Generated => Role::Token,
    };
    per_server(all, |server| {
        let live = TokenType::ALL.into_iter().filter(|kind| server.is_live(role(*kind)));
        live.map(|kind| {
            let count = server.stats.tokens[kind as usize];
            (vec![("type", kind.name().to_owned())], Value::Number(count as f64))
        })
        .collect()
    })
}

fn context(all: &Snapshot, value: fn(u64, u64) -> f64) -> Vec<Sample> {
    by_server(all, Role::Batch, |server| {
        let known = server.live.iter().filter(|live| live.context_size > 0);
        known.map(|live| (vec![], Value::Number(value(live.context_size, live.context_used)))).collect()
    })
}

fn model_info(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let models = server.live.iter().filter_map(|live| live.model.as_ref());
        models
            .map(|model| {
                let labels = vec![
                    ("architecture", model.architecture.clone()),
                    ("quantisation", model.quantisation.clone()),
                    ("parameters", model.parameters.to_string()),
                    ("context_train", model.context_train.map_or(String::new(), |n| n.to_string())),
                ];
                (labels, Value::Number(1.0))
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
        let rows = Loss::ALL.iter().zip(losses);
        rows.map(|(reason, n)| (vec![("reason", reason.name().to_owned())], Value::Number(*n as f64)))
            .collect()
    };
    let mut samples = per_server(all, |server| rows(&server.stats.losses));
    samples.extend(rows(&all.own.losses).into_iter().map(|(mut labels, value)| {
        labels.splice(0..0, [("server", String::new()), ("model", String::new())]);
        Sample { labels, value }
    }));
    samples
}
