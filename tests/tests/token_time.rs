//! Where the time of tokens goes: its parts add up for every request.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::Call;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::http;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Fate, prompt};
use llamaprobe_tests::wait_for;
use llamaprobe_tests::watch::{PATIENCE, Watch, check, part, parts};
use serde_json::json;

const TOTAL: &str = "llm_token_seconds_total";

/// What is counted of a part of a server's tokens, seconds.
fn counted(watch: &Watch, metrics: &Exposition, part: &str) -> f64 {
    metrics.sum(TOTAL, &[("server", &watch.server.label()), ("part", part)])
}

fn mixed(count: usize) -> Vec<Call> {
    let call = |index: usize| {
        let (words, tokens) = ([3, 40, 250, 12][index % 4], 4 + index % 40);
        let text = prompt(words, index);
        let (stream, user) = (index.is_multiple_of(3), format!("user-{}", index % 3));
        let chat = json!({
            "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "ignore_eos": true,
            "stream": stream, "user": user,
        });
        let plain =
            json!({"prompt": text, "n_predict": tokens, "ignore_eos": true, "stream": stream, "user": user});
        let long = json!({"prompt": text, "n_predict": 2000, "ignore_eos": true, "stream": true});
        match index % 8 {
            0..3 => Call::post("/v1/chat/completions", &chat),
            7 => Call::post("/completion", &long).with_fate(Fate::Cut(5)),
            _ => Call::post("/completion", &plain),
        }
    };
    (0..count).map(call).collect()
}

/// Of every request all time is in its parts, and the parts of all are what the server's counters say. Asks until so many
/// tokens were generated; returns what the agent counted.
fn add_up(
    build: Build,
    arguments: &[&str],
    without: &[&str],
    wanted: u64,
) -> Result<Option<(BTreeMap<String, u64>, Exposition)>> {
    let Some(assets) = privileged() else { return Ok(None) };
    let more = ["-np", "4", "-c", "16384", "-t", "1", "-b", "128"];
    let watch = Watch::new(LlamaServer::start(build, &assets.tiny(), &[&more, arguments].concat())?)?;
    let (mut requests, mut tokens) = (0, 0);
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    while requests == 0 || tokens < wanted {
        let told = watch.ask(&mixed(64), 7)?;
        requests += told.len();
        // Of those that could not be joined to a slot nothing is known.
        let joined = told.iter().filter(|it| {
            !["ambiguous", "unmatched"].contains(&it["engine"]["join"].as_str().unwrap_or_default())
        });
        for record in joined {
            tokens += check(record)?;
            for (name, ns) in parts(record).into_iter().flatten() {
                *sums.entry(name.to_owned()).or_default() += ns;
            }
        }
        // What was told is not read again.
        std::fs::File::options().write(true).open(&watch.file)?.set_len(0)?;
    }
    watch.server.wait_idle()?;
    let metrics = watch.agent.wait_metrics("all parts", |metrics| {
        let total = metrics.sum(TOTAL, &[("server", &watch.server.label())]);
        let wanted = sums.values().sum::<u64>() as f64 / 1e9;
        ((total - wanted).abs() < 1e-6).then(|| metrics.clone())
    })?;
    println!("{requests} requests, {tokens} tokens, nanoseconds: {sums:?}");
    for (name, ns) in &sums {
        let name = name.as_str();
        let counted = counted(&watch, &metrics, name);
        assert!((counted - *ns as f64 / 1e9).abs() < 1e-6, "{name}: {counted} s of {ns} ns");
        let absent = metrics.select(TOTAL, &[("part", name)]).next().is_none();
        assert_eq!(absent, without.contains(&name), "{name}");
        assert!(!absent || *ns == 0, "{name}");
    }
    for name in ["queue", "host", "own_prefill", "decode", "neighbour_prefill"] {
        assert!(sums[name] > 0, "{name}");
    }
    watch.agent.stop()?;
    Ok(Some((sums, metrics)))
}

#[test]
fn parts_add_up() -> Result<()> {
    add_up(Build::Process, &[], &[], 0).map(drop)
}

#[test]
fn parts_add_up_before_llama_process() -> Result<()> {
    add_up(Build::Decode, &[], &[], 0).map(drop)
}

#[test]
fn parts_add_up_where_slots_are_inferred() -> Result<()> {
    add_up(Build::Stripped, &[], &["load", "sampling", "others_sampling"], 0).map(drop)
}

