//! Traces, metrics and logs over OTLP, as an independent receiver takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{Agent, run as run_agent};
use llamaprobe_tests::assets::{Assets, Build, workspace_root};
use llamaprobe_tests::client::{Answer, Call, run};
use llamaprobe_tests::otlp::{Point, Span, Taken, children, conventions};
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::{privileged, skip};
use llamaprobe_tests::traffic::{Fate, prompt};
use serde_json::{Value, json};

/// Slots of 4,096 tokens.
const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];
/// What the tests do not wait long for.
const FAST: [(&str, &str); 3] = [
    ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ("OTEL_BLRP_SCHEDULE_DELAY", "100"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
];
/// The phases may leave out so much of their request.
const MILLISECOND_NS: u64 = 1_000_000;

/// What a caller sends of its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Sampled,
    Stateful,
    NotSampled,
    Invalid,
    Absent,
}

impl Caller {
    const ALL: [Self; 5] = [Self::Sampled, Self::Absent, Self::NotSampled, Self::Invalid, Self::Stateful];

    fn headers(self, call: &Call) -> String {
        let parent = |flags: &str| format!("traceparent: 00-{}-00f067aa0ba902b7-{flags}\r\n", call.trace);
        match self {
            Self::Sampled => parent("01"),
            Self::Stateful => format!("{}tracestate: vendor=1,other=2\r\n", parent("01")),
            Self::NotSampled => parent("00"),
            Self::Invalid => format!("traceparent: 00-{}-0000000000000000-01\r\n", call.trace),
            Self::Absent => String::new(),
        }
    }

    fn is_parent(self) -> bool {
        matches!(self, Self::Sampled | Self::Stateful | Self::NotSampled)
    }
}

/// Request number `index`, and what its caller sends. Each kind comes with each kind of caller. Its conversation has its
/// trace's id as name, so that its span is found whatever its trace.
fn call(index: usize) -> (Call, Caller) {
    let tokens = 8 + index * 5 % 30;
    let text = prompt(20 + index * 13 % 200, index % 11);
    let chat = |stream: bool| json!({"model": "asked", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0.25, "ignore_eos": true, "stream": stream});
    let plain =
        |stream: bool| json!({"prompt": text, "n_predict": tokens, "ignore_eos": true, "stream": stream});
    let call = match index % 10 {
        0 => Call::post("/completion", &plain(false)),
        1 => Call::post("/completion", &plain(true)),
        2 => Call::post("/v1/chat/completions", &chat(false)),
        3 => Call::post("/v1/chat/completions", &chat(true)),
        4 => Call::post("/v1/messages", &chat(false)),
        5 => Call::post(
            "/v1/responses",
            &json!({"input": text, "max_output_tokens": tokens, "ignore_eos": true}),
        ),
        6 => Call::post("/v1/chat/completions", &chat(false)),
        7 => Call::post("/completion", &json!({"prompt": text, "grammar": "root ::= ("}))
            .with_fate(Fate::Refused),
        8 => Call::post(
            "/completion",
            &json!({"prompt": text, "n_predict": 1500, "ignore_eos": true, "stream": true}),
        )
        .with_fate(Fate::Cut(5)),
        _ => Call { body: "{\"messages\":".to_owned(), ..Call::post("/v1/chat/completions", &Value::Null) }
            .with_fate(Fate::Refused),
    };
    let caller = Caller::ALL[index / 10 % 5];
    let headers = format!("{}X-Conversation-Id: {}\r\n", caller.headers(&call), call.trace);
    (Call { headers: Some(headers), ..call }, caller)
}

fn operation(path: &str) -> &'static str {
    if path == "/completion" { "text_completion" } else { "chat" }
}

/// The spans of requests, by the name of their conversation.
fn by_conversation(spans: &[Span]) -> BTreeMap<String, Vec<&Span>> {
    let mut found: BTreeMap<String, Vec<&Span>> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.span_kind == 2) {
        let name = span.attributes.get("gen_ai.conversation.id").and_then(Value::as_str).unwrap_or_default();
        found.entry(name.to_owned()).or_default().push(span);
    }
    found
}

