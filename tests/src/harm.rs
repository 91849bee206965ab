//! The same requests again and again while something happens to the agent or beside it: no answer may change.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::json;

use crate::agent::Agent;
use crate::client::Call;
use crate::control_group::MemoryLimit;
use crate::exposition::Exposition;
use crate::http::{self, Connection, Endpoint};
use crate::server::LlamaServer;
use crate::text;
use crate::traffic::prompt;

const CLIENTS: usize = 8;
/// How long an agent works each time, once it observes the server.
const STAY: Duration = Duration::from_millis(300);
/// Every map that grows with the work.
const MAPS: [&str; 6] = ["sequences", "contexts", "connections", "threads", "tasks", "calls"];

/// The request of a client: always the same, and by temperature and cache with one answer only, if the server has one slot:
/// what else is in a batch would change the last bits of the logits.
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

/// What a server answers while nobody watches.
#[derive(Debug)]
pub struct Load<'a> {
    server: &'a LlamaServer,
    expected: Vec<String>,
}

impl<'a> Load<'a> {
    /// Asks the server, which should have one slot, everything once.
    pub fn new(server: &'a LlamaServer) -> Result<Self> {
        let endpoint = server.endpoint();
        let expected = (0..CLIENTS).map(|client| answer(&endpoint, client, &mut None));
        Ok(Self { server, expected: expected.collect::<Result<_>>()? })
    }

    /// Lets all clients ask while something is done; fails if an answer is not the one that was expected. Returns how many
    /// answers there were, and what was done.
    pub fn during<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(usize, T)> {
        let done = &AtomicBool::new(false);
        let (answers, outcome) = thread::scope(|scope| {
            let clients = scope.spawn(|| self.ask(done));
            let outcome = work();
            done.store(true, Ordering::Relaxed);
            (clients.join().map_err(|_panic| anyhow::anyhow!("the load panicked")), outcome)
        });
        let outcome = outcome?;
        Ok((answers??, outcome))
    }

