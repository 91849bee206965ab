//! Privilege: loading eBPF programs needs root, building does not.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use llamaprobe_tests::agent::BINARY_VARIABLE;

use crate::command::{build_agent, run, search_path};
use crate::setup::{self, Purpose};

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs this program again, with other arguments, for the `agent` just built; as root, through sudo if need be.
pub fn run_self(agent: &Path, arguments: &[&str]) -> Result<()> {
    let variable = format!("{BINARY_VARIABLE}={}", agent.display());
    run(as_root(&variable, &[])?.arg(std::env::current_exe()?).args(arguments))
}

/// Sets up and builds as whoever calls, then runs this program again as root, with other arguments, for the agent just
/// built. `profile` is `debug` or `release`.
pub fn run_prepared(purpose: Purpose, profile: &str, arguments: &[&str]) -> Result<()> {
    eprintln!("== set-up");
    setup::run(purpose)?;
    eprintln!("== build");
    let agent = build_agent(profile, &[])?;
    eprintln!("== run, as root");
    run_self(&agent, arguments)
}

/// A command that has to run as root. Assignments of variables may stand before its program.
pub fn as_root(first: &str, arguments: &[&str]) -> Result<Command> {
    let words = if is_root() { vec!["env".to_owned()] } else { sudo()? };
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(first).args(arguments);
    Ok(command)
}

/// The arguments that make cargo start test binaries as root: none if this process is root already.
pub fn cargo_runner() -> Result<Vec<String>> {
    if is_root() {
        return Ok(Vec::new());
    }
    // A list of JSON strings is one of TOML, too.
    let words = serde_json::to_string(&sudo()?)?;
    Ok(vec!["--config".to_owned(), format!("target.'cfg(all())'.runner={words}")])
}

/// The words before a command that is to run as root. Rules of sudo may reset `PATH` and more even with `-E`, so
/// what matters is handed over by name.
fn sudo() -> Result<Vec<String>> {
    let mut words: Vec<_> = ["sudo", "-E", "env"].map(str::to_owned).into();
    words.push(format!("PATH={}", search_path()?.to_string_lossy()));
    for name in [BINARY_VARIABLE, "CARGO_TARGET_DIR", "CI"] {
        words.extend(std::env::var(name).map(|value| format!("{name}={value}")));
    }
    Ok(words)
}
