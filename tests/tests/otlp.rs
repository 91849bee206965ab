//! Traces and logs over OTLP, as an independent receiver takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Build, workspace_root};
use llamaprobe_tests::client::{Answer, Call, run};
use llamaprobe_tests::otlp::calls::{Caller, FAST, call, is_of, operation, wait_sent};
use llamaprobe_tests::otlp::{Span, Taken, children, conventions};
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::Fate;
use serde_json::{Value, json};

/// Slots of 4,096 tokens.
const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];
/// The phases may leave out so much of their request.
const MILLISECOND_NS: u64 = 1_000_000;

/// The spans of requests, by the name of their conversation.
fn by_conversation(spans: &[Span]) -> BTreeMap<String, Vec<&Span>> {
    let mut found: BTreeMap<String, Vec<&Span>> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.span_kind == 2) {
        let name = span.attributes.get("gen_ai.conversation.id").and_then(Value::as_str).unwrap_or_default();
        found.entry(name.to_owned()).or_default().push(span);
    }
    found
}

#[test]
fn every_request_is_a_span_of_its_callers_trace() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let taken = Taken::new()?;
    let receiver = taken.receiver(&assets, 0, &[])?;
    let log = RequestLog::new()?;
    let endpoint = receiver.endpoint();
    let arguments = [&log.arguments()?[..], &["--otlp-endpoint", &endpoint]].concat();
    let more = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=one%20two"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab"),
    ];
    let agent = Agent::start_with(&arguments, &[&FAST[..], &more].concat())?;
    agent.wait_observed(&server)?;

    let (calls, callers): (Vec<_>, Vec<_>) = (0..100).map(call).unzip();
    let callers: BTreeMap<String, Caller> =
        calls.iter().map(|call| call.trace.to_string()).zip(callers).collect();
    let answers = run(server.address(), &calls, 8)?;
    server.wait_idle()?;
    // A line of the log is written when a span is made.
    let label = server.label();
    let lines = taken.wait("a log record of each request", |taken| {
        let records = taken.records().ok()?;
        let own = records.iter().filter(|it| it.attributes.get("server").is_some_and(|it| *it == label));
        (own.count() >= calls.len()).then(|| log.lines())
    })??;
    let lines: Vec<_> = lines.into_iter().filter(|line| line.server == label).collect();
    wait_sent(&agent, "traces")?;

    let spans: Vec<_> = taken.spans()?.into_iter().filter(|span| is_of(&span.resource, &label)).collect();
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.span_id).collect();
    assert_eq!(ids.len(), spans.len(), "a span was sent twice");
    let (names, children) = (conventions(&assets)?, children(&spans));
    let found = by_conversation(&spans);
    let mut mistakes = Vec::new();
    let (mut expected, mut phases) = (0, 0);
    for answer in &answers {
        let name = answer.call.trace.to_string();
        let caller = callers[&name];
        let kept = caller != Caller::NotSampled || answer.call.fate != Fate::Finished;
        let own = found.get(&name).map_or(&[][..], Vec::as_slice);
        expected += usize::from(kept);
        let of: Vec<String> = match (kept, own) {
            (false, []) => vec![],
            (true, [span]) => {
                let below = children.get(span.span_id.as_str()).map_or(&[][..], Vec::as_slice);
                phases += below.len();
                let mut found = differences(answer, caller, span, &label);
                found.extend(phase_mistakes(span, below));
                found
            }
            (_, own) => vec![format!("{} spans", own.len())],
        };
        mistakes.extend(of.into_iter().map(|it| format!("{} {caller:?}: {it}", answer.call.path)));
    }
    for span in &spans {
        let keys = span.attributes.keys().chain(span.resource.keys());
        let unknown = keys.filter(|key| {
            let ours = ["llamaprobe.", "llama_cpp."].iter().any(|prefix| key.starts_with(prefix));
            !ours && !names.contains(&format!("attribute {key}"))
        });
        mistakes.extend(unknown.map(|key| format!("{key} is in no convention")));
        if span.api_key.as_deref() != Some("one two") {
            mistakes.push(format!("the header is {:?}", span.api_key));
        }
    }
    assert!(mistakes.is_empty(), "{} mistakes:\n{}\n{}", mistakes.len(), mistakes.join("\n"), agent.log());
    let servers = spans.iter().filter(|span| span.span_kind == 2).count();
    assert_eq!(servers, expected, "each once, and no other");
    println!("{servers} requests of 100 were to be sampled, with {phases} phases; {} names", names.len());

    // The log names the trace of each span, and no other that nobody can find.
    let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace_id).collect();
    for line in &lines {
        let named = line.trace_id.as_ref();
        let of_caller = named.is_some_and(|id| callers.contains_key(id));
        assert!(named.is_none_or(|id| of_caller || traces.contains(id)), "{line:?}");
    }
    let named: BTreeSet<_> = lines.iter().filter_map(|line| line.trace_id.as_ref()).collect();
    assert!(traces.iter().all(|id| named.contains(*id)), "a span of which the log does not know");
    let records = taken.records()?;
    for record in records.iter().filter(|record| record.attributes["server"] == *label) {
        let line = lines.iter().find(|line| line.trace_id.as_deref().unwrap_or("") == record.trace_id);
        let line = line.with_context(|| format!("no line of {record:?}"))?;
        assert_eq!(
            (record.name.as_str(), record.severity),
            ("inference_complete", if line.level == "info" { 9 } else { 13 })
        );
        assert_eq!(record.attributes["latency_ms"], json!(line.latency_ms));
        assert_eq!(record.attributes["finish_reason"], json!(line.finish_reason));
        assert!(record.span_id.is_empty() || ids.contains(&record.span_id), "{record:?}");
    }
    let invalid = agent.scrape()?.sum("llamaprobe_traceparent_invalid_total", &[("server", &label)]);
    assert_eq!(invalid as usize, callers.values().filter(|it| **it == Caller::Invalid).count());
    agent.stop()
}

