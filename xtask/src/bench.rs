//! What observing costs: per hit, per token and per request, other processes, in CPU time and memory, and in the server's
//! own speed.

mod bystander;
mod own;
mod programs;
mod table;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::traffic::{Request, run_checked};

use self::table::Table;
use crate::root;
use crate::setup::Purpose;

/// The tables, by the names of their places in the page.
#[cfg(test)]
const TABLES: [&str; 6] = ["programs", "program", "others", "agent", "times", "speed"];

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub struct Options {
    /// How often to measure with and without the agent
    #[arg(long, default_value_t = 15)]
    pairs: usize,
    /// Measure less of everything, for a try
    #[arg(long)]
    quick: bool,
    /// Print one JSON document on standard output instead of tables
    #[arg(long)]
    json: bool,
    /// Write the tables into docs/performance.md, too
    #[arg(long)]
    write: bool,
    /// Set-up and build are done
    #[arg(long, hide = true)]
    prepared: bool,
}

/// How much is measured.
struct Size {
    pairs: usize,
    /// Tokens of a long request.
    tokens: u32,
    /// Short requests.
    requests: usize,
    /// Scrapes, timed, and at 20 a second.
    scrapes: u32,
    /// How long nothing is asked for.
    idle: Duration,
}

impl Size {
    fn of(options: &Options) -> Self {
        let Options { pairs, quick, .. } = *options;
        if quick {
            Self { pairs: pairs.min(2), tokens: 800, requests: 40, scrapes: 40, idle: Duration::from_secs(2) }
        } else {
            Self { pairs, tokens: 4000, requests: 400, scrapes: 400, idle: Duration::from_secs(30) }
        }
    }
}

/// Measures, and prints.
pub fn run(options: &Options) -> Result<()> {
    if !options.prepared {
        let pairs = options.pairs.to_string();
        let flags = [("--quick", options.quick), ("--json", options.json), ("--write", options.write)];
        let flags = flags.into_iter().filter_map(|(flag, is_set)| is_set.then_some(flag));
        let arguments: Vec<_> = ["bench", "--prepared", "--pairs", &pairs].into_iter().chain(flags).collect();
        return root::run_prepared(Purpose::Demo, "release", &arguments);
    }
    let (assets, size) = (Assets::locate()?, Size::of(options));
    let mut tables = Vec::new();
    tables.extend(programs::measure(&assets, &size)?);
    tables.push(bystander::measure(&assets, &size)?);
    tables.extend(own::measure(&assets, &size)?);
    tables.push(speeds(&assets, &size)?);
    table::print(&tables, options.json)?;
    if options.write { table::write(&tables) } else { Ok(()) }
}

/// The server's own speed, in the worst case: one stream on the fastest model, so that tokens come as densely as they can.
fn speeds(assets: &Assets, size: &Size) -> Result<Table> {
    let arguments = ["-np", "1", "-c", "16384", "-t", "1", "-fa", "off"];
    let server = LlamaServer::start(Build::Process, &assets.fast(), &arguments)?;
    let measure = |number: usize| {
        eprintln!("   speed, pair {} of {}", number + 1, size.pairs);
        pair(&server, number, size.tokens)
    };
    let speeds = (0..size.pairs).map(measure).collect::<Result<Vec<_>>>()?;
    let of = |figure: fn(&(f64, f64)) -> f64| median(speeds.iter().map(figure).collect());
    let mut table =
        Table::new("speed", &["pairs", "tokens/s without", "tokens/s with", "median of the ratios"]);
    let cells = [of(|it| it.1), of(|it| it.0)].map(|speed| format!("{speed:.0}"));
    let ratio = format!("{:.4}", of(|(with, without)| with / without));
    table.row([&[size.pairs.to_string()], &cells[..], &[ratio]].concat());
    Ok(table)
}

/// Tokens per second with the agent and without, in an order that alternates.
fn pair(server: &LlamaServer, number: usize, tokens: u32) -> Result<(f64, f64)> {
    let with_agent = || {
        let agent = Agent::observing(server)?;
        let speed = speed(server, tokens)?;
        agent.stop()?;
        anyhow::Ok(speed)
    };
    if number.is_multiple_of(2) {
        let with = with_agent()?;
        Ok((with, speed(server, tokens)?))
    } else {
        let without = speed(server, tokens)?;
        Ok((with_agent()?, without))
    }
}

fn speed(server: &LlamaServer, tokens: u32) -> Result<f64> {
    let outcomes = run_checked(server.address(), &[Request::exact(16, tokens, 1)], 1)?;
    let timings = outcomes[0].timings.context("the answer has no timings")?;
    Ok((timings.predicted_n as f64 - 1.0) / timings.predicted_ms * 1e3)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[upper],
        _ => f64::midpoint(values[upper - 1], values[upper]),
    }
}