/// Waits until the agent has sent everything of `signal`.
fn wait_sent(agent: &Agent, signal: &str) -> Result<()> {
    agent.wait_metrics(&format!("{signal} to be sent"), |metrics| {
        (metrics.sum("llamaprobe_otlp_waiting", &[("signal", signal)]) == 0.0).then_some(())
    })
}

fn counter(agent: &Agent, what: &str, labels: &[(&str, &str)]) -> Result<u64> {
    Ok(agent.scrape()?.sum(&format!("llamaprobe_otlp_{what}"), labels) as u64)
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

fn is_of(resource: &serde_json::Map<String, Value>, server: &str) -> bool {
    resource["service.instance.id"].as_str().is_some_and(|instance| instance.ends_with(server))
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
            let reason = if path == "/v1/responses" { Value::Null } else { json!(["length"]) };
            equal("reasons", attribute("gen_ai.response.finish_reasons"), reason);
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
        let within = client["start_ns"].as_u64() <= Some(below[0].start_ns)
            && client["end_ns"].as_u64() >= Some(below[0].end_ns);
        println!("{} within {within}: {}", below[0].name, client["name"]);
    }
    agent.stop()
}

/// The last points of each metric about a server.
fn last_points(points: Vec<Point>, server: &str) -> BTreeMap<String, Vec<Point>> {
    let own = points.into_iter().filter(|point| is_of(&point.resource, server));
    let mut last: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for point in own {
        let points = last.entry(point.name.clone()).or_default();
        points.retain(|it| it.attributes != point.attributes);
        points.push(point);
    }
    last
}

#[test]
fn metrics_are_the_scraped_ones_under_the_names_of_the_conventions() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let taken = Taken::new()?;
    let receiver = taken.receiver(&assets, 0, &[])?;
    let agent = Agent::start_with(&["--otlp-endpoint", &receiver.endpoint()], &FAST)?;
    agent.wait_observed(&server)?;
    let calls: Vec<_> = (0..20).map(|index| call(index).0).collect();
    run(server.address(), &calls, 4)?;
    server.wait_idle()?;
    let (label, labels) = (server.label(), [("server", &*server.label())]);
    let (names, mut scraped) = (conventions(&assets)?, agent.scrape()?);
    let total = |points: &[Point]| points.iter().map(|point| point.count).sum::<u64>();
    let last = taken.wait("all requests in the metrics", |taken| {
        scraped = agent.scrape().ok()?;
        let last = last_points(taken.points().ok()?, &label);
        let counted = scraped.sum("llm_request_duration_seconds_count", &labels) as u64;
        (counted == 20 && total(last.get("gen_ai.server.request.duration")?) == counted).then_some(last)
    })?;
    for (name, prometheus, bounds) in [
        ("gen_ai.server.request.duration", "llm_request_duration_seconds", [0.01, 0.64, 81.92]),
        ("gen_ai.server.time_to_first_token", "llm_time_to_first_token_seconds", [0.001, 0.06, 10.0]),
        ("gen_ai.server.time_per_output_token", "llm_time_per_output_token_seconds", [0.01, 0.075, 2.5]),
    ] {
        assert!(names.contains(&format!("metric {name}")), "{name} is in no convention");
        let points = &last[name];
        let scraped = scraped.histogram(prometheus, &labels);
        assert_eq!(total(points), scraped.count as u64, "{name}");
        let sum: f64 = points.iter().map(|point| point.sum).sum();
        assert!((sum - scraped.sum).abs() < 1e-6, "{name}: {sum} and {}", scraped.sum);
        for point in points {
            assert!(point.unit == "s" && point.data == "histogram" && point.cumulative, "{point:?}");
            assert!(point.start_ns > 0 && point.start_ns < point.at_ns, "{point:?}");
            assert!(bounds.iter().all(|bound| point.bounds.contains(bound)), "{point:?}");
            assert_eq!(point.attributes["gen_ai.provider.name"], "llama.cpp");
            let unknown: Vec<_> =
                point.attributes.keys().filter(|key| !names.contains(&format!("attribute {key}"))).collect();
            assert!(unknown.is_empty(), "{unknown:?} are in no convention");
        }
        let operations: BTreeSet<_> =
            points.iter().map(|it| it.attributes["gen_ai.operation.name"].as_str()).collect();
        assert_eq!(operations, BTreeSet::from([Some("chat"), Some("text_completion")]), "{name}");
    }
    let errors: BTreeSet<_> = last["gen_ai.server.request.duration"]
        .iter()
        .filter_map(|point| point.attributes.get("error.type")?.as_str())
        .collect();
    assert!(errors.is_superset(&BTreeSet::from(["400", "cancelled"])), "{errors:?}");
    for (name, prometheus) in [("llm.tokens", "llm_tokens_total"), ("llm.requests", "llm_requests_total")] {
        let points = &last[name];
        assert!(points.iter().all(|point| point.data == "sum" && point.cumulative), "{points:?}");
        let sum: f64 = points.iter().map(|point| point.value).sum();
        assert_eq!(sum, scraped.sum(prometheus, &labels), "{name}");
    }
    // Exemplars lead to spans.
    let spans: BTreeSet<_> = taken.spans()?.into_iter().map(|span| (span.trace_id, span.span_id)).collect();
    let exemplars: Vec<_> =
        last["gen_ai.server.request.duration"].iter().flat_map(|it| it.exemplars.clone()).collect();
    assert!(!exemplars.is_empty());
    for it in exemplars {
        assert!(spans.contains(&(it.trace_id.clone(), it.span_id.clone())) && it.value > 0.0, "{it:?}");
    }
    agent.stop()
}

