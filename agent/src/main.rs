//! `llamaprobe`: parse, build, run, exit code.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use llamaprobe::{
    agent,
    bpf::tracefs,
    cli::{Cli, Command, KeyHashArguments, Options, ReportArguments, SnapshotArguments, billing},
    doctor::Roots,
    export::snapshot,
    scout,
    session::payload::head::KeyHash,
    survey,
};
use tracing::warn;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Not a command for people: what the agent starts to look at processes.
    if std::env::args_os().nth(1).is_some_and(|command| command == scout::COMMAND) {
        return ended(scout::serve().map(|()| ExitCode::SUCCESS));
    }
    let cli = Cli::parse();
    let done = match cli.command.unwrap_or_else(|| Command::Run(Box::new(cli.run))) {
        Command::Run(arguments) => arguments.resolve().and_then(run),
        Command::Doctor(arguments) => show(&arguments, |pids| {
            let report = survey::health(&Roots::default(), pids);
            (report.to_string(), serde_json::to_string_pretty(&report), report.exit_code())
        }),
        Command::Plan(arguments) => show(&arguments, |pids| {
            let report = survey::processes(&Roots::default(), pids);
            (report.to_string(), serde_json::to_string_pretty(&report), report.exit_code())
        }),
        Command::Snapshot(arguments) => snapshot(&arguments),
        Command::KeyHash(arguments) => key_hash(&arguments),
    };
    ended(done)
}

fn ended(done: Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "llamaprobe: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> Result<ExitCode> {
    let filter = EnvFilter::try_new(&options.log)
        .with_context(|| format!("--log does not understand {:?}", options.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // While there is one thread only: the mount stays private to this process.
    if let Err(error) = tracefs::ensure() {
        warn!(%error, "tracefs is not mounted and cannot be: `mount -t tracefs nodev /sys/kernel/tracing` helps");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(agent::run(options))?;
    Ok(ExitCode::SUCCESS)
}

fn snapshot(arguments: &SnapshotArguments) -> Result<ExitCode> {
    let document = snapshot::fetch(arguments.listen).with_context(|| {
        format!(
            "no agent answers at {}: start llamaprobe, or name its address with --listen",
            arguments.listen
        )
    })?;
    print(&if arguments.json {
        serde_json::to_string_pretty(&document)? + "\n"
    } else {
        snapshot::table(&document)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn key_hash(arguments: &KeyHashArguments) -> Result<ExitCode> {
    let secret = billing::secret(&arguments.key_file)?;
    let mut key = String::new();
    std::io::stdin().read_line(&mut key).context("cannot read the API key from standard input")?;
    let key = key.trim();
    anyhow::ensure!(
        !key.is_empty(),
        "standard input holds no API key: `printf %s KEY | llamaprobe key-hash`"
    );
    print(&format!("{}\n", KeyHash::new(&secret, key.as_bytes())))?;
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")
}

type Shown = (String, serde_json::Result<String>, u8);

fn show(arguments: &ReportArguments, report: impl FnOnce(&[u32]) -> Shown) -> Result<ExitCode> {
    let (text, json, code) = report(&agent::named(&arguments.pid)?);
    let shown = if arguments.json { json? + "\n" } else { text };
    print(&shown)?;
    Ok(ExitCode::from(code))
}
