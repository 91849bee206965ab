//! What the kernel programs take: the kernel's own statistics of them, per token and per request.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::traffic::{Request, run_checked};
use llamaprobe_tests::wait_for;

use super::Size;
use super::table::Table;

/// Tokens of the prompts by whose length it is told what one token of a prompt takes.
const PROMPT: usize = 2000;
/// Programs shown for each load; the others are one row.
const SHOWN: usize = 12;

/// Time and runs of each program.
type Ran = BTreeMap<String, (Duration, u64)>;

/// What a load came to, for one token or request.
struct Cost {
    load: String,
    ran: BTreeMap<String, (f64, f64)>,
    traps: f64,
    trap_ns: f64,
}

impl Cost {
    fn of(&self, wanted: impl Fn(&str) -> bool) -> f64 {
        self.ran.iter().filter(|(name, _)| wanted(name)).map(|(_, (ns, _))| ns).sum()
    }
}

/// The programs that the agent has loaded: those of which its keeper holds a descriptor.
fn read(agent: &Agent) -> Result<Ran> {
    let directory = format!("/proc/{}/fdinfo", agent.keeper()?);
    let mut own = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))? {
        // One that was closed meanwhile is no program's.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        own.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    let mut ran = Ran::new();
    for program in loaded_programs() {
        let program = program?;
        if own.contains(&program.id()) {
            let name = program.name_as_str().unwrap_or_default().to_owned();
            ran.insert(name, (program.run_time(), program.run_count()));
        }
    }
    Ok(ran)
}

/// Measures every load: what one of its units costs, and how that is made up.
pub fn measure(assets: &Assets, size: &Size) -> Result<[Table; 2]> {
    let _kept = enable_stats(Stats::RunTime).context("the kernel keeps no run time of programs")?;
    let mut costs = Vec::new();
    for slots in [1, 4, 16] {
        eprintln!("   programs, {slots} slots");
        let (parallel, context) = (slots.to_string(), (slots * 5000).to_string());
        let arguments = ["-np", &parallel, "-c", &context, "-t", "1", "-fa", "off"];
        let server = LlamaServer::start(Build::Process, &assets.fast(), &arguments)?;
        let agent = Agent::observing(&server)?;
        settle(&agent, &server)?;
        for stream in [false, true] {
            let how = if stream { "streamed" } else { "plain" };
            let tokens = size.tokens / slots as u32;
            let long: Vec<_> = (0..slots).map(|_| Request::completion("a", tokens, stream)).collect();
            let units = f64::from(tokens) * slots as f64;
            costs.push(cost(&agent, &server, &long, slots, units, format!("token, {how}, {slots} slots"))?);
            let few = if stream { 8 } else { 1 };
            let short: Vec<_> = (0..size.requests).map(|_| Request::chat("hello", few, stream)).collect();
            let load = format!("request of {few} tokens, {how}, {slots} slots");
            costs.push(cost(&agent, &server, &short, slots, size.requests as f64, load)?);
        }
        if slots == 1 {
            let prompts: Vec<_> = (0..5).map(|seed| Request::exact(PROMPT, 1, seed)).collect();
            let units = (prompts.len() * PROMPT) as f64;
            costs.push(cost(&agent, &server, &prompts, 1, units, "token of a prompt".to_owned())?);
        }
        agent.stop()?;
        costs.push(recorded(&server, slots, size)?);
    }
    Ok([summary(&costs), detail(&costs)])
}

/// What a token takes where a recorder is told each decode call.
fn recorded(server: &LlamaServer, slots: usize, size: &Size) -> Result<Cost> {
    let directory = Scratch::new()?;
    let (pid, path) = (server.pid().to_string(), directory.path().join("recordings").display().to_string());
    let agent = Agent::start(&["--pid", &pid, "--record-dir", &path])?;
    agent.wait_observed(server)?;
    settle(&agent, server)?;
    let tokens = size.tokens / slots as u32;
    let long: Vec<_> = (0..slots).map(|_| Request::completion("a", tokens, false)).collect();
    let units = f64::from(tokens) * slots as f64;
    let cost = cost(&agent, server, &long, slots, units, format!("token, plain, recorded, {slots} slots"))?;
    agent.stop()?;
    Ok(cost)
}

