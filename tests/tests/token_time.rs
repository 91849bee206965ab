//! Where the time of tokens goes: its parts add up for every request, and who made whom wait is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Answer, Call, run};
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Fate, prompt};
use llamaprobe_tests::wait_for;
use serde_json::{Value, json};

/// How long a record may be late: the agent waits 10 s for a slot that a cancelled request does not leave.
const PATIENCE: Duration = Duration::from_secs(20);
const TOTAL: &str = "llm_token_seconds_total";

/// An agent with a record file, and the requests of one server.
struct Watch {
    agent: Agent,
    server: LlamaServer,
    _scratch: Scratch,
    file: PathBuf,
}

impl Watch {
    fn new(server: LlamaServer) -> Result<Self> {
        let scratch = Scratch::new()?;
        let file = scratch.path().join("records.ndjson");
        let (path, pid) = (file.display().to_string(), server.pid().to_string());
        let agent = Agent::start(&["--record-file", &path, "--user-from", "body", "--pid", &pid])?;
        agent.wait_observed(&server)?;
        Ok(Self { agent, server, _scratch: scratch, file })
    }

    /// Sends requests; returns their records, in their order.
    fn ask(&self, calls: &[Call], clients: usize) -> Result<Vec<Value>> {
        let answers = run(self.server.endpoint(), calls, clients)?;
        self.told(&answers)
    }

    fn told(&self, answers: &[Answer]) -> Result<Vec<Value>> {
        let told = || {
            let mut told = records(&self.file);
            answers.iter().map(|answer| told.remove(&answer.call.trace.to_string())).collect()
        };
        wait_for("a record of each request", PATIENCE, told)
    }

    fn part(&self, metrics: &Exposition, part: &str) -> f64 {
        metrics.sum(TOTAL, &[("server", &self.server.label()), ("part", part)])
    }
}

/// The lines of a record file by trace id.
fn records(file: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let records = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.filter_map(|it| Some((it.pointer("/trace/trace_id")?.as_str()?.to_owned(), it))).collect()
}

/// The parts of a request, nanoseconds; none where they are not known.
fn parts(record: &Value) -> Option<BTreeMap<&str, u64>> {
    let parts = record["parts_ns"].as_object()?;
    parts.iter().map(|(name, ns)| Some((name.as_str(), ns.as_u64()?))).collect()
}

fn part(record: &Value, name: &str) -> f64 {
    record["parts_ns"][name].as_u64().map_or(f64::NAN, |ns| ns as f64 / 1e9)
}

