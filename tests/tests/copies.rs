//! Saving and restoring caches, for which all slots wait: what is told beside what the server writes in its own log.

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::Call;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::ticks::Ticks;
use llamaprobe_tests::wait_for;
use llamaprobe_tests::watch::{PATIENCE, Watch, check};
use serde_json::{Value, json};

/// The log has milliseconds with two digits; between its clock and ours lie some instructions, and the kernel's trap.
const APART_MS: f64 = 0.3;

/// Conversations that follow one another on one slot: each is saved when the next comes, and two come back.
const CONVERSATIONS: [usize; 5] = [1, 2, 1, 3, 2];
const RESTORED: [usize; 2] = [2, 4];

fn words(tokens: usize, seed: usize) -> Vec<usize> {
    (0..tokens).map(|index| 360 + (index * 17 + seed * 31) % 150).collect()
}

/// One of them, of a user of its own.
fn conversation(seed: usize, tokens: usize) -> Call {
    let body = json!({"prompt": words(tokens, seed), "n_predict": 4, "user": format!("user-{seed}")});
    Call::post("/completion", &body)
}

/// The numbers that stand before `after` in lines of a log that hold `line`.
fn said(log: &str, line: &str, before: &str, after: &str) -> Vec<f64> {
    let number = |line: &str| line.split_once(before)?.1.split_once(after)?.0.trim().parse().ok();
    log.lines().filter(|it| it.contains(line)).filter_map(number).collect()
}

/// How long a cache was copied for a request, nanoseconds.
fn copied(record: &Value, operation: &str) -> u64 {
    record["copies_ns"][operation].as_u64().unwrap_or(0)
}

#[test]
fn caches_that_are_saved_and_restored_are_told_as_the_server_says() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in [Build::Monolith, Build::Decode, Build::Process] {
        let arguments = ["-np", "2", "-c", "16384", "-t", "1", "-lv", "5"];
        let watch = Watch::new(LlamaServer::start(build, &assets.tiny(), &arguments)?)?;
        as_the_server_says(&watch, build)?;
        watch.agent.stop()?;
    }
    Ok(())
}

fn as_the_server_says(watch: &Watch, build: Build) -> Result<()> {
    // It has the other slot, and waits for all that is done for theirs.
    let body = json!({
        "prompt": words(20, 99), "n_predict": 4_000, "ignore_eos": true, "stream": true, "user": "victim",
    });
    let victim = Call::post("/completion", &body);
    let ticks = Ticks::start(watch.server.endpoint(), &victim)?;
    ticks.wait(10)?;
    let calls = CONVERSATIONS.map(|seed| conversation(seed, 2_000));
    let told = watch.ask(&calls, 1)?;
    let metrics = watch.agent.scrape()?;
    ticks.finish()?;
    let slowed = watch.records([victim.trace].into_iter())?.pop().context("no record")?;
    check(&slowed)?;
    let mut waits = slowed["slowed_by"].as_array().context("nobody")?.clone();
    waits.sort_by_key(|by| by["arrived_unix_us"].as_u64());

    let log = watch.server.log();
    // The first is that of the victim, which found nothing.
    let took = &said(&log, "prompt cache update took", "took", "ms")[1..];
    let sizes = said(&log, "saving prompt with length", "total state size =", "MiB");
    assert_eq!((took.len(), sizes.len()), (CONVERSATIONS.len(), CONVERSATIONS.len() - 1), "{log}");
    for (at, (record, took)) in told.iter().zip(took).enumerate() {
        check(record)?;
        let (saved, restored) = (copied(record, "save"), copied(record, "restore"));
        assert_eq!((saved != 0, restored != 0), (at > 0, RESTORED.contains(&at)), "{record:#}");
        let ms = (saved + restored) as f64 / 1e6;
        println!("{build:?}, {at}: {ms:.2} ms copied, {took} ms as the server says");
        assert!((ms - took).abs() <= APART_MS, "{ms} ms, and as the server says {took}");
        // Who waited for it says the same.
        let by = waits.get(at).with_context(|| format!("{waits:#?}"))?;
        assert_eq!(by["user"], record["user"]);
        assert_eq!(by["copy_ns"], json!(saved + restored), "{by}");
    }
    let sum = |operation| told.iter().map(|record| copied(record, operation)).sum::<u64>() as f64 / 1e9;
    let label = watch.server.label();
    for (operation, count) in
        [("save", sizes.len()), ("restore", RESTORED.len()), ("checkpoint", 0), ("rewind", 0)]
    {
        let of = |name: &str| metrics.sum(name, &[("server", &label), ("operation", operation)]);
        let bytes = sizes.iter().take(count).sum::<f64>() * f64::from(1 << 20);
        let counted = of("llm_cache_copied_bytes_total");
        println!(
            "{build:?}, {operation}: {} of {count}, {counted} bytes of {bytes:.0}",
            of("llm_cache_copies_total")
        );
        assert_eq!(of("llm_cache_copies_total"), count as f64);
        // It says sizes with three digits.
        assert!((counted - bytes).abs() <= 600.0 * count as f64, "{counted} {bytes}");
        assert!((of("llm_cache_copy_seconds_total") - sum(operation)).abs() < 1e-6);
    }
    Ok(())
}

