//! Who uses how much, and what it costs: sums over users are the server's totals, and the price of the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::{Agent, run_with_input};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Call, Tokens, run};
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::process::own_memory;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::prompt;
use llamaprobe_tests::wait_for;
use rustix::process::Signal;
use serde_json::json;

const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];
const SECRET: &[u8] = b"a secret of no less than thirty-two bytes";
/// How long the agent may take to book what has ended.
const LAG: Duration = Duration::from_secs(10);

/// Tokens by user, as the agent counts them.
fn by_user(metrics: &Exposition, server: &LlamaServer) -> BTreeMap<String, Tokens> {
    let mut users: BTreeMap<String, Tokens> = BTreeMap::new();
    for sample in metrics.select("llm_tokens_total", &[("server", &server.label())]) {
        let tokens = users.entry(sample.labels["user"].clone()).or_default();
        let n = sample.value as u64;
        match sample.labels["type"].as_str() {
            "generated" => tokens.generated += n,
            "cached" => (tokens.cached, tokens.prompt) = (tokens.cached + n, tokens.prompt + n),
            _ => tokens.prompt += n,
        }
    }
    users
}

#[test]
fn tokens_by_user_are_the_sums_of_the_answers() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let scratch = Scratch::new()?;
    let secret = scratch.write("secret", SECRET)?;
    let secret = secret.to_str().context("a path that is no text")?;
    let hash = |key: &str| run_with_input(&["key-hash", "--key-file", secret], key);
    let hashes = [hash("sk-one")?, hash("sk-two")?, hash("sk-three")?];
    let aliases = scratch.write("aliases.toml", format!("\"{}\" = \"billing\"\n", hashes[0]).as_bytes())?;
    let aliases = aliases.to_str().context("a path that is no text")?;
    let agent = Agent::start(&["--user-header", "X-Team", "--key-file", secret, "--user-aliases", aliases])?;
    agent.wait_observed(&server)?;
    let before = Moment::now(&agent, &server)?;

    let keys = ["sk-one", "sk-two", "sk-three"];
    let kinds = [&*hashes[1], &*hashes[2], "billing", "ada", "bob", "research", "none"];
    let calls: Vec<_> = (0..70)
        .map(|i| {
            let text = prompt(10 + i * 7 % 200, i % 9);
            let body = json!({"prompt": text, "n_predict": 4 + i % 40, "max_tokens": 4 + i % 40, "ignore_eos": true, "stream": i % 3 == 0});
            let with_user = |user: &str| {
                let mut body = body.clone();
                body["user"] = json!(user);
                body
            };
            let path = if i % 2 == 0 { "/completion" } else { "/v1/completions" };
            let key = |n: usize| format!("Bearer {}", keys[n]);
            match i % 7 {
                0 => Call::post(path, &body).with_header("Authorization", &key(1)),
                1 => Call::post(path, &body).with_header("X-Api-Key", keys[2]),
                2 => Call::post(path, &body).with_header("Authorization", &key(0)),
                3 => Call::post(path, &with_user("ada")).with_header("Authorization", &key(0)),
                4 => Call::post(path, &with_user("bob")),
                5 => Call::post(path, &with_user("ada")).with_header("X-Team", "research"),
                _ => Call::post(path, &body),
            }
        })
        .collect();
    let answers = run(server.address(), &calls, 8)?;
    let mut expected: BTreeMap<String, Tokens> = BTreeMap::new();
    for (i, call) in calls.iter().enumerate() {
        // By trace, since answers come in another order.
        let answer = answers.iter().find(|answer| answer.call.trace == call.trace).context("no answer")?;
        let tokens = answer.tokens.with_context(|| format!("no tokens in {answer:?}"))?;
        let sum = expected.entry(kinds[i % 7].to_owned()).or_default();
        sum.prompt += tokens.prompt;
        sum.cached += tokens.cached;
        sum.generated += tokens.generated;
    }
    let counted = wait_for("tokens by user", LAG, || {
        let counted = by_user(&agent.scrape().ok()?, &server);
        (counted == expected).then_some(counted)
    });
    let counted = counted.or_else(|_| anyhow::Ok(by_user(&agent.scrape()?, &server)))?;
    println!("{counted:#?}");
    assert_eq!(counted, expected, "agent, answers");
    let comparison = before.compare(&agent, &server)?;
    println!("{comparison}");
    assert!(
        comparison.differences().is_empty(),
        "the sums over users are not the server's totals\n{comparison}"
    );

    // Another name for the same key from now on.
    scratch.write("aliases.toml", format!("\"{}\" = \"finance\"\n", hashes[0]).as_bytes())?;
    agent.signal(Signal::HUP)?;
    let call = Call::post("/completion", &json!({"prompt": "hello", "n_predict": 3, "ignore_eos": true}));
    let finance = || Some(by_user(&agent.scrape().ok()?, &server).get("finance")?.generated);
    let renamed = || {
        let before = finance().unwrap_or(0);
        let call = Call { trace: Default::default(), ..call.clone() };
        call.with_header("Authorization", "Bearer sk-one").send(server.address(), &mut None).ok()?;
        finance().filter(|now| *now == before + 3).map(drop)
    };
    wait_for("the new name", LAG, renamed)?;
    scratch.write("aliases.toml", b"this is no table")?;
    agent.signal(Signal::HUP)?;
    let refused = |metrics: &Exposition| metrics.sum("llamaprobe_reload_failures_total", &[]) > 0.0;
    agent.wait_metrics("the refusal of a bad file", |metrics| refused(metrics).then_some(()))?;
    assert!(agent.log().contains("aliases.toml"), "{}", agent.log());
    renamed().context("a bad file must change nothing")?;
    agent.stop()
}