#[test]
fn exemplars_are_told_in_openmetrics() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let taken = Taken::new()?;
    let receiver = taken.receiver(&assets, 0, &[])?;
    let agent = Agent::start_with(&["--otlp-endpoint", &receiver.endpoint()], &FAST)?;
    agent.wait_observed(&server)?;
    let calls: Vec<_> = (0..20).map(|index| call(index).0).collect();
    run(server.address(), &calls, 4)?;
    server.wait_idle()?;
    wait_sent(&agent, "traces")?;
    let url = format!("http://{}/metrics", agent.address());
    let curl = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("curl").args(["-sS", "-i"]).args(arguments).arg(&url).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let (head, text) = split(curl(&["-H", "Accept: application/openmetrics-text"])?)?;
    assert!(head.contains("application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    let read = piped(
        Command::new(assets.python()).arg(workspace_root().join("tests/assets/read_openmetrics.py")),
        &text,
    )?;
    let exemplars: Vec<Value> = read.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let own: Vec<_> = exemplars.iter().filter(|it| it["labels"]["server"] == *server.label()).collect();
    let families: BTreeSet<_> = own.iter().filter_map(|it| it["family"].as_str()).collect();
    println!("{} exemplars of {families:?}", own.len());
    assert_eq!(
        families,
        BTreeSet::from([
            "llm_request_duration_seconds",
            "llm_time_per_output_token_seconds",
            "llm_time_to_first_token_seconds"
        ])
    );
    let spans: BTreeSet<_> = taken.spans()?.into_iter().map(|span| (span.trace_id, span.span_id)).collect();
    for it in &own {
        let id = |name: &str| it["exemplar"][name].as_str().unwrap_or_default().to_owned();
        assert!(spans.contains(&(id("trace_id"), id("span_id"))), "no span of {it}");
        let bound = it["labels"]["le"].as_str().and_then(|bound| bound.parse::<f64>().ok());
        assert!(it["value"].as_f64() <= bound, "{it}");
    }
    let (head, text) = split(curl(&[])?)?;
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(!text.contains("trace_id") && !text.contains("# EOF"), "a plain scrape is as ever");
    let promtool = promtool(&assets)?;
    piped(Command::new(promtool).args(["check", "metrics"]), &text)?;
    agent.stop()
}

