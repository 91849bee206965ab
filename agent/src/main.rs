//! `llamaprobe`: parse, build, run, exit code.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use llamaprobe::{
    agent::{self, Signals},
    cli::{Cli, Command, KeyHashArguments, ReportArguments, RunArguments, SnapshotArguments, billing},
    doctor::Roots,
    explain,
    export::snapshot::{fetch::fetch, table::table},
    keeper,
    output::{self, Messages},
    replay,
    scout::{self, parser},
    session::payload::head::KeyHash,
    survey, top, trace,
};

/// How long the last messages may take.
const LAST_WORDS: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    // Not commands for people: what the agent starts to attach, to look at processes, and to read their files.
    let serve = match std::env::args_os().nth(1) {
        Some(command) if command == keeper::COMMAND => Some(keeper::serve as fn() -> Result<()>),
        Some(command) if command == scout::COMMAND => Some(scout::serve as _),
        Some(command) if command == parser::COMMAND => Some(parser::serve as _),
        _ => None,
    };
    if let Some(serve) = serve {
        return ended(serve().map(|()| ExitCode::SUCCESS));
    }
    let cli = Cli::parse();
    let done = match cli.command.unwrap_or_else(|| Command::Run(Box::new(cli.run))) {
        Command::Run(arguments) => run(*arguments),
        Command::Doctor(arguments) => arguments.rates().and_then(|rates| {
            show(&arguments.report, |pids| {
                let report = survey::health(&Roots::default(), pids, rates.as_ref());
                (report.to_string(), serde_json::to_string_pretty(&report), report.exit_code())
            })
        }),
        Command::Plan(arguments) => show(&arguments, |pids| {
            let report = survey::processes(&Roots::default(), pids);
            (report.to_string(), serde_json::to_string_pretty(&report), report.exit_code())
        }),
        Command::Snapshot(arguments) => snapshot(&arguments),
        Command::Top(arguments) => arguments.options().and_then(top::run),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::KeyHash(arguments) => key_hash(&arguments),
    };
    ended(done)
}

fn ended(done: Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            output::complain(&format!("llamaprobe: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run(arguments: RunArguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let mut signals = runtime.block_on(async { Signals::new() }).context("cannot handle signals")?;
    let messages = Messages::new().context("no way to standard error")?;
    let done = runtime.block_on(async {
        let Some(options) = signals.or_end(|| arguments.resolve()).await? else { return Ok(()) };
        output::speak(&options.log, output::is_coloured(), messages.clone())?;
        agent::run(options, signals, &messages).await
    });
    // What waits for a file system that hangs ends with the process.
    runtime.shutdown_background();
    // What was said before it was to be started.
    messages.start().context("no thread for messages")?;
    messages.flush(LAST_WORDS);
    done.map(|()| ExitCode::SUCCESS)
}

fn snapshot(arguments: &SnapshotArguments) -> Result<ExitCode> {
    let fetched = fetch(&arguments.agent.agent()?)?;
    if let Some(warning) = fetched.warning() {
        output::complain(&format!("llamaprobe: {warning}"));
    }
    print(&if arguments.json {
        serde_json::to_string_pretty(&fetched.whole)? + "\n"
    } else {
        table(&fetched.document)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn key_hash(arguments: &KeyHashArguments) -> Result<ExitCode> {
    let secret = billing::secret(&arguments.key_file)?;
    if let Some(warning) = &secret.warning {
        output::complain(&format!("llamaprobe: {warning}"));
    }
    let mut key = String::new();
    std::io::stdin().read_line(&mut key).context("cannot read the API key from standard input")?;
    let key = key.trim();
    anyhow::ensure!(
        !key.is_empty(),
        "standard input holds no API key: `printf %s KEY | llamaprobe key-hash`"
    );
    print(&format!("{}\n", KeyHash::new(&secret.key, key.as_bytes())))?;
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> Result<()> {
    output::print(text).context("cannot write to stdout")
}

type Shown = (String, serde_json::Result<String>, u8);

fn show(arguments: &ReportArguments, report: impl FnOnce(&[u32]) -> Shown) -> Result<ExitCode> {
    let (text, json, code) = report(&agent::named(&arguments.pid)?);
    let shown = if arguments.json { json? + "\n" } else { text };
    print(&shown)?;
    Ok(ExitCode::from(code))
}