    fn ask(&self, done: &AtomicBool) -> Result<usize> {
        let endpoint = &self.server.endpoint();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    scope.spawn(move || {
                        let (mut connection, mut count) = (None, 0);
                        while !done.load(Ordering::Relaxed) {
                            let text = answer(endpoint, client, &mut connection)?;
                            let expected = &self.expected[client];
                            ensure!(text == *expected, "client {client}: {text:?} is not {expected:?}");
                            count += 1;
                        }
                        Ok(count)
                    })
                })
                .collect();
            let join = |it: thread::ScopedJoinHandle<'_, Result<usize>>| {
                it.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))?
            };
            clients.into_iter().map(join).sum()
        })
    }

    /// An agent that observes the server and nothing else on the host.
    pub fn observing(&self) -> Result<Agent> {
        let agent = Agent::start(&["--pid", &self.server.pid().to_string()])?;
        agent.wait_observed(self.server)?;
        Ok(agent)
    }

    /// The agent in the middle of its work, so many times; `leave` ends it. Each time its probes are there, and gone after.
    pub fn come_and_go(&self, times: usize, leave: impl Fn(Agent) -> Result<()>) -> Result<()> {
        for _ in 0..times {
            let agent = self.observing()?;
            thread::sleep(STAY);
            let changed = text::changed(self.server.pid())?;
            ensure!(!changed.is_empty(), "an attached probe shows in the text");
            leave(agent)?;
            text::wait_restored(self.server.pid())?;
        }
        Ok(())
    }

    /// An agent that saw the load from its begin to its end has nothing left of it, and lost nothing. Returns the answers.
    pub fn nothing_stays(&self) -> Result<usize> {
        let agent = self.observing()?;
        // The slot and the context stay as long as the server does; the first request shows them.
        answer(&self.server.endpoint(), 0, &mut None)?;
        self.server.wait_idle()?;
        let before = agent.wait_metrics("the connection of the first request to be gone", |metrics| {
            let entries = occupancy(metrics);
            (entries[2].1 == 0.0).then_some(entries)
        })?;
        let (answers, ()) = self.during(|| {
            thread::sleep(Duration::from_secs(3));
            Ok(())
        })?;
        self.server.wait_idle()?;
        let same = |metrics: &Exposition| (occupancy(metrics) == before).then_some(());
        let settled = agent.wait_metrics("as many entries as before the load", same);
        let after = occupancy(&agent.scrape()?);
        settled.with_context(|| format!("{after:?}, before the load {before:?}"))?;
        let metrics = agent.scrape()?;
        let lost: Vec<_> = metrics.select("llamaprobe_lost_total", &[]).filter(|it| it.value > 0.0).collect();
        ensure!(lost.is_empty(), "lost: {lost:?}");
        agent.stop()?;
        text::wait_restored(self.server.pid())?;
        Ok(answers)
    }

    /// The agent stands still for some time, and goes on. Returns how many events the kernel could not hand over meanwhile.
    pub fn stopped(&self, time: Duration) -> Result<f64> {
        let agent = self.observing()?;
        agent.signal(Signal::STOP)?;
        thread::sleep(time);
        agent.signal(Signal::CONT)?;
        counts_on(&agent)?;
        let lost = agent.scrape()?.sum("llamaprobe_lost_total", &[]);
        agent.stop()?;
        text::wait_restored(self.server.pid())?;
        Ok(lost)
    }

    /// The agent has so much memory, bytes, what its maps take in the kernel included, for some time. Returns how it fared;
    /// `None` where such a limit cannot be set.
    pub fn confined(&self, bytes: u64, time: Duration) -> Result<Option<String>> {
        let Some(group) = MemoryLimit::new(bytes)? else { return Ok(None) };
        let pid = self.server.pid().to_string();
        let fared = match Agent::start_through(&group.entrance(), &["--pid", &pid]) {
            Ok(mut agent) => {
                thread::sleep(time);
                let peak = group.peak()? as f64 / f64::from(1 << 20);
                match agent.ended() {
                    Some(status) => format!("it ended with {status}"),
                    None => {
                        agent.stop()?;
                        format!("it lived, and took {peak:.1} MiB at most")
                    }
                }
            }
            // It may not even come to its first line; the server must not mind.
            Err(_) => {
                thread::sleep(time);
                "it did not start".to_owned()
            }
        };
        text::wait_restored(self.server.pid())?;
        Ok(Some(fared))
    }

    /// So many connections to the server, of clients that ask for its health, say nothing, or break off.
    pub fn connections(&self, count: usize) -> Result<()> {
        let agent = self.observing()?;
        connect(&self.server.endpoint(), "/health", count)?;
        agent.wait_metrics("the connections to be gone", |it| {
            (it.sum("llamaprobe_map_entries", &[("map", "connections")]) <= CLIENTS as f64).then_some(())
        })?;
        let lost = agent.scrape()?.sum("llamaprobe_lost_total", &[]);
        ensure!(lost == 0.0, "{lost} events were lost");
        agent.stop()
    }

    /// So many connections to the agent, of the same clients. It has to answer beside them, and observe.
    pub fn connections_to_the_agent(&self, count: usize) -> Result<()> {
        let agent = self.observing()?;
        connect(&agent.address().into(), "/healthz", count)?;
        counts_on(&agent)?;
        agent.stop()
    }
}

/// Waits until an agent has counted more than it has so far.
fn counts_on(agent: &Agent) -> Result<()> {
    let generated = |it: &Exposition| it.sum("llm_tokens_total", &[("type", "generated")]);
    let then = generated(&agent.scrape()?);
    agent.wait_metrics("it to count on", |it| (generated(it) > then).then_some(()))
}

fn occupancy(metrics: &Exposition) -> [(&'static str, f64); 6] {
    MAPS.map(|map| (map, metrics.sum("llamaprobe_map_entries", &[("map", map)])))
}

/// Opens connections, of which one in eight says nothing, and one breaks off in the middle of a head.
fn connect(endpoint: &Endpoint, path: &str, count: usize) -> Result<()> {
    let Endpoint::Tcp(address) = endpoint else { anyhow::bail!("{endpoint} is not reached by TCP") };
    for number in 0..count {
        match number % 8 {
            6 => drop(TcpStream::connect(address)?),
            7 => drop(TcpStream::connect(address)?.write_all(b"GET /hea")),
            _ => {
                // Where all seats are taken, or the other end is slow: that is not what is tried here.
                let _ = http::get(endpoint.clone(), path);
            }
        }
    }
    Ok(())
}
