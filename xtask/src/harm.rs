//! What could harm the observed server, done to it and to the agent under load: every answer is compared with what the
//! server says while nobody watches.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::harm::Load;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::scratch::{Installation, Scratch};

use crate::root;
use crate::setup::Purpose;

/// One slot: what else is in a batch would change the last bits of the logits.
const SERVER: [&str; 8] = ["-np", "1", "-c", "4096", "-t", "1", "--threads-http", "32"];
/// Memory that the agent gets where it is short, bytes.
const MEMORY: u64 = 24 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only what has this in its name
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Do so much less of everything
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    divide: u32,
    /// Set-up and build are done (the task then starts itself as root)
    #[arg(long, hide = true)]
    prepared: bool,
}

/// Something that is done while requests run. It gets how often, or for how many seconds, and says what there is to say.
struct Harm {
    what: &'static str,
    extent: u32,
    unit: &'static str,
    act: fn(&Load<'_>, u32) -> Result<String>,
}

const HARMS: [Harm; 6] = [
    Harm {
        what: "the agent attaches and ends",
        extent: 100,
        unit: "times",
        act: |load, times| come_and_go(load, times, Agent::stop),
    },
    Harm {
        what: "the agent is killed",
        extent: 50,
        unit: "times",
        act: |load, times| come_and_go(load, times, Agent::kill),
    },
    Harm {
        what: "the agent is stopped",
        extent: 30,
        unit: "s",
        act: |load, seconds| {
            let lost = load.stopped(Duration::from_secs(seconds.into()))?;
            Ok(format!("{lost} events had no room meanwhile, and were counted; it went on"))
        },
    },
    Harm {
        what: "the agent has 24 MiB of memory",
        extent: 30,
        unit: "s",
        act: |load, seconds| {
            load.confined(MEMORY, Duration::from_secs(seconds.into()))?
                .context("no control group can be made here: not run")
        },
    },
    Harm {
        what: "connections to the server",
        extent: 10_000,
        unit: "",
        act: |load, count| {
            load.connections(count as usize)?;
            Ok("one in four silent or broken off; none is left in the maps, no event was lost".to_owned())
        },
    },
    Harm {
        what: "connections to the agent",
        extent: 10_000,
        unit: "",
        act: |load, count| {
            load.connections_to_the_agent(count as usize)?;
            Ok("one in four silent or broken off; it answered beside them, and went on counting".to_owned())
        },
    },
];

fn come_and_go(load: &Load<'_>, times: u32, leave: fn(Agent) -> Result<()>) -> Result<String> {
    load.come_and_go(times as usize, leave)?;
    Ok("each time its probes were in the text of the server, and gone after".to_owned())
}

/// Does all of it, and prints a table. Green only if nothing was harmed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let wanted =
        |harm: &&Harm| options.only.is_empty() || options.only.iter().any(|it| harm.what.contains(it));
    let harms: Vec<&Harm> = HARMS.iter().filter(wanted).collect();
    ensure!(!harms.is_empty(), "--only takes a part of: {}", HARMS.map(|harm| harm.what).join(", "));
    if !options.prepared {
        let divide = options.divide.to_string();
        let mut arguments = vec!["harm", "--prepared", "--divide", &divide];
        options.only.iter().for_each(|pattern| arguments.extend(["--only", pattern]));
        return root::run_prepared(Purpose::Demo, "release", &arguments);
    }
    let assets = Assets::locate()?;
    // Files of its own: a probe is in a file, and other agents on this machine may probe the one that was installed.
    let scratch = Scratch::new()?;
    let copy = Installation::copy(Build::Process, &assets.tiny(), scratch.path())?;
    let launch = Launch::new(Build::Process, &copy.model, &SERVER)?;
    let mut server = launch.executable(copy.executable).start()?;
    let load = Load::new(&server)?;
    println!("{:<32} {:>12} {:>8} {:>9} {:>8}", "under load", "", "seconds", "answers", "changed");
    let mut bad = Vec::new();
    for harm in harms {
        let (start, extent) = (Instant::now(), (harm.extent / options.divide).max(1));
        let outcome = load.during(|| (harm.act)(&load, extent));
        let seconds = start.elapsed().as_secs_f64();
        let (answers, changed, text) = match outcome {
            Ok((answers, text)) => (answers.to_string(), "0", text),
            Err(error) => {
                bad.push(harm.what);
                ("?".to_owned(), "?", format!("FAILED: {error:#}"))
            }
        };
        let extent = format!("{extent} {}", harm.unit);
        println!("{:<32} {extent:>12} {seconds:>8.1} {answers:>9} {changed:>8}  {text}", harm.what);
    }
    let answers = load.nothing_stays().context("what stays of the agent")?;
    println!(
        "afterwards: {answers} answers, nothing of the agent in the server or in its own maps, nothing lost"
    );
    // What borrows the server ends here.
    drop(load);
    server.assert_alive().context("the server did not live through it")?;
    ensure!(bad.is_empty(), "harmed: {}", bad.join(", "));
    Ok(())
}
