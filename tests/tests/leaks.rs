//! The agent comes and goes under load: no answer changes, and nothing of it stays behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::Call;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::http::{Connection, Endpoint};
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::text;
use llamaprobe_tests::tls::Identity;
use llamaprobe_tests::traffic::prompt;
use serde_json::json;

const CLIENTS: usize = 8;
/// How often the agent is killed.
const KILLED: usize = 10;
/// How often it is ended.
const ENDED: usize = 20;
/// How long it works each time, once it observes the server.
const STAY: Duration = Duration::from_millis(300);
/// Every map that grows with the work.
const MAPS: [&str; 6] = ["sequences", "contexts", "connections", "threads", "tasks", "calls"];

/// The request of a client: always the same, and by temperature and cache with one answer only.
fn call(client: usize) -> Call {
    let body = json!({
        "prompt": prompt(30 + client * 11, client), "n_predict": 40 + client * 5, "ignore_eos": true,
        "temperature": 0, "cache_prompt": false, "stream": client.is_multiple_of(2),
    });
    Call::post("/completion", &body)
}

/// The text of an answer; an error if it did not come whole.
fn answer(endpoint: &Endpoint, client: usize, kept: &mut Option<Connection>) -> Result<String> {
    let answer = call(client).send(endpoint.clone(), kept)?;
    ensure!(answer.status() == Some(200), "{answer:?}");
    ensure!(answer.timings.is_some(), "the end is missing: {answer:?}");
    let documents = answer.reply.as_ref().context("no answer")?.documents();
    Ok(documents.iter().filter_map(|document| document["content"].as_str()).collect())
}

/// Lets all clients send until `done`; fails if an answer is not the one in `expected`. Returns how many there were.
fn load(endpoint: &Endpoint, expected: &[String], done: &AtomicBool) -> Result<usize> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let (mut connection, mut count) = (None, 0);
                    while !done.load(Ordering::Relaxed) {
                        let text = answer(endpoint, client, &mut connection)?;
                        ensure!(
                            text == expected[client],
                            "client {client}: {text:?} is not {:?}",
                            expected[client]
                        );
                        count += 1;
                    }
                    Ok(count)
                })
            })
            .collect();
        let counts =
            clients.into_iter().map(|it| it.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))?);
        counts.sum()
    })
}

/// An agent that observes the server and nothing else on the host.
fn observing(server: &LlamaServer) -> Result<Agent> {
    let agent = Agent::start(&["--pid", &server.pid().to_string()])?;
    agent.wait_observed(server)?;
    Ok(agent)
}

/// The agent in the middle of its work, so many times; `leave` ends it.
fn come_and_go(server: &LlamaServer, times: usize, leave: impl Fn(Agent) -> Result<()>) -> Result<()> {
    for _ in 0..times {
        let agent = observing(server)?;
        thread::sleep(STAY);
        let changed = text::changed(server.pid())?;
        ensure!(!changed.is_empty(), "an attached probe shows in the text");
        leave(agent)?;
        text::wait_restored(server.pid())?;
    }
    Ok(())
}

#[test]
fn under_load_no_answer_changes_and_nothing_stays() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in [Build::Process, Build::Decode, Build::Monolith] {
        // One slot: what else is in a batch would change the last bits of the logits.
        let launch = Launch::new(build, &assets.tiny(), &["-np", "1", "-c", "4096", "-t", "1"])?;
        // The one that can speaks TLS: that brings the only return probe.
        let tls = build == Build::Monolith;
        let mut server = if tls { launch.over_tls(&Identity::new()?) } else { launch }.start()?;
        let endpoint = &server.endpoint();
        let expected =
            (0..CLIENTS).map(|client| answer(endpoint, client, &mut None)).collect::<Result<Vec<_>>>()?;
        // Those of the test before may be going yet.
        text::wait_restored(server.pid()).context("without a probe the text is that of the files")?;

        let done = &AtomicBool::new(false);
        let (answers, outcome) = thread::scope(|scope| {
            let clients = scope.spawn(|| load(endpoint, &expected, done));
            let outcome = come_and_go(&server, KILLED, Agent::kill)
                .and_then(|()| come_and_go(&server, ENDED, Agent::stop));
            done.store(true, Ordering::Relaxed);
            (clients.join().map_err(|_panic| anyhow::anyhow!("the load panicked")), outcome)
        });
        outcome?;
        let answers = answers??;
        println!("{build:?}: {answers} answers while the agent came and went");
        assert!(answers > KILLED + ENDED, "too few answers: {answers}");
        server.assert_alive()?;

        // An agent that saw the load from its begin to its end has nothing left of it.
        let agent = observing(&server)?;
        let occupancy = |metrics: &Exposition| {
            MAPS.map(|map| (map, metrics.sum("llamaprobe_map_entries", &[("map", map)])))
        };
        // The slot and the context stay as long as the server does; the first request shows them.
        answer(endpoint, 0, &mut None)?;
        server.wait_idle()?;
        let before = agent.wait_metrics("the connection of the first request to be gone", |metrics| {
            let entries = occupancy(metrics);
            (entries[2].1 == 0.0).then_some(entries)
        })?;
        done.store(false, Ordering::Relaxed);
        let count = thread::scope(|scope| {
            let clients = scope.spawn(|| load(endpoint, &expected, done));
            thread::sleep(Duration::from_secs(3));
            done.store(true, Ordering::Relaxed);
            clients.join().map_err(|_panic| anyhow::anyhow!("the load panicked"))
        })??;
        server.wait_idle()?;
        let same = |metrics: &Exposition| (occupancy(metrics) == before).then_some(());
        let settled = agent.wait_metrics("as many entries as before the load", same);
        let after = occupancy(&agent.scrape()?);
        println!("{build:?}: after {count} answers {after:?}");
        settled.with_context(|| format!("{after:?}, before the load {before:?}"))?;
        let lost = agent.scrape()?;
        assert_eq!(
            lost.sum("llamaprobe_lost_total", &[]),
            0.0,
            "{:?}",
            lost.select("llamaprobe_lost_total", &[]).filter(|it| it.value > 0.0).collect::<Vec<_>>()
        );
        agent.stop()?;
        text::wait_restored(server.pid())?;
    }
    Ok(())
}
