//! What the agent itself uses: processor and memory under loads, a scrape, its start and its end, the recorder.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::http;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::traffic::{Request, run_checked};

use super::table::Table;
use super::usage::{load, memory};
use super::{Size, median};

/// Tokens of a request that is one of ten a second: some 1,000 tokens a second, by a server that could make more.
const BURST: u32 = 100;

/// Measures all of it, with and without the recorder.
pub fn measure(assets: &Assets, size: &Size) -> Result<[Table; 2]> {
    let mut table = Table::new("agent", &["load", "a second", "processor", "of one, us", "PSS, MB"]);
    let mut times = Table::new("times", &["what", "median"]);
    let server = LlamaServer::start(Build::Process, &assets.fast(), &["-np", "4", "-c", "20000", "-t", "1"])?;
    let directory = Scratch::new()?;
    let place = directory.path().to_str().context("a path without a name")?;
    for (how, arguments) in [("", &[][..]), (", recording", &["--record-dir", place])] {
        eprintln!("   the agent's own use{how}");
        let begun = Instant::now();
        let agent = Agent::start(arguments)?;
        let ready = begun.elapsed();
        agent.wait_observed(&server)?;
        let pid = agent.pid();
        let idle = || {
            sleep(size.idle);
            Ok(())
        };
        let token = |stream| {
            let requests: Vec<_> = (0..4).map(|_| Request::completion("a", size.tokens, stream)).collect();
            run_checked(server.address(), &requests, 4).map(drop)
        };
        let bursts = || {
            let begun = Instant::now();
            for number in 1..=size.paced {
                let due = Duration::from_millis(100) * number;
                run_checked(server.address(), &[Request::completion("a", BURST, true)], 1)?;
                sleep(due.saturating_sub(begun.elapsed()));
            }
            Ok(())
        };
        let requests = || {
            let requests: Vec<_> = (0..size.requests).map(|_| Request::chat("hello", 1, false)).collect();
            run_checked(server.address(), &requests, 4).map(drop)
        };
        let tokens = f64::from(size.tokens) * 4.0;
        let scrapes = f64::from(size.scrapes);
        let scrape = || {
            for _ in 0..size.scrapes {
                http::get(agent.address(), "/metrics")?;
                sleep(Duration::from_millis(50));
            }
            Ok(())
        };
        let mut row = |name: &str, unit: &str, count: f64, (share, seconds): (f64, f64)| -> Result<()> {
            let rate = if count > 0.0 { format!("{:.0} {unit}", count / seconds) } else { "-".to_owned() };
            table.row(vec![
                format!("{name}{how}"),
                rate,
                format!("{:.2} %", share * 100.0),
                if count > 0.0 { format!("{:.1}", share * seconds / count * 1e6) } else { "-".to_owned() },
                format!("{:.1}", memory(pid, "Pss")?),
            ]);
            Ok(())
        };
        row("no requests", "", 0.0, load(pid, idle)?)?;
        let paced = f64::from(size.paced) * f64::from(BURST);
        row("a stream of 100 tokens each tenth of a second", "tokens", paced, load(pid, bursts)?)?;
        row("4 streams", "tokens", tokens, load(pid, || token(true))?)?;
        row("4 plain requests of many tokens", "tokens", tokens, load(pid, || token(false))?)?;
        row("requests of 1 token", "requests", size.requests as f64, load(pid, requests)?)?;
        row("one scrape after the other", "scrapes", scrapes, load(pid, scrape)?)?;
        let mut bytes = 0;
        let mut taken = Vec::new();
        for _ in 0..size.scrapes {
            let begun = Instant::now();
            bytes = http::get(agent.address(), "/metrics")?.body.len();
            taken.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let begun = Instant::now();
        agent.stop()?;
        let stopped = begun.elapsed();
        times.row(vec![
            format!("start until it is ready{how}"),
            format!("{:.0} ms", ready.as_secs_f64() * 1e3),
        ]);
        times.row(vec![
            format!("SIGTERM until it has ended{how}"),
            format!("{:.0} ms", stopped.as_secs_f64() * 1e3),
        ]);
        times.row(vec![format!("a scrape of {bytes} bytes{how}"), format!("{:.2} ms", median(taken))]);
    }
    Ok([table, times])
}