#[test]
fn no_text_of_prompts_or_answers_is_exported() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let taken = Taken::new()?;
    let receiver = taken.receiver(&assets, 0, &[])?;
    let agent = Agent::start_with(&["--otlp-endpoint", &receiver.endpoint()], &FAST)?;
    agent.wait_observed(&server)?;
    let (asked, answered, key) = ("zebra7prompt", "quagga9answer", "sk-tapir5secretkey");
    let grammar = format!("root ::= \"{answered}\"");
    let messages = json!([{"role": "user", "content": asked}]);
    let calls: Vec<_> = [
        ("/v1/chat/completions", json!({"messages": messages, "grammar": grammar, "max_tokens": 40})),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "grammar": grammar, "max_tokens": 40, "stream": true}),
        ),
        ("/completion", json!({"prompt": asked, "grammar": grammar, "n_predict": 40})),
        ("/completion", json!({"prompt": asked, "grammar": format!("root ::= {asked}(")})),
    ]
    .into_iter()
    .map(|(path, body)| {
        let call = Call::post(path, &body);
        let headers = format!("{}Authorization: Bearer {key}\r\n", call.trace.header());
        Call { headers: Some(headers), ..call }
    })
    .collect();
    let answers = run(server.address(), &calls, 1)?;
    let there = answers.iter().filter(|it| it.reply.as_ref().is_some_and(|it| it.body.contains("quagga9")));
    assert!(there.count() > 0, "the marker went through the server");
    taken.wait("a record and a span of each request", |taken| {
        let traces: BTreeSet<_> = taken.records().ok()?.into_iter().map(|it| it.trace_id).collect();
        let spans: BTreeSet<_> = taken.spans().ok()?.into_iter().map(|it| it.trace_id).collect();
        let all = calls.iter().map(|call| call.trace.to_string());
        all.into_iter().all(|id| traces.contains(&id) && spans.contains(&id)).then_some(())
    })?;
    agent.stop()?;
    let text = taken.text();
    for marker in [asked, answered, key] {
        assert!(!text.contains(marker), "{marker} was exported");
    }
    Ok(())
}

