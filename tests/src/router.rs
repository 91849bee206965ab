//! A llama-server without a model of its own, which starts a server for each model and passes requests on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::assets::{Assets, Build};
use crate::process::{Log, Process, tied};
use crate::scratch::Scratch;
use crate::server::free_address;
use crate::{http, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running router.
#[derive(Debug)]
pub struct Router {
    _process: Process,
    address: SocketAddr,
    _models: Scratch,
}

impl Router {
    /// The models that it has.
    pub const MODELS: [&str; 2] = ["tiny", "fast"];

    /// Starts it; no server of a model runs then.
    pub fn start(assets: &Assets) -> Result<Self> {
        let models = Scratch::new()?;
        for (name, file) in Self::MODELS.iter().zip([assets.tiny(), assets.fast()]) {
            models.copy(&file, &format!("{name}.gguf"))?;
        }
        let (address, log) = (free_address()?, Log::new("router"));
        let mut command = tied(assets.llama_server(Build::Process));
        command.arg("--models-dir").arg(models.path()).args(["-np", "2", "-c", "4096", "-t", "1", "--host"]);
        command.arg(address.ip().to_string()).args(["--port", &address.port().to_string()]);
        command.stdin(Stdio::null()).stdout(log.create()?).stderr(log.create()?);
        let process = Process::start("llama-server", &mut command)?;
        wait_for("the router", PATIENCE, || {
            http::get(address, "/health").ok().filter(|reply| reply.status == 200)
        })?;
        Ok(Self { _process: process, address, _models: models })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the servers of the models listen, which are running then.
    pub fn servers(&self) -> Result<BTreeSet<String>> {
        let reply = http::get(self.address, "/models")?;
        let models: Value = reply.documents().into_iter().next().context("no answer")?;
        let port = |model: &Value| {
            let status = &model["status"];
            ensure!(status["value"] == "loaded", "not loaded: {status}");
            let arguments: Vec<_> =
                status["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let port = arguments.windows(2).find(|pair| pair[0] == "--port").context("no port")?[1];
            Ok(format!("127.0.0.1:{port}"))
        };
        models["data"].as_array().context("no list")?.iter().map(port).collect()
    }
}