/// Where all slots share one cache, what idle ones hold is saved when the next request has its slot.
#[test]
fn idle_slots_are_saved_for_the_request_that_came() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "4", "-c", "16384", "-t", "1", "-lv", "5", "-kvu"];
    let watch = Watch::new(LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?)?;
    let told = watch.ask(&CONVERSATIONS.map(|seed| conversation(seed, 600)), 1)?;
    let log = watch.server.log();
    let saved = log.lines().filter(|line| line.contains("saving prompt with length")).count();
    println!("{saved} saved; {:?}", told.iter().map(|record| &record["copies_ns"]).collect::<Vec<_>>());
    assert_eq!(saved, CONVERSATIONS.len() - 1, "{log}");
    for (at, record) in told.iter().enumerate() {
        check(record)?;
        let has = [copied(record, "save") != 0, copied(record, "restore") != 0];
        assert_eq!(has, [at > 0, RESTORED.contains(&at)], "{record:#}");
        // Its slot was its own then.
        let host = record["parts_ns"]["host"].as_u64().unwrap_or(0);
        assert!(copied(record, "save") <= host, "{record:#}");
    }
    watch.agent.stop()
}

#[test]
fn checkpoints_are_told() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments =
        ["-np", "1", "-c", "4096", "-t", "1", "-lv", "5", "-b", "128", "--checkpoint-min-step", "64"];
    let watch = Watch::new(LlamaServer::start(Build::Process, &assets.mamba(), &arguments)?)?;
    let told = watch.ask(&[1, 1, 2].map(|seed| conversation(seed, 600)), 1)?;
    told.iter().try_for_each(|record| check(record).map(drop))?;
    let log = watch.server.log();
    let made = log.lines().filter(|line| line.contains("created context checkpoint")).count();
    let taken = log.lines().filter(|line| line.contains("restored context checkpoint")).count();
    let metrics = watch.agent.scrape()?;
    let counted = |operation| {
        metrics.sum("llm_cache_copies_total", &[("server", &watch.server.label()), ("operation", operation)])
    };
    println!(
        "{made} checkpoints made, {} counted; {taken} taken, {} counted",
        counted("checkpoint"),
        counted("rewind")
    );
    assert!(made > 3 && taken > 0, "{log}");
    assert_eq!((counted("checkpoint"), counted("rewind")), (made as f64, taken as f64));
    let own = |operation| told.iter().filter(|record| copied(record, operation) != 0).count();
    assert!(own("checkpoint") > 0 && own("rewind") == taken, "{told:#?}");
    watch.agent.stop()
}

#[test]
fn copies_are_counted_where_nothing_of_the_server_is_visible() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "1", "-c", "4096", "-t", "1"];
    let watch = Watch::new(LlamaServer::start(Build::Stripped, &assets.tiny(), &arguments)?)?;
    watch.ask(&CONVERSATIONS.map(|seed| conversation(seed, 600)), 1)?;
    wait_for("four saves and two that came back", PATIENCE, || {
        let metrics = watch.agent.scrape().ok()?;
        let counted = |operation| metrics.sum("llm_cache_copies_total", &[("operation", operation)]);
        (counted("save") == 4.0 && counted("restore") == 2.0).then_some(())
    })?;
    watch.agent.stop()
}
