//! The server's own speed beside each way to look at it, in the worst case: one stream on the fastest model, so that tokens
//! come as densely as they can.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::http;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::traffic::{Request, run_checked};

use super::programs::settle;
use super::table::Table;
use super::usage::used;
use super::{Size, median};

/// The histograms that one would write by hand with bpftrace: decode calls, the gaps between tokens, requests.
const SCRIPT: &str = r"
uprobe:LIBRARY:llama_decode /pid == PID/ { @entered[tid] = nsecs; }
uprobe:LIBRARY:llama_sampler_sample /pid == PID && @entered[tid]/ {
  @decode_us = hist((nsecs - @entered[tid]) / 1000);
  delete(@entered[tid]);
}
uprobe:SERVER:_ZN19server_context_impl13process_tokenER23completion_token_outputR11server_slot /pid == PID/ {
  if (@token[arg2]) { @inter_token_us = hist((nsecs - @token[arg2]) / 1000); }
  @token[arg2] = nsecs;
}
tracepoint:syscalls:sys_enter_recvfrom /pid == PID/ { @reads[tid] = args->fd; }
tracepoint:syscalls:sys_exit_recvfrom /pid == PID && @reads[tid]/ {
  if (args->ret > 0 && !@request[@reads[tid]]) { @request[@reads[tid]] = nsecs; }
  delete(@reads[tid]);
}
tracepoint:syscalls:sys_enter_sendto /pid == PID && @request[args->fd]/ {
  if (!@sent[args->fd]) { @first_write_us = hist((nsecs - @request[args->fd]) / 1000); }
  @sent[args->fd] = 1;
}
tracepoint:syscalls:sys_enter_close /pid == PID && @request[args->fd]/ {
  @request_us = hist((nsecs - @request[args->fd]) / 1000);
  delete(@request[args->fd]);
  delete(@sent[args->fd]);
}
";

/// A way to look at a server.
#[derive(Clone, Copy)]
enum Watcher {
    /// The agent.
    Agent,
    /// A script of bpftrace.
    Script,
    /// The server's own `/metrics`, scraped each second.
    OwnMetrics,
}

impl Watcher {
    const ALL: [Self; 3] = [Self::Agent, Self::Script, Self::OwnMetrics];

    fn name(self) -> &'static str {
        match self {
            Self::Agent => "llamaprobe",
            Self::Script => "a bpftrace script with histograms of decode calls, tokens and requests",
            Self::OwnMetrics => "the server's own `/metrics`, scraped each second",
        }
    }

    /// Looks at a server until what is returned is dropped.
    fn start(self, server: &LlamaServer, assets: &Assets) -> Result<Watching> {
        match self {
            Self::Agent => {
                let agent = Agent::observing(server)?;
                settle(&agent, server)?;
                Ok(Watching::Agent(agent))
            }
            Self::Script => Script::start(server, assets).map(Watching::Script),
            Self::OwnMetrics => Ok(Watching::OwnMetrics(Scraper::start(server.address()))),
        }
    }
}

enum Watching {
    Agent(Agent),
    Script(Script),
    OwnMetrics(Scraper),
}

impl Watching {
    /// The process whose use of the processor counts, with its children; of one's own scrapes nothing is counted.
    fn pid(&self) -> Option<u32> {
        match self {
            Self::Agent(agent) => Some(agent.pid()),
            Self::Script(script) => Some(script.process.pid()),
            Self::OwnMetrics(_) => None,
        }
    }

    fn stop(self) -> Result<()> {
        match self {
            Self::Agent(agent) => agent.stop().map(drop),
            Self::Script(script) => script.stop(),
            Self::OwnMetrics(scraper) => scraper.stop(),
        }
    }
}

struct Script {
    process: Process,
    log: Scratch,
}

impl Script {
    fn start(server: &LlamaServer, assets: &Assets) -> Result<Self> {
        let program = assets.llama_server(Build::Process);
        let folder = program.parent().context("the server is in no folder")?;
        let text = SCRIPT
            .replace("LIBRARY", &folder.join("libllama.so.0").display().to_string())
            .replace("SERVER", &program.display().to_string())
            .replace("PID", &server.pid().to_string());
        let log = Scratch::new()?;
        let output = std::fs::File::create(log.path().join("output"))?;
        let mut command = tied("/usr/bin/bpftrace");
        command.args(["-e", &format!("BEGIN {{ printf(\"begun\\n\"); }}\n{text}")]);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = Process::start("bpftrace", &mut command)?;
        let script = Self { process, log };
        llamaprobe_tests::wait_for("bpftrace to begin", Duration::from_secs(60), || {
            script.said().is_ok_and(|text| text.contains("begun")).then_some(())
        })?;
        Ok(script)
    }