/// Fails unless the parts of a request with one slot are all of its time.
fn check(record: &Value) -> Result<u64> {
    let parts = parts(record).with_context(|| format!("no parts: {record}"))?;
    let last = record["times"]["last_token_ns"].as_u64().context("no token")?;
    let sum: u64 = parts.values().sum();
    ensure!(sum == last, "{sum} ns of {last}: {record:#}");
    Ok(record["tokens"]["generated"].as_u64().unwrap_or(0))
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
        let counted = watch.part(&metrics, name);
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
    add_up(Build::Stripped, &[], &["sampling", "others_sampling"], 0).map(drop)
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

/// A request that generates, alone or beside a prompt of so many tokens; its record and that of the prompt.
fn beside(watch: &Watch, tokens: usize, seed: usize) -> Result<(Value, Option<Value>)> {
    let body = json!({
        "prompt": "red moon", "n_predict": 3000, "ignore_eos": true, "temperature": 0, "cache_prompt": false,
        "user": "victim",
    });
    let victim = Call::post("/completion", &body);
    let words: Vec<_> = (0..tokens).map(|index| 360 + (index * 17 + seed * 31) % 150).collect();
    let body = json!({"prompt": words, "n_predict": 1, "cache_prompt": false, "user": "culprit"});
    let culprit = Call::post("/completion", &body);
    let endpoint = watch.server.endpoint();
    let client = thread::spawn(move || run(endpoint, &[victim], 1));
    // It generates for seconds; by then it has begun.
    thread::sleep(Duration::from_millis(200));
    let other = if tokens == 0 { None } else { watch.ask(&[culprit], 1)?.pop() };
    let answers = client.join().map_err(|_| anyhow::anyhow!("the victim's client failed"))??;
    let own = watch.told(&answers)?.pop().context("no record")?;
    Ok((own, other))
}

#[test]
fn who_made_whom_wait_is_told() -> Result<()> {
    neighbours(&[256, 512], &[500, 2_000, 4_000], 1)
}

#[test]
#[ignore = "takes minutes: cargo xtask long"]
fn who_made_whom_wait_is_told_in_54_runs() -> Result<()> {
    neighbours(&[256, 512, 2048], &[500, 2_000, 5_871], 6)
}

/// The middle one; NaN of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prompts of these sizes beside a request that generates, for each size of a batch, so many times.
fn neighbours(batches: &[usize], prompts: &[usize], times: usize) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for &batch in batches {
        let size = batch.to_string();
        let arguments = ["-np", "2", "-c", "16384", "-t", "1", "-b", &size];
        let watch = Watch::new(LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?)?;
        let took =
            |record: &Value| record["times"]["last_token_ns"].as_u64().map_or(f64::NAN, |ns| ns as f64 / 1e9);
        let runs = (0..times).flat_map(|_| prompts);
        let mut pairs: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
        for (seed, &tokens) in runs.enumerate() {
            let (alone, _) = beside(&watch, 0, 0)?;
            check(&alone)?;
            let (victim, culprit) = beside(&watch, tokens, seed + batch)?;
            let culprit = culprit.context("no record")?;
            check(&victim)?;
            check(&culprit)?;
            let slowed = victim["slowed_by"].as_array().context("nobody")?;
            let [by] = &slowed[..] else { anyhow::bail!("slowed by {slowed:?}") };
            let (charged, told) = (by["ns"].as_u64().unwrap_or(0), part(&victim, "neighbour_prefill"));
            let excess = took(&victim) - took(&alone);
            pairs.entry(tokens).or_default().push((told, excess));
            println!(
                "-b {batch}, a prompt of {tokens} tokens: {} calls with {} of them; {told:.3} s waited, {excess:.3} s \
                 longer than alone, {:.3} s of the prompt itself; {}",
                by["calls"],
                by["prompt_tokens"],
                part(&culprit, "own_prefill"),
                victim["times"]["worst_gap_part"],
            );
            assert_eq!((&by["user"], &by["prompt_tokens"]), (&json!("culprit"), &json!(tokens)));
            // Its record goes back to when it could have been read.
            let arrived = |it: &Value| it["arrived_unix_us"].as_u64().unwrap_or(0);
            assert!(
                (0..1_000_000).contains(&arrived(by).saturating_sub(arrived(&culprit))),
                "{by} {culprit}"
            );
            assert_eq!(charged, victim["parts_ns"]["neighbour_prefill"], "one other, all of it");
            // One token of the victim is in each batch.
            assert_eq!(by["calls"], json!(tokens.div_ceil(batch - 1)));
            let worst = &victim["times"]["worst_gap_part"];
            assert!(tokens < 2_000 || worst == "neighbour_prefill", "{worst}");
            // Both saw the same calls.
            let prefill = part(&culprit, "own_prefill");
            assert!(told > 0.5 * prefill && told < 2.0 * prefill, "{told} s of {prefill} s");
        }
        for (tokens, pairs) in pairs.into_iter().filter(|_| times > 1) {
            let (told, excess) = pairs.into_iter().unzip();
            println!(
                "-b {batch}, {tokens} tokens: median of {times}: {:.3} s waited, {:.3} s longer than alone",
                median(told),
                median(excess)
            );
        }
        let metrics = watch.agent.scrape()?;
        let waited = |victim: &str, culprit: &str| {
            metrics.sum("llm_interference_seconds_total", &[("victim", victim), ("culprit", culprit)])
        };
        println!("{} s and {} s", waited("victim", "culprit"), waited("culprit", "victim"));
        assert!(waited("victim", "culprit") > 10.0 * waited("culprit", "victim"));
        watch.agent.stop()?;
    }
    Ok(())
}