/// The promtool of the set-up, else the first one in `PATH`.
fn promtool(assets: &Assets) -> Result<std::path::PathBuf> {
    let own = assets.root().join("prometheus/usr/bin/promtool");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).map(|directory| directory.join("promtool"));
    let mut all = std::iter::once(own).chain(others);
    all.find(|file| file.is_file())
        .context("promtool is missing: run `cargo xtask setup`, or install prometheus")
}

fn split(answer: String) -> Result<(String, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// What a program prints that is given `text`; it has to succeed.
fn piped(command: &mut Command, text: &str) -> Result<String> {
    use std::io::Write as _;
    use std::process::Stdio;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    child.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{command:?} ended with {}:\n{told}{printed}", output.status);
    Ok(printed)
}

#[test]
fn whatever_the_receiver_answers_is_accounted_for() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let taken = Taken::new()?;
    let mut receiver = taken.receiver(&assets, 0, &[])?;
    let arguments = [
        "--otlp-endpoint",
        &receiver.endpoint(),
        "--otlp-signals",
        "logs",
        "--pid",
        &server.pid().to_string(),
    ];
    let more = [("OTEL_EXPORTER_OTLP_TIMEOUT", "10000"), ("OTEL_BLRP_SCHEDULE_DELAY", "300")];
    let agent = Agent::start_with(&arguments, &more)?;
    agent.wait_observed(&server)?;
    let mut made = 0;
    for (mode, reason) in [
        ("ok", None),
        ("unavailable", None),
        ("throttle", None),
        ("slow", None),
        ("refuse", Some("refused")),
        ("garbage", Some("bad_answer")),
        ("page", Some("bad_answer")),
        ("partial", Some("rejected")),
        ("ok", None),
    ] {
        receiver.set_mode(mode)?;
        let lost = |agent: &Agent| match reason {
            None => counter(agent, "dropped_total", &[]),
            Some(reason) => counter(agent, "dropped_total", &[("reason", reason)]),
        };
        let (before, there) = (lost(&agent)?, taken.records()?.len() as u64);
        let calls: Vec<_> = (0..10).map(|index| call(index * 10).0).collect();
        run(server.address(), &calls, 2)?;
        made += 10;
        agent.wait_metrics("the requests", |metrics| {
            let known = [
                "llamaprobe_otlp_waiting",
                "llamaprobe_otlp_exported_total",
                "llamaprobe_otlp_dropped_total",
            ];
            (known.iter().map(|name| metrics.sum(name, &[])).sum::<f64>() == f64::from(made)).then_some(())
        })?;
        if matches!(mode, "unavailable" | "throttle") {
            // It says so for a while, and nothing is lost.
            std::thread::sleep(Duration::from_millis(1500));
            assert_eq!(taken.records()?.len() as u64, there, "{mode}");
            receiver.set_mode("ok")?;
        }
        wait_sent(&agent, "logs")?;
        let (gone, came) = (lost(&agent)? - before, taken.records()?.len() as u64 - there);
        println!("{mode}: {came} came, {gone} were lost");
        assert_eq!(gone + came, 10, "{mode}: {}", agent.log());
        assert_eq!(gone > 0, reason.is_some(), "{mode}");
        if mode == "partial" {
            assert!(came > 0, "one of each request is taken");
        }
    }
    assert_eq!(counter(&agent, "exported_total", &[])?, taken.records()?.len() as u64);
    agent.stop()
}

