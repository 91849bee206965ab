use std::{fs, path::Path, sync::Arc};

use super::*;
use crate::{
    discovery::model::Model,
    kubernetes::Names,
    session::{
        Labels,
        cache::{CacheMiss, MissReason},
        finished::Finished,
        payload::{head, route::Route},
        staged::{MARKER, MS, answer, chat_events, finished, key, options, post, read, write},
        waits::{Culprit, Waited},
    },
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// What [`wall`] makes of the kernel's 0.
const EPOCH: Duration = Duration::from_secs(1_795_448_518);

fn wall(ns: u64) -> SystemTime {
    to_wall(EPOCH)(ns)
}

fn record(request: Finished) -> Record {
    let model = Model {
        path: "/models/tiny.gguf".into(),
        architecture: "llama".to_owned(),
        name: None,
        kind: None,
        quantisation: "Q4_K_M".to_owned(),
        parameters: 1,
        context_train: None,
        forgets: false,
        splits: None,
        file_bytes: 1,
    };
    let labels = Labels { server: "127.0.0.1:8080".to_owned(), model: "tiny".to_owned() };
    Record {
        request,
        labels,
        model: Some(Arc::new(model)),
        cost: [Some(0.1 + 0.2), None],
        trace: None,
        workload: None,
        recording: None,
    }
}

fn chat() -> Finished {
    finished(key(1_000), &chat_events(key(1_000)))
}

/// A chat that took `ms` milliseconds and ended so.
fn took(ms: u64, outcome: Outcome) -> Record {
    let request = chat();
    record(Finished { outcome, answered_ns: request.arrived_ns + ms * MS, ..request })
}

fn json(record: &Record) -> serde_json::Value {
    serde_json::to_value(Line::new(record, wall)).unwrap()
}

fn options_of(file: &Path) -> LogOptions {
    LogOptions { logged: Logged::All, file: Some(file.to_owned()), slow: None }
}

fn lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "every line is whole");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn timestamps_are_rfc_3339() {
    let at = |seconds: u64, ms: u64| {
        timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + ms))
    };
    assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
    assert_eq!(at(951_782_399, 999), "2000-02-28T23:59:59.999Z");
    assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.001Z");
    assert_eq!(at(1_795_448_518, 654), "2026-11-23T15:41:58.654Z");
    assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
}

#[test]
fn golden() {
    let mut request = chat();
    let bytes = post("/v1/chat/completions", &format!("traceparent: {PARENT}\r\nX-User: ada\r\n"), "");
    request.head = Some(head::parse(&bytes, &options()).unwrap());
    request.user = Some("ada".to_owned());
    let line = serde_json::to_string(&Line::new(&record(request), wall)).unwrap();
    let expected = concat!(
        r#"{"timestamp":"2026-11-23T15:41:59.060Z","level":"info","event":"inference_complete","#,
        r#""request_id":"3b9aca00-5","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","server":"127.0.0.1:8080","model":"tiny","#,
        r#""quantisation":"Q4_K_M","user_id":"ada","route":"/v1/chat/completions","status":200,"#,
        r#""stream":false,"finish_reason":"length","prompt_tokens":21,"cached_tokens":20,"#,
        r#""completion_tokens":5,"queue_ms":12.0,"ttft_ms":32.0,"prefill_ms":20.0,"decode_ms":20.0,"#,
        r#""latency_ms":60.0,"worst_gap_ms":8.0,"worst_gap_part":"decode","parts_ms":{"decode":18.0,"host":2.0,"own_prefill":20.0,"queue":10.0,"sampling":2.0},"tokens_per_second":200.0,"context_used":25,"#,
        r#""cached":true,"engine_ms":30.0,"cost_dollars":0.3,"slot":1,"task":40,"join":"exact"}"#,
    );
    assert_eq!(line, expected);
}

