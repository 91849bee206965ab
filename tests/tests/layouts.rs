//! Where a build keeps what is read is proved by its memory, and what a process is by what it does.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::binding::Binding;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::http;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::skip::privileged;

/// What one generation of the made-up engine is: prompt tokens, generated tokens, decode calls.
const ONE: [f64; 3] = [6.0, 24.0, 24.0];

fn counts(metrics: &Exposition) -> [f64; 3] {
    let tokens = |kind| metrics.sum("llm_tokens_total", &[("type", kind)]);
    [tokens("prompt"), tokens("generated"), metrics.sum("llm_batch_tokens_count", &[])]
}

fn is_layout(metrics: &Exposition, part: &str, layout: &str) -> bool {
    metrics.sum("llamaprobe_layout_info", &[("part", part), ("layout", layout)]) == 1.0
}

fn lost(metrics: &Exposition) -> f64 {
    metrics.sum("llamaprobe_lost_total", &[("reason", "layout_unknown")])
}

/// An engine with these definitions and an agent that observes it.
fn observed(scratch: &Scratch, definitions: &[&str]) -> Result<(Binding, Agent)> {
    let engine = Binding::made_up(scratch, definitions)?;
    let agent = Agent::start(&["--pid", &engine.pid().to_string()])?;
    agent
        .wait_metrics("a target", |metrics| (metrics.sum("llamaprobe_targets", &[]) >= 1.0).then_some(()))?;
    Ok((engine, agent))
}

/// Waits until as much was counted as `generations` are; says what was counted instead.
fn are_counted(agent: &Agent, generations: f64) -> Result<Exposition> {
    let expected = ONE.map(|n| n * generations);
    let equal = agent.wait_metrics("equal counts", |metrics| (counts(metrics) == expected).then_some(()));
    let metrics = agent.scrape()?;
    assert!(equal.is_ok(), "{:?} instead of {expected:?}", counts(&metrics));
    Ok(metrics)
}

#[test]
fn known_layouts_are_proved_by_the_first_call() -> Result<()> {
    if privileged().is_none() {
        return Ok(());
    }
    for (head, lead, name) in [
        ("HEAD=64", "LEAD=24", "llama_batch_ext: tokens at 64, 96 bytes each"),
        ("HEAD=72", "LEAD=40", "llama_batch_ext: tokens at 72, 112 bytes each"),
    ] {
        let scratch = Scratch::new()?;
        let (mut engine, agent) = observed(&scratch, &[head, lead, "TAIL=0"])?;
        for _ in 0..2 {
            engine.generate()?;
        }
        let metrics = are_counted(&agent, 2.0)?;
        assert!(is_layout(&metrics, "batch", name), "{metrics:#?}");
        assert!(is_layout(&metrics, "context", "n_ctx at 48, n_ctx_seq at 52"), "{metrics:#?}");
        assert_eq!(metrics.value("llm_context_size_tokens"), Some(2048.0), "where its own code says it is");
        assert_eq!(lost(&metrics), 0.0);
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn a_layout_that_nobody_knew_is_found() -> Result<()> {
    if privileged().is_none() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let (mut engine, agent) = observed(&scratch, &["HEAD=88", "LEAD=48", "TAIL=8"])?;
    engine.generate()?;
    let metrics = agent.wait_metrics("losses", |metrics| (lost(metrics) > 0.0).then(|| metrics.clone()))?;
    assert!(is_layout(&metrics, "batch", "unknown"), "one call proves nothing: {metrics:#?}");
    assert_eq!(metrics.value("llm_batch_tokens_count"), None, "absent, not zero");
    assert_eq!(metrics.select("llm_tokens_total", &[("type", "prompt")]).count(), 0, "absent, not zero");

    let found = "llama_batch_ext: tokens at 88, 128 bytes each";
    let mut generations = 1.0;
    let proved = agent.wait_metrics("the layout", |metrics| {
        if is_layout(metrics, "batch", found) {
            return Some(metrics.clone());
        }
        engine.generate().ok()?;
        generations += 1.0;
        None
    })?;
    // What came before is not made up for, but counted.
    let (before, missed) = (counts(&proved), lost(&proved));
    assert_eq!(before[2] + missed, generations * ONE[2], "a call is counted or lost");
    engine.generate()?;
    let expected = [before[0] + ONE[0], before[1] + ONE[1], before[2] + ONE[2]];
    let equal = agent.wait_metrics("equal counts", |metrics| (counts(metrics) == expected).then_some(()));
    let after = agent.scrape()?;
    assert!(equal.is_ok(), "{:?} instead of {expected:?}", counts(&after));
    assert_eq!(lost(&after), missed, "no more is lost");
    agent.stop()
}

#[test]
fn what_cannot_be_read_is_absent() -> Result<()> {
    if privileged().is_none() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let (mut engine, agent) = observed(&scratch, &["HEAD=72", "LEAD=40", "TAIL=0", "LISTS"])?;
    for _ in 0..4 {
        engine.generate()?;
    }
    let all = 4.0 * ONE[2];
    let metrics = agent.wait_metrics("losses", |it| (lost(it) == all).then(|| it.clone()))?;
    assert!(is_layout(&metrics, "batch", "unknown"), "{metrics:#?}");
    for name in ["llm_batch_tokens_count", "llm_context_used_tokens", "llm_context_size_tokens"] {
        assert_eq!(metrics.value(name), None, "{name} is absent");
    }
    assert_eq!(metrics.select("llm_tokens_total", &[("type", "prompt")]).count(), 0);
    agent.stop()
}

#[test]
fn a_server_is_who_starts_a_slot() -> Result<()> {
    if privileged().is_none() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let (mut engine, agent) = observed(&scratch, &["HEAD=72", "LEAD=40", "TAIL=0", "SERVER"])?;
    for _ in 0..2 {
        engine.generate()?;
    }
    let metrics = are_counted(&agent, 2.0)?;
    assert_eq!(metrics.value("llm_slots_busy"), None, "no slot was seen");
    assert_eq!(
        metrics.value("llm_context_used_tokens"),
        Some(2.0 * 29.0),
        "29 tokens were decoded each time"
    );

    // The same process serves now: what it counted stays, and nothing counts twice.
    for generation in 3..6 {
        engine.generate_as("slot")?;
        are_counted(&agent, f64::from(generation))?;
    }
    let probed =
        |metrics: &Exposition| metrics.sum("llamaprobe_probe_attached", &[("probe", "llama_sampler_sample")]);
    agent.wait_metrics("the probes of a program to go", |it| (probed(it) == 0.0).then_some(()))?;
    engine.generate_as("slot")?;
    let metrics = are_counted(&agent, 6.0)?;
    assert_eq!(metrics.value("llm_slots_busy"), Some(0.0));
    assert_eq!(metrics.value("llm_context_used_tokens"), Some(29.0), "what its one slot holds");
    agent.stop()
}

#[test]
fn connections_are_seen_however_they_are_accepted() -> Result<()> {
    if privileged().is_none() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    // `accept`, as up to about b3848; the other tests run servers that call `accept4`.
    let (mut engine, agent) = observed(&scratch, &["HEAD=72", "LEAD=40", "TAIL=0", "SERVER"])?;
    engine.generate_as("slot")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, engine.ready().parse()?));
    for _ in 0..3 {
        assert_eq!(http::get(address, "/health")?.status, 200);
    }
    let seen =
        |metrics: &Exposition| metrics.sum("llm_requests_total", &[("route", "/health"), ("code", "200")]);
    agent.wait_metrics("three requests", |metrics| (seen(metrics) == 3.0).then_some(()))?;
    agent.stop()
}
