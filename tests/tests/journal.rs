//! A journal plays as it was written; a damaged one says where.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::{Build, workspace_root};
use llamaprobe_tests::client::{Call, run};
use llamaprobe_tests::http;
use llamaprobe_tests::otlp::{Event, Span, Taken};
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{mix, run_checked};
use serde_json::{Map, Value, json};

/// Slots of 4,096 tokens.
const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];
/// Stands in a prompt and in an API key: no journal may hold it.
const MARKER: &str = "qzxjkvbqzx";
/// Set, the golden journal is written anew, by the requests of a real server.
const BLESS: &str = "LLAMAPROBE_BLESS";

/// What an agent told, and its journal.
struct Told {
    journal: PathBuf,
    metrics: String,
    lines: String,
}

/// Lets an agent with a journal, and `more` arguments, observe `count` mixed requests.
fn told(scratch: &Scratch, count: usize, more: &[&str]) -> Result<Option<Told>> {
    let Some(assets) = privileged() else { return Ok(None) };
    // A golden journal holds its path: none of this machine.
    let model = scratch.copy(&assets.tiny(), "tiny.gguf")?;
    let server = LlamaServer::start(Build::Process, &model, &SERVER)?;
    let log = RequestLog::new()?;
    let journal = scratch.path().join("journal");
    // What is there is replaced, and is not left open to others.
    fs::write(&journal, "before")?;
    fs::set_permissions(&journal, Permissions::from_mode(0o644))?;
    let (pid, file) = (server.pid().to_string(), journal.display().to_string());
    let arguments = ["--pid", &pid, "--journal", &file, "--host-price", "3.6", "--user-header", "X-User"];
    let agent = Agent::start(&[&log.arguments()?[..], &arguments, more].concat())?;
    agent.wait_observed(&server)?;
    run_checked(server.address(), &mix(count), 16)?;
    let body = json!({"prompt": MARKER, "n_predict": 3, "ignore_eos": true, "user": "somebody"});
    let secret = Call::post("/completion", &body).with_header("Authorization", &format!("Bearer {MARKER}"));
    run(server.address(), &[secret.clone(), secret.with_header("X-User", "one")], 1)?;
    server.wait_idle()?;
    // An abandoned request is told when its slot is left, and money is charged meanwhile.
    let label = server.label();
    agent.wait_metrics("all requests", |metrics| {
        let counted = metrics.sum("llm_requests_total", &[("server", &*label), ("route", "/completion")]);
        (counted > 0.0 && metrics.sum("llm_requests_in_flight", &[("server", &*label)]) == 0.0).then_some(())
    })?;
    let reply = http::get(agent.address(), "/metrics")?;
    ensure!(reply.status == 200, "{reply:?}");
    agent.stop()?;
    let lines = log.text();
    Ok(Some(Told { journal, metrics: reply.body, lines }))
}

/// The spans of a line of OTLP in JSON, as the receiver shows spans.
fn spans(line: &str) -> Result<Vec<Shown>> {
    let request: Value = serde_json::from_str(line)?;
    let spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().context("no spans")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| text(value).parse().unwrap_or_default();
    let event = |event: &Value| Event {
        name: text(&event["name"]),
        at_ns: number(&event["timeUnixNano"]),
        attributes: attributes(&event["attributes"]),
    };
    let shown = |span: &Value| Shown {
        ids: ["traceId", "spanId", "parentSpanId", "traceState", "name"].map(|key| text(&span[key])),
        times: ["startTimeUnixNano", "endTimeUnixNano"].map(|key| number(&span[key])),
        flags: span["flags"].as_u64().unwrap_or_default(),
        attributes: attributes(&span["attributes"]),
        events: span["events"].as_array().into_iter().flatten().map(event).collect(),
    };
    Ok(spans.iter().map(shown).collect())
}

/// Attributes of OTLP in JSON as plain values.
fn attributes(list: &Value) -> Map<String, Value> {
    let of = |it: &Value| Some((it["key"].as_str()?.to_owned(), plain(it["value"].as_object()?)));
    list.as_array().into_iter().flatten().filter_map(of).collect()
}

fn plain(value: &Map<String, Value>) -> Value {
    match value.iter().next() {
        // Numbers of 64 bits are text in JSON.
        Some((kind, Value::String(number))) if kind == "intValue" => {
            number.parse::<i64>().map_or(Value::Null, Value::from)
        }
        Some((_, Value::Object(array))) => {
            let values = array.get("values").and_then(Value::as_array).into_iter().flatten();
            values.filter_map(|value| value.as_object().map(plain)).collect()
        }
        Some((_, value)) => value.clone(),
        None => Value::Null,
    }
}