    fn said(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.log.path().join("output"))?)
    }

    /// Ends it; it must have seen what it is compared for.
    fn stop(mut self) -> Result<()> {
        self.process.signal(rustix::process::Signal::INT)?;
        llamaprobe_tests::wait_for("the end of bpftrace", Duration::from_secs(60), || self.process.ended())?;
        let text = self.said()?;
        for histogram in ["@decode_us", "@inter_token_us", "@first_write_us"] {
            ensure!(text.contains(histogram), "the script has no {histogram}:\n{text}");
        }
        Ok(())
    }
}

struct Scraper {
    ends: Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Scraper {
    fn start(address: SocketAddr) -> Self {
        let (ends, ended) = channel::<()>();
        let scrape = move || loop {
            let reply = http::get(address, "/metrics")?;
            ensure!(reply.status == 200, "the server's /metrics answers {}", reply.status);
            if ended.recv_timeout(Duration::from_secs(1)).is_ok() {
                return Ok(());
            }
        };
        Self { ends, thread: thread::spawn(scrape) }
    }

    fn stop(self) -> Result<()> {
        self.ends.send(()).ok();
        self.thread.join().map_err(|_| anyhow::anyhow!("the scraper panicked"))?
    }
}

/// What a pair showed.
struct Pair {
    with: f64,
    without: f64,
    /// Share of a processor that the watcher used.
    used: Option<f64>,
}

/// Measures each way in pairs of runs with it and without, in an order that alternates.
pub fn measure(assets: &Assets, size: &Size) -> Result<Table> {
    let arguments = ["-np", "1", "-c", "16384", "-t", "1", "-fa", "off"];
    let server = LlamaServer::start(Build::Process, &assets.fast(), &arguments)?;
    let head = [
        "beside the server",
        "pairs",
        "tokens/s without",
        "tokens/s with",
        "median of the ratios",
        "processor",
    ];
    let mut table = Table::new("speed", &head);
    for watcher in Watcher::ALL {
        if matches!(watcher, Watcher::Script) && Command::new("bpftrace").arg("--version").output().is_err() {
            let unknown = ["-"; 4].map(str::to_owned);
            let name = format!("{}: not measured, bpftrace is not installed", watcher.name());
            table.row([&[name, "0".to_owned()], &unknown[..]].concat());
            continue;
        }
        let measure = |number: usize| {
            eprintln!("   speed, {}, pair {} of {}", watcher.name(), number + 1, size.pairs);
            pair(watcher, &server, assets, number, size.tokens)
        };
        let pairs = (0..size.pairs).map(measure).collect::<Result<Vec<_>>>()?;
        let of = |figure: fn(&Pair) -> f64| median(pairs.iter().map(figure).collect());
        let used = pairs.iter().map(|pair| pair.used).collect::<Option<Vec<_>>>();
        table.row(vec![
            watcher.name().to_owned(),
            size.pairs.to_string(),
            format!("{:.0}", of(|it| it.without)),
            format!("{:.0}", of(|it| it.with)),
            format!("{:.4}", of(|it| it.with / it.without)),
            used.map_or_else(|| "-".to_owned(), |used| format!("{:.1} %", median(used) * 100.0)),
        ]);
    }
    Ok(table)
}

fn pair(watcher: Watcher, server: &LlamaServer, assets: &Assets, number: usize, tokens: u32) -> Result<Pair> {
    let with = || {
        let watching = watcher.start(server, assets)?;
        let pid = watching.pid();
        let (begun, before) = (Instant::now(), pid.map(used).transpose()?);
        let speed = speed(server, tokens)?;
        let busy = pid.map(used).transpose()?.zip(before).map(|(after, before)| after.saturating_sub(before));
        let share = busy.map(|busy| busy.as_secs_f64() / begun.elapsed().as_secs_f64());
        watching.stop()?;
        anyhow::Ok((speed, share))
    };
    if number.is_multiple_of(2) {
        let (with, used) = with()?;
        Ok(Pair { with, without: speed(server, tokens)?, used })
    } else {
        let without = speed(server, tokens)?;
        let (with, used) = with()?;
        Ok(Pair { with, without, used })
    }
}

fn speed(server: &LlamaServer, tokens: u32) -> Result<f64> {
    let outcomes = run_checked(server.address(), &[Request::exact(16, tokens, 1)], 1)?;
    let timings = outcomes[0].timings.context("the answer has no timings")?;
    Ok((timings.predicted_n as f64 - 1.0) / timings.predicted_ms * 1e3)
}