#[test]
fn tls_with_an_authority_of_ones_own() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let scratch = llamaprobe_tests::scratch::Scratch::new()?;
    let [key, certificate] =
        ["key.pem", "certificate.pem"].map(|name| scratch.path().join(name).display().to_string());
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args([
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    openssl.args(["-keyout", &key, "-out", &certificate]);
    let made = openssl.output().context("openssl makes the certificate")?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let taken = Taken::new()?;
    let receiver = taken.receiver(&assets, 0, &["--tls", &certificate, &key])?;
    let endpoint = receiver.endpoint().replace("http:", "https:");
    let arguments = ["--otlp-endpoint", &endpoint, "--otlp-signals", "traces"];
    for trusted in [true, false] {
        let more = [("OTEL_EXPORTER_OTLP_CERTIFICATE", certificate.as_str())];
        let variables = if trusted { [&FAST[..], &more].concat() } else { FAST.to_vec() };
        let agent = match Agent::start_with(&arguments, &variables) {
            Ok(agent) => agent,
            // A host without any authority says so at the start.
            Err(error) if !trusted && format!("{error:#}").contains("OTEL_EXPORTER_OTLP_CERTIFICATE") => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        agent.wait_observed(&server)?;
        let before = taken.spans()?.len();
        run(server.address(), &[call(0).0], 1)?;
        if trusted {
            wait_sent(&agent, "traces")?;
            taken.wait("a span", |taken| (taken.spans().ok()?.len() > before).then_some(()))?;
        } else {
            agent.wait_metrics("a span that waits", |metrics| {
                (metrics.sum("llamaprobe_otlp_waiting", &[]) > 0.0).then_some(())
            })?;
            std::thread::sleep(Duration::from_millis(500));
            assert_eq!(taken.spans()?.len(), before, "the certificate is of nobody that is trusted");
        }
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn grpc_where_the_build_has_it() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let taken = Taken::new()?;
    let mut receiver = taken.receiver(&assets, 0, &["--grpc"])?;
    let endpoint = receiver.endpoint();
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let more = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=k"),
    ];
    let arguments = ["--otlp-endpoint", &endpoint, "--pid", &server.pid().to_string()];
    let agent = match Agent::start_with(&arguments, &[&FAST[..], &more].concat()) {
        Err(error) if format!("{error:#}").contains("--features otlp-grpc") => {
            skip("this agent was built without the feature otlp-grpc");
            return Ok(());
        }
        agent => agent?,
    };
    agent.wait_observed(&server)?;
    for (mode, came) in [("ok", 10), ("unavailable", 20), ("refuse", 20), ("partial", 21)] {
        receiver.set_mode(mode)?;
        run(server.address(), &(0..10).map(|index| call(index * 10).0).collect::<Vec<_>>(), 1)?;
        if mode == "unavailable" {
            agent.wait_metrics("records that wait", |metrics| {
                (metrics.sum("llamaprobe_otlp_waiting", &[("signal", "logs")]) == 10.0).then_some(())
            })?;
            receiver.set_mode("ok")?;
        }
        wait_sent(&agent, "logs")?;
        wait_sent(&agent, "traces")?;
        let records = taken.records()?.len();
        println!("{mode}: {records} records");
        if mode == "partial" {
            assert!(records >= came, "one of each batch");
        } else {
            assert_eq!(records, came, "{mode}");
        }
        let dropped = counter(&agent, "dropped_total", &[("signal", "logs")])?;
        let exported = counter(&agent, "exported_total", &[("signal", "logs")])?;
        assert_eq!((exported, exported + dropped), (records as u64, dropped + records as u64), "{mode}");
    }
    let spans = taken.spans()?;
    assert!(spans.iter().all(|span| span.api_key.as_deref() == Some("k")) && !spans.is_empty());
    assert!(!taken.points()?.is_empty(), "metrics too");
    agent.stop()
}

#[test]
fn mistakes_are_named() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    for (arguments, part) in [
        (["--otlp-endpoint", "here"], "here"),
        (["--trace-ratio", "1.5"], "1.5"),
        (["--otlp-signals", "traces,spans"], "spans"),
        (["--trace-slow-ms", "ttft=5,itl=5"], "itl=5"),
    ] {
        let named = arguments[0];
        let output = run_agent(&[&["run", "--listen", "127.0.0.1:0"], &arguments[..]].concat())?;
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{}", said.trim());
        assert!(!output.status.success() && said.contains(named) && said.contains(part), "{said}");
    }
    Ok(())
}
