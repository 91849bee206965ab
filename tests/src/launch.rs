//! How a llama-server is started: from which executable, through which command, at which address.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::assets::{Assets, Build};
use crate::process::tied;
use crate::server::{LlamaServer, free_address};

/// Everything that starting a server takes, so that it can be started again.
#[derive(Clone, Debug)]
pub struct Launch {
    wrapper: Vec<OsString>,
    executable: PathBuf,
    model: PathBuf,
    arguments: Vec<String>,
    address: SocketAddr,
}

impl Launch {
    /// A build where it was unpacked, with `--metrics` and `arguments`, on a free port.
    pub fn new(build: Build, model: &Path, arguments: &[&str]) -> Result<Self> {
        let executable = Assets::locate()?.llama_server(build);
        ensure!(executable.is_file(), "{} is missing: run `cargo xtask setup`", executable.display());
        Ok(Self {
            wrapper: Vec::new(),
            executable,
            model: model.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            address: free_address()?,
        })
    }

    /// Another executable.
    pub fn executable(self, executable: PathBuf) -> Self {
        Self { executable, ..self }
    }

    /// Another address.
    pub fn at(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// Starts the server as the last arguments of `wrapper`. Where that does not become the server by `exec`, the
    /// server's process id is the wrapper's, and the wrapper has to take the server along when it is killed.
    pub fn through<I>(self, wrapper: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        Self { wrapper: wrapper.into_iter().map(Into::into).collect(), ..self }
    }

    /// Starts the server; returns when it is healthy.
    pub fn start(self) -> Result<LlamaServer> {
        LlamaServer::launch(self)
    }

    /// Where the server will listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The model that it will load.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// The whole command.
    pub(crate) fn command(&self) -> Command {
        let mut words = self.wrapper.iter().cloned().chain([self.executable.clone().into_os_string()]);
        let mut command = tied(words.next().unwrap_or_default());
        command.args(words).arg("--model").arg(&self.model).args(&self.arguments).arg("--metrics");
        command.args(["--host", &self.address.ip().to_string()]);
        command.args(["--port", &self.address.port().to_string()]);
        command
    }
}