/// What is compared of a span.
#[derive(Debug, PartialEq)]
struct Shown {
    ids: [String; 5],
    times: [u64; 2],
    flags: u64,
    attributes: Map<String, Value>,
    events: Vec<Event>,
}

impl From<Span> for Shown {
    fn from(span: Span) -> Self {
        Self {
            ids: [span.trace_id, span.span_id, span.parent_span_id, span.trace_state, span.name],
            times: [span.start_ns, span.end_ns],
            flags: span.flags.into(),
            attributes: span.attributes,
            events: span.events,
        }
    }
}

#[test]
fn spans_are_played_as_they_were_sent() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let (scratch, taken) = (Scratch::new()?, Taken::new()?);
    let receiver = taken.receiver(&assets, 0, &[])?;
    let Some(told) = told(&scratch, 60, &["--otlp-endpoint", &receiver.endpoint()])? else { return Ok(()) };
    let sort = |mut spans: Vec<Shown>| {
        spans.sort_by(|one, other| one.ids.cmp(&other.ids));
        spans
    };
    let sent = sort(taken.spans()?.into_iter().map(Shown::from).collect());
    let (file, metrics) = (scratch.path().join("spans.jsonl"), scratch.path().join("played.prom"));
    let path = |path: &Path| path.display().to_string();
    let (journal, file_name, metrics) = (path(&told.journal), path(&file), path(&metrics));
    let output = agent::run(&["replay", &journal, "--spans", &file_name, "--metrics", &metrics])?;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&file)?;
    let lines = text.lines().map(spans).collect::<Result<Vec<_>>>()?;
    let played = sort(lines.into_iter().flatten().collect());
    println!("{} spans sent, {} played", sent.len(), played.len());
    assert!(sent.len() >= 60, "{} spans", sent.len());
    for (sent, played) in sent.iter().zip(&played) {
        assert_eq!(sent, played);
    }
    assert_eq!(sent.len(), played.len());
    Ok(())
}

/// What `replay` says of a journal: exit code, metrics, log lines, messages.
fn played(scratch: &Scratch, journal: &Path) -> Result<(Option<i32>, String, String, String)> {
    let (log, metrics) = (scratch.path().join("played.jsonl"), scratch.path().join("played.prom"));
    for file in [&log, &metrics] {
        fs::write(file, "")?;
    }
    let path = |path: &Path| path.display().to_string();
    let (journal, to, of) = (path(journal), path(&log), path(&metrics));
    let output = agent::run(&["replay", &journal, "--log", &to, "--metrics", &of])?;
    let messages = String::from_utf8(output.stderr)?;
    Ok((output.status.code(), fs::read_to_string(metrics)?, fs::read_to_string(log)?, messages))
}

#[test]
fn it_plays_as_it_was_written() -> Result<()> {
    let scratch = Scratch::new()?;
    let Some(told) = told(&scratch, 200, &[])? else { return Ok(()) };
    let (code, metrics, lines, messages) = played(&scratch, &told.journal)?;
    let bytes = fs::read(&told.journal)?;
    println!(
        "{messages}{} bytes; {} series and {} lines are the same",
        bytes.len(),
        metrics.lines().count(),
        lines.lines().count()
    );
    assert_eq!(code, Some(0), "{messages}");
    assert!(told.lines.lines().count() >= 100, "{} lines", told.lines.lines().count());
    similar(&told.lines, &lines)?;
    similar(&told.metrics, &metrics)?;
    let mode = fs::metadata(&told.journal)?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "{mode:o}");
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("somebody"), "named fields are there");
    assert!(!holds(MARKER), "neither prompts nor keys are");
    Ok(())
}

#[test]
fn with_the_bytes_of_requests_they_are_read_again() -> Result<()> {
    let scratch = Scratch::new()?;
    let Some(told) = told(&scratch, 40, &["--journal-payload", "on"])? else { return Ok(()) };
    let (code, metrics, lines, messages) = played(&scratch, &told.journal)?;
    assert_eq!(code, Some(0), "{messages}");
    similar(&told.lines, &lines)?;
    similar(&told.metrics, &metrics)?;
    let bytes = fs::read(&told.journal)?;
    assert!(
        bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes()),
        "what was asked for is there"
    );
    Ok(())
}