#[test]
fn what_there_was_not_is_absent() {
    let bytes = post("/v1/chat/completions", "", "{}");
    let error = answer("400 Bad Request", r#"{"error":{"type":"invalid_request_error"}}"#);
    let events = [read(key(1_000), 0, 1_000 * MS, &bytes), write(key(1_000), 0, 1_001 * MS, &error)];
    let mut record = record(finished(key(1_000), &events));
    (record.model, record.cost) = (None, [None; 2]);
    let line = serde_json::to_string(&Line::new(&record, wall)).unwrap();
    let expected = concat!(
        r#"{"timestamp":"2026-11-23T15:41:59.001Z","level":"warn","event":"inference_complete","#,
        r#""request_id":"3b9aca00-5","server":"127.0.0.1:8080","model":"tiny","#,
        r#""route":"/v1/chat/completions","status":400,"#,
        r#""stream":false,"finish_reason":"error","error_type":"invalid_request_error","#,
        r#""prompt_tokens":0,"cached_tokens":0,"completion_tokens":0,"latency_ms":1.0,"#,
        r#""context_used":0,"cached":false,"engine_ms":0.0,"join":"none"}"#,
    );
    assert_eq!(line, expected);
}

#[test]
fn of_a_server_in_a_pod_its_names_are_there_as_far_as_they_are_known() {
    let of = |workload: Option<Workload>| {
        let line = json(&Record { workload, ..record(chat()) });
        let known = ["namespace", "pod", "container", "pod_uid", "container_id"];
        known
            .iter()
            .filter_map(|name| Some((*name, line.get(*name)?.as_str()?.to_owned())))
            .collect::<Vec<_>>()
    };
    let pair = |name, value: &str| (name, value.to_owned());
    let container = Workload { container_id: Some("3f1c".to_owned()), ..Workload::default() };
    assert_eq!(of(None), []);
    assert_eq!(of(Some(container.clone())), [], "in no pod");
    let ids = Workload { pod_uid: Some("0b0e".to_owned()), ..container };
    assert_eq!(of(Some(ids.clone())), [pair("pod_uid", "0b0e")]);
    let (namespace, pod, container) = ("inference".to_owned(), "llama-7d4b9".to_owned(), String::new());
    let named = Workload { names: Some(Names { namespace, pod, container }), ..ids };
    let all = [pair("namespace", "inference"), pair("pod", "llama-7d4b9"), pair("pod_uid", "0b0e")];
    assert_eq!(of(Some(named)), all, "which container it is, is not known yet");
}

#[test]
fn why_the_cache_missed_is_told_with_where() {
    let miss = CacheMiss {
        reason: MissReason::PrefixChanged,
        held_tokens: 900,
        differs_at: Some(20),
        computed_tokens: 1,
        restore_ns: None,
    };
    let line = json(&record(Finished { cache_miss: Some(miss), ..chat() }));
    assert_eq!((&line["cache_miss"], &line["cache_differs_at"]), (&"prefix_changed".into(), &20.into()));
    assert_eq!((&line["cache_held_tokens"], line.get("cache_restore_ms")), (&900.into(), None));
}

#[test]
fn what_was_copied_for_it_and_for_others_is_told() {
    let waited = Waited { prefill_ns: 0, host_ns: 2 * MS, copy_ns: 3 * MS, sampling_ns: MS };
    let by = Culprit { request: key(900), user: None, calls: 0, tokens: 0, waited };
    let line = json(&record(Finished { copies: [2 * MS, 0, MS, 0], slowed_by: vec![by], ..chat() }));
    assert_eq!(line["cache_copies_ms"], serde_json::json!({"save": 2.0, "checkpoint": 1.0}));
    assert_eq!(line["neighbour_copy_ms"], 3.0);
    assert_eq!((&line["neighbour_host_ms"], &line["neighbour_sampling_ms"]), (&2.0.into(), &1.0.into()));
    let line = json(&record(chat()));
    assert_eq!((line.get("cache_copies_ms"), line.get("neighbour_copy_ms")), (None, None));
}

#[test]
fn what_a_request_wasted_guessed_and_cost_is_there_when_it_is_known() {
    let request = Finished { wasted_tokens: 3, draft_tokens: [5, 4], ..chat() };
    let line = json(&Record { cost: [Some(0.5), Some(0.25)], ..record(request) });
    let figures =
        ["wasted_tokens", "draft_tokens", "accepted_tokens"].map(|name| line[name].as_u64().unwrap());
    assert_eq!(figures, [3, 5, 4]);
    assert_eq!((line["cost_dollars"].as_f64(), line["host_cost_dollars"].as_f64()), (Some(0.5), Some(0.25)));
    let by_host = json(&Record { cost: [None, Some(0.25)], ..record(chat()) });
    assert_eq!((by_host["cost_dollars"].as_f64(), by_host.get("host_cost_dollars")), (Some(0.25), None));
}

#[test]
fn no_text_is_logged() {
    let line = serde_json::to_string(&Line::new(&record(chat()), wall)).unwrap();
    assert!(!line.contains(MARKER), "{line}");
}

#[test]
fn odd_values_are_still_json() {
    let mut one = took(60, Outcome::Stop);
    one.labels.model = "a \"tiny\"\n\u{1}one".to_owned();
    one.request.generated_tokens = 1;
    one.request.last_token_ns = one.request.first_token_ns;
    let line = json(&one);
    assert_eq!(line["model"], one.labels.model);
    assert_eq!((line.get("worst_gap_ms"), line.get("tokens_per_second")), (None, None), "no gap, no rate");
    assert_eq!(line["decode_ms"], 0.0);
    let third = took(0, Outcome::Stop);
    let third =
        Record { request: Finished { answered_ns: 1_000 * MS + 1_234_567, ..third.request }, ..third };
    assert_eq!(json(&third)["latency_ms"], 1.235, "microseconds");
}

#[test]
fn errors_are_failures_and_what_was_slow() {
    let directory = tempfile::tempdir().unwrap();
    let logged = |name: &str, logged, slow| {
        let file = directory.path().join(name);
        let mut log = RequestLog::open(LogOptions { logged, file: Some(file.clone()), slow }).unwrap();
        for (ms, outcome) in [
            (1, Outcome::Stop),
            (2, Outcome::Error),
            (3, Outcome::Cancelled),
            (4_999, Outcome::Length),
            (5_000, Outcome::None),
        ] {
            log.record(&took(ms, outcome), EPOCH);
        }
        let health = Finished { route: Route::Health, outcome: Outcome::Error, head: None, ..chat() };
        log.record(&record(health), EPOCH);
        log.close(Instant::now() + Duration::from_secs(10));
        assert!(log.deliveries()[0].lost.iter().all(|(_, lost)| *lost == 0));
        let ms = |line: &String| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["latency_ms"].as_f64().unwrap() as u64
        };
        lines(&file).iter().map(ms).collect::<Vec<_>>()
    };
    let slow = Some(Duration::from_secs(5));
    assert_eq!(logged("all", Logged::All, slow), [1, 2, 3, 4_999, 5_000]);
    assert_eq!(logged("errors", Logged::Errors, slow), [2, 3, 5_000]);
    assert_eq!(logged("failures", Logged::Errors, None), [2, 3]);
    assert_eq!(logged("off", Logged::Off, slow), [0; 0]);
}

#[test]
fn a_preflight_is_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    let mut log = RequestLog::open(options_of(&file)).unwrap();
    let preflight = b"OPTIONS /v1/chat/completions HTTP/1.1\r\n\r\n";
    let events =
        [read(key(1_000), 0, 1_000 * MS, preflight), write(key(1_000), 0, 1_001 * MS, &answer("200 OK", ""))];
    log.record(&record(finished(key(1_000), &events)), EPOCH);
    log.close(Instant::now() + Duration::from_secs(10));
    assert_eq!(lines(&file), [""; 0]);
}
