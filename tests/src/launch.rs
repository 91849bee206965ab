//! How a llama-server is started: from which executable, through which command, at which address.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::assets::{Assets, Build, workspace_root};
use crate::comparison::Figure;
use crate::http::Endpoint;
use crate::process::tied;
use crate::server::{LlamaServer, free_address};
use crate::tls::Identity;

/// Everything that starting a server takes, so that it can be started again.
#[derive(Clone, Debug)]
pub struct Launch {
    wrapper: Vec<OsString>,
    executable: PathBuf,
    model: PathBuf,
    arguments: Vec<String>,
    endpoint: Endpoint,
    beside: Option<SocketAddr>,
    prefix: String,
    says: &'static [Figure],
}

impl Launch {
    /// A build where it was unpacked, with `--metrics` and `arguments`, on a free port.
    pub fn new(build: Build, model: &Path, arguments: &[&str]) -> Result<Self> {
        let assets = Assets::locate()?;
        let launch = Self::of(assets.llama_server(build), model, arguments)?.saying(build.says());
        // A server inside a module of Python is no executable.
        Ok(if build == Build::Embedded { launch.in_python(&assets) } else { launch })
    }

    /// The same of a server that is in no table; of its figures none is expected.
    pub fn of(executable: PathBuf, model: &Path, arguments: &[&str]) -> Result<Self> {
        ensure!(executable.is_file(), "{} is missing: run `cargo xtask setup`", executable.display());
        Ok(Self {
            wrapper: Vec::new(),
            executable,
            model: model.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            endpoint: free_address()?.into(),
            beside: None,
            prefix: String::new(),
            says: &[],
        })
    }

    /// The executable is a module of Python that holds the server.
    pub fn in_python(self, assets: &Assets) -> Self {
        self.through([assets.python(), workspace_root().join("tests/assets/serve_xllamacpp.py")])
    }

    /// The figures that the server says.
    pub fn saying(self, says: &'static [Figure]) -> Self {
        Self { says, ..self }
    }

    /// A prefix before all paths, as `--api-prefix` has it.
    pub fn below(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// Another executable.
    pub fn executable(self, executable: PathBuf) -> Self {
        Self { executable, ..self }
    }

    /// Another address.
    pub fn at(self, address: SocketAddr) -> Self {
        Self { endpoint: address.into(), ..self }
    }

    /// TLS at the same address.
    pub fn over_tls(self, identity: &Identity) -> Self {
        Self { endpoint: Endpoint::Tls(self.address(), identity.clone()), ..self }
    }

    /// A unix socket in place of an address; its name must end with `.sock`.
    pub fn over_unix(self, socket: PathBuf) -> Self {
        Self { endpoint: Endpoint::Unix(socket), ..self }
    }

    /// A TCP address beside the unix socket, for a server that is not reached by it.
    pub fn also_at(self, address: SocketAddr) -> Self {
        Self { beside: Some(address), ..self }
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

    /// Where the server will listen; an unused address if that is a unix socket.
    pub fn address(&self) -> SocketAddr {
        match &self.endpoint {
            Endpoint::Tcp(address) | Endpoint::Tls(address, _) => *address,
            Endpoint::Unix(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        }
    }

    /// Where and how the server will be reached.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Where the server says that it listens.
    pub fn label(&self) -> String {
        self.beside.map_or_else(|| self.endpoint.to_string(), |beside| beside.to_string())
    }

    /// A path as clients have to spell it.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    /// The figures that it will say.
    pub fn says(&self) -> &'static [Figure] {
        self.says
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
        match &self.endpoint {
            Endpoint::Unix(path) => match self.beside {
                None => command.arg("--host").arg(path),
                Some(address) => {
                    let hosts = format!("{},{}", address.ip(), path.display());
                    command.args(["--host", &hosts, "--port", &address.port().to_string()])
                }
            },
            Endpoint::Tcp(address) | Endpoint::Tls(address, _) => {
                command.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()])
            }
        };
        if !self.prefix.is_empty() {
            command.args(["--api-prefix", &self.prefix]);
        }
        if let Endpoint::Tls(_, identity) = &self.endpoint {
            command.arg("--ssl-key-file").arg(identity.key());
            command.arg("--ssl-cert-file").arg(identity.certificate());
        }
        command
    }
}