#[test]
fn what_is_no_file_is_left_alone() -> Result<()> {
    let scratch = Scratch::new()?;
    let link = scratch.path().join("link");
    symlink("/dev/null", &link)?;
    for there in [&link, scratch.path()] {
        let output =
            agent::run(&["run", "--listen", "127.0.0.1:0", "--journal", &there.display().to_string()])?;
        let messages = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{messages}");
        assert!(messages.contains("something is there that is no regular file"), "{messages}");
    }
    assert!(link.is_symlink());
    Ok(())
}

/// Fails with the first lines that differ.
fn similar(one: &str, other: &str) -> Result<()> {
    let differs = one.lines().zip(other.lines()).find(|(one, other)| one != other);
    ensure!(differs.is_none(), "{differs:?}");
    ensure!(one == other, "{} and {} lines", one.lines().count(), other.lines().count());
    Ok(())
}

fn golden(name: &str) -> PathBuf {
    workspace_root().join("tests/assets/golden").join(name)
}

#[test]
fn the_golden_journal_plays_as_ever() -> Result<()> {
    let scratch = Scratch::new()?;
    if std::env::var_os(BLESS).is_some() {
        let told = told(&scratch, 24, &[])?.context("a journal is written by root")?;
        fs::create_dir_all(golden(""))?;
        fs::write(golden("journal"), fs::read(&told.journal)?)?;
        fs::write(golden("metrics"), &told.metrics)?;
        fs::write(golden("lines"), &told.lines)?;
    }
    let (code, metrics, lines, messages) = played(&scratch, &golden("journal"))?;
    assert_eq!(code, Some(0), "{messages}; {BLESS}=1 writes it anew");
    similar(&fs::read_to_string(golden("lines"))?, &lines)?;
    similar(&fs::read_to_string(golden("metrics"))?, &metrics)
}

#[test]
fn damage_is_named_and_what_came_before_is_shown() -> Result<()> {
    let scratch = Scratch::new()?;
    let whole = fs::read(golden("journal"))?;
    let (_, _, all, _) = played(&scratch, &golden("journal"))?;
    let frame = |at: usize| u32::from_le_bytes(whole[at..at + 4].try_into().unwrap()) as usize + 8;
    // The mark, then frames.
    let mut begins = vec![8];
    while let Some(next) = begins.last().map(|at| at + frame(*at)).filter(|next| *next < whole.len()) {
        begins.push(next);
    }
    let late = begins[begins.len() * 9 / 10];
    let mut flipped = whole.clone();
    flipped[late + 12] ^= 1;
    let mut endless = whole.clone();
    endless[late + 3] = 0x7f;
    for (name, bytes, said) in [
        ("cut", whole[..late + 11].to_vec(), format!("cut off at offset {late}")),
        ("in its frame", whole[..late + 5].to_vec(), format!("cut off at offset {late}")),
        ("flipped", flipped, format!("damaged at offset {late}")),
        ("endless", endless, format!("damaged at offset {late}")),
    ] {
        let (code, metrics, lines, messages) = played(&scratch, &scratch.write("bad", &bytes)?)?;
        println!("{name}: {}", messages.trim().replace(&scratch.path().display().to_string(), ""));
        assert_eq!(code, Some(1), "{name}: {messages}");
        assert!(messages.contains(&said), "{name}: {messages}");
        assert!(metrics.contains("llm_requests_total{"), "{name}");
        assert!(!lines.is_empty() && all.starts_with(&lines), "{name}: what came before is shown");
    }
    let mut newer = whole.clone();
    newer[16] = 9;
    let sum = crc32fast::hash(&newer[16..8 + frame(8)]);
    newer[12..16].copy_from_slice(&sum.to_le_bytes());
    for (bytes, said) in [
        (newer, "a journal of version 9"),
        (b"{\"a\": 1}\n".to_vec(), "no journal of llamaprobe"),
        (Vec::new(), "no journal of llamaprobe"),
        (whole[..8].to_vec(), "cut off at offset 8"),
    ] {
        let (code, metrics, _, messages) = played(&scratch, &scratch.write("bad", &bytes)?)?;
        assert_eq!(code, Some(2), "{messages}");
        assert!(messages.contains(said) && metrics.is_empty(), "{messages}");
    }
    Ok(())
}
