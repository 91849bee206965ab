//! A real Prometheus that scrapes the agent as `deploy/prometheus` says, only faster; and its promtool.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::assets::{Assets, workspace_root};
use crate::process::{Log, Process, tied};
use crate::scratch::Scratch;
use crate::server::free_address;
use crate::{http, skip, wait_for};

/// How long Prometheus may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The directory with the configuration and the rules.
pub fn deployed() -> PathBuf {
    workspace_root().join("deploy/prometheus")
}

/// How the reason of a test begins that was skipped for want of Prometheus.
pub const NO_PROMETHEUS: &str = "no Prometheus";

/// The two programs, or the reason to skip a test.
pub fn programs() -> Option<(PathBuf, PathBuf)> {
    let assets = Assets::expected();
    let programs = assets.prometheus().zip(assets.promtool());
    if programs.is_none() {
        skip(&format!("{NO_PROMETHEUS}: run `cargo xtask setup`, or put prometheus and promtool in PATH"));
    }
    programs
}

/// One series of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its values; one for an instant query. Not all are numbers.
    pub values: Vec<f64>,
}

impl Series {
    /// Whether it says anything.
    pub fn has_number(&self) -> bool {
        self.values.iter().any(|value| value.is_finite())
    }
}

/// A running Prometheus; ended when this value goes.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    address: SocketAddr,
    log: Log,
    _scratch: Scratch,
}

impl Prometheus {
    /// Starts `program` with the shipped configuration and rules, for the agent at `agent`; it scrapes and evaluates
    /// every second.
    pub fn start(program: PathBuf, agent: SocketAddr) -> Result<Self> {
        Self::start_with(program, agent, &[])
    }

    /// The same with more `arguments`.
    pub fn start_with(program: PathBuf, agent: SocketAddr, arguments: &[&str]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let shipped = fs::read_to_string(deployed().join("prometheus.yml"))?;
        let changes = [
            ("15s", "1s".to_owned()),
            ("127.0.0.1:9464\"", format!("{agent}\"")),
            ("rules/*.yml", deployed().join("rules/*.yml").display().to_string()),
        ];
        let config = changes.iter().try_fold(shipped, |config, (shipped, own)| {
            ensure!(config.contains(shipped), "prometheus.yml has no {shipped}");
            Ok(config.replace(shipped, own))
        })?;
        let config = scratch.write("prometheus.yml", config.as_bytes())?;
        let (address, log) = (free_address()?, Log::new("prometheus"));
        let mut command = tied(program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", scratch.path().join("database").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.create()?)
            .stderr(log.create()?);
        let process = Process::start("prometheus", &mut command)?;
        let mut own = Self { process, address, log, _scratch: scratch };
        wait_for("Prometheus' /-/ready to answer 200", PATIENCE, || {
            let ready = http::get(address, "/-/ready").is_ok_and(|reply| reply.status == 200);
            (ready || own.process.ended().is_some()).then_some(ready)
        })
        .and_then(|ready| {
            ensure!(ready, "it has ended");
            Ok(())
        })
        .with_context(|| format!("Prometheus does not start; its log ends with:\n{}", own.log.tail()))?;
        Ok(own)
    }

    /// Asks the API; an error of the query is an error here.
    pub fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let parameters: Vec<_> =
            parameters.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
        let reply = http::get(self.address, &format!("/api/v1/{path}?{}", parameters.join("&")))?;
        let mut document: Value =
            serde_json::from_str(&reply.body).with_context(|| format!("no JSON: {}", reply.body))?;
        ensure!(document["status"] == "success", "{}", reply.body);
        Ok(document["data"].take())
    }

    /// What an expression is at `time`, in seconds since the epoch.
    pub fn query(&self, expr: &str, time: f64) -> Result<Vec<Series>> {
        let answer = self.api("query", &[("query", expr), ("time", &time.to_string())])?;
        series(&answer, |of| Some(vec![of["value"][1].as_str()?.parse().ok()?]))
    }

    /// What an expression was in the seconds before `time`, every 5 seconds.
    pub fn query_range(&self, expr: &str, time: f64, seconds: f64) -> Result<Vec<Series>> {
        let [start, end] = [time - seconds, time].map(|time| time.to_string());
        let range = [("query", expr), ("start", &start), ("end", &end), ("step", "5")];
        series(&self.api("query_range", &range)?, |of| {
            of["values"].as_array()?.iter().map(|pair| pair[1].as_str()?.parse().ok()).collect()
        })
    }

    /// Every rule: group and rule as the API tells them.
    pub fn rules(&self) -> Result<Vec<Value>> {
        let answer = self.api("rules", &[])?;
        let groups = answer["groups"].as_array().context("no groups")?;
        Ok(groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).cloned().collect())
    }

    /// The values of a label of the series that `selector` selects.
    pub fn label_values(&self, label: &str, selector: &str) -> Result<Vec<String>> {
        let answer = self.api(&format!("label/{label}/values"), &[("match[]", selector)])?;
        let values = answer.as_array().context("no list")?.iter();
        Ok(values.filter_map(|value| Some(value.as_str()?.to_owned())).collect())
    }
}

fn series(answer: &Value, values: impl Fn(&Value) -> Option<Vec<f64>>) -> Result<Vec<Series>> {
    let list = answer["result"].as_array().context("no result")?;
    list.iter()
        .map(|of| {
            let labels = of["metric"].as_object().context("no labels")?.iter();
            let labels =
                labels.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
            let values = values(of).with_context(|| format!("no values: {of}"))?;
            Ok(Series { labels: labels.collect(), values })
        })
        .collect()
}

/// Escapes what may not stand in a query string.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Runs promtool in the directory with the configuration; what it says must be good. Returns it.
pub fn promtool(program: PathBuf, arguments: &[&str], input: Option<fs::File>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(deployed()).stdin(input.map_or_else(Stdio::null, Stdio::from));
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {arguments:?} ended with {}:\n{said}", output.status);
    Ok(said)
}
