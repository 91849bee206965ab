//! Which lines the tests run: by the compiler's own counters, read by cargo-llvm-cov.

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::BINARY_VARIABLE;
use llamaprobe_tests::assets::target_directory;

use crate::command::{cargo, run, run_quietly};
use crate::{root, setup};

/// Code that is compiled for the kernel, and what is there for the tests, is not counted.
const NOT_COUNTED: &str = r"(^|/)(tests|testing|xtask|agent-ebpf)(/|\.rs$)";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Also run the end-to-end tests, which takes about an hour
    #[arg(long)]
    end_to_end: bool,
    /// Also write which lines, as pages of HTML, below `<target>/llvm-cov`
    #[arg(long)]
    html: bool,
}

/// Runs the tests with counters, and prints a line for each file.
pub fn run_tests(options: &Options) -> Result<()> {
    setup::for_coverage()?;
    if options.end_to_end {
        setup::run(setup::Purpose::Tests)?;
    }
    let variables = counters()?;
    run(&mut cargo(&["llvm-cov", "clean", "--workspace"])?)?;
    let units = ["--package", "llamaprobe", "--package", "llamaprobe-core"];
    let more = ["--package", "llamaprobe-common", "--package", "llamaprobe-api"];
    run(cargo(&["test", "--quiet"])?.args(units).args(more).envs(variables.clone()))?;
    if options.end_to_end {
        run(cargo(&["build", "--package", "llamaprobe"])?.envs(variables.clone()))?;
        // A test that fails, as under this load some may, has run its lines all the same.
        let tests = run(cargo(&["test"])?
            .args(root::cargo_runner()?)
            .args(["--package", "llamaprobe-tests", "--no-fail-fast", "--", "--test-threads=1"])
            .env(BINARY_VARIABLE, target_directory().join("debug/llamaprobe"))
            .envs(variables.clone()));
        if let Err(error) = tests {
            eprintln!("{error:#}");
        }
    }
    let report = ["llvm-cov", "report", "--ignore-filename-regex", NOT_COUNTED];
    if options.html {
        run(cargo(&report)?
            .args(["--html", "--output-dir"])
            .arg(target_directory())
            .envs(variables.clone()))?;
    }
    run(cargo(&report)?.envs(variables))
}

/// What makes the compiler and the programs count.
fn counters() -> Result<Vec<(String, String)>> {
    let text = run_quietly(&mut cargo(&["llvm-cov", "show-env"])?)?;
    let pair = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim_matches(['"', '\'']);
        Some((name.to_owned(), value.to_owned()))
    };
    text.lines().map(|line| pair(line).with_context(|| format!("cargo-llvm-cov says {line:?}"))).collect()
}
