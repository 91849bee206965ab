use std::{collections::BTreeSet, sync::Arc, time::Duration};

use llamaprobe_common::{
    histogram::{BATCH_TOKENS, Bounds, Histogram, LATENCY_NS},
    loss::Loss,
    probe::ProbeId,
    request::RequestKey,
    stall::Cause,
    step::{self, StepEvent},
    target::{TargetStats, TokenType},
};

use super::{
    compat::Dialect,
    metrics::{Kind, METRICS},
    prometheus::render,
    snapshot::document,
};
use crate::{
    bpf::{calibrate::Prices, read::Untold},
    discovery::{
        model::Model,
        process::Thread,
        resources::{Resources, Weights},
    },
    engines::Route,
    kubernetes::{Names, Workload},
    plan::catalog::Role,
    session::{
        Labels, Live, Recent, Record, Seat, Server, Snapshot,
        cache::{CacheMiss, MissReason},
        charge::Charge,
        cost::TokenPrices,
        finished::Finished,
        shown::{ShownRequest, State},
        snapshot::{Delivery, Output, Recordings},
        staged::{answer, chat_events, finished, get, key, read, write},
        stalls::{Lost, StepLoss},
        tally::Tally,
        usage::Usage,
        waits::{Culprit, Waited},
    },
};

fn histogram(bounds: &Bounds, values: &[u64]) -> Histogram {
    let mut histogram = Histogram::default();
    values.iter().for_each(|value| histogram.observe(bounds, *value));
    histogram
}