#[test]
#[ignore = "takes minutes: cargo xtask long"]
fn parts_add_up_over_100_000_tokens() -> Result<()> {
    let Some((sums, metrics)) = add_up(Build::Process, &[], &[], 100_000)? else { return Ok(()) };
    let all = sums.values().sum::<u64>() as f64 / 1e9;
    let causes: BTreeMap<_, _> = metrics
        .select("llm_stall_seconds_total", &[])
        .filter(|it| it.value > 0.0)
        .map(|it| (it.labels["cause"].clone(), it.value))
        .collect();
    println!("{all:.3} s of token time; held back, seconds by cause: {causes:?}");
    let unexplained = causes.get("unexplained").copied().unwrap_or(0.0);
    assert!(unexplained <= 0.02 * all, "{unexplained} s of {all} s");
    Ok(())
}

#[test]
fn a_draft_model_has_its_part() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let tiny = assets.tiny();
    let draft = tiny.to_str().context("the path of the model")?;
    let arguments = ["-np", "2", "-c", "8192", "-t", "1", "-md", draft, "--spec-type", "draft-simple"];
    let watch = Watch::new(LlamaServer::start(Build::Process, &tiny, &arguments)?)?;
    let body = json!({"prompt": "red moon", "n_predict": 200, "ignore_eos": true, "temperature": 0});
    let told = watch.ask(&[Call::post("/completion", &body)], 1)?;
    check(&told[0])?;
    println!("{}", told[0]["parts_ns"]);
    assert!(part(&told[0], "draft") > part(&told[0], "decode"), "the draft model is the model itself");
    watch.agent.stop()
}

#[test]
fn a_slow_grammar_is_sampling() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let watch = Watch::new(LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "1", "-t", "1"])?)?;
    let body = json!({"prompt": "red moon", "n_predict": 60, "ignore_eos": true, "temperature": 0});
    let mut slow = body.clone();
    // Each token of the vocabulary is tried against many alternatives.
    let words: Vec<_> = (0..60).map(|index| format!("\"{}\" [a-z ]*", prompt(2, index))).collect();
    slow["grammar"] = json!(format!("root ::= ({})*", words.join(" | ")));
    let told = watch.ask(&[Call::post("/completion", &body), Call::post("/completion", &slow)], 1)?;
    told.iter().try_for_each(|record| check(record).map(drop))?;
    println!("{}\n{}", told[0]["parts_ns"], told[1]["parts_ns"]);
    let [plain, slow] = [0, 1].map(|at| part(&told[at], "sampling") / part(&told[at], "decode"));
    assert!(slow > 3.0 * plain, "{slow} {plain}");
    watch.agent.stop()
}

#[test]
fn a_model_that_is_loaded_again_is_no_queue() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "2", "-c", "4096", "-t", "1", "--sleep-idle-seconds", "1"];
    let watch = Watch::new(LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?)?;
    let call = |tokens: u32| {
        let body = json!({"prompt": "red moon", "n_predict": tokens, "ignore_eos": true, "temperature": 0});
        Call::post("/completion", &body)
    };
    watch.ask(&[call(20)], 1)?;
    let asleep = || {
        let props = http::get(watch.server.endpoint(), "/props").ok()?;
        props.body.contains("\"is_sleeping\":true").then_some(())
    };
    wait_for("the server to sleep", PATIENCE, asleep)?;
    let before = watch.agent.scrape()?;
    // Who comes before it is there waits for it. The second keeps the server awake until the third comes, after the first.
    let told = watch.ask(&[call(20), call(1500), call(20)], 2)?;
    told.iter().try_for_each(|record| check(record).map(drop))?;
    for record in &told {
        println!("{} {}", record["times"], record["parts_ns"]);
        assert_eq!(
            record["times"]["loaded_ns"].as_u64().unwrap_or(0),
            record["parts_ns"]["load"],
            "{record:#}"
        );
    }
    assert_eq!(told[1]["parts_ns"]["load"], 0, "the client's second");
    let load: f64 = told.iter().map(|record| part(record, "load")).sum();
    assert!(load > 0.0);
    watch.agent.wait_metrics("the load", |metrics| {
        let more = counted(&watch, metrics, "load") - counted(&watch, &before, "load");
        ((more - load).abs() < 1e-6).then_some(())
    })?;
    watch.agent.stop()
}
