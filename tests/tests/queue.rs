//! More requests than slots: the depth of the queue and the time in it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Answer, Call};
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use serde_json::json;

const CLIENTS: usize = 8;

/// Every waiting request has a thread of the server.
#[test]
fn deferred_by_the_engine() -> Result<()> {
    follow("16")
}

/// Most waiting requests are not even read: the server has three threads for connections.
#[test]
fn unread_by_the_server() -> Result<()> {
    follow("3")
}

#[derive(Debug)]
struct Look {
    /// Requests that had no answer, before and after the agent was asked.
    unanswered: [usize; 2],
    /// What the agent said.
    depth: f64,
    /// What the server said right before and right after, if it was asked.
    deferred: Option<[f64; 2]>,
}

impl Look {
    /// One runs, the others wait; a step of lag is allowed on either side.
    fn follows(&self) -> bool {
        let waiting = self.unanswered.map(|count| count.saturating_sub(1) as f64);
        let near =
            |[from, to]: [f64; 2]| self.depth <= from.max(to) + 1.0 && self.depth >= from.min(to) - 1.0;
        near(waiting) && self.deferred.is_none_or(near)
    }
}

fn follow(threads: &str) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "1", "-c", "4096", "-t", "1", "--threads-http", threads];
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let log = RequestLog::new()?;
    let agent = Agent::start(&log.arguments()?)?;
    agent.wait_observed(&server)?;
    // With few threads the server has none left to answer with.
    let asks_server = threads == "16";

    let (answers, looks) = burst(&agent, &server, 1000, asks_server)?;
    let (wrong, told) = (looks.iter().filter(|look| !look.follows()).count(), looks.len());
    println!("{threads} threads: {wrong} of {told} looks do not follow");
    looks.iter().for_each(|look| println!("{look:?}"));
    assert!(told >= 10 && looks.iter().any(|look| look.depth >= 4.0), "too little was seen: {looks:#?}");
    assert_eq!(wrong, 0, "{looks:#?}");
    explained(&log, &answers)?;

    let (answers, _) = burst(&agent, &server, 200, false)?;
    explained(&log, &answers)?;
    agent.wait_metrics("an empty queue", |metrics| {
        let sum = |name| metrics.sum(name, &[("server", &server.label())]);
        (sum("llm_queue_depth") + sum("llm_requests_in_flight") == 0.0).then_some(())
    })?;
    agent.stop()
}

/// Sends one request from each client at once, and looks at the queue while they run.
fn burst(agent: &Agent, server: &LlamaServer, tokens: u32, asks: bool) -> Result<(Vec<Answer>, Vec<Look>)> {
    let answered = &AtomicUsize::new(0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|index| {
                let body = json!({
                    "prompt": format!("client {index}"), "n_predict": tokens, "ignore_eos": true, "cache_prompt": false,
                });
                let call = Call::post("/completion", &body);
                scope.spawn(move || {
                    let answer = call.send(server.address(), &mut None);
                    answered.fetch_add(1, Ordering::SeqCst);
                    answer
                })
            })
            .collect();
        // Until all have arrived.
        thread::sleep(Duration::from_millis(100));
        let mut looks = Vec::new();
        let unanswered = || CLIENTS - answered.load(Ordering::SeqCst);
        let deferred = || -> Result<Option<f64>> {
            Ok(if asks { server.metrics()?.value("llamacpp:requests_deferred") } else { None })
        };
        while unanswered() > 0 {
            let begin = (unanswered(), deferred()?);
            let depth = agent.scrape()?.sum("llm_queue_depth", &[("server", &server.label())]);
            let end = (deferred()?, unanswered());
            looks.push(Look {
                unanswered: [begin.0, end.1],
                depth,
                deferred: begin.1.zip(end.0).map(|(begin, end)| [begin, end]),
            });
            thread::sleep(Duration::from_millis(150));
        }
        let answers =
            clients.into_iter().map(|it| it.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))?);
        Ok((answers.collect::<Result<_>>()?, looks))
    })
}

/// The time in the queue is what the client waited beyond its own prefill and decode.
fn explained(log: &RequestLog, answers: &[Answer]) -> Result<()> {
    let start = Instant::now();
    let traces: Vec<_> = answers.iter().map(|answer| answer.call.trace).collect();
    let lines = log.wait(&traces)?;
    let mut unexplained = Vec::new();
    for answer in answers {
        assert_eq!(answer.status(), Some(200), "{answer:?}");
        let line = lines.get(&answer.call.trace).and_then(|lines| lines.first());
        let line = line.with_context(|| format!("no line after {:?}:\n{}", start.elapsed(), log.text()))?;
        let told = [line.queue_ms, line.prefill_ms, line.decode_ms];
        let [Some(queue), Some(prefill), Some(decode)] = told else { panic!("times are missing: {line:?}") };
        unexplained.push(answer.latency.as_secs_f64() * 1e3 - prefill - decode - queue);
    }
    unexplained.sort_by(f64::total_cmp);
    println!("not explained by the log: {unexplained:.3?} ms");
    assert!(unexplained[CLIENTS / 2].abs() < 50.0, "not explained by the log: {unexplained:?} ms");
    Ok(())
}
