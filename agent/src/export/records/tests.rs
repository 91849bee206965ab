use std::{fs, sync::Arc};

use serde_json::{Value, json};

use super::*;
use crate::{
    kubernetes,
    session::{
        Labels,
        cache::{CacheMiss, MissReason},
        finished::Outcome,
        payload::{head, route::Route},
        staged::{MARKER, MS, answer, chat_events, finished, key, options, post, read, write},
        stalls::{Lost, StepLoss},
    },
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const EPOCH: Duration = Duration::from_secs(1_795_448_518);

fn record(request: Finished) -> Record {
    let model = Model {
        path: "/models/tiny.gguf".into(),
        architecture: "llama".to_owned(),
        name: None,
        kind: None,
        quantisation: "Q4_K_M".to_owned(),
        parameters: 1,
        context_train: Some(2048),
        forgets: false,
        splits: None,
        file_bytes: 9,
    };
    let labels = Labels { server: "127.0.0.1:8080".to_owned(), model: "tiny".to_owned() };
    let cost = [Some(0.1 + 0.2), None];
    Record {
        request,
        labels,
        model: Some(Arc::new(model)),
        cost,
        trace: None,
        workload: Some(kubernetes::Workload {
            pod_uid: Some("0b0e".to_owned()),
            container_id: Some("3f1c".to_owned()),
            names: None,
        }),
        recording: None,
    }
}

fn chat() -> Finished {
    finished(key(1_000), &chat_events(key(1_000)))
}

fn json(record: &Record) -> Value {
    serde_json::to_value(Entry::new(record, EPOCH)).unwrap()
}

#[test]
fn golden() {
    let mut request = chat();
    let bytes = post("/v1/chat/completions", &format!("traceparent: {PARENT}\r\nX-User: ada\r\n"), "");
    request.head = Some(head::parse(&bytes, &options()).unwrap());
    request.user = Some("ada".to_owned());
    request.slowed_by = vec![waits::Culprit {
        request: key(900),
        user: Some("bob".to_owned()),
        calls: 2,
        tokens: 90,
        waited: waits::Waited { prefill_ns: 3 * MS, host_ns: 2 * MS, copy_ns: MS, sampling_ns: 4 * MS },
    }];
    request.copies = [4 * MS, 5 * MS, 0, 0];
    request.draft_tokens = [6, 4];
    request.cache_miss = Some(CacheMiss {
        reason: MissReason::PrefixChanged,
        held_tokens: 30,
        differs_at: Some(20),
        computed_tokens: 1,
        restore_ns: None,
    });
    let lost = Lost::staged(Cause::PageFault, 5 * MS);
    request.losses.add(&StepLoss { step_ns: 1_040 * MS, lost });
    request.draft_steps = vec![DraftStep { at_ns: 1_040 * MS, drafted: 6, accepted: 4 }];
    let expected = json!({
        "schema": 1,
        "arrived_unix_us": 1_795_448_519_000_000_u64,
        "server": "127.0.0.1:8080",
        "model": "tiny",
        "pid": 7,
        "workload": {
            "namespace": null,
            "pod": null,
            "container": null,
            "pod_uid": "0b0e",
            "container_id": "3f1c",
        },
        "user": "ada",
        "trace": {
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "parent_id": "00f067aa0ba902b7",
            "span_id": null,
        },
        "request": {
            "route": "/v1/chat/completions",
            "tls": false,
            "content_length": 0,
            "model": "m",
            "stream": null,
            "max_tokens": null,
            "n": null,
            "temperature": null,
        },
        "answer": {
            "status": 200,
            "stream": false,
            "finish_reason": "length",
            "error_type": null,
            "cancelled_by": null,
            "truncated": false,
            "has_text": true,
            "refused": null,
        },
        "times": {
            "loaded_ns": null,
            "prefill_ns": 12_000_000,
            "first_token_ns": 32_000_000,
            "last_token_ns": 52_000_000,
            "answered_ns": 60_000_000,
            "worst_gap_ns": 8_000_000,
            "worst_gap_part": "decode",
            "worst_gap_cause": "page_fault",
            "stall_ns": { "page_fault": 5_000_000 },
        },
        "parts_ns": {
            "queue": 10_000_000, "host": 2_000_000, "draft": 0, "own_prefill": 20_000_000,
            "decode": 18_000_000, "neighbour_prefill": 0, "sampling": 2_000_000, "others_sampling": 0,
            "load": 0,
        },
        "slowed_by": [{
            "user": "bob", "arrived_unix_us": 1_795_448_518_900_000_u64, "ns": 3_000_000, "calls": 2,
            "prompt_tokens": 90, "host_ns": 2_000_000, "copy_ns": 1_000_000, "sampling_ns": 4_000_000,
        }],
        "copies_ns": { "save": 4_000_000, "restore": 5_000_000, "checkpoint": 0, "rewind": 0 },
        "tokens": {
            "prompt": 1, "cached": 20, "generated": 5, "wasted": 0, "drafted": 6, "accepted": 4,
        },
        "cache": { "miss": "prefix_changed", "held": 30, "differs_at": 20, "restore_ns": null },
        "engine": {
            "join": "exact",
            "slot": 1,
            "task": 40,
            "context_used": 25,
            "busy_ns": 30_000_000,
            "draft_steps": [{ "at_ns": 40_000_000, "drafted": 6, "accepted": 4 }],
        },
        "cost": { "by_tokens": 0.1 + 0.2, "by_host": null },
        "model_file": {
            "path": "/models/tiny.gguf",
            "architecture": "llama",
            "name": null,
            "kind": null,
            "quantisation": "Q4_K_M",
            "parameters": 1,
            "context_train": 2048,
            "forgets": false,
            "splits": null,
            "file_bytes": 9,
        },
    });
    let made = json(&record(request));
    assert_eq!(made, expected, "{made:#}");
}

/// The fields of an object and of those in it.
fn fields(value: &Value, before: &str) -> Vec<String> {
    let fields = value.as_object().into_iter().flatten();
    fields
        .flat_map(|(name, value)| {
            let name = format!("{before}/{name}");
            let within = self::fields(value, &name);
            [vec![name], within].concat()
        })
        .collect()
}

#[test]
fn every_record_has_the_same_fields() {
    let bytes = post("/v1/chat/completions", "", "{}");
    let error = answer("400 Bad Request", r#"{"error":{"type":"invalid_request_error"}}"#);
    let events = [read(key(1_000), 0, 1_000 * MS, &bytes), write(key(1_000), 0, 1_001 * MS, &error)];
    let mut refused = record(finished(key(1_000), &events));
    refused.cost = [None; 2];
    let refused = json(&refused);
    assert_eq!(fields(&refused, ""), fields(&json(&record(chat())), ""));
    assert_eq!(refused["answer"]["error_type"], "invalid_request_error");
    assert_eq!(refused["times"]["first_token_ns"], Value::Null);
    assert_eq!(refused["times"]["answered_ns"], 1_000_000);
    assert_eq!(refused["user"], Value::Null);
}

#[test]
fn no_text_and_no_other_name_is_recorded() {
    let mut request = chat();
    let bytes = post("/v1/chat/completions", "X-User: header-ada\r\nX-Conversation-Id: talk\r\n", "");
    request.head = Some(head::parse(&bytes, &options()).unwrap());
    request.body.user = Some("body-ada".to_owned());
    request.client = Some("192.0.2.7".parse().unwrap());
    request.user = Some("chosen".to_owned());
    let line = json(&record(request)).to_string();
    for other in [MARKER, "ada", "talk", "192.0.2.7"] {
        assert!(!line.contains(other), "{other} is in {line}");
    }
}

#[test]
fn inference_requests_are_recorded_whatever_became_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("records");
    let mut records = Records::open(&file).unwrap();
    for outcome in [Outcome::Stop, Outcome::Error, Outcome::Interrupted] {
        records.record(&record(Finished { outcome, ..chat() }), EPOCH);
    }
    records.record(&record(Finished { route: Route::Health, head: None, ..chat() }), EPOCH);
    records.finish();
    records.close(Instant::now() + Duration::from_secs(10));
    let text = fs::read_to_string(&file).unwrap();
    let outcomes: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["answer"]["finish_reason"].clone())
        .collect();
    assert_eq!(outcomes, ["stop", "error", "interrupted"]);
    let [delivery] = &records.deliveries()[..] else { panic!("one output") };
    assert_eq!(
        (delivery.output.clone(), delivery.exported, delivery.waiting),
        (Output::Other("records".into()), 3, 0)
    );
}
