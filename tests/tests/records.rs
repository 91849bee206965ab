//! The record file: all of each request, and the same figures as in the request log.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Answer, Call, run};
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Fate, Request, run_checked};
use llamaprobe_tests::wait_for;
use rustix::process::Signal;
use serde_json::{Value, json};

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
/// How long a line may be late: the agent waits 10 s for a slot that a cancelled request does not leave.
const PATIENCE: Duration = Duration::from_secs(20);
const PRICES: &[u8] = b"[default]\nprompt = 0.1\ncached = 0.02\ngenerated = 0.4\n";
const LOST: &str = "llamaprobe_output_lost_total";

/// The lines of a file by their trace id, which stands where `place` points.
fn by_trace(text: &str, place: &str) -> Result<BTreeMap<String, Value>> {
    let mut lines = BTreeMap::new();
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let line: Value = serde_json::from_str(line).with_context(|| format!("a bad line: {line}"))?;
        let trace = line.pointer(place).and_then(Value::as_str).context("a line without a trace")?.to_owned();
        ensure!(lines.insert(trace.clone(), line).is_none(), "{trace} twice");
    }
    Ok(lines)
}

fn read(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

fn calls() -> Vec<Call> {
    let call = |index: usize| {
        let text = format!("word {} of the request", index % 7);
        let (tokens, stream) = (4 + index % 9, index.is_multiple_of(2));
        let chat = json!({
            "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0.5,
            "ignore_eos": true, "stream": stream, "user": format!("user-{}", index % 3),
        });
        let plain = json!({"prompt": text, "n_predict": tokens, "ignore_eos": true, "stream": stream});
        let long = json!({"prompt": text, "n_predict": 2000, "ignore_eos": true, "stream": true});
        match index % 8 {
            0..3 => Call::post("/v1/chat/completions", &chat),
            3..6 => Call::post("/completion", &plain),
            6 => {
                Call { body: "{\"messages\":".to_owned(), ..Call::post("/v1/chat/completions", &Value::Null) }
                    .with_fate(Fate::Refused)
            }
            _ => Call::post("/completion", &long).with_fate(Fate::Cut(5)),
        }
    };
    (0..40).map(call).collect()
}

/// Milliseconds as the log has them.
fn ms(ns: &Value) -> Value {
    ns.as_f64().map_or(Value::Null, |ns| json!((ns / 1e3).round() / 1e3))
}

fn between(from: &Value, to: &Value) -> Value {
    let gap = from.as_u64().zip(to.as_u64()).map(|(from, to)| to.saturating_sub(from));
    ms(&json!(gap))
}

/// What a line of the log says otherwise than its record.
fn differences(line: &Value, record: &Value) -> Vec<String> {
    let at = |place: &str| record.pointer(place).cloned().unwrap_or_else(|| panic!("{place} is missing"));
    let sum = |one: Value, two: Value| json!(one.as_u64().zip(two.as_u64()).map(|(one, two)| one + two));
    let times = |name: &str| at(&format!("/times/{name}_ns"));
    let cost = at("/cost/by_tokens").as_f64().map(|dollars| (dollars * 1e8).round() / 1e8);
    let wasted = at("/tokens/wasted");
    let said = [
        ("trace_id", at("/trace/trace_id")),
        ("server", at("/server")),
        ("model", at("/model")),
        ("quantisation", at("/model_file/quantisation")),
        ("user_id", at("/user")),
        ("route", at("/request/route")),
        ("status", at("/answer/status")),
        ("stream", at("/answer/stream")),
        ("finish_reason", at("/answer/finish_reason")),
        ("error_type", at("/answer/error_type")),
        ("prompt_tokens", sum(at("/tokens/prompt"), at("/tokens/cached"))),
        ("cached_tokens", at("/tokens/cached")),
        ("completion_tokens", at("/tokens/generated")),
        ("wasted_tokens", if wasted == 0 { Value::Null } else { wasted }),
        ("queue_ms", ms(&times("prefill"))),
        ("ttft_ms", ms(&times("first_token"))),
        ("prefill_ms", between(&times("prefill"), &times("first_token"))),
        ("decode_ms", between(&times("first_token"), &times("last_token"))),
        ("latency_ms", ms(&times("answered"))),
        ("worst_gap_ms", ms(&times("worst_gap"))),
        ("context_used", at("/engine/context_used")),
        ("engine_ms", ms(&at("/engine/busy_ns"))),
        ("cost_dollars", json!(cost)),
        ("slot", at("/engine/slot")),
        ("task", at("/engine/task")),
        ("join", at("/engine/join")),
    ];
    let differs = |(name, said): &(&str, Value)| line.get(*name).unwrap_or(&Value::Null) != said;
    said.iter()
        .filter(|it| differs(it))
        .map(|(name, said)| format!("{name}: {} and {said}", line[*name]))
        .collect()
}

/// Where a record contradicts what the client asked for and got.
fn mistakes(answer: &Answer, record: &Value) -> Vec<String> {
    let asked: Value = serde_json::from_str(&answer.call.body).unwrap_or_default();
    let mut mistakes = Vec::new();
    let mut check = |what: &str, record: &Value, client: &Value| {
        if record != client {
            mistakes.push(format!("{what}: {record}, but {client} at the client"));
        }
    };
    let request = &record["request"];
    check("bytes", &request["content_length"], &json!(answer.call.body.len()));
    for name in ["stream", "temperature"] {
        check(name, &request[name], &asked[name]);
    }
    let most = asked.get("max_tokens").or_else(|| asked.get("n_predict")).unwrap_or(&Value::Null);
    check("limit", &request["max_tokens"], most);
    check("parent", &record["trace"]["parent_id"], &json!("00f067aa0ba902b7"));
    if let Some(tokens) = answer.tokens {
        check("generated", &record["tokens"]["generated"], &json!(tokens.generated));
    }
    mistakes
}

#[test]
fn a_record_has_the_figures_of_the_log_and_more() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let (log, scratch) = (RequestLog::new()?, Scratch::new()?);
    let (file, prices) = (scratch.path().join("records.ndjson"), scratch.write("prices.toml", PRICES)?);
    let [records, prices] = [&file, &prices].map(|path: &PathBuf| path.display().to_string());
    let pid = server.pid().to_string();
    let more = ["--record-file", &records, "--price-file", &prices, "--user-from", "body", "--pid", &pid];
    let agent = Agent::start(&[&log.arguments()?[..], &more].concat())?;
    agent.wait_observed(&server)?;
    assert_eq!(fs::metadata(&file)?.mode() & 0o777, 0o600);

    let since_epoch = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|it| it.as_micros());
    let start = since_epoch()?;
    let answers = run(server.endpoint(), &calls(), 3)?;
    server.wait_idle()?;
    let told = || by_trace(&read(&file), "/trace/trace_id").ok().filter(|it| it.len() == answers.len());
    let told = wait_for("all records", PATIENCE, told)?;
    let end = since_epoch()?;
    let logged = by_trace(&log.text(), "/trace_id")?;
    assert_eq!(logged.keys().collect::<Vec<_>>(), told.keys().collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for answer in &answers {
        let trace = answer.call.trace.to_string();
        let (line, record) = (&logged[&trace], &told[&trace]);
        wrong.extend(differences(line, record));
        wrong.extend(mistakes(answer, record));
        let arrived = u128::from(record["arrived_unix_us"].as_u64().context("no time")?);
        assert!((start..end).contains(&arrived), "{start} {arrived} {end}");
        assert_eq!((&record["schema"], &record["pid"]), (&json!(1), &json!(server.pid())));
        assert_eq!(record["model_file"]["architecture"], "llama");
    }
    assert_eq!(wrong, [""; 0], "{}", wrong.join("\n"));
    println!("{} records equal their lines", told.len());

    // Rotated away, it goes on in a new file.
    let rotated = scratch.path().join("records.1");
    fs::rename(&file, &rotated)?;
    agent.signal(Signal::HUP)?;
    wait_for("a new file", PATIENCE, || file.exists().then_some(()))?;
    run_checked(server.address(), &[Request::completion("a", 2, false)], 1)?;
    wait_for("a record in it", PATIENCE, || (read(&file).lines().count() == 1).then_some(()))?;
    assert_eq!(read(&rotated).lines().count(), answers.len());
    let metrics = agent.scrape()?;
    let lost: Vec<_> = metrics.select(LOST, &[("output", "records")]).map(|sample| sample.value).collect();
    assert_eq!(lost, [0.0, 0.0], "by reason");
    agent.stop()
}

#[test]
fn what_cannot_be_recorded_is_counted() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let pid = server.pid().to_string();
    let agent = Agent::start(&["--record-file", "/dev/full", "--pid", &pid])?;
    agent.wait_observed(&server)?;
    run_checked(server.address(), &vec![Request::completion("a", 2, false); 3], 1)?;
    agent.wait_metrics("three lost records", |metrics| {
        let lost = metrics.sum(LOST, &[("output", "records"), ("reason", "unwritable")]);
        (lost == 3.0).then_some(())
    })?;
    assert_eq!(agent.scrape()?.value("llamaprobe_log_lines_lost_total"), Some(0.0), "the log is another one");
    agent.stop()?;
    let scratch = Scratch::new()?;
    let place = scratch.path().join("no/records").display().to_string();
    let output = agent::run(&["run", "--listen", "127.0.0.1:0", "--record-file", &place])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && errors.contains(&place), "{errors}");
    Ok(())
}
