//! Every request that was sent is counted and logged once, joined to its slot, with the server's own figures.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Answer, Call, Tokens, run};
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::request_log::{Line, RequestLog, TraceId};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::tls::Identity;
use llamaprobe_tests::traffic::{Fate, prompt};
use llamaprobe_tests::wait_for;
use serde_json::{Value, json};

/// Slots of 4,096 tokens.
const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];
/// Routes whose requests are logged.
const INFERENCE: [&str; 6] =
    ["/completion", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/infill"];
/// How long the agent may take to count what it has logged.
const LAG: Duration = Duration::from_secs(5);

#[test]
fn llama_process_era() -> Result<()> {
    all_requests_are_told(Build::Process, 200, 16, Ok)
}

#[test]
fn llama_decode_era() -> Result<()> {
    all_requests_are_told(Build::Decode, 60, 8, Ok)
}

#[test]
fn one_executable() -> Result<()> {
    all_requests_are_told(Build::Monolith, 60, 8, Ok)
}

#[test]
fn over_tls() -> Result<()> {
    all_requests_are_told(Build::Monolith, 200, 16, |launch| Ok(launch.over_tls(&Identity::new()?)))
}

#[test]
fn over_a_unix_socket() -> Result<()> {
    let scratch = Scratch::new()?;
    for (build, count) in [(Build::Process, 100), (Build::Decode, 60)] {
        let socket = scratch.path().join(format!("{build:?}.sock"));
        all_requests_are_told(build, count, 8, |launch| Ok(launch.over_unix(socket.clone())))?;
    }
    Ok(())
}

fn all_requests_are_told(
    build: Build,
    count: usize,
    clients: usize,
    transport: impl Fn(Launch) -> Result<Launch>,
) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = transport(Launch::new(build, &assets.tiny(), &SERVER)?)?.start()?;
    let log = RequestLog::new()?;
    let pid = server.pid().to_string();
    // Of other servers on the host it would write lines, too.
    let agent = Agent::start(&[&log.arguments()?[..], &["--pid", &pid]].concat())?;
    agent.wait_observed(&server)?;
    let before = agent.scrape()?;

    let calls: Vec<_> = (0..count).map(|index| call(build, index)).collect();
    let answers = run(server.endpoint(), &calls, clients)?;
    answers.iter().for_each(is_answered_as_meant);
    server.wait_idle()?;

    let logged: Vec<_> = answers.iter().filter(|answer| INFERENCE.contains(&answer.call.path)).collect();
    let traces: Vec<_> = logged.iter().map(|answer| answer.call.trace).collect();
    let lines = log.wait(&traces)?;
    let mut mistakes = Vec::new();
    for answer in &logged {
        match lines.get(&answer.call.trace).map(Vec::as_slice) {
            Some([line]) => mistakes
                .extend(differences(answer, line).into_iter().map(|what| say(answer, Some(line), &what))),
            Some(lines) => mistakes.push(say(answer, lines.first(), &format!("{} lines", lines.len()))),
            None => mistakes.push(say(answer, None, "no line")),
        }
    }
    let others = log.lines()?.len() - lines.values().map(Vec::len).sum::<usize>();
    if others > 0 {
        mistakes.push(format!("{others} lines of requests that were not sent"));
    }
    let counted = || {
        let after = agent.scrape().ok()?;
        count_mistakes(&before, &after, &server.label(), &answers, &lines).is_empty().then_some(())
    };
    if wait_for("equal counts", LAG, counted).is_err() {
        mistakes.extend(count_mistakes(&before, &agent.scrape()?, &server.label(), &answers, &lines));
    }
    let slow = time_mistakes(&logged, &lines);
    mistakes.iter().chain(&slow.1).for_each(|mistake| println!("{mistake}"));
    assert!(mistakes.is_empty(), "{} mistakes:\n{}\n{}", mistakes.len(), mistakes.join("\n"), agent.log());
    let (compared, wrong) = (slow.0, slow.1.len());
    println!("{build:?}: {compared} times of requests compared, {wrong} of them differ");
    // A server that is preempted between its own clock and the probed call shifts one of the two: on an idle machine
    // none differ, on a busy one a few; that many would be the agent's fault.
    assert!(wrong * 5 <= compared, "{wrong} of {compared} times differ:\n{}", slow.1.join("\n"));
    agent.stop()
}