/// A server whose probes all fired but that of the cache.
fn busy() -> Server {
    let mut stats = TargetStats::default();
    for (probe, hits) in [
        (ProbeId::LaunchSlot, 1),
        (ProbeId::DecodeExt, 4),
        (ProbeId::CommonSample, 3),
        (ProbeId::ProcessToken, 3),
    ] {
        stats.hits[probe as usize] = hits;
    }
    stats.tokens[TokenType::Prompt as usize] = 12;
    stats.tokens[TokenType::Generated as usize] = 3;
    stats.losses[Loss::Unreadable as usize] = 2;
    stats.inter_token = histogram(&LATENCY_NS, &[50_000, 50_001, 11_000_000_000]);
    stats.step = histogram(&LATENCY_NS, &[7_500_000]);
    stats.batch = histogram(&BATCH_TOKENS, &[12, 1, 1, 1]);
    let model = Model {
        path: "/models/tiny.gguf".into(),
        architecture: "llama".to_owned(),
        name: None,
        kind: None,
        quantisation: "Q4_K_M".to_owned(),
        parameters: 1_100_048_384,
        context_train: Some(2048),
        forgets: false,
        splits: None,
        file_bytes: 1,
    };
    let served = [
        (Role::SlotStart, ProbeId::LaunchSlot),
        (Role::CacheHit, ProbeId::CommonSeqRm),
        (Role::Batch, ProbeId::DecodeExt),
        (Role::StepEnd, ProbeId::CommonSample),
        (Role::Token, ProbeId::ProcessToken),
    ];
    let mut tally = Tally::default();
    let mut chat = finished(key(1_000), &chat_events(key(1_000)));
    chat.cache_miss = Some(CacheMiss {
        reason: MissReason::PrefixChanged,
        held_tokens: 900,
        differs_at: Some(20),
        computed_tokens: 1,
        restore_ns: None,
    });
    chat.slowed_by = vec![Culprit {
        request: key(900),
        user: Some("bob".to_owned()),
        calls: 2,
        tokens: 90,
        waited: Waited {
            prefill_ns: 3_000_000,
            host_ns: 1_000_000,
            copy_ns: 2_000_000,
            sampling_ns: 8_388_608,
        },
    }];
    chat.copies = [4_000_000, 0, 0, 0];
    chat.cancelled_by = Some(RequestKey { fd: 6, ..key(1_000) });
    chat.losses.add(&StepLoss { step_ns: 1_040_000_000, lost: Lost::staged(Cause::Stopped, 5_000_000) });
    tally.book(&chat);
    let health = finished(
        key(2_000),
        &[read(key(2_000), 0, 0, &get("/health")), write(key(2_000), 0, 0, &answer("200 OK", "{}"))],
    );
    tally.book(&health);
    tally.book(&health);
    tally.book_unmatched();
    tally.refusals = Some(1);
    stats.accepted = 4;
    stats.rejected = 1;
    let mut usage = Usage::new(9);
    let charge = Charge { tokens: [10, 2, 2], engine_ns: 1_500_000_000 };
    usage.charge(Some("ada"), charge, Some(TokenPrices { prompt: 1.0, cached: 0.5, generated: 2.0 }));
    usage.balance(Charge { tokens: stats.tokens, engine_ns: 2_000_000_000 }, None);
    Server {
        workload: Some(Workload {
            pod_uid: Some("0b0e".to_owned()),
            container_id: Some("3f1c".to_owned()),
            names: None,
        }),
        labels: Labels { server: "127.0.0.1:8080".to_owned(), model: "a \"tiny\" one".to_owned() },
        stats,
        served: BTreeSet::from(served),
        tally,
        usage,
        lost: Some(Lost::staged(Cause::Throttled, 1_500_000_000)),
        untold: Some(Untold { short_ns: 2_000_000, many_ns: 0 }),
        priced: [true, false],
        requests: vec![
            ShownRequest {
                key: key(3_000),
                user: "ada".to_owned(),
                route: Route::ChatCompletions,
                state: State::Decode,
                slot: Some(0),
                arrived_ns: 1_000_000_000,
                loaded_ns: 0,
                prefill_ns: 1_002_000_000,
                first_token_ns: 1_050_000_000,
                last_token_ns: 1_250_000_000,
                until_ns: 1_260_000_000,
                worst_gap_ns: 31_500_000,
                token_time: None,
                slowed_by: None,
                waited_for: vec![],
                copies: [6_000_000, 0, 0, 0],
                lost: Lost::default(),
                worst_gap_cause: None,
                longest_steps: vec![StepEvent {
                    start_ns: 1_250_000_000,
                    duration_ns: 8_000_000,
                    tgid: 7,
                    tokens: 2,
                    sequences: 1,
                    outcome: step::Outcome::Failed as u32,
                    ..StepEvent::NONE
                }],
                cancelled_by: None,
                cache_miss: None,
                trace_id: None,
                tokens: [10, 2, 3],
                context_used: 15,
            },
            ShownRequest::finished(&record(chat), |user| user.unwrap_or("none").to_owned()),
        ],
        recent: Some(Recent { span: Duration::from_secs(100), tokens: [30, 10, 60], dollars: [0.5, 0.0] }),
        live: Some(Live {
            pid: 7,
            decoded_ago_ns: Some(250_000_000),
            untaken_ns: Some(0),
            context_size: 4096,
            context_used: 1024,
            seats: vec![
                Seat { slot: 0, busy: true, context_used: 1000, age_ns: Some(1_500_000_000) },
                Seat { slot: 1, busy: false, context_used: 24, age_ns: None },
            ],
            seat_size: 2048,
            slots_busy: Some(1),
            slots: Some(2),
            http: true,
            payload: true,
            in_flight: Some(3),
            queue_depth: Some(2),
            model: Some(Arc::new(model)),
            load_ns: Some(3_250_000_000),
            reload_forecast_ns: Some(500_000_000),
            engine_thread: Some(Thread {
                tid: 7,
                state: 'T',
                call: Some(libc::SYS_futex as u32),
                channel: Some("do_signal_stop".to_owned()),
            }),
            steps: vec![StepEvent {
                start_ns: 1_000_000_000,
                duration_ns: 12_500_000,
                tgid: 7,
                tokens: 9,
                prompt: 8,
                generated: 1,
                sequences: 2,
                ..StepEvent::NONE
            }],
            resources: Resources {
                read_bytes: None,
                backend: "cpu".to_owned(),
                built_for: "vulkan".to_owned(),
                cpu: Duration::from_millis(12_500),
                started_ns: 1,
                weights: Some(Weights {
                    mapped: 4_000_000,
                    resident: 3_000_000,
                    evicted: 900_000,
                    recently_evicted: 100_000,
                }),
            },
            probes: served.map(|(_, probe)| probe).to_vec(),
            layouts: vec![("batch", "llama_batch".to_owned()), ("context", "unknown".to_owned())],
            missing: vec![Role::SlotEnd],
            overhead: 0.0015,
        }),
    }
}

/// A request as it is told, without a model or a price.
fn record(request: Finished) -> Record {
    Record {
        request,
        labels: Labels::default(),
        model: None,
        cost: [None; 2],
        trace: None,
        workload: None,
        recording: None,
    }
}

