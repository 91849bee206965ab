//! The command line and the configuration file. In: arguments, environment, TOML. Out: validated options.
//!
//! Precedence: flag, environment, file, default.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

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
    Run(RunArguments),
    /// Say whether this host can be observed, and what to do if not. Exit code: 0 yes, 1 in part, 2 no
    Doctor(ReportArguments),
    /// Say what would be attached to which process, at which instruction and price; loads nothing.
    /// Exit code: 0 all can be measured, 1 something cannot, 3 no llama.cpp process
    Plan(ReportArguments),
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
    /// A TOML file with the keys `listen`, `pid` and `log`
    #[arg(long, env = "LLAMAPROBE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to log to stderr: error, warn, info, debug, or directives such as `llamaprobe::bpf=debug` [default: info]
    #[arg(long, env = "LLAMAPROBE_LOG", value_name = "LEVEL")]
    pub log: Option<String>,
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
        let default = DEFAULT_LISTEN.parse().context("the default address")?;
        Ok(Options {
            listen: self.listen.or(file.listen).unwrap_or(default),
            only: if self.pid.is_empty() { file.pid } else { self.pid },
            log: self.log.or(file.log).unwrap_or_else(|| "info".to_owned()),
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
        for (file, named) in
            [("lisen = 1\n", "lisen"), ("listen = \"here\"\n", "listen"), ("pid = [-1]\n", "pid")]
        {
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
