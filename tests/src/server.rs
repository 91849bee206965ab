//! A real llama-server on a free port.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::assets::Build;
use crate::comparison::Figure;
use crate::exposition::Exposition;
use crate::http::Endpoint;
use crate::launch::Launch;
use crate::process::{Log, Process};
use crate::{http, wait_for};

/// How long a server may take to load its model, or to become idle.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running llama-server; ended when this value goes.
#[derive(Debug)]
pub struct LlamaServer {
    process: Process,
    launch: Launch,
    log: Log,
}

impl LlamaServer {
    /// Starts a server with `--metrics` and `arguments`; returns when it is healthy.
    pub fn start(build: Build, model: &Path, arguments: &[&str]) -> Result<Self> {
        Launch::new(build, model, arguments)?.start()
    }

    /// Kills the server with SIGKILL and starts the same one again on the same port.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        *self = Self::launch(self.launch.clone())?;
        Ok(())
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Kills the server with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    pub(crate) fn launch(launch: Launch) -> Result<Self> {
        let log = Log::new("server");
        let mut command = launch.command();
        command.stdin(Stdio::null()).stdout(log.create()?).stderr(log.create()?);
        let process = Process::start("llama-server", &mut command)?;
        let mut server = Self { process, launch, log };
        server.wait_healthy()?;
        Ok(server)
    }

    fn wait_healthy(&mut self) -> Result<()> {
        let (endpoint, process) = (self.launch.endpoint(), &mut self.process);
        let health = self.launch.path("/health");
        let outcome = wait_for("llama-server's /health to answer 200", PATIENCE, || {
            let healthy = http::get(endpoint.clone(), &health).is_ok_and(|reply| reply.status == 200);
            let ended = process.ended();
            (healthy || ended.is_some()).then_some(ended)
        });
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!("llama-server ended with {status}:\n{}", self.log.tail()),
            Err(error) => Err(error.context(self.log.tail())),
        }
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.launch.address()
    }

    /// Where and how the server is reached.
    pub fn endpoint(&self) -> Endpoint {
        self.launch.endpoint().clone()
    }

    /// The value of the label `server` in the agent's metrics.
    pub fn label(&self) -> String {
        self.launch.label()
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A path as its clients have to spell it.
    pub fn path(&self, path: &str) -> String {
        self.launch.path(path)
    }

    /// The figures that a server of its build says.
    pub fn says(&self) -> &'static [Figure] {
        self.launch.says()
    }

    /// The file name of the model: the label `model` in the agent's metrics.
    pub fn model(&self) -> String {
        self.launch.model().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Sends a signal to the server.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Fails if the server has ended.
    pub fn assert_alive(&mut self) -> Result<()> {
        match self.process.ended() {
            Some(status) => bail!("llama-server ended with {status}:\n{}", self.log.tail()),
            None => Ok(()),
        }
    }

    /// The server's own metrics. Their names begin with `llamacpp:`.
    pub fn metrics(&self) -> Result<Exposition> {
        let reply = http::get(self.endpoint(), &self.path("/metrics"))?;
        Exposition::parse(&reply.body).context("the server's /metrics")
    }

    /// Waits until no request runs or waits, and nothing has moved for 100 ms; returns the metrics of that moment.
    ///
    /// A busy server is asked only every 1.2 s: the server notices that the client of a plain request has gone when
    /// it has delivered nothing to anybody for a second, and an answer of `/metrics` is a delivery.
    pub fn wait_idle(&self) -> Result<Exposition> {
        let mut before = None;
        for _ in 0..100 {
            let metrics = self.metrics()?;
            let [running, waiting, decode_calls] =
                ["requests_processing", "requests_deferred", "n_decode_total"]
                    .map(|name| metrics.value(&format!("llamacpp:{name}")).unwrap_or(f64::NAN));
            let busy = running + waiting > 0.0;
            if !busy && before == Some(decode_calls) {
                return Ok(metrics);
            }
            before = (!busy).then_some(decode_calls);
            thread::sleep(Duration::from_millis(if busy { 1200 } else { 100 }));
        }
        bail!("llama-server does not become idle: {:?}\n{}", self.metrics(), self.log.tail())
    }
}

/// An address of the loopback interface on which nothing listens.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}
