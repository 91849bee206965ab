//! Other kernels: each is booted in a virtual machine under software emulation, where a real llama-server and the agent
//! run side by side; what both have counted is compared here.

mod guest;
mod package;
mod parts;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use llamaprobe_tests::assets::Assets;
use llamaprobe_tests::exposition::Exposition;

use self::guest::{Figures, Guest};
use crate::command::build_agent;
use crate::machine::Machine;
use crate::setup::{self, Purpose};

/// A kernel that is tried.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What it is called here: its series, and its machine where that is another than this one.
    series: &'static str,
    machine: Machine,
    archive: package::Archive,
    /// Where its package is in the archive.
    suite: &'static str,
    name: package::Name,
    /// Whether the agent must work on it; otherwise it must say why it cannot.
    supported: bool,
}

const CLOUD: &str = "-cloud-amd64-unsigned";

/// From the oldest to the newest, for each machine. The host's own kernel is tried by every other test.
const KERNELS: [Kernel; 5] = [
    Kernel {
        series: "5.10",
        machine: Machine::X86_64,
        archive: package::Archive::Debian,
        suite: "bullseye",
        name: ("linux-image-5.10.", CLOUD),
        supported: false,
    },
    Kernel {
        series: "5.15",
        machine: Machine::X86_64,
        archive: package::Archive::Ubuntu,
        suite: "jammy",
        name: ("linux-image-unsigned-5.15.", "-generic"),
        supported: true,
    },
    Kernel {
        series: "6.1",
        machine: Machine::X86_64,
        archive: package::Archive::Debian,
        suite: "bookworm",
        name: ("linux-image-6.1.", CLOUD),
        supported: true,
    },
    Kernel {
        series: "6.12",
        machine: Machine::X86_64,
        archive: package::Archive::Debian,
        suite: "trixie",
        name: ("linux-image-6.12.", CLOUD),
        supported: true,
    },
    Kernel {
        series: "6.12-aarch64",
        machine: Machine::Aarch64,
        archive: package::Archive::Debian,
        suite: "trixie",
        name: ("linux-image-6.12.", "-cloud-arm64-unsigned"),
        supported: true,
    },
];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these, by series
    #[arg(long, value_delimiter = ',', value_name = "SERIES")]
    only: Vec<String>,
}

/// What came out of one kernel.
enum Outcome {
    /// As it has to be; what was seen, in a few words.
    Good(String),
    /// Not as it has to be.
    Bad(String),
    /// It could not be tried; why.
    NotRun(String),
}

/// Sets up, builds, and tries all kernels, or those named. Green only if each was tried and is as it has to be.
pub(crate) fn run(options: &Options) -> Result<()> {
    let unknown = |it: &&String| KERNELS.iter().all(|kernel| kernel.series != **it);
    if let Some(unknown) = options.only.iter().find(unknown) {
        let known = KERNELS.map(|kernel| kernel.series).join(", ");
        bail!("there is no kernel {unknown} in the table: --only takes {known}");
    }
    eprintln!("== set-up");
    setup::run(Purpose::Demo)?;
    eprintln!("== build");
    let agent = build_agent("debug", &[])?;
    let wanted =
        |kernel: &&Kernel| options.only.is_empty() || options.only.iter().any(|it| it == kernel.series);
    let kernels: Vec<&Kernel> = KERNELS.iter().filter(wanted).collect();
    let missing = try_all(&kernels, &agent)?;
    ensure!(missing.is_empty(), "not run: {}", missing.join(", "));
    Ok(())
}

/// Tries the oldest and the newest supported kernel of this machine, as a part of the tests. Returns those that could not be tried.
pub(crate) fn ends(agent: &std::path::Path) -> Result<Vec<String>> {
    let supported: Vec<&Kernel> =
        KERNELS.iter().filter(|kernel| kernel.supported && kernel.machine == Machine::X86_64).collect();
    let (Some(oldest), Some(newest)) = (supported.first(), supported.last()) else { return Ok(Vec::new()) };
    try_all(&[oldest, newest], agent)
}

