//! The end of the agent: what is known by then is told, and nobody waits for it.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::http::Connection;
use llamaprobe_tests::otlp::Taken;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::server::{LlamaServer, free_address};
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, run_checked};
use llamaprobe_tests::wait_for;
use rustix::process::Signal;
use serde_json::json;

const SERVER: [&str; 6] = ["-np", "2", "-c", "8192", "-t", "1"];
/// Nothing is exported before the end.
const LATE: [(&str, &str); 3] = [
    ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
    ("OTEL_BLRP_SCHEDULE_DELAY", "3600000"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "3600000"),
];
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the end may take: a second, and what this machine does beside.
const SOON: Duration = Duration::from_secs(4);

#[test]
fn what_is_known_is_told_at_the_end() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let (taken, log, pid) = (Taken::new()?, RequestLog::new()?, server.pid().to_string());
    let receiver = taken.receiver(&assets, 0, &[])?;
    let endpoint = receiver.endpoint();
    let arguments = [&log.arguments()?[..], &["--otlp-endpoint", &endpoint, "--pid", &pid]].concat();
    let agent = Agent::start_with(&arguments, &LATE)?;
    agent.wait_observed(&server)?;
    let finished = Request::completion("a", 20, false);
    run_checked(server.address(), std::slice::from_ref(&finished), 1)?;
    // A stream that goes on when the agent ends, and one that waits behind two others.
    let body = json!({"prompt": "a b c", "n_predict": 3500, "ignore_eos": true, "stream": true}).to_string();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = Connection::open(server.address())?;
        stream.send("POST", "/completion", &body)?;
        streams.push(stream);
    }
    thread::sleep(Duration::from_millis(700));
    let start = Instant::now();
    agent.stop()?;
    let took = start.elapsed();
    assert!(took < SOON, "the end took {took:?}");

    let mut lines = log.lines()?;
    let interrupted: Vec<_> = lines.extract_if(.., |line| line.finish_reason == "interrupted").collect();
    assert_eq!((lines.len(), interrupted.len()), (1, 3), "{lines:#?} {interrupted:#?}");
    assert_eq!(interrupted.iter().filter(|line| line.join == "exact").count(), 2, "{interrupted:#?}");
    assert!(interrupted.iter().all(|line| line.level == "info"), "{interrupted:#?}");
    let spans = taken.spans()?;
    let told =
        |span: &&llamaprobe_tests::otlp::Span| span.attributes["llamaprobe.finish_reason"] == "interrupted";
    let servers: Vec<_> = spans.iter().filter(|span| span.span_kind == 2).collect();
    assert_eq!((servers.len(), servers.into_iter().filter(told).count()), (4, 3), "{spans:#?}");
    assert_eq!(taken.records()?.len(), 4);
    let points = taken.points()?;
    let generated =
        points.iter().filter(|point| point.name == "llm.tokens" && point.attributes["type"] == "generated");
    let (generated, logged) = (
        generated.map(|point| point.value).sum::<f64>(),
        20 + interrupted.iter().map(|line| line.completion_tokens).sum::<u64>(),
    );
    println!("{took:?} for the end; {generated} tokens exported, {logged} logged");
    assert!(logged > 20, "the streams had begun");
    assert_eq!(generated, logged as f64);
    Ok(())
}

/// Whether a process has a handler for a signal.
fn catches(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
}

#[test]
fn it_can_be_ended_at_any_moment() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let (address, own) = (free_address()?.to_string(), std::process::id().to_string());
    // From reading the files over loading programs to serving; each finds the address free.
    for after in [0, 10, 40, 100, 250, 500, 800, 1_200] {
        let mut command = tied(agent::executable()?);
        command.args(["run", "--listen", &address, "--pid", &own]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::start("llamaprobe", &mut command)?;
        // Before that it is the kernel that ends it.
        wait_for("the agent to take up SIGTERM", PATIENCE, || {
            catches(process.pid(), Signal::TERM).then_some(())
        })?;
        thread::sleep(Duration::from_millis(after));
        let start = Instant::now();
        process.signal(Signal::TERM)?;
        let status = wait_for("the agent's end", PATIENCE, || process.ended())?;
        let (took, mut said) = (start.elapsed(), String::new());
        let stderr = process.child().stderr.as_mut().context("no standard error")?;
        std::io::Read::read_to_string(stderr, &mut said)?;
        println!("after {after} ms: {status} within {took:?}");
        assert!(status.success(), "after {after} ms: {status}\n{said}");
        assert!(took < SOON, "after {after} ms: {took:?}");
    }
    Ok(())
}
