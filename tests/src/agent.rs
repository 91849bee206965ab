//! The agent itself, as a child process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::assets::target_directory;
use crate::exposition::Exposition;
use crate::process::{Log, Process, children, tied};
use crate::scratch::Scratch;
use crate::server::LlamaServer;
use crate::{http, wait_for};

/// How long the agent may take until it is ready, or until it shows what has happened.
const PATIENCE: Duration = Duration::from_secs(30);

/// The environment variable that names the agent's executable.
pub const BINARY_VARIABLE: &str = "LLAMAPROBE_BIN";

/// A running agent; ended when this value goes.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    address: SocketAddr,
    log: Log,
}

impl Agent {
    /// Starts the agent on a free port with further `arguments`; returns when it is ready, or, where it speaks TLS, when
    /// it listens.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_with(arguments, &[])
    }

    /// The same with more variables in its environment.
    pub fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::launch(tied(executable()?), arguments, variables)
    }

    /// The same as the last arguments of a command that becomes the agent.
    pub fn start_through(wrapper: &[String], arguments: &[&str]) -> Result<Self> {
        let (program, words) = wrapper.split_first().context("no command")?;
        let mut command = tied(program);
        command.args(words).arg(executable()?);
        Self::launch(command, arguments, &[])
    }

    fn launch(mut command: Command, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let log = Log::new("agent");
        command.args(["run", "--listen", "127.0.0.1:0"]).args(arguments).envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.create()?);
        let mut process = Process::start("llamaprobe", &mut command)?;
        let stdout = process.child().stdout.take().context("the agent has no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let url = line.trim().strip_prefix("listening on ").and_then(|url| url.split_once("://"));
        let address = url.and_then(|(_, address)| address.parse().ok());
        let Some(address) = address else {
            bail!("the agent's first line is {line:?}; its log ends with:\n{}", log.tail())
        };
        let agent = Self { process, address, log };
        if url.is_some_and(|(scheme, _)| scheme == "https") {
            return Ok(agent);
        }
        wait_for("the agent's /readyz to answer 200", PATIENCE, || {
            http::get(agent.address, "/readyz").ok().filter(|reply| reply.status == 200)
        })
        .map_err(|error| agent.explain(error))?;
        Ok(agent)
    }

    /// Starts the agent and waits until it observes `server`.
    pub fn observing(server: &LlamaServer) -> Result<Self> {
        let agent = Self::start(&[])?;
        agent.wait_observed(server)?;
        Ok(agent)
    }

    /// The agent's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The process id of its keeper, which loads and attaches.
    pub fn keeper(&self) -> Result<u32> {
        let children = children(self.pid())?;
        let keeper = children.iter().find(|(_, name)| *name == "keeper").map(|(pid, _)| *pid);
        keeper.with_context(|| format!("the agent has no keeper, but {children:?}"))
    }

    /// Where the agent serves its metrics.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a signal to the agent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// How the agent ended, if it has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.ended()
    }

    /// Everything that the agent wrote on standard error.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// The agent's metrics now.
    pub fn scrape(&self) -> Result<Exposition> {
        let reply = http::get(self.address, "/metrics")?;
        ensure!(reply.status == 200, "the agent's /metrics answers {}", reply.status);
        Exposition::parse(&reply.body).context("the agent's /metrics")
    }

    /// Waits until the metrics satisfy `wanted`, and returns what `wanted` made of them.
    pub fn wait_metrics<T>(&self, what: &str, mut wanted: impl FnMut(&Exposition) -> Option<T>) -> Result<T> {
        wait_for(what, PATIENCE, || wanted(&self.scrape().ok()?)).map_err(|error| self.explain(error))
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(format!("the agent's log ends with:\n{}\n", self.log.tail()))
    }

    /// Waits until `server` is in the metrics; returns how long that took.
    pub fn wait_observed(&self, server: &LlamaServer) -> Result<Duration> {
        let (start, label) = (Instant::now(), server.label());
        self.wait_metrics(&format!("a series with the label server={label:?}"), |metrics| {
            metrics.mentions("server", &label).then(|| start.elapsed())
        })
    }

    /// Ends the agent with SIGTERM; it must exit with status 0.
    pub fn stop(self) -> Result<()> {
        self.stop_with(Signal::TERM)
    }

    /// Ends the agent with `signal`; it must exit with status 0.
    pub fn stop_with(mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)?;
        let status = wait_for("the agent's end", PATIENCE, || self.process.ended())?;
        ensure!(status.success(), "the agent ended with {status}:\n{}", self.log.tail());
        Ok(())
    }

    /// Kills the agent with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().map(drop)
    }
}

/// Runs another command of the agent to its end.
pub fn run(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(executable()?);
    command.args(arguments).stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))
}

/// Runs a command of the agent to its end as a user without any privilege; none where `setpriv` is missing.
pub fn run_unprivileged(arguments: &[&str]) -> Result<Option<Output>> {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.is_file() {
        return Ok(None);
    }
    // Where the agent is built, others may not be allowed to go.
    let scratch = Scratch::new()?;
    let agent = scratch.copy(&executable()?, "llamaprobe")?;
    let mut command = Command::new(setpriv);
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(agent).args(arguments);
    command.stdin(Stdio::null()).output().map(Some).with_context(|| format!("cannot run {command:?}"))
}

/// Runs another command of the agent with a text as its input; returns what it prints. It must succeed.
pub fn run_with_input(arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(executable()?);
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs another command of the agent, which must succeed and print one JSON document.
pub fn run_json(arguments: &[&str]) -> Result<Value> {
    let output = run(arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "llamaprobe {arguments:?} ended with {}:\n{errors}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("llamaprobe {arguments:?} prints no JSON"))
}

/// The agent's executable: the one named by the environment, else the one built last.
pub fn executable() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let built = ["debug", "release"].map(|profile| target_directory().join(profile).join("llamaprobe"));
    let newest =
        built.into_iter().filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).max();
    newest.map(|(_, path)| path).context("llamaprobe is not built: run `cargo build -p llamaprobe`")
}