/// Tries kernels and prints a table. Fails if one is not as it has to be; returns those that could not be tried.
fn try_all(kernels: &[&Kernel], agent: &std::path::Path) -> Result<Vec<String>> {
    let assets = Assets::locate()?;
    let (mut missing, mut bad) = (Vec::new(), Vec::new());
    println!("{:<12} {:<8} {:>8}  what was seen", "kernel", "", "seconds");
    for kernel in kernels {
        let start = Instant::now();
        let outcome = attempt(&assets, kernel, agent);
        let (word, text) = match &outcome {
            Outcome::Good(text) => ("ok", text),
            Outcome::Bad(text) => ("FAILED", text),
            Outcome::NotRun(text) => ("not run", text),
        };
        println!("{:<12} {word:<8} {:>8.1}  {text}", kernel.series, start.elapsed().as_secs_f64());
        match outcome {
            Outcome::Good(_) => {}
            Outcome::Bad(_) => bad.push(kernel.series),
            Outcome::NotRun(why) => missing.push(format!("Linux {}: {why}", kernel.series)),
        }
    }
    ensure!(bad.is_empty(), "not as it has to be on Linux {}", bad.join(", "));
    Ok(missing)
}

fn attempt(assets: &Assets, kernel: &Kernel, agent: &std::path::Path) -> Outcome {
    let guest = match Guest::prepare(assets, kernel, agent) {
        Ok(guest) => guest,
        Err(error) => return Outcome::NotRun(format!("{error:#}")),
    };
    let judged = guest
        .run(assets, LIMIT)
        .and_then(|figures| if kernel.supported { judge(&figures) } else { Ok(judge_refusal(&figures)) });
    judged.unwrap_or_else(|error| Outcome::Bad(format!("{error:#}")))
}

/// How long one machine may take; it needs 15 seconds where nothing else runs, that of aarch64 a minute.
const LIMIT: Duration = Duration::from_secs(240);

/// On a kernel that has what is needed both sides must have counted the same, and nothing may be lost.
fn judge(figures: &Figures) -> Result<Outcome> {
    let agent = Exposition::parse(&figures.agent)?;
    let server = Exposition::parse(&figures.server)?;
    let tokens = |kind: &str| agent.sum("llm_tokens_total", &[("type", kind)]);
    let theirs = |name: &str| server.value(name).unwrap_or(f64::NAN);
    let pairs = [
        ("generated", tokens("generated"), theirs("llamacpp:tokens_predicted_total")),
        ("prompt", tokens("prompt"), theirs("llamacpp:prompt_tokens_total")),
        ("cached", tokens("cached"), theirs("llamacpp:prompt_tokens_cached_total")),
        ("decode calls", agent.sum("llm_batch_tokens_count", &[]), theirs("llamacpp:n_decode_total")),
        (
            "requests",
            agent.sum("llm_requests_total", &[("route", "/completion"), ("code", "200")]),
            f64::from(guest::REQUESTS),
        ),
        (
            "exact joins",
            agent.sum("llamaprobe_join_total", &[("method", "exact")]),
            f64::from(guest::REQUESTS),
        ),
        ("lost", agent.sum("llamaprobe_lost_total", &[]), 0.0),
    ];
    let told: Vec<String> =
        pairs.iter().map(|(name, ours, theirs)| format!("{name} {ours}/{theirs}")).collect();
    let causes = agent.select("llm_stall_seconds_total", &[]);
    let stalls: Vec<String> = causes
        .filter(|it| it.value > 0.0)
        .map(|it| format!("{:.3} s {}", it.value, it.labels.get("cause").map_or("", String::as_str)))
        .collect();
    let told = format!("Linux {}: {}; stalled {}", figures.release, told.join(", "), stalls.join(", "));
    // A figure that the server does not say is NaN, which equals nothing: a comparison cannot pass without it.
    let equal = pairs.iter().all(|(_, ours, theirs)| ours == theirs) && pairs[0].1 > 0.0 && pairs[4].1 > 0.0;
    // Nobody else may be there to hold the server back, but that is seen.
    let seen = agent.select("llm_stall_seconds_total", &[]).next().is_some();
    Ok(if equal && seen {
        Outcome::Good(told)
    } else {
        Outcome::Bad(format!("{told}; the agent said: {}", figures.said))
    })
}

/// On an older one `run` must end with an error that says what is missing, and `doctor` must say so, too.
fn judge_refusal(figures: &Figures) -> Outcome {
    let ended = figures.agent.is_empty();
    let told = format!("Linux {}: {}", figures.release, figures.said.replace('\n', " | "));
    let says = |text: &str| text.contains("5.15");
    if ended && says(&figures.said) && says(&figures.doctor) {
        Outcome::Good(told)
    } else {
        Outcome::Bad(told)
    }
}
