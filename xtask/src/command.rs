//! Commands that the tasks run, and cargo as they run it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use llamaprobe_tests::assets::{target_directory, workspace_root};

/// Where the tools are installed that the build needs.
pub fn tools() -> PathBuf {
    target_directory().join("tools")
}

/// `PATH` with the installed tools in front.
pub fn search_path() -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(tools().join("bin")).chain(std::env::split_paths(&path));
    std::env::join_paths(directories).context("the target directory cannot stand in PATH")
}

/// A cargo command in the workspace.
pub fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace_root()).env("PATH", search_path()?);
    Ok(command)
}

/// Builds the agent, and returns its executable. `profile` is `debug` or `release`; `more` are arguments for cargo.
pub fn build_agent(profile: &str, more: &[&str]) -> Result<PathBuf> {
    let flag: &[&str] = if profile == "release" { &["--release"] } else { &[] };
    run(&mut cargo(&[&["build", "--package", "llamaprobe"], flag, more].concat())?)?;
    Ok(target_directory().join(profile).join("llamaprobe"))
}

/// Runs a command whose output the user sees.
pub fn run(command: &mut Command) -> Result<()> {
    let line = display(command);
    eprintln!("> {line}");
    let status = command.status().with_context(|| format!("cannot run {line}"))?;
    ensure!(status.success(), "{line} ended with {status}");
    Ok(())
}

/// Runs a command whose output matters only when it fails, and returns what it printed.
pub fn run_quietly(command: &mut Command) -> Result<String> {
    let line = display(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {line}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{line} ended with {}:\n{}{text}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// The program and its arguments, without their directories and without what is too long to read.
fn display(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy());
    words.collect::<Vec<_>>().join(" ")
}