/// Dollars on the basis of the host's time: all users and idle time.
fn host_dollars(metrics: &Exposition) -> (f64, f64) {
    (
        metrics.sum("llm_cost_dollars_total", &[("basis", "host")]),
        metrics.sum("llm_idle_cost_dollars_total", &[]),
    )
}

#[test]
fn cost_over_users_and_idle_time_is_the_price_of_the_time() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    const PER_HOUR: f64 = 1.20;
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let pid = server.pid().to_string();
    let agent = Agent::start(&["--host-price", "1.20", "--user-from", "body", "--pid", &pid])?;
    agent.wait_observed(&server)?;
    let moment = || -> Result<_> {
        server.wait_idle()?;
        let asked = Instant::now();
        let metrics = agent.scrape()?;
        Ok((asked, metrics, Instant::now()))
    };
    let (first_asked, first, first_told) = moment()?;
    let calls: Vec<_> = (0..160)
        .map(|i| {
            let (text, user) = (prompt(20 + i * 11 % 300, i), ["ada", "bob", "cid"][i % 3]);
            Call::post(
                "/completion",
                &json!({"prompt": text, "n_predict": 60 + i % 90, "ignore_eos": true, "user": user}),
            )
        })
        .collect();
    run(server.address(), &calls, 6)?;
    std::thread::sleep(Duration::from_secs(6));
    run(server.address(), &calls[..40], 2)?;
    let (second_asked, second, second_told) = moment()?;

    let ((users_before, idle_before), (users, idle)) = (host_dollars(&first), host_dollars(&second));
    let dollars = users - users_before + idle - idle_before;
    let price = |time: Duration| time.as_secs_f64() / 3600.0 * PER_HOUR;
    let (least, most) = (price(second_asked - first_told), price(second_told - first_asked));
    let engine = second.sum("llm_engine_seconds_total", &[]) - first.sum("llm_engine_seconds_total", &[]);
    println!(
        "users {:.9} + idle {:.9} = {dollars:.9} dollars; the time costs {least:.9} to {most:.9}; engine {engine:.3} s",
        users - users_before,
        idle - idle_before
    );
    assert!(dollars >= least * 0.999 && dollars <= most * 1.001, "{dollars} is not {least} to {most}");
    // One server: its users pay for exactly the time of its engine.
    let paid = (users - users_before) / PER_HOUR * 3600.0;
    assert!((paid / engine - 1.0).abs() < 0.001, "{paid} s were paid of {engine} s");
    assert!(idle > idle_before, "six seconds were idle");
    for user in ["ada", "bob", "cid"] {
        assert!(second.sum("llm_cost_dollars_total", &[("basis", "host"), ("user", user)]) > 0.0, "{user}");
    }
    // The time of the engine is that of its decode calls, all of them.
    let steps = second.sum("llm_decode_step_seconds_sum", &[]);
    assert!(second.sum("llm_engine_seconds_total", &[]) >= steps * 0.999, "{steps} s of steps");
    agent.stop()
}

