//! What observing costs: per hit, per token, in CPU time and memory, and in the server's own speed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use clap::Args;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::traffic::{Request, run_checked};
use serde_json::{Value, json};

use crate::root;
use crate::setup::Purpose;

/// Tokens of one measured request.
const GENERATED: u32 = 4000;
/// Tokens of the long prompt.
const PROMPT: usize = 4000;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub struct Options {
    /// How often to measure with and without the agent
    #[arg(long, default_value_t = 15)]
    pairs: usize,
    /// Print one JSON document on standard output instead of lines
    #[arg(long)]
    json: bool,
    /// Set-up and build are done
    #[arg(long, hide = true)]
    prepared: bool,
}

/// Measures, and prints.
pub fn run(options: &Options) -> Result<()> {
    if !options.prepared {
        let pairs = options.pairs.to_string();
        let json: &[&str] = if options.json { &["--json"] } else { &[] };
        let arguments = [&["bench", "--prepared", "--pairs", &pairs], json].concat();
        return root::run_prepared(Purpose::Demo, "release", &arguments);
    }
    // The worst case: one stream on the fastest model, so that tokens come as densely as they can.
    let arguments = ["-np", "1", "-c", "16384", "-t", "1", "-fa", "off"];
    let server = LlamaServer::start(Build::Process, &Assets::locate()?.fast(), &arguments)?;
    let mut results = cost(&server)?;
    let speeds = (0..options.pairs).map(|number| pair(&server, number)).collect::<Result<Vec<_>>>()?;
    let ratios: Vec<_> = speeds.iter().map(|(with, without)| with / without).collect();
    let median_of = |values: &mut dyn Iterator<Item = f64>| median(values.collect());
    results.insert("pairs".to_owned(), json!(options.pairs));
    let with = median_of(&mut speeds.iter().map(|it| it.0));
    results.insert("tokens_per_second_with_agent".to_owned(), json!(with));
    let without = median_of(&mut speeds.iter().map(|it| it.1));
    results.insert("tokens_per_second_without_agent".to_owned(), json!(without));
    results.insert("speed_ratio_median".to_owned(), json!(median(ratios.clone())));
    results.insert("speed_ratios".to_owned(), json!(ratios));
    print(&results, options.json)
}

fn print(results: &BTreeMap<String, Value>, as_json: bool) -> Result<()> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(results)?);
    } else {
        results.iter().for_each(|(name, value)| println!("{name:<44} {value}"));
    }
    Ok(())
}

/// Hits, their price, and what the agent itself uses.
fn cost(server: &LlamaServer) -> Result<BTreeMap<String, Value>> {
    let agent = Agent::observing(server)?;
    let mut results = BTreeMap::new();

    let before = Moment::now(&agent, server)?;
    run_checked(server.address(), &[Request::exact(16, GENERATED, 1)], 1)?;
    let decode = before.compare(&agent, server)?;
    let hits = decode.own_delta("llamaprobe_probe_hits_total");
    results.insert("hits_per_generated_token".to_owned(), json!(hits / decode.agent("generated tokens")));
    let seconds = decode.own_delta("process_cpu_seconds_total");
    results.insert(format!("agent_cpu_seconds_for_{GENERATED}_tokens"), json!(seconds));

    let before = Moment::now(&agent, server)?;
    run_checked(server.address(), &[Request::exact(PROMPT, 1, 2)], 1)?;
    let prefill = before.compare(&agent, server)?;
    let hits = prefill.own_delta("llamaprobe_probe_hits_total");
    results.insert("hits_per_prompt_token".to_owned(), json!(hits / prefill.agent("prompt tokens")));

    let metrics = prefill.after();
    for stepping in ["emulated", "single_stepped"] {
        let price = metrics.select("llamaprobe_probe_price_seconds", &[("stepping", stepping)]).next();
        let nanoseconds = price.map(|sample| (sample.value * 1e9).round());
        results.insert(format!("ns_per_hit_{stepping}"), json!(nanoseconds));
    }
    let resident =
        metrics.value("process_resident_memory_bytes").context("the agent does not say its memory")?;
    results.insert("agent_resident_bytes".to_owned(), json!(resident));
    agent.stop()?;
    Ok(results)
}

/// Tokens per second with the agent and without, in an order that alternates.
fn pair(server: &LlamaServer, number: usize) -> Result<(f64, f64)> {
    let with_agent = || {
        let agent = Agent::observing(server)?;
        let speed = speed(server)?;
        agent.stop()?;
        anyhow::Ok(speed)
    };
    if number.is_multiple_of(2) {
        let with = with_agent()?;
        Ok((with, speed(server)?))
    } else {
        let without = speed(server)?;
        Ok((with_agent()?, without))
    }
}

fn speed(server: &LlamaServer) -> Result<f64> {
    let outcomes = run_checked(server.address(), &[Request::exact(16, GENERATED, 1)], 1)?;
    let timings = outcomes[0].timings.context("the answer has no timings")?;
    Ok((timings.predicted_n as f64 - 1.0) / timings.predicted_ms * 1e3)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[upper],
        _ => f64::midpoint(values[upper - 1], values[upper]),
    }
}
