//! A receiver of OTLP that is down, comes, and is killed: it costs what is counted, and nothing else.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Answer, Call, run};
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::otlp::Taken;
use llamaprobe_tests::process::own_memory;
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::server::{LlamaServer, free_address};
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::prompt;
use serde_json::json;

const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];
/// How long the receiver is down at first.
const DOWN: Duration = Duration::from_secs(60);
/// Spans that may wait.
const ROOM: u64 = 400;
/// Tokens of each request.
const TOKENS: u64 = 24;
/// What the agent may hold more when the queues are full than when they have been full for long.
const GROWTH: u64 = 2_000_000;
/// Requests before somebody listens, and while somebody does.
const BEFORE: u64 = 100;
/// Requests until all that the agent remembers of the last ones is full, too.
const FILLING: u64 = 2_000;
/// Requests more.
const MORE: u64 = 800;
/// All requests.
const ALL: u64 = BEFORE + FILLING + MORE;

/// Requests of different prompts.
fn calls(count: usize) -> Vec<Call> {
    let body = |seed| json!({"prompt": prompt(40, seed), "n_predict": TOKENS, "ignore_eos": true});
    (0..count).map(|seed| Call::post("/completion", &body(seed))).collect()
}

fn of(metrics: &Exposition, what: &str, signal: &str) -> u64 {
    metrics.sum(&format!("llamaprobe_otlp_{what}"), &[("signal", signal)]) as u64
}

/// How many items were made so far.
fn made(metrics: &Exposition, signal: &str) -> u64 {
    ["exported_total", "dropped_total", "waiting"].into_iter().map(|what| of(metrics, what, signal)).sum()
}

/// Waits until all of these requests are told, in metrics and to the queues, and returns the metrics.
fn wait_told(agent: &Agent, requests: u64) -> Result<Exposition> {
    agent.wait_metrics("all requests", |metrics| (made(metrics, "logs") == requests).then(|| metrics.clone()))
}

/// The share of prefill and decode times that differ from the server's own by more than 2 % and 1 ms.
fn differing(answers: &[Answer], log: &RequestLog) -> Result<(usize, usize)> {
    let traces: Vec<_> = answers.iter().map(|answer| answer.call.trace).collect();
    let lines = log.wait(&traces)?;
    let (mut compared, mut differ) = (0, 0);
    for answer in answers {
        let (Some(timings), Some([line])) =
            (answer.timings, lines.get(&answer.call.trace).map(Vec::as_slice))
        else {
            continue;
        };
        for (agent, server) in [(line.prefill_ms, timings.prompt_ms), (line.decode_ms, timings.predicted_ms)]
        {
            compared += 1;
            differ += usize::from(!agent.is_some_and(|it| (it - server).abs() <= (server * 0.02).max(1.0)));
        }
    }
    Ok((compared, differ))
}

#[test]
fn an_outage_costs_what_is_counted_and_nothing_else() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let (taken, log) = (Taken::new()?, RequestLog::new()?);
    let port = free_address()?.port();
    let (endpoint, room, pid) =
        (format!("http://127.0.0.1:{port}"), ROOM.to_string(), server.pid().to_string());
    let arguments = [&log.arguments()?[..], &["--otlp-endpoint", &endpoint, "--pid", &pid]].concat();
    let variables = [
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", &room),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "200"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
    ];
    let agent = Agent::start_with(&arguments, &variables)?;
    agent.wait_observed(&server)?;
    let before = Moment::now(&agent, &server)?;

    // Nobody listens for a minute.
    let (start, mut down) = (Instant::now(), Vec::new());
    for call in calls(60) {
        down.extend(run(server.address(), &[call], 1)?);
        thread::sleep(DOWN / 60);
    }
    thread::sleep(DOWN.saturating_sub(start.elapsed()));
    let metrics = wait_told(&agent, 60)?;
    assert_eq!(of(&metrics, "waiting", "traces"), 240, "all wait, four spans each");
    assert_eq!(of(&metrics, "exported_total", "traces"), 0);
    assert!(
        of(&metrics, "dropped_total", "metrics") > 0,
        "newer metrics replace older ones, which is counted"
    );

    // Then somebody does: nothing is lost of what had room.
    let receiver = taken.receiver(&assets, port, &[])?;
    let up = run(server.address(), &calls(40), 4)?;
    let metrics = agent.wait_metrics("everything to be sent", |metrics| {
        let sent = |signal| of(metrics, "waiting", signal) == 0;
        (made(metrics, "logs") == 100 && sent("traces") && sent("logs")).then(|| metrics.clone())
    })?;
    assert_eq!((of(&metrics, "exported_total", "traces"), of(&metrics, "dropped_total", "traces")), (400, 0));
    assert_eq!((of(&metrics, "exported_total", "logs"), of(&metrics, "dropped_total", "logs")), (100, 0));
    let known: BTreeSet<_> = taken.spans()?.into_iter().map(|span| span.trace_id).collect();
    for answer in down.iter().chain(&up) {
        assert!(known.contains(&answer.call.trace.to_string()), "{} is missing", answer.call.trace);
    }

    // Then it is killed, and more comes than there is room for.
    receiver.kill()?;
    let mut killed = run(server.address(), &calls(FILLING as usize), 4)?;
    wait_told(&agent, BEFORE + FILLING)?;
    let full = own_memory(agent.pid())?;
    killed.extend(run(server.address(), &calls(MORE as usize), 4)?);
    let metrics = wait_told(&agent, ALL)?;
    let later = own_memory(agent.pid())?;
    println!("its own: {full} B with full queues, {later} B after {MORE} requests more");
    assert!(later < full + GROWTH, "the agent grows from {full} to {later} B");
    let lost = of(&metrics, "dropped_total", "traces") + of(&metrics, "waiting", "traces");
    let missing = made(&metrics, "traces") - taken.spans()?.len() as u64;
    println!(
        "{} spans made, {missing} missing at the receiver, {lost} lost or waiting",
        made(&metrics, "traces")
    );
    assert_eq!((made(&metrics, "traces"), lost), (ALL * 4, missing));
    assert!(of(&metrics, "waiting", "traces") <= ROOM + 100, "what has room, and a batch on its way");
    let records = taken.records()?.len() as u64;
    assert_eq!(of(&metrics, "dropped_total", "logs") + of(&metrics, "waiting", "logs"), ALL - records);

    // Nothing of this was felt by the measurement.
    let comparison = before.compare(&agent, &server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    let gaps = comparison.histogram("llm_inter_token_latency_seconds").count;
    assert_eq!(gaps as u64, ALL * (TOKENS - 1), "every gap between two tokens is observed");
    assert_eq!(comparison.histogram("llm_time_to_first_token_seconds").count, ALL as f64);
    for (name, answers) in [("down", &down), ("up", &up), ("killed", &killed)] {
        let (compared, differ) = differing(answers, &log)?;
        println!("{name}: {compared} times compared with the server's, {differ} differ");
        // As without any export: a server that is preempted within its own measurement differs.
        assert!(
            compared == answers.len() * 2 && differ * 5 <= compared,
            "{name}: {differ} of {compared} differ"
        );
    }
    let end = Instant::now();
    agent.stop()?;
    println!("the end took {:?}", end.elapsed());
    Ok(())
}