/// A process that has ended after it decoded something.
fn ended() -> Server {
    let mut stats = TargetStats::default();
    stats.hits[ProbeId::LlamaDecode as usize] = 1;
    stats.tokens[TokenType::Prompt as usize] = 5;
    stats.batch = histogram(&BATCH_TOKENS, &[5]);
    let mut usage = Usage::new(9);
    usage.balance(Charge { tokens: stats.tokens, engine_ns: 0 }, None);
    Server {
        workload: None,
        labels: Labels { server: "pid:9".to_owned(), model: String::new() },
        stats,
        served: BTreeSet::from([(Role::Batch, ProbeId::LlamaDecode), (Role::Token, ProbeId::Logits)]),
        tally: Tally::default(),
        usage,
        lost: None,
        untold: None,
        priced: [false; 2],
        requests: Vec::new(),
        recent: None,
        live: None,
    }
}

fn snapshot(servers: Vec<Server>) -> Snapshot {
    let mut own = TargetStats::default();
    own.losses[Loss::RingFull as usize] = 1;
    Snapshot {
        servers,
        own,
        programs_cpu: Some(0.001),
        prices: Some(Prices { emulated_ns: 1_500, single_stepped_ns: 10_000, ..Prices::default() }),
        host: Some((1.2, 0.25)),
        users: 1,
        targets: 1,
        unobservable: 2,
        waiting: 8,
        looks_abandoned: 9,
        looks_cut: 10,
        looks_waiting: 11,
        occupancy: vec![("tasks".into(), 4)],
        given_up: 5,
        attach_failures: 3,
        reload_failures: 7,
        cpu: Duration::from_millis(1_500),
        resident_bytes: 20_000_000,
        started: 1_700_000_000.5,
        taken: 1_700_000_060.25,
        epoch: Duration::from_secs(1_700_000_000),
        outputs: vec![
            Delivery {
                output: Output::Log,
                exported: 1,
                waiting: 2,
                lost: vec![("queue_full".into(), 2), ("unwritable".into(), 4)],
            },
            Delivery {
                output: Output::Otlp("traces".into()),
                exported: 7,
                waiting: 2,
                lost: vec![("queue_full".into(), 3), ("refused".into(), 0)],
            },
            Delivery {
                output: Output::Other("staged".into()),
                exported: 0,
                waiting: 0,
                lost: vec![("queue_full".into(), 8)],
            },
        ],
        recordings: Some(Recordings { made: [("gap", 2)].into(), limited: [("asked", 1)].into() }),
    }
}

/// The samples, without help and type.
fn samples(snapshot: &Snapshot) -> Vec<String> {
    let text = String::from_utf8(render(snapshot, &[]).unwrap()).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

fn of<'a>(samples: &'a [String], name: &str) -> Vec<&'a str> {
    let begins = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
    };
    samples.iter().map(String::as_str).filter(begins).collect()
}

#[test]
fn golden() {
    let samples = samples(&snapshot(vec![busy(), ended()]));
    // Histograms, build and losses have tests of their own.
    let apart = |line: &&str| {
        ["_bucket{", "_sum{", "_count{", "build_info", "llamaprobe_lost_total"]
            .iter()
            .all(|part| !line.contains(part))
    };
    let plain: Vec<_> = samples.iter().map(String::as_str).filter(apart).collect();
    assert_eq!(plain, include_str!("tests.prom").lines().collect::<Vec<_>>(), "{}", plain.join("\n"));
}

#[test]
fn the_document_is_the_one_that_its_types_are_tested_with() {
    let made = serde_json::to_value(document(&snapshot(vec![busy(), ended()]))).unwrap();
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../agent-api/src/golden.json")).unwrap();
    assert_eq!(made, golden, "{made:#}");
}