/// Request number `index`: twenty kinds.
fn call(build: Build, index: usize) -> Call {
    let tokens = 8 + index * 5 % 60;
    let text =
        prompt(if index.is_multiple_of(3) { 120 + index * 13 % 400 } else { 6 + index % 9 }, index % 11);
    let chat = |tokens: usize, stream: bool| json!({"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "ignore_eos": true, "stream": stream});
    let plain = |tokens: usize, stream: bool| json!({"prompt": text, "n_predict": tokens, "max_tokens": tokens, "ignore_eos": true, "stream": stream});
    let answered = |stream: bool| json!({"input": text, "max_output_tokens": tokens, "ignore_eos": true, "stream": stream});
    let refused = |path, body: &Value| Call::post(path, body).with_fate(Fate::Refused);
    let call = match index % 20 {
        0 => Call::post("/completion", &plain(tokens, false)),
        1 => Call::post("/completion", &plain(tokens, true)),
        2 => Call::post("/v1/completions", &plain(tokens, false)),
        3 => Call::post("/v1/completions", &plain(tokens, true)),
        4 => Call::post("/v1/chat/completions", &chat(tokens, false)),
        5 => Call::post("/v1/chat/completions", &chat(tokens, true)),
        6 => Call::post("/v1/messages", &chat(tokens, false)),
        7 => Call::post("/v1/messages", &chat(tokens, true)),
        8 => Call::post("/v1/responses", &answered(false)),
        9 => Call::post("/v1/responses", &answered(true)),
        // The tiny models have no tokens for it.
        10 => refused("/infill", &json!({"input_prefix": text, "input_suffix": "b", "n_predict": 4})),
        11 => Call::post("/tokenize", &json!({"content": text})),
        12 => Call::get("/health"),
        // The older build takes a bad grammar for none.
        13 if build == Build::Monolith => refused("/completion", &json!({"n_predict": 4})),
        13 => refused("/completion", &json!({"prompt": text, "grammar": "root ::= ("})),
        14 => Call { body: "{\"messages\":".to_owned(), ..refused("/v1/chat/completions", &Value::Null) },
        15 => refused("/no/such/route", &json!({})),
        16 => refused("/completion", &json!({"prompt": prompt(40_000, 1), "n_predict": 4})),
        17 => Call::post("/completion", &plain(1500, true)).with_fate(Fate::Cut(5)),
        18 => Call::post("/v1/chat/completions", &chat(1500, true)).with_fate(Fate::Cut(9)),
        // A client that leaves a plain request is noticed after a second, so this one has to last.
        _ => Call::post("/completion", &json!({"prompt": "long", "n_predict": 3500, "ignore_eos": true}))
            .with_fate(Fate::Abandoned(Duration::from_millis(100))),
    };
    Call { one_shot: index / 20 % 3 == 1, ..call }
}

fn is_answered_as_meant(answer: &Answer) {
    let status = answer.status();
    let right = match answer.call.fate {
        Fate::Finished => status == Some(200) && answer.is_whole(),
        Fate::Refused => status.is_some_and(|status| status >= 400),
        Fate::Cut(_) => status == Some(200) && !answer.is_whole(),
        Fate::Abandoned(_) => status.is_none(),
    };
    assert!(right, "the server, not the agent, is at fault: {answer:?}");
}

fn say(answer: &Answer, line: Option<&Line>, what: &str) -> String {
    let Call { path, fate, trace, one_shot, .. } = &answer.call;
    let mut text = format!("{path} {fate:?} one_shot={one_shot} trace={trace}: {what}");
    if let Some(line) = line {
        let _ = write!(text, "\n    {line:?}");
    }
    text
}

/// What of a line is not as the client saw it, times excepted.
fn differences(answer: &Answer, line: &Line) -> Vec<String> {
    let mut found = Vec::new();
    let mut expect = |right: bool, what: String| {
        if !right {
            found.push(what)
        }
    };
    expect(line.route == answer.call.path, format!("route {}", line.route));
    let cancelled = line.finish_reason == "cancelled";
    expect(cancelled != answer.call.fate.is_answered(), format!("finish_reason {}", line.finish_reason));
    // Clients go all the time, also such as wait for a slot: a server that is right ends nobody else's request by that.
    expect(line.cancelled_by.is_none(), format!("cancelled_by {:?}", line.cancelled_by));
    expect(
        (line.level == "warn") == (cancelled || line.status >= Some(400)),
        format!("level {}", line.level),
    );
    match answer.call.fate {
        Fate::Finished => {
            let tokens = Tokens {
                prompt: line.prompt_tokens,
                cached: line.cached_tokens,
                generated: line.completion_tokens,
            };
            expect(
                answer.tokens == Some(tokens),
                format!("{tokens:?} but the server says {:?}", answer.tokens),
            );
            expect(line.join == "exact", format!("join {}", line.join));
            let reason = expected_reason(answer);
            expect(
                reason.is_none_or(|it| it == line.finish_reason),
                format!("finish_reason {} for {reason:?}", line.finish_reason),
            );
            expect(line.slot.is_some_and(|slot| (0..4).contains(&slot)), format!("slot {:?}", line.slot));
            let parts = line.queue_ms.zip(line.prefill_ms).map(|(queue, prefill)| queue + prefill);
            let whole = parts.zip(line.ttft_ms).is_some_and(|(parts, ttft)| (parts - ttft).abs() < 0.01);
            expect(whole, "queue and prefill are not the time to the first token".to_owned());
        }
        Fate::Refused => {
            expect(line.finish_reason == "error", format!("finish_reason {}", line.finish_reason));
            expect(line.error_type.is_some(), "no error_type".to_owned());
            expect(line.completion_tokens == 0, format!("completion_tokens {}", line.completion_tokens));
        }
        Fate::Cut(_) => {
            expect(line.join == "exact", format!("join {}", line.join));
            expect(line.completion_tokens > 0, "no generated tokens".to_owned());
        }
        Fate::Abandoned(_) => {
            // It may have been given up before it had a slot.
            expect(line.completion_tokens == 0 || line.join == "exact", format!("join {}", line.join));
        }
    }
    match answer.status() {
        Some(status) => expect(line.status == Some(status), format!("status {:?} for {status}", line.status)),
        // What the server writes to a client that has gone is an empty 200.
        None => expect(matches!(line.status, Some(200 | 499)), format!("status {:?}", line.status)),
    }
    if answer.call.fate.is_answered() || answer.status().is_some() {
        let stream = answer.call.fate != Fate::Refused && answer.call.body.contains("\"stream\":true");
        expect(line.stream == stream, format!("stream {}", line.stream));
    }
    found
}

/// The reason in the answer in the words of the log, where the format has one.
fn expected_reason(answer: &Answer) -> Option<&'static str> {
    let body = &answer.reply.as_ref()?.body;
    let names = |reasons: &[&str]| reasons.iter().any(|reason| body.contains(reason));
    if names(&["\"stop_type\":\"limit\"", "\"finish_reason\":\"length\"", "\"stop_reason\":\"max_tokens\""]) {
        Some("length")
    } else if names(&["\"stop_type\":\"eos\"", "\"finish_reason\":\"stop\"", "\"stop_reason\":\"end_turn\""])
    {
        Some("stop")
    } else {
        None
    }
}

/// Compares the agent's counters with what the clients saw.
fn count_mistakes(
    before: &Exposition,
    after: &Exposition,
    server: &str,
    answers: &[Answer],
    lines: &BTreeMap<TraceId, Vec<Line>>,
) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut equal = |what: &str, agent: f64, clients: f64| {
        if agent != clients {
            mistakes.push(format!("{what}: the agent counts {agent}, the clients {clients}"));
        }
    };
    let rise = |name: &str, labels: &[(&str, &str)]| {
        let labels: Vec<_> = [("server", server)].into_iter().chain(labels.iter().copied()).collect();
        after.sum(name, &labels) - before.sum(name, &labels)
    };
    let mut seen: BTreeMap<(String, String), f64> = BTreeMap::new();
    for answer in answers.iter().filter(|answer| answer.call.fate.is_answered()) {
        let path = answer.call.path;
        let known = INFERENCE.contains(&path) || matches!(path, "/health" | "/tokenize");
        let route = if known { path } else { "other" };
        let code = answer.status().unwrap_or(0).to_string();
        *seen.entry((route.to_owned(), code)).or_default() += 1.0;
    }
    // The harness itself asks for the server's metrics.
    let own = [("server", server)];
    let told = after.select("llm_requests_total", &own).filter(|sample| {
        sample.labels.get("finish_reason").is_none_or(|it| it != "cancelled")
            && sample.labels["route"] != "/metrics"
    });
    for sample in told {
        seen.entry((sample.labels["route"].clone(), sample.labels["code"].clone())).or_default();
    }
    for ((route, code), clients) in &seen {
        let labels = [("route", route.as_str()), ("code", code.as_str())];
        let cancelled = [labels[0], labels[1], ("finish_reason", "cancelled")];
        let agent = rise("llm_requests_total", &labels) - rise("llm_requests_total", &cancelled);
        equal(&format!("{route} {code}"), agent, *clients);
    }
    let gone = answers.iter().filter(|answer| !answer.call.fate.is_answered()).count();
    equal("cancelled", rise("llm_requests_total", &[("finish_reason", "cancelled")]), gone as f64);
    let lines: Vec<_> = lines.values().flatten().collect();
    let exact = lines.iter().filter(|line| line.join == "exact").count();
    equal("exact joins in the log", rise("llamaprobe_join_total", &[("method", "exact")]), exact as f64);
    equal("unmatched", rise("llamaprobe_join_total", &[("method", "unmatched")]), 0.0);
    equal("durations", rise("llm_request_duration_seconds_count", &[]), lines.len() as f64);
    let first = lines.iter().filter(|line| line.ttft_ms.is_some()).count();
    equal("first tokens in the log", rise("llm_time_to_first_token_seconds_count", &[]), first as f64);
    for gauge in ["llm_requests_in_flight", "llm_queue_depth", "llamaprobe_lost_total"] {
        equal(gauge, after.sum(gauge, &[]), 0.0);
    }
    mistakes
}

/// How many times were compared with the server's, and those that differ by more than 2 % and 1 ms.
fn time_mistakes(logged: &[&Answer], lines: &BTreeMap<TraceId, Vec<Line>>) -> (usize, Vec<String>) {
    let (mut compared, mut mistakes) = (0, Vec::new());
    for answer in logged {
        let Some(timings) = answer.timings.filter(|_| answer.is_whole()) else { continue };
        let Some(line) = lines.get(&answer.call.trace).and_then(|lines| lines.first()) else { continue };
        let pairs = [
            ("prefill_ms", line.prefill_ms, timings.prompt_ms),
            ("decode_ms", line.decode_ms, timings.predicted_ms),
        ];
        for (name, agent, server) in pairs {
            compared += 1;
            let close = agent.is_some_and(|agent| (agent - server).abs() <= (server * 0.02).max(1.0));
            if !close {
                mistakes.push(say(
                    answer,
                    Some(line),
                    &format!("{name} {agent:?}, the server says {server}"),
                ));
            }
        }
    }
    (compared, mistakes)
}
