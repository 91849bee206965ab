//! How OTLP is sent: what answers mean, TLS, gRPC, the end, and mistakes in the configuration.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{Agent, run as run_agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::run;
use llamaprobe_tests::otlp::Taken;
use llamaprobe_tests::otlp::calls::{FAST, call, counter, wait_sent};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::{privileged, skip};

/// Slots of 4,096 tokens.
const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];

#[test]
fn what_waits_is_sent_at_the_end() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    // Nothing would be sent for an hour.
    let later = ["OTEL_BSP_SCHEDULE_DELAY", "OTEL_BLRP_SCHEDULE_DELAY", "OTEL_METRIC_EXPORT_INTERVAL"]
        .map(|name| (name, "3600000"));
    let taken = Taken::new()?;
    let receiver = taken.receiver(&assets, 0, &[])?;
    for (endpoint, came) in [(receiver.endpoint(), 10), ("http://127.0.0.1:1".to_owned(), 0)] {
        let pid = server.pid().to_string();
        let agent = Agent::start_with(&["--otlp-endpoint", &endpoint, "--pid", &pid], &later)?;
        agent.wait_observed(&server)?;
        let before = (taken.spans()?.len(), taken.records()?.len(), taken.points()?.len());
        run(server.address(), &(0..10).map(|index| call(index * 10).0).collect::<Vec<_>>(), 2)?;
        agent.wait_metrics("the requests", |metrics| {
            let waiting = |signal| metrics.sum("llamaprobe_otlp_waiting", &[("signal", signal)]);
            // Two of ten are of callers that do not sample.
            (waiting("logs") == 10.0 && waiting("traces") == 32.0).then_some(())
        })?;
        assert_eq!(taken.records()?.len(), before.1, "nothing is sent before");
        agent.stop()?;
        let (spans, points) = (taken.spans()?.len() - before.0, taken.points()?.len() - before.2);
        println!("{endpoint}: {spans} spans, {points} points");
        assert_eq!((spans, taken.records()?.len() - before.1), (came * 32 / 10, came), "{endpoint}");
        assert_eq!(points > 0, came > 0, "the last metrics are sent, too");
    }
    Ok(())
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
    let scratch = Scratch::new()?;
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
    taken.wait("metrics too", |taken| taken.points().ok().filter(|points| !points.is_empty()))?;
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
