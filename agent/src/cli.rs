//! The command line and the configuration file. In: arguments, environment, TOML. Out: validated options.
//!
//! Precedence: flag, environment, file, default.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::export::{
    log::{LogOptions, Logged},
    otlp,
};

/// Where the metrics are served unless told otherwise: a port that OpenTelemetry registered for Prometheus exporters.
const DEFAULT_LISTEN: &str = "127.0.0.1:9464";

/// Watches llama.cpp servers from the kernel and serves their metrics to Prometheus.
#[derive(Debug, Parser)]
#[command(name = "llamaprobe", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `run`.
    #[command(flatten)]
    pub run: RunArguments,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Observe llama.cpp processes and serve their metrics (the default)
    Run(Box<RunArguments>),
    /// Say whether this host can be observed, and what to do if not. Exit code: 0 yes, 1 in part, 2 no
    Doctor(ReportArguments),
    /// Say what would be attached to which process, at which instruction and price; loads nothing.
    /// Exit code: 0 all can be measured, 1 something cannot, 3 no llama.cpp process
    Plan(ReportArguments),
    /// Ask the running agent for its whole state: a table, or one JSON document
    Snapshot(SnapshotArguments),
}

/// The options of `snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArguments {
    /// One JSON document instead of a table
    #[arg(long)]
    pub json: bool,
    /// Where the agent listens
    #[arg(long, env = "LLAMAPROBE_LISTEN", value_name = "ADDRESS:PORT", default_value = DEFAULT_LISTEN)]
    pub listen: SocketAddr,
}

/// The options of `run`.
#[derive(Debug, Default, Args)]
pub struct RunArguments {
    /// Address of the HTTP endpoint; port 0 takes a free one [default: 127.0.0.1:9464]
    #[arg(long, env = "LLAMAPROBE_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Observe only this process; can be given several times
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
    /// Which finished requests to log, one JSON line each [default: off]
    #[arg(long, env = "LLAMAPROBE_LOG_REQUESTS", value_enum, value_name = "WHICH")]
    pub log_requests: Option<Logged>,
    /// The file of the request log, opened anew on SIGHUP; standard output when absent
    #[arg(long, env = "LLAMAPROBE_LOG_FILE", value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// With `--log-requests errors`, log requests at least this slow too
    #[arg(long, env = "LLAMAPROBE_LOG_SLOW_MS", value_name = "MILLISECONDS")]
    pub log_slow_ms: Option<u64>,
    /// A request header that names the user, such as X-User
    #[arg(long, env = "LLAMAPROBE_USER_HEADER", value_name = "NAME")]
    pub user_header: Option<String>,
    /// Whether bounded parts of requests and answers are looked at for routes, codes and named fields. Off: only what
    /// sockets and probes tell [default: on]
    #[arg(long, env = "LLAMAPROBE_PAYLOAD", value_enum, value_name = "SWITCH")]
    pub payload: Option<Switch>,
    /// A TOML file with these options as keys, `-` written `_`
    #[arg(long, env = "LLAMAPROBE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to log to stderr: error, warn, info, debug, or directives such as `llamaprobe::bpf=debug` [default: info]
    #[arg(long, env = "LLAMAPROBE_LOG", value_name = "LEVEL")]
    pub log: Option<String>,
    /// What is exported over OTLP; last, since these have a heading of their own.
    #[command(flatten)]
    pub otlp: otlp::Arguments,
}

/// The options of `doctor` and `plan`.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// Look only at this process; can be given several times
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<SocketAddr>,
    #[serde(default)]
    pid: Vec<u32>,
    log: Option<String>,
    log_requests: Option<Logged>,
    log_file: Option<PathBuf>,
    log_slow_ms: Option<u64>,
    user_header: Option<String>,
    payload: Option<Switch>,
    otlp_endpoint: Option<String>,
    otlp_signals: Option<String>,
    trace_ratio: Option<f64>,
    trace_slow_ms: Option<String>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Validated options of `run`.
#[derive(Debug)]
pub struct Options {
    /// Address of the HTTP endpoint.
    pub listen: SocketAddr,
    /// Observe only these processes; all when empty.
    pub only: Vec<u32>,
    /// What to log.
    pub log: String,
    /// The request log.
    pub requests: LogOptions,
    /// A request header that names the user.
    pub user_header: Option<String>,
    /// Whether payload is looked at.
    pub payload: bool,
    /// What is exported over OTLP.
    pub otlp: otlp::Options,
}

impl RunArguments {
    /// Joins flags, environment and file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or has an unknown key or a bad value; the message names both.
    pub fn resolve(self) -> Result<Options> {
        let file = match &self.config {
            None => File::default(),
            Some(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
                toml::from_str(&text).with_context(|| format!("bad configuration file {}", path.display()))?
            }
        };
        let of_file = otlp::Arguments {
            otlp_endpoint: file.otlp_endpoint,
            otlp_signals: file.otlp_signals,
            trace_ratio: file.trace_ratio,
            trace_slow_ms: file.trace_slow_ms,
        };
        let default = DEFAULT_LISTEN.parse().context("the default address")?;
        Ok(Options {
            listen: self.listen.or(file.listen).unwrap_or(default),
            only: if self.pid.is_empty() { file.pid } else { self.pid },
            log: self.log.or(file.log).unwrap_or_else(|| "info".to_owned()),
            requests: LogOptions {
                logged: self.log_requests.or(file.log_requests).unwrap_or(Logged::Off),
                file: self.log_file.or(file.log_file),
                slow: self.log_slow_ms.or(file.log_slow_ms).map(Duration::from_millis),
            },
            user_header: self.user_header.or(file.user_header),
            payload: self.payload.or(file.payload) != Some(Switch::Off),
            otlp: otlp::Options::resolve(&self.otlp, &|name| std::env::var(name).ok(), &of_file)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn resolved(text: &str, listen: Option<&str>) -> Result<Options> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(text.as_bytes())?;
        let listen = listen.map(|address| address.parse().unwrap());
        RunArguments { listen, config: Some(file.path().to_owned()), ..RunArguments::default() }.resolve()
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = "listen = \"127.0.0.1:1\"\npid = [7]\n";
        assert_eq!(resolved(file, None).unwrap().listen.port(), 1);
        let options = resolved(file, Some("127.0.0.1:2")).unwrap();
        assert_eq!((options.listen.port(), options.only), (2, vec![7]));
    }

    #[test]
    fn mistakes_are_named() {
        for (file, named) in [
            ("lisen = 1\n", "lisen"),
            ("listen = \"here\"\n", "listen"),
            ("pid = [-1]\n", "pid"),
            ("otlp_endpoint = \"here\"\n", "otlp_endpoint"),
            ("trace_ratio = 2.0\n", "trace_ratio"),
        ] {
            let message = format!("{:#}", resolved(file, None).unwrap_err());
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
