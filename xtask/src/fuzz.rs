//! Fuzzing: the parsers of what others write, each for a while. The agent's own crate is compiled so that it counts the
//! branches that are taken, which the stable compiler can do; what an input finds decides whether it is kept.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::cargo;

/// The test of a parser that is fuzzed.
const TEST: &str = "anything_goes_in";
/// How each test is told how long it has, seconds.
const SECONDS: &str = "LLAMAPROBE_FUZZ_SECONDS";
/// Only for the agent itself: what it stands on is compiled as ever.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Copt-level=2",
    "-Coverflow-checks=on",
];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How long each target has
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only targets with this in the path of their test, such as `head`, `elf` or `journal`
    #[arg(long, value_name = "PATTERN", default_value = "")]
    target: String,
}

/// Fuzzes all targets, or one; prints how many inputs each was given. Green only if none failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    eprintln!("== build");
    let program = build()?;
    let text = crate::command::run_quietly(Command::new(&program).args([TEST, "--list"]))?;
    let tests = text.lines().filter_map(|line| line.strip_suffix(": test"));
    let tests: Vec<_> = tests.filter(|test| test.contains(&options.target)).collect();
    ensure!(!tests.is_empty(), "no target has {:?} in its path; there are:\n{text}", options.target);
    let mut failed = Vec::new();
    for test in tests {
        let output = Command::new(&program)
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(SECONDS, options.seconds.to_string())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .filter_map(|line| Some(&line[line.find("fuzzed ")?..]))
            .for_each(|line| println!("{line}"));
        if !output.status.success() {
            println!("FAILED: {test}\n{}", String::from_utf8_lossy(&output.stderr));
            failed.push(test);
        }
    }
    ensure!(
        failed.is_empty(),
        "failed: {}; the noise is the same each time, so it fails again",
        failed.join(", ")
    );
    Ok(())
}

/// Compiles the agent's unit tests with counters, and returns the program.
fn build() -> Result<PathBuf> {
    let mut command = cargo(&["rustc", "--package", "llamaprobe", "--lib", "--profile", "test"])?;
    command.args(["--message-format=json-render-diagnostics", "--"]).args(FLAGS);
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    programs.next_back().context("cargo names no program")
}
