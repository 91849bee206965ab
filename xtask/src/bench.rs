//! What observing costs: per hit, per token and per request, other processes, in CPU time and memory, and in the server's
//! own speed.

mod bystander;
mod own;
mod programs;
mod speed;
mod table;
mod usage;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use llamaprobe_tests::assets::Assets;

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
    /// Only these of the measurements
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<Part>,
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

/// A measurement.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What the kernel programs take
    Programs,
    /// What other processes pay
    Others,
    /// What the agent itself uses
    Agent,
    /// The server's speed, beside other ways to look at it
    Speed,
}

/// How much is measured.
struct Size {
    pairs: usize,
    /// Tokens of a long request.
    tokens: u32,
    /// Short requests.
    requests: usize,
    /// Requests that come one each tenth of a second.
    paced: u32,
    /// Scrapes, timed, and at 20 a second.
    scrapes: u32,
    /// How long nothing is asked for.
    idle: Duration,
}

impl Size {
    fn of(options: &Options) -> Self {
        let Options { pairs, quick, .. } = *options;
        if quick {
            Self {
                pairs: pairs.min(2),
                tokens: 800,
                requests: 40,
                paced: 20,
                scrapes: 40,
                idle: Duration::from_secs(2),
            }
        } else {
            Self {
                pairs,
                tokens: 4000,
                requests: 4000,
                paced: 300,
                scrapes: 400,
                idle: Duration::from_secs(30),
            }
        }
    }
}

/// Measures, and prints.
pub fn run(options: &Options) -> Result<()> {
    if !options.prepared {
        let pairs = options.pairs.to_string();
        let flags = [("--quick", options.quick), ("--json", options.json), ("--write", options.write)];
        let flags = flags.into_iter().filter_map(|(flag, is_set)| is_set.then_some(flag));
        let mut arguments: Vec<_> =
            ["bench", "--prepared", "--pairs", &pairs].into_iter().chain(flags).collect();
        let only: Vec<_> = options.only.iter().filter_map(ValueEnum::to_possible_value).collect();
        only.iter().for_each(|part| arguments.extend(["--only", part.get_name()]));
        return root::run_prepared(Purpose::Demo, "release", &arguments);
    }
    let (assets, size) = (Assets::locate()?, Size::of(options));
    let mut tables = Vec::new();
    for part in Part::value_variants() {
        if !options.only.is_empty() && !options.only.contains(part) {
            continue;
        }
        match part {
            Part::Programs => tables.extend(programs::measure(&assets, &size)?),
            Part::Others => tables.push(bystander::measure(&assets, &size)?),
            Part::Agent => tables.extend(own::measure(&assets, &size)?),
            Part::Speed => tables.push(speed::measure(&assets, &size)?),
        }
    }
    table::print(&tables, options.json)?;
    if options.write { table::write(&tables) } else { Ok(()) }
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