/// What is wrong with the span of a request.
fn differences(answer: &Answer, caller: Caller, span: &Span, server: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut equal = |what: &str, agent: Value, expected: Value| {
        if agent != expected {
            found.push(format!("{what} is {agent}, not {expected}"));
        }
    };
    let attribute = |key: &str| span.attributes.get(key).cloned().unwrap_or(Value::Null);
    let (trace, path) = (answer.call.trace.to_string(), answer.call.path);
    equal("in the caller's trace", json!(span.trace_id == trace), json!(caller.is_parent()));
    equal(
        "parent",
        json!(span.parent_span_id),
        json!(if caller.is_parent() { "00f067aa0ba902b7" } else { "" }),
    );
    let state = if caller == Caller::Stateful { "vendor=1,other=2" } else { "" };
    equal("state", json!(span.trace_state), json!(state));
    equal(
        "sampled, and the parent remote",
        json!(span.flags & 0x301),
        json!(if caller.is_parent() { 0x301 } else { 0x101 }),
    );
    let body: Value = serde_json::from_str(&answer.call.body).unwrap_or_default();
    let asked = body.get("model").cloned().unwrap_or(Value::Null);
    let model = asked.as_str().unwrap_or("tiny.gguf");
    equal("name", json!(span.name), json!(format!("{} {model}", operation(path))));
    equal("status", json!(span.status), json!(0));
    let (address, port) = server.split_once(':').unwrap_or_default();
    for (key, expected) in [
        ("http.request.method", json!("POST")),
        ("url.path", json!(path)),
        ("http.route", json!(path)),
        ("http.response.status_code", answer.status().map_or(Value::Null, |status| json!(status))),
        ("server.address", json!(address)),
        ("server.port", json!(port.parse::<u16>().ok())),
        ("gen_ai.operation.name", json!(operation(path))),
        ("gen_ai.provider.name", json!("llama.cpp")),
        ("gen_ai.request.model", asked.clone()),
        ("gen_ai.response.model", json!("tiny.gguf")),
        ("gen_ai.request.temperature", body.get("temperature").cloned().unwrap_or(Value::Null)),
    ] {
        equal(key, attribute(key), expected);
    }
    for (key, expected) in [
        ("service.name", json!("llama-server")),
        ("process.executable.name", json!("llama-server")),
        ("deployment.environment.name", json!("lab")),
    ] {
        equal(key, span.resource.get(key).cloned().unwrap_or(Value::Null), expected);
    }
    let limit =
        ["max_tokens", "n_predict", "max_output_tokens"].iter().find_map(|key| body.get(*key)).cloned();
    equal("gen_ai.request.max_tokens", attribute("gen_ai.request.max_tokens"), limit.unwrap_or(Value::Null));
    let events: Vec<_> = span.events.iter().map(|event| event.name.as_str()).collect();
    match answer.call.fate {
        Fate::Finished => {
            let tokens = answer.tokens.unwrap_or_default();
            equal("input tokens", attribute("gen_ai.usage.input_tokens"), json!(tokens.prompt));
            equal("cached tokens", attribute("gen_ai.usage.cache_read.input_tokens"), json!(tokens.cached));
            equal("output tokens", attribute("gen_ai.usage.output_tokens"), json!(tokens.generated));
            equal("reasons", attribute("gen_ai.response.finish_reasons"), json!(["length"]));
            equal("events", json!(events), json!(["first_token"]));
        }
        Fate::Refused => equal("events", json!(events), json!([])),
        Fate::Cut(_) | Fate::Abandoned(_) => {
            equal("events", json!(events), json!(["first_token", "cancelled"]));
        }
    }
    found
}

/// What is wrong with the phases of a request.
fn phase_mistakes(span: &Span, phases: &[&Span]) -> Vec<String> {
    let mut found = Vec::new();
    let names: Vec<_> = phases.iter().map(|phase| phase.name.as_str()).collect();
    let joined = span.attributes["llamaprobe.join"] == "exact";
    if joined && names != ["queue", "prefill", "decode"] {
        found.push(format!("its phases are {names:?}"));
    }
    for phase in phases {
        if phase.start_ns < span.start_ns || phase.end_ns > span.end_ns || phase.end_ns < phase.start_ns {
            found.push(format!("{} lies outside", phase.name));
        }
        if phase.trace_id != span.trace_id {
            found.push(format!("{} is of another trace", phase.name));
        }
        for event in &phase.events {
            if event.at_ns < phase.start_ns || event.at_ns > phase.end_ns {
                found.push(format!("{} lies outside of {}", event.name, phase.name));
            }
        }
    }
    let sum: u64 = phases.iter().map(|phase| phase.end_ns.saturating_sub(phase.start_ns)).sum();
    if !phases.is_empty() && sum.abs_diff(span.end_ns - span.start_ns) > MILLISECOND_NS {
        found.push(format!("the phases take {sum} ns, the request {}", span.end_ns - span.start_ns));
    }
    found
}