/// Tokens of a request by which that is told.
const SETTLED: u32 = 100;

/// Waits until the agent has taken away what it needs only until it knows that it is a server: it takes the kernel seconds.
pub fn settle(agent: &Agent, server: &LlamaServer) -> Result<()> {
    wait_for("the probes of programs that are no servers to go", Duration::from_secs(60), || {
        let moment = Moment::now(agent, server).ok()?;
        run_checked(server.address(), &[Request::completion("a", SETTLED, false)], 1).ok()?;
        let hits = moment.compare(agent, server).ok()?.own_delta("llamaprobe_probe_hits_total");
        // A token's own, and some for the request: with many slots the caches of several are saved for it.
        (hits < 4.0 * f64::from(SETTLED)).then_some(())
    })
}

fn cost(
    agent: &Agent,
    server: &LlamaServer,
    requests: &[Request],
    threads: usize,
    units: f64,
    load: String,
) -> Result<Cost> {
    let (moment, before) = (Moment::now(agent, server)?, read(agent)?);
    run_checked(server.address(), requests, threads)?;
    let after = read(agent)?;
    let traps = moment.compare(agent, server)?.own_delta("llamaprobe_probe_hits_total") / units;
    let each = |(name, (time, runs)): (String, (Duration, u64))| {
        let (time_before, runs_before) = before.get(&name).copied().unwrap_or_default();
        let ns = time.saturating_sub(time_before).as_nanos() as f64;
        (name, (ns / units, (runs - runs_before) as f64 / units))
    };
    let ran = after.into_iter().map(each).collect();
    let metrics = agent.scrape()?;
    let price = metrics.select("llamaprobe_probe_price_seconds", &[("stepping", "emulated")]).next();
    let trap_ns = price.context("the agent does not say the price of a probe")?.value * 1e9;
    Ok(Cost { load, ran, traps, trap_ns })
}

fn summary(costs: &[Cost]) -> Table {
    let head = [
        "of one",
        "programs, us",
        "of these at switches, us",
        "at others' calls, us",
        "hits of probes",
        "their traps, us",
    ];
    let mut table = Table::new("programs", &head);
    let us = |ns: f64| format!("{:.2}", ns / 1e3);
    for cost in costs {
        let others = cost.of(|name| ["lp_close", "lp_mmap", "lp_exec", "lp_exit"].contains(&name));
        table.row(vec![
            cost.load.clone(),
            us(cost.of(|_| true)),
            us(cost.of(|name| name == "lp_switch")),
            us(others),
            format!("{:.2}", cost.traps),
            us(cost.traps * cost.trap_ns),
        ]);
    }
    table
}

/// The dearest programs of the loads of one slot.
fn detail(costs: &[Cost]) -> Table {
    let one: Vec<_> = costs
        .iter()
        .filter(|cost| !cost.load.ends_with("4 slots") && !cost.load.ends_with("16 slots"))
        .collect();
    let head: Vec<_> = one.iter().map(|cost| cost.load.trim_end_matches(", 1 slots")).collect();
    let mut table = Table::new("program", &[&["ns (runs) of one"][..], &head].concat());
    let dearest =
        |name: &str| one.iter().map(|cost| cost.ran.get(name).map_or(0.0, |it| it.0)).fold(0.0, f64::max);
    let mut names: Vec<_> = one.iter().flat_map(|cost| cost.ran.keys().cloned()).collect();
    names.sort();
    names.dedup();
    names.sort_by(|a, b| dearest(b).total_cmp(&dearest(a)));
    for name in names.into_iter().take(SHOWN) {
        let cell = |cost: &&Cost| {
            let (ns, runs) = cost.ran.get(&name).copied().unwrap_or_default();
            format!("{ns:.0} ({runs:.2})")
        };
        table.row([vec![format!("`{name}`")], one.iter().map(cell).collect()].concat());
    }
    table
}
