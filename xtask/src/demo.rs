//! The demonstration: a real server, a real model, the agent, and both sides' figures next to each other.

use std::fs;
use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::{Assets, Build, workspace_root};
use llamaprobe_tests::comparison::{Comparison, Moment};
use llamaprobe_tests::http;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::traffic::{Outcome, Request, finishing, run_checked};
use serde_json::Value;

use crate::command::{build_agent, run_quietly};
use crate::root;
use crate::setup;

/// Frames of a recording that are printed, of about a second each.
const FRAMES: usize = 4;
/// Memory that the real model needs, with some to spare.
const GEMMA_KIB: u64 = 2 * 1024 * 1024;

/// Sets up, builds, and shows the agent at work. Fails if the agent counted other than the server.
pub fn run(prepared: bool) -> Result<()> {
    if !prepared {
        let installed = Assets::locate().is_ok();
        eprintln!(
            "this takes {}",
            if installed {
                "a minute if the agent is built"
            } else {
                "four minutes on two processors, most of them once"
            }
        );
        eprintln!("== set-up and build");
        // As the tasks themselves are built: what they have in common is compiled already.
        let agent = setup::for_demo(|| build_agent("debug", &[]))?;
        eprintln!("== run, as root");
        return root::run_self(&agent, &["demo", "--prepared"]);
    }
    prompt_length()?;
    let equal = parallel_requests()?;
    ensure!(equal, "the agent's counts are not the server's");
    Ok(())
}

/// Shows a recording of this demonstration: needs no rights, no server and no model.
pub fn replay() -> Result<()> {
    eprintln!("== build");
    setup::for_build()?;
    let agent = build_agent("debug", &[])?;
    let recording = workspace_root().join("tests/assets/demo.journal");
    let mut command = tied(&agent);
    command.arg("replay").arg(&recording).args(["--listen", "127.0.0.1:0", "--speed", "2"]);
    let mut process = Process::start("llamaprobe replay", command.stdout(Stdio::piped()))?;
    let mut line = String::new();
    BufReader::new(process.child().stdout.take().context("no standard output")?).read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on http://");
    let address = address.with_context(|| format!("the first line is {line:?}"))?.to_owned();
    for _ in 0..FRAMES {
        print!("{}", run_quietly(Command::new(&agent).args(["top", "--once", "--listen", &address]))?);
        println!();
    }
    println!(
        "It is served at http://{address}: try `llamaprobe top --listen {address}` or `curl http://{address}/metrics`."
    );
    println!("Ctrl-C ends it.");
    wait(&mut process)
}

/// Waits for the end of a process.
fn wait(process: &mut Process) -> Result<()> {
    let status = process.child().wait().context("cannot wait for it")?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// Requests in parallel on the real model; returns whether all counts are equal.
fn parallel_requests() -> Result<bool> {
    let assets = Assets::locate()?;
    let model = if available_memory_kib()? > GEMMA_KIB { assets.gemma() } else { assets.tiny() };
    eprintln!("== llama-server of {}, {}", Build::Process.name(), model.display());
    let server = LlamaServer::start(Build::Process, &model, &["-np", "4", "-c", "8192"])?;
    println!("listening on {}, pid {}", server.address(), server.pid());
    let agent = Agent::observing(&server)?;
    println!("the agent observes it, pid {}", agent.pid());

    let before = Moment::now(&agent, &server)?;
    println!("16 requests, plain and streamed, from 6 clients ...");
    let outcomes = run_checked(server.address(), &finishing(16), 6)?;
    let comparison = before.compare(&agent, &server)?;

    println!("\n== the server's figures and the agent's");
    print!("{comparison}");
    print_times(&comparison, &outcomes);
    print_context(&comparison, &server)?;
    let equal = comparison.differences().is_empty();
    if equal {
        show(&agent)?;
    }
    agent.stop()?;
    Ok(equal)
}

/// Shows the agent's own views of what happened; to somebody at a terminal until it is ended.
fn show(agent: &Agent) -> Result<()> {
    let address = agent.address().to_string();
    println!("\n== llamaprobe top --once --listen {address}");
    print!("{}", String::from_utf8_lossy(&agent::run(&["top", "--once", "--listen", &address])?.stdout));
    println!("\nThe same in a browser: http://{address}/");
    if std::io::stdout().is_terminal() {
        println!("Ctrl-C ends the agent and the server.");
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

fn print_times(comparison: &Comparison, outcomes: &[Outcome]) {
    let itl = comparison.histogram("llm_inter_token_latency_seconds");
    let timings: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.timings).collect();
    let spent: f64 = timings.iter().map(|it| it.predicted_ms).sum();
    let gaps: u64 = timings.iter().map(|it| it.predicted_n.saturating_sub(1)).sum();
    println!("{:<20} {:>12.3} {:>12.3}", "mean ITL in ms", itl.mean() * 1e3, spent / gaps as f64);
    println!("{:<20} {:>12.3} {:>12}", "median ITL in ms", itl.quantile(0.5) * 1e3, "not said");
    println!("{:<20} {:>12.3} {:>12}", "95 % ITL in ms", itl.quantile(0.95) * 1e3, "not said");
    println!("{:<20} {:>12} {gaps:>12}", "ITL observations", itl.count);
}

fn print_context(comparison: &Comparison, server: &LlamaServer) -> Result<()> {
    let (agent, label) = (comparison.after(), server.label());
    let of_agent = |name: &str| agent.sum(name, &[("server", &label)]);
    let document = |path: &str| http::get(server.address(), path).map(|reply| reply.documents());
    let props = document("/props")?.pop().unwrap_or_default();
    let (slots, size) = (&props["total_slots"], &props["default_generation_settings"]["n_ctx"]);
    let total = slots.as_f64().zip(size.as_f64()).map_or(f64::NAN, |(slots, size)| slots * size);
    println!("{:<20} {:>12} {total:>12}", "context size", of_agent("llm_context_size_tokens"));
    let slots = document("/slots")?.pop().unwrap_or_default();
    let used = |slot: &Value| slot["n_prompt_tokens"].as_f64().unwrap_or(0.0);
    let used: f64 = slots.as_array().into_iter().flatten().map(used).sum();
    println!("{:<20} {:>12} {used:>12}", "context used", of_agent("llm_context_used_tokens"));
    Ok(())
}

/// One stream, a short and a long prompt: the number of hits must not grow with the prompt.
fn prompt_length() -> Result<()> {
    println!("== hits of all probes by length of the prompt, 64 generated tokens, one stream");
    let assets = Assets::locate()?;
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "1", "-c", "8192"])?;
    let agent = Agent::observing(&server)?;
    println!("{:<16} {:>8} {:>14} {:>14}", "prompt tokens", "hits", "decode calls", "hits per token");
    for prompt in [100, 4000] {
        let before = Moment::now(&agent, &server)?;
        run_checked(server.address(), &[Request::exact(prompt, 64, prompt)], 1)?;
        let comparison = before.compare(&agent, &server)?;
        let hits = comparison.own_delta("llamaprobe_probe_hits_total");
        let (generated, calls) = (comparison.agent("generated tokens"), comparison.agent("decode calls"));
        println!("{prompt:<16} {hits:>8} {calls:>14} {:>14.2}", hits / generated);
    }
    println!("(a long prompt is computed in several decode calls of at most 2,048 tokens)");
    agent.stop()
}

fn available_memory_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.context("/proc/meminfo does not say how much memory is available")
}
