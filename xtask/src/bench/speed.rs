//! The server's own speed beside each way to look at it, in the worst case: one stream on the fastest model, so that tokens
//! come as densely as they can.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::http;
use llamaprobe_tests::process::{Log, Process, tied};
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::traffic::{Request, run_checked};
use llamaprobe_tests::wait_for;

use rustix::process::Signal;

use super::programs::settle;
use super::table::Table;
use super::{Size, median};

/// How long bpftrace may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// The histograms that one would write by hand with bpftrace: decode calls, the gaps between tokens, requests.
const SCRIPT: &str = r"
uprobe:LIBRARY:_ZN13llama_context6decodeERK15llama_batch_ext /pid == PID/ { @entered[tid] = nsecs; }
uprobe:COMMON:_Z21common_sampler_sampleP14common_samplerP13llama_contextib /pid == PID && @entered[tid]/ {
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
    fn start(self, server: &LlamaServer) -> Result<Watching> {
        match self {
            Self::Agent => {
                let agent = Agent::observing(server)?;
                settle(&agent, server)?;
                Ok(Watching::Agent(agent))
            }
            Self::Script => Script::start(server).map(Watching::Script),
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
    log: Log,
}

impl Script {
    fn start(server: &LlamaServer) -> Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", server.pid()))?;
        let file = |name: &str| {
            let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
            paths.find(|path| path.contains(name)).with_context(|| format!("the server maps no {name}"))
        };
        let text = SCRIPT
            .replace("LIBRARY", file("/libllama.so")?)
            .replace("COMMON", file("/libllama-common.so")?)
            .replace("SERVER", file("/libllama-server-impl.so")?)
            .replace("PID", &server.pid().to_string());
        let log = Log::new("bpftrace");
        let output = log.create()?;
        // It wants to see tracefs, which is not mounted everywhere.
        let mut command = tied("/usr/bin/unshare");
        command.args(["--mount", "sh", "-ec"]);
        command.args(["mount -t tracefs none /sys/kernel/tracing; exec bpftrace -e \"$1\"", "sh"]);
        command.arg(format!("BEGIN {{ printf(\"begun\\n\"); }}\n{text}"));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = Process::start("bpftrace", &mut command)?;
        let script = Self { process, log };
        let begins =
            wait_for("bpftrace to begin", PATIENCE, || script.log.text().contains("begun").then_some(()));
        begins.with_context(|| format!("bpftrace says:\n{}", script.log.tail()))?;
        Ok(script)
    }

    /// Ends it; it must have seen what it is compared for.
    fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::INT)?;
        wait_for("the end of bpftrace", PATIENCE, || self.process.ended())?;
        let text = self.log.text();
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
}

/// Measures each way in pairs of runs with it and without, in an order that alternates.
pub fn measure(assets: &Assets, size: &Size) -> Result<Table> {
    let arguments = ["-np", "1", "-c", "16384", "-t", "1", "-fa", "off"];
    let server = LlamaServer::start(Build::Process, &assets.fast(), &arguments)?;
    let head = ["beside the server", "pairs", "tokens/s without", "tokens/s with", "median of the ratios"];
    let mut table = Table::new("speed", &head);
    for watcher in Watcher::ALL {
        if matches!(watcher, Watcher::Script) && Command::new("bpftrace").arg("--version").output().is_err() {
            let unknown = ["-"; 3].map(str::to_owned);
            let name = format!("{}: not measured, bpftrace is not installed", watcher.name());
            table.row([&[name, "0".to_owned()], &unknown[..]].concat());
            continue;
        }
        let measure = |number: usize| {
            eprintln!("   speed, {}, pair {} of {}", watcher.name(), number + 1, size.pairs);
            pair(watcher, &server, number, size.tokens)
        };
        let pairs = (0..size.pairs).map(measure).collect::<Result<Vec<_>>>()?;
        let of = |figure: fn(&Pair) -> f64| median(pairs.iter().map(figure).collect());
        table.row(vec![
            watcher.name().to_owned(),
            size.pairs.to_string(),
            format!("{:.0}", of(|it| it.without)),
            format!("{:.0}", of(|it| it.with)),
            format!("{:.4}", of(|it| it.with / it.without)),
        ]);
    }
    Ok(table)
}

fn pair(watcher: Watcher, server: &LlamaServer, number: usize, tokens: u32) -> Result<Pair> {
    let with = || {
        let watching = watcher.start(server)?;
        let speed = speed(server, tokens)?;
        watching.stop()?;
        anyhow::Ok(speed)
    };
    if number.is_multiple_of(2) {
        Ok(Pair { with: with()?, without: speed(server, tokens)? })
    } else {
        let without = speed(server, tokens)?;
        Ok(Pair { without, with: with()? })
    }
}

fn speed(server: &LlamaServer, tokens: u32) -> Result<f64> {
    let outcomes = run_checked(server.address(), &[Request::exact(16, tokens, 1)], 1)?;
    let timings = outcomes[0].timings.context("the answer has no timings")?;
    Ok((timings.predicted_n as f64 - 1.0) / timings.predicted_ms * 1e3)
}
