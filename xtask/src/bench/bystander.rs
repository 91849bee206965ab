//! What a process pays that is none of the agent's business: its system calls, with the agent and without.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::server::LlamaServer;
use serde_json::Value;

use super::table::Table;
use super::{Size, median};

/// Times each call once a line that it reads, and answers with nanoseconds; of several rounds the fastest.
const CALLS: &str = r"
import json, mmap, os, socket, sys, time
a, b = socket.socketpair()
b.send(b'x')
calls = {
    'getppid (no hook)': (os.getppid, 50000),
    'recvfrom': (lambda: a.recv(1, socket.MSG_PEEK), 30000),
    'sendto': (lambda: a.send(b''), 30000),
    'dup and close': (lambda: os.close(os.dup(0)), 20000),
    'mmap and munmap': (lambda: mmap.mmap(-1, 4096).close(), 10000),
    'posix_spawn and wait': (lambda: os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0), 20),
}
def fastest(call, times):
    best = float('inf')
    for _ in range(7):
        begun = time.perf_counter_ns()
        for _ in range(times):
            call()
        best = min(best, (time.perf_counter_ns() - begun) / times)
    return best
for line in sys.stdin:
    print(json.dumps({name: fastest(*call) for name, call in calls.items()}), flush=True)
";

/// Pairs of runs, the agent in one of each, in an order that alternates.
pub fn measure(assets: &Assets, size: &Size) -> Result<Table> {
    let server = LlamaServer::start(Build::Process, &assets.fast(), &["-np", "1", "-c", "4096", "-t", "1"])?;
    let mut command = tied(assets.python());
    command.args(["-c", CALLS]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = Process::start("bystander", &mut command)?;
    let mut stdin = process.child().stdin.take().context("no standard input")?;
    let mut lines = BufReader::new(process.child().stdout.take().context("no standard output")?).lines();
    let mut time = || -> Result<Value> {
        writeln!(stdin)?;
        Ok(serde_json::from_str(&lines.next().context("the bystander has ended")??)?)
    };
    let mut pairs = Vec::new();
    for number in 0..size.pairs.max(1) {
        eprintln!("   other processes, pair {} of {}", number + 1, size.pairs.max(1));
        let first = if number % 2 == 1 { Some(time()?) } else { None };
        let agent = Agent::observing(&server)?;
        let with = time()?;
        agent.stop()?;
        let without = first.map_or_else(&mut time, Ok)?;
        pairs.push((with, without));
    }
    let mut table = Table::new(
        "others",
        &["call of another process", "without the agent, ns", "with it, ns", "more, ns"],
    );
    let names = pairs[0].0.as_object().context("the bystander says no object")?.keys();
    for name in names {
        let of = |value: &Value| value[name].as_f64().unwrap_or(f64::NAN);
        let without = median(pairs.iter().map(|(_, without)| of(without)).collect());
        let with = median(pairs.iter().map(|(with, _)| of(with)).collect());
        let more = median(pairs.iter().map(|(with, without)| of(with) - of(without)).collect());
        table.row(vec![name.clone(), format!("{without:.0}"), format!("{with:.0}"), format!("{more:+.0}")]);
    }
    Ok(table)
}