#[test]
fn without_a_caller_the_ratio_decides_unless_it_was_slow_or_failed() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    for (slow, expected) in [("ttft=60000,gap=60000,duration=600000", 2), ("ttft=60000,gap=0", 6)] {
        let taken = Taken::new()?;
        let receiver = taken.receiver(&assets, 0, &[])?;
        let arguments =
            ["--otlp-endpoint", &receiver.endpoint(), "--trace-ratio", "0", "--trace-slow-ms", slow];
        let agent = Agent::start_with(&[&arguments[..], &["--otlp-signals", "traces,logs"]].concat(), &FAST)?;
        agent.wait_observed(&server)?;
        // Without a caller: four good ones, two that are refused.
        let calls: Vec<_> = [10, 11, 12, 13, 17, 19].map(|index| call(index).0).to_vec();
        run(server.address(), &calls, 1)?;
        let label = server.label();
        taken.wait("a record of each request", |taken| {
            let records = taken.records().ok()?;
            (records.iter().filter(|it| it.attributes["server"] == *label).count() == 6).then_some(())
        })?;
        wait_sent(&agent, "traces")?;
        let spans: Vec<_> = taken.spans()?.into_iter().filter(|it| is_of(&it.resource, &label)).collect();
        assert_eq!(spans.iter().filter(|span| span.span_kind == 2).count(), expected, "{slow}");
        assert!(taken.points()?.is_empty(), "metrics are switched off");
        // A trace that nobody can find is not named.
        let named = taken
            .records()?
            .iter()
            .filter(|it| it.attributes["server"] == *label && !it.trace_id.is_empty())
            .count();
        assert_eq!(named, expected, "{slow}");
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn the_span_of_an_instrumented_client_is_the_parent() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Decode, &assets.tiny(), &SERVER)?;
    let taken = Taken::new()?;
    let receiver = taken.receiver(&assets, 0, &[])?;
    let agent = Agent::start_with(&["--otlp-endpoint", &receiver.endpoint()], &FAST)?;
    agent.wait_observed(&server)?;
    let mut client = Command::new(assets.python());
    client.arg(workspace_root().join("tests/assets/traced_client.py")).args([&server.label(), "5"]);
    let output = client.output().context("cannot run the client")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let clients: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let clients: Vec<_> = clients.into_iter().filter(|span| span["span_kind"] == "CLIENT").collect();
    assert_eq!(clients.len(), 5, "{text}");
    let spans = taken.wait("five spans", |taken| {
        let spans = taken.spans().ok()?;
        let own: Vec<_> = spans
            .into_iter()
            .filter(|it| it.span_kind == 2 && is_of(&it.resource, &server.label()))
            .collect();
        (own.len() >= 5).then_some(own)
    })?;
    assert_eq!(spans.len(), 5);
    for client in &clients {
        let below: Vec<_> = spans
            .iter()
            .filter(|span| client["trace_id"] == span.trace_id && client["span_id"] == span.parent_span_id)
            .collect();
        assert_eq!(below.len(), 1, "{client} has {below:?}");
        // One clock for both: what the server did lies within what the client waited for.
        let moment = |name: &str| client[name].as_u64().unwrap_or(0);
        let begins = moment("start_ns") <= below[0].start_ns + MILLISECOND_NS;
        let ends = below[0].end_ns <= moment("end_ns") + MILLISECOND_NS;
        assert!(begins && ends, "{} lies not within {client}: {:?}", below[0].name, below[0]);
    }
    agent.stop()
}

#[test]
fn each_check_of_guesses_is_an_event_where_that_is_asked_for() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = [&SERVER[..], &["--spec-type", "ngram-simple"]].concat();
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let taken = Taken::new()?;
    let receiver = taken.receiver(&assets, 0, &[])?;
    let endpoint = receiver.endpoint();
    let agent = Agent::start_with(&["--otlp-endpoint", &endpoint, "--trace-drafts", "on"], &FAST)?;
    agent.wait_observed(&server)?;
    // Of a text that repeats itself something is guessed.
    let prompt = "a b c d e f g h ".repeat(8);
    let body = json!({"prompt": prompt, "n_predict": 400, "ignore_eos": true, "temperature": 0});
    let mut said = (0, 0);
    for _ in 0..6 {
        let answer = Call::post("/completion", &body).send(server.address(), &mut None)?;
        let timings = answer.reply.as_ref().context("no answer")?.documents()[0]["timings"].clone();
        let number = |name: &str| timings[name].as_u64().unwrap_or(0);
        said = (said.0 + number("draft_n"), said.1 + number("draft_n_accepted"));
    }
    ensure!(said.0 > 0, "nothing was guessed");
    let label = server.label();
    let spans = taken.wait("six spans", |taken| {
        let spans: Vec<_> =
            taken.spans().ok()?.into_iter().filter(|it| is_of(&it.resource, &label)).collect();
        (spans.iter().filter(|span| span.name == "decode").count() == 6).then_some(spans)
    })?;
    let mut told = (0, 0);
    for span in spans.iter().filter(|span| span.name == "decode") {
        for event in span.events.iter().filter(|event| event.name == "draft") {
            assert!((span.start_ns..=span.end_ns).contains(&event.at_ns), "{event:?} is not within {span:?}");
            let number = |name: &str| event.attributes[name].as_u64().unwrap_or(0);
            told.0 += number("llamaprobe.draft_tokens");
            told.1 += number("llamaprobe.accepted_tokens");
        }
    }
    println!("{} guessed, {} accepted", told.0, told.1);
    assert_eq!(told, said, "events of spans, answers");
    agent.stop()
}
