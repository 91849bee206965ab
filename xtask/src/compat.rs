//! The matrix of compatibility: every build, mode and place of the tables of `llamaprobe-tests`, the agent's figures beside
//! those of the server, written down in `docs/compatibility.md`.

mod page;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use llamaprobe_tests::assets::{Assets, workspace_root};
use llamaprobe_tests::compatibility::{Case, Outcome, builds::BUILDS, cases};

use self::page::Row;
use crate::command::build_agent;
use crate::setup::{self, Purpose};
use crate::{command, root};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only cases of which the table or the name contains this; other rows of the page stay as they are
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Set-up and build are done (the task then starts itself as root)
    #[arg(long, hide = true)]
    prepared: bool,
}

impl Options {
    fn want(&self, case: &Case) -> bool {
        let named = format!("{} {}", case.table, case.name);
        self.only.is_empty() || self.only.iter().any(|pattern| named.contains(pattern))
    }
}

/// Sets up, builds, and tries everything. Green only if each case was run and is as it has to be.
pub(crate) fn run(options: &Options) -> Result<()> {
    let assets = Assets::expected();
    ensure!(
        cases(&assets).iter().any(|case| options.want(case)),
        "nothing in the tables is called {}: the rows of docs/compatibility.md show the names",
        options.only.join(" or ")
    );
    if !options.prepared {
        let agent = prepare(options, &assets)?;
        eprintln!("== run, as root");
        let only = options.only.iter().flat_map(|pattern| ["--only", pattern]);
        return root::run_self(&agent, &["compat", "--prepared"].into_iter().chain(only).collect::<Vec<_>>());
    }
    let page = workspace_root().join("docs/compatibility.md");
    let mut rows = page::read(&page);
    let (mut wrong, mut missing) = (Vec::new(), Vec::new());
    let cases = cases(&assets);
    let wanted: Vec<_> = cases.iter().filter(|case| options.want(case)).collect();
    let now = command::run_quietly(std::process::Command::new("date").args(["-u", "+%F"]))?;
    for (number, case) in wanted.iter().enumerate() {
        let start = Instant::now();
        let outcome = case.run(&assets);
        let (word, text) = match &outcome {
            Ok(outcome @ Outcome::NotRun(_)) => ("not run", outcome.to_string()),
            Ok(outcome) if outcome.is_right() => ("ok", outcome.to_string()),
            Ok(outcome) => ("WRONG", outcome.to_string()),
            Err(error) => ("WRONG", format!("{error:#}").replace('\n', " | ")),
        };
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{:>3}/{} {:<7} {:<7} {:<58} {seconds:>5.1} s  {text}",
            number + 1,
            wanted.len(),
            case.table,
            word,
            case.name
        );
        match word {
            "ok" => {}
            "not run" => missing.push(case.name.as_str()),
            _ => wrong.push(case.name.as_str()),
        }
        page::put(&mut rows, Row::of(case, word, now.trim(), &text));
    }
    // Rows of cases that are no more go.
    rows.retain(|row| cases.iter().any(|case| row.is_of(case)));
    page::write(&page, &rows, &cases)?;
    println!(
        "{} of {} as they have to be; {} is written",
        wanted.len() - wrong.len() - missing.len(),
        wanted.len(),
        shown(&page)
    );
    ensure!(wrong.is_empty(), "not as it has to be: {}", wrong.join("; "));
    ensure!(missing.is_empty(), "not run: {}", missing.join("; "));
    Ok(())
}

/// Builds the agent and installs what the cases need. What cannot be installed is said, and its cases are not run.
fn prepare(options: &Options, assets: &Assets) -> Result<PathBuf> {
    eprintln!("== set-up");
    setup::run(Purpose::Demo)?;
    if let Err(error) = setup::run(Purpose::Tests) {
        eprintln!("  WITHOUT  a part of what the tests need: {error:#}");
    }
    let wanted = cases(assets);
    let wanted: Vec<_> = wanted.iter().filter(|case| options.want(case)).collect();
    for build in BUILDS.iter().filter(|build| wanted.iter().any(|case| case.name.starts_with(&build.name())))
    {
        if let Err(error) = setup::builds::install(assets, build) {
            eprintln!("  WITHOUT  {}: {error:#}", build.name());
        }
    }
    eprintln!("== build");
    build_agent("debug", &[])
}

fn shown(path: &Path) -> String {
    path.strip_prefix(workspace_root()).unwrap_or(path).display().to_string()
}
