//! Metrics over OTLP, and exemplars in OpenMetrics.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Build, workspace_root};
use llamaprobe_tests::client::run;
use llamaprobe_tests::otlp::calls::{FAST, call, is_of, wait_sent};
use llamaprobe_tests::otlp::{Point, Taken, conventions};
use llamaprobe_tests::prometheus::programs;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use serde_json::Value;

/// Slots of 4,096 tokens.
const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];

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
    // `/slots`, by which the test saw that the server is idle, is counted too, and each in its own time.
    let last = taken.wait("all requests in the metrics", |taken| {
        scraped = agent.scrape().ok()?;
        let last = last_points(taken.points().ok()?, &label);
        let counted = scraped.sum("llm_request_duration_seconds_count", &labels) as u64;
        let exported: f64 = last.get("llm.requests")?.iter().map(|point| point.value).sum();
        let whole = counted == 20
            && total(last.get("gen_ai.server.request.duration")?) == counted
            && exported == scraped.sum("llm_requests_total", &labels);
        whole.then_some(last)
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
    if let Some((_, promtool)) = programs() {
        piped(Command::new(promtool).args(["check", "metrics"]), &text)?;
    }
    agent.stop()
}

fn split(answer: String) -> Result<(String, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// What a program prints that is given `text`; it has to succeed.
fn piped(command: &mut Command, text: &str) -> Result<String> {
    use std::io::Write as _;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    child.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{command:?} ended with {}:\n{told}{printed}", output.status);
    Ok(printed)
}