#[test]
fn a_repeated_long_prompt_raises_the_cache_hit_ratio() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::observing(&server)?;
    let before = Moment::now(&agent, &server)?;
    let call =
        || Call::post("/completion", &json!({"prompt": prompt(900, 3), "n_predict": 2, "ignore_eos": true}));
    let ratio =
        || agent.scrape().map(|metrics| metrics.sum("llm_cache_hit_ratio", &[("server", &server.label())]));
    call().send(server.address(), &mut None)?;
    server.wait_idle()?;
    let cold = ratio()?;
    for _ in 0..9 {
        call().send(server.address(), &mut None)?;
    }
    let comparison = before.compare(&agent, &server)?;
    let (warm, cached, computed) =
        (ratio()?, comparison.agent("cached tokens"), comparison.agent("prompt tokens"));
    println!("{cold:.3}, then {warm:.3}\n{comparison}");
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    assert!(
        cold < 0.01 && (warm - cached / (cached + computed)).abs() < 1e-6 && warm > 0.85,
        "{cold}, {warm}"
    );
    agent.stop()
}

#[test]
fn a_new_user_with_every_request_takes_neither_series_nor_memory() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    const USERS: usize = 100_000;
    const SEATS: usize = 20;
    const CLIENTS: usize = 4;
    let server = LlamaServer::start(Build::Process, &assets.fast(), &["-np", "4", "-c", "1024", "-t", "1"])?;
    let agent = Agent::start(&["--users", "20", "--user-from", "header", "--user-header", "X-User"])?;
    agent.wait_observed(&server)?;
    let before = Moment::now(&agent, &server)?;
    let body = json!({"prompt": [360, 361], "n_predict": 1, "ignore_eos": true});
    let send = |from: usize, to: usize| {
        let calls: Vec<_> = (from..to)
            .map(|i| Call::post("/completion", &body).with_header("X-User", &format!("user-{i}")))
            .collect();
        let answers = run(server.address(), &calls, CLIENTS)?;
        anyhow::ensure!(answers.iter().all(|answer| answer.status() == Some(200)), "not all were answered");
        own_memory(agent.pid())
    };
    // A seated user that works on keeps its seat among the crowd.
    for _ in 0..20 {
        send(0, 1)?;
    }
    let early = send(1, 10_000)?;
    let late = send(10_000, USERS)?;
    let comparison = before.compare(&agent, &server)?;
    println!("{comparison}");
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    // No more than ends of answers, and few: what else is here has room for a machine that stands still for seconds.
    let lost = |reason: &[_]| comparison.after().sum("llamaprobe_lost_total", reason);
    let (all, ends) = (lost(&[]), lost(&[("reason", "payload_full")]));
    println!("of {ends} answers it is not known how they ended");
    assert!(all == ends && ends <= USERS as f64 / 200.0, "{all} lost");
    let users = by_user(comparison.after(), &server);
    println!(
        "{} users told apart, {:.1} then {:.1} MB of its own",
        users.len(),
        early as f64 / 1e6,
        late as f64 / 1e6
    );
    assert!(users.len() <= SEATS + 2 && users.contains_key("other"), "{:?}", users.keys());
    // A handful may be read between the end of a request in the kernel and its event, never what a loss of names would cost.
    let none = users.get("none").map_or(0, |none| none.generated);
    println!("{none} tokens of nobody");
    assert!(none <= USERS as u64 / 10_000, "{none} tokens of nobody");
    assert_eq!(users["user-0"].generated, 20);
    assert!(late < early + 4_000_000, "memory grows with the users");
    agent.stop()
}