#[test]
fn buckets_are_cumulative_and_their_bounds_spelled_as_dashboards_match_them() {
    let samples = samples(&snapshot(vec![busy()]));
    let bounds = |name: &str| -> Vec<(String, u64)> {
        let buckets = of(&samples, name);
        buckets
            .iter()
            .map(|line| {
                let (bound, count) = line.split_once("le=\"").unwrap().1.split_once("\"} ").unwrap();
                (bound.to_owned(), count.parse().unwrap())
            })
            .collect()
    };
    let latency = bounds("llm_inter_token_latency_seconds_bucket");
    let spelled: Vec<_> = latency.iter().map(|(bound, _)| bound.as_str()).collect();
    assert_eq!(
        spelled,
        [
            "0.00005", "0.0001", "0.00025", "0.0005", "0.001", "0.002", "0.003", "0.004", "0.005", "0.006",
            "0.008", "0.01", "0.015", "0.02", "0.025", "0.035", "0.05", "0.075", "0.1", "0.15", "0.2", "0.3",
            "0.4", "0.5", "0.75", "1", "2.5", "5", "10", "+Inf"
        ]
    );
    let counts: Vec<_> = latency.iter().map(|(_, count)| *count).collect();
    assert_eq!((counts[0], counts[1], counts[28], counts[29]), (1, 2, 2, 3));
    assert!(counts.is_sorted());
    let batch = bounds("llm_batch_tokens_bucket");
    let shown: Vec<_> = batch.iter().map(|(bound, count)| (bound.as_str(), *count)).collect();
    assert_eq!(shown[..5], [("1", 3), ("2", 3), ("4", 3), ("8", 3), ("16", 4)]);
    assert_eq!(shown[13..], [("8192", 4), ("+Inf", 4)]);
    for (name, sum, count) in [
        ("llm_inter_token_latency_seconds", "11.000100001", "3"),
        ("llm_decode_step_seconds", "0.0075", "1"),
        ("llm_batch_tokens", "15", "4"),
    ] {
        let value = |suffix: &str| {
            let line = of(&samples, &format!("{name}{suffix}")).remove(0);
            line.rsplit_once(' ').unwrap().1
        };
        assert_eq!(value("_count"), count, "{name}");
        let difference = value("_sum").parse::<f64>().unwrap() - sum.parse::<f64>().unwrap();
        assert!(difference.abs() < 1e-9, "{name}: {}", value("_sum"));
    }
}

#[test]
fn all_series_of_a_server_in_a_pod_have_its_names_where_they_are_known() {
    let mut server = busy();
    let names = Names {
        namespace: "inference".to_owned(),
        pod: "llama-7d4b9".to_owned(),
        container: "server".to_owned(),
    };
    if let Some(workload) = &mut server.workload {
        workload.names = Some(names);
    }
    let text = String::from_utf8(render(&snapshot(vec![server]), &[Dialect::Vllm]).unwrap()).unwrap();
    let own: Vec<_> = text.lines().filter(|line| line.contains("server=\"127.0.0.1:8080\"")).collect();
    assert!(own.len() > 50 && own.iter().any(|line| line.starts_with("vllm:")), "{text}");
    for line in own {
        assert!(line.contains("namespace=\"inference\",pod=\"llama-7d4b9\",container=\"server\""), "{line}");
    }
}

#[test]
fn what_is_not_live_has_no_sample() {
    let samples_of_ended = samples(&snapshot(vec![ended()]));
    for name in [
        "llm_inter_token_latency_seconds_count",
        "llm_decode_step_seconds_count",
        "llm_context_size_tokens",
        "llm_slots_busy",
        "llm_model_info",
        "llamaprobe_probe_attached",
        "llamaprobe_overhead_ratio",
    ] {
        assert_eq!(of(&samples_of_ended, name), [""; 0], "{name}");
    }
    assert_eq!(of(&samples_of_ended, "llm_tokens_total").len(), 1, "only prompt tokens are seen");

    let mut silent = busy();
    silent.stats = TargetStats::default();
    silent.tally = Tally::default();
    (silent.usage, silent.recent) = (Usage::default(), None);
    let samples_of_silent = samples(&snapshot(vec![silent]));
    let measured = samples_of_silent.iter().filter(|line| line.starts_with("llm_"));
    let names: Vec<_> = measured.filter_map(|line| line.split(['{', ' ']).next()).collect();
    assert_eq!(
        names,
        [
            "llm_idle_cost_dollars_total",
            "llm_users",
            "llm_context_overflows_total",
            "llm_context_truncations_total",
            "llm_empty_answers_total",
            "llm_requests_in_flight",
            "llm_queue_depth",
            "llm_slots",
            "llm_model_info",
            "llm_model_load_seconds",
            "llm_model_mapped_bytes",
            "llm_model_resident_ratio",
            "llm_model_reload_forecast_seconds",
            "llm_model_evicted_bytes",
            "llm_model_evicted_bytes",
            "llm_cpu_seconds_total",
            "llm_server_info",
        ],
        "attached, but nothing has fired"
    );
    let hits = of(&samples_of_silent, "llamaprobe_probe_hits_total");
    assert!(hits.len() == 5 && hits.iter().all(|line| line.ends_with(" 0")), "{hits:?}");

    let mut unknown = busy();
    let live = unknown.live.as_mut().unwrap();
    (live.context_size, live.slots, live.in_flight, live.queue_depth) = (0, None, None, None);
    live.slots_busy = None;
    let samples_of_unknown = samples(&snapshot(vec![unknown]));
    for name in [
        "llm_context_utilisation_ratio",
        "llm_slots",
        "llm_slots_busy",
        "llm_requests_in_flight",
        "llm_queue_depth",
    ] {
        assert_eq!(of(&samples_of_unknown, name), [""; 0], "{name}");
    }
}

