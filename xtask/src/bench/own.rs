//! What the agent itself uses: processor and memory under loads, a scrape, its start and its end, the recorder.

use std::fs;
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
use super::{Size, median};

/// Time of a processor that a process has used, those of its threads included that have ended.
fn used(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(") ").context("no end of the name in stat")?;
    // In user mode and in the kernel: the 14th and the 15th, of which two stand before.
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// Kilobytes of a line of `smaps_rollup`.
fn memory(pid: u32, name: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).context("no such line of smaps_rollup")?;
    Ok(line.trim_matches([':', ' ']).trim_end_matches(" kB").trim().parse()?)
}

/// Processor time of a process while something happens, per second of it, and how long that took.
fn load(pid: u32, what: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let (begun, before) = (Instant::now(), used(pid)?);
    what()?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok((used(pid)?.saturating_sub(before).as_secs_f64() / seconds, seconds))
}

/// Measures all of it, with and without the recorder.
pub fn measure(assets: &Assets, size: &Size) -> Result<[Table; 2]> {
    let mut table = Table::new("agent", &["load", "a second", "processor", "RSS, MB", "PSS, MB"]);
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
            let mb = |name| Ok::<_, anyhow::Error>(format!("{:.1}", memory(pid, name)? / 1e3));
            let rate = if count > 0.0 { format!("{:.0} {unit}", count / seconds) } else { "-".to_owned() };
            table.row(vec![
                format!("{name}{how}"),
                rate,
                format!("{:.2} %", share * 100.0),
                mb("Rss")?,
                mb("Pss")?,
            ]);
            Ok(())
        };
        row("no requests", "", 0.0, load(pid, idle)?)?;
        row("4 streams", "tokens", tokens, load(pid, || token(true))?)?;
        row("4 plain requests of many tokens", "tokens", tokens, load(pid, || token(false))?)?;
        row("requests of 1 token", "requests", size.requests as f64, load(pid, requests)?)?;
        row("20 scrapes a second", "scrapes", scrapes, load(pid, scrape)?)?;
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