#[test]
fn requests_are_sorted_in_seconds_and_tokens() {
    let samples = samples(&snapshot(vec![busy()]));
    // One chat of 60 ms: 12 ms in the queue, first token at 32 ms, last at 52 ms; 21 tokens in, 5 out.
    for (name, bound, sum) in [
        ("llm_request_duration_seconds", "0.08", 0.06),
        ("llm_time_to_first_token_seconds", "0.04", 0.032),
        ("llm_time_per_output_token_seconds", "0.005", 0.005),
        ("llm_request_prompt_tokens", "32", 21.0),
        ("llm_request_generated_tokens", "16", 5.0),
    ] {
        let buckets = of(&samples, &format!("{name}_bucket")).into_iter();
        let first = buckets.map(str::to_owned).find(|line| line.ends_with(" 1")).unwrap();
        assert!(first.contains(&format!("le=\"{bound}\"")), "{first}");
        let last = |suffix: &str| {
            let line = of(&samples, &format!("{name}{suffix}")).remove(0);
            line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
        };
        assert!(last("_count") == 1.0 && (last("_sum") - sum).abs() < 1e-9, "{name}: {}", last("_sum"));
    }
    let phases = of(&samples, "llm_request_phase_seconds_sum");
    let shown: Vec<_> = phases.iter().map(|line| line.split_once("phase=").unwrap().1).collect();
    assert_eq!(shown, ["\"queue\"} 0.012", "\"prefill\"} 0.02", "\"decode\"} 0.02"]);
}

#[test]
fn every_loss_has_a_series_from_the_start() {
    let samples = samples(&snapshot(vec![busy()]));
    let lost = of(&samples, "llamaprobe_lost_total");
    assert_eq!(lost.len(), 2 * Loss::COUNT);
    let value = |server: &str, reason: &str| {
        let part = |line: &&&str| {
            line.contains(&format!("server=\"{server}\"")) && line.contains(&format!("reason=\"{reason}\""))
        };
        lost.iter().find(part).unwrap().rsplit_once(' ').unwrap().1
    };
    assert_eq!(value("127.0.0.1:8080", "unreadable"), "2");
    assert_eq!(value("127.0.0.1:8080", "ring_full"), "0");
    assert_eq!(value("", "ring_full"), "1");
}

#[test]
fn every_metric_says_what_it_is() {
    let mut server = busy();
    server.stats.hits[ProbeId::CommonSeqRm as usize] = 1;
    server.stats.hits[ProbeId::WaitingTask as usize] = 1;
    server.served.insert((Role::Task, ProbeId::WaitingTask));
    server.stats.hits[ProbeId::StateSeqGet as usize] = 1;
    server.served.insert((Role::Restore, ProbeId::StateSeqGet));
    server.usage.wait(Some("ada"), Some("bob"), 1);
    let text = String::from_utf8(render(&snapshot(vec![server]), &[]).unwrap()).unwrap();
    let mut names = BTreeSet::new();
    for metric in METRICS {
        assert!(names.insert(metric.name), "{} twice", metric.name);
        assert!(metric.help.ends_with('.') && !metric.help.contains('\n'), "{}", metric.name);
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert!(text.contains(&format!("# TYPE {} {kind}\n", metric.name)), "{}", metric.name);
        assert!(text.contains(&format!("# HELP {} ", metric.name)), "{}", metric.name);
    }
}

#[test]
fn an_agent_without_targets_still_speaks_of_itself() {
    let samples = samples(&Snapshot::default());
    assert_eq!(of(&samples, "llamaprobe_targets"), ["llamaprobe_targets 0"]);
    assert_eq!(of(&samples, "llamaprobe_lost_total").len(), Loss::COUNT);
    assert_eq!(of(&samples, "llamaprobe_probe_price_seconds"), [""; 0], "not measured");
    assert!(samples.iter().all(|line| !line.starts_with("llm_")));
}

#[test]
fn every_reason_of_a_loss_is_explained() {
    let limits = include_str!("../../../docs/limits.md");
    for loss in Loss::ALL {
        assert!(limits.contains(&format!("`{}`", loss.name())), "{} is not in docs/limits.md", loss.name());
    }
}
