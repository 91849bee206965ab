//! The command line and the configuration file. In: arguments, environment, TOML. Out: validated options.
//!
//! Precedence: flag, environment, file, default.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use self::billing::{BillingOptions, DEFAULT_USERS, Secret};
use crate::{
    export::{
        compat::Dialect,
        http::web::WebOptions,
        log::{LogOptions, Logged},
        otlp,
        sink::SinkOptions,
        snapshot::fetch,
    },
    journal::JournalOptions,
    kubernetes,
    recorder::{RecorderOptions, When},
    session::{cost::Rates, identity::Source},
    top::{SORTS, TopOptions},
};

pub mod billing;
mod explain;
pub mod template;

pub use explain::ExplainArguments;

/// What names a user unless told otherwise. A client's address is personal and often a proxy's: only when asked for.
const DEFAULT_SOURCES: [Source; 3] = [Source::Header, Source::Body, Source::Key];

/// Over the options of OTLP in the help.
const OTLP_HEADING: &str = "OpenTelemetry";

/// Over the options of Kubernetes in the help.
const KUBERNETES_HEADING: &str = "Kubernetes";

/// Where the metrics are served unless told otherwise: a port that OpenTelemetry registered for Prometheus exporters.
const DEFAULT_LISTEN: &str = "127.0.0.1:9464";

/// Megabytes of a journal: hours of a busy server.
const DEFAULT_JOURNAL: u64 = 256;

/// Seconds from one recording to the next.
const DEFAULT_RECORD_PAUSE: u64 = 60;

/// Megabytes of all recordings: a dozen of the longest.
const DEFAULT_RECORDINGS: u64 = 256;

/// Megabytes that are held of what happens: minutes of a busy server, an hour of a quiet one.
const DEFAULT_MEMORY: u64 = 16;

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
    Doctor(DoctorArguments),
    /// Say what would be attached to which process, at which instruction and price; loads nothing.
    /// Exit code: 0 all can be measured, 1 something cannot, 3 no llama.cpp process
    Plan(ReportArguments),
    /// Ask the running agent for its whole state: a table, or one JSON document
    Snapshot(SnapshotArguments),
    /// Show live what the running agent knows: servers, requests, slots. Needs no rights
    Top(TopArguments),
    /// Say why a request took as long as it did: who and what it waited for, and why its prompt was not in the cache. Needs no
    /// rights
    Explain(Box<ExplainArguments>),
    /// Play a journal again: the same log lines and metrics as when it was written. Needs no rights and no server.
    /// Exit code: 0 whole, 1 it is cut or damaged and was played so far
    Replay(ReplayArguments),
    /// Make a trace of a journal, or of what the running agent holds: for Perfetto (ui.perfetto.dev), or as lines of JSON
    Trace(TraceArguments),
    /// Print the hash that stands for an API key, which is read from standard input: for the file of aliases
    KeyHash(KeyHashArguments),
}

/// The options of `key-hash`.
#[derive(Debug, Args)]
pub struct KeyHashArguments {
    /// The secret, as the agent was given it
    #[arg(long, env = "LLAMAPROBE_KEY_FILE", value_name = "FILE")]
    pub key_file: PathBuf,
}

/// The options of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// The journal
    pub file: PathBuf,
    /// Where log lines go, one JSON object each; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Where spans go, if the agent traced requests: OTLP in JSON, a request a line, as the collector's file receiver reads
    /// it; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub spans: Option<PathBuf>,
    /// Where the metrics go, as Prometheus reads them, at the time when they were asked for last; `-` is standard output,
    /// and the default
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Serve the metrics and the snapshot there until it is ended, rather than write them
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "metrics")]
    pub listen: Option<SocketAddr>,
    /// With `--listen`, as it was rather than its end: so many times as fast as it happened (`--speed 1`), for `llamaprobe top`
    #[arg(long, value_name = "TIMES", requires = "listen", value_parser = speed)]
    pub speed: Option<f64>,
    /// With `--listen`, who may ask, as with `run`
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub web_config_file: Option<PathBuf>,
    /// With `--listen`, whoever reaches the address may ask, as with `run`
    #[arg(long, requires = "listen")]
    pub listen_openly: bool,
    /// Publish the metrics also under other names, as `run` does
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES")]
    pub compat: Vec<Dialect>,
}

/// The options of `trace`.
#[derive(Debug, Args)]
pub struct TraceArguments {
    /// The journal or the recording; without one the agent is asked for one, which runs on this machine with --record-dir
    pub file: Option<PathBuf>,
    /// Where the trace goes; `-` is standard output
    #[arg(short, long, value_name = "FILE", required_unless_present = "schema")]
    pub output: Option<PathBuf>,
    /// What it is
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "perfetto")]
    pub format: TraceFormat,
    /// Print the JSON Schema of the lines of --format ndjson, and end
    #[arg(long)]
    pub schema: bool,
    /// Whom to ask
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// What a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TraceFormat {
    /// What ui.perfetto.dev opens.
    Perfetto,
    /// A JSON object a line.
    Ndjson,
}

/// How fast a journal is played.
fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| (0.01..=1000.0).contains(speed));
    speed.ok_or_else(|| "it should be a number from 0.01 to 1000".to_owned())
}

/// The options of `snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArguments {
    /// One JSON document instead of a table
    #[arg(long)]
    pub json: bool,
    /// Whom to ask
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// Where an agent is, and what it is shown.
#[derive(Debug, Args)]
pub struct AgentArguments {
    /// Where the agent listens
    #[arg(long, env = "LLAMAPROBE_LISTEN", value_name = "ADDRESS:PORT", default_value = DEFAULT_LISTEN)]
    pub listen: SocketAddr,
    /// Where the agent listens, as a URL, in the place of --listen: where it speaks TLS, or a proxy is before it
    #[arg(long, env = "LLAMAPROBE_URL", value_name = "URL")]
    pub url: Option<String>,
    /// The authority of the agent's certificate, PEM; those of this system when absent
    #[arg(long, env = "LLAMAPROBE_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// A certificate for agents that ask for one, PEM
    #[arg(long, value_name = "FILE", requires = "cert_key_file")]
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub cert_key_file: Option<PathBuf>,
    /// A file with USER:PASSWORD, or with a bearer token; the same can be in the variable LLAMAPROBE_CREDENTIALS
    #[arg(long, env = "LLAMAPROBE_CREDENTIALS_FILE", value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,
}

impl AgentArguments {
    /// Whom to ask.
    ///
    /// # Errors
    ///
    /// When the URL is none, or a file cannot be read or is bad.
    pub fn agent(&self) -> Result<fetch::Agent> {
        let credentials = match &self.credentials_file {
            Some(path) => Some(fetch::credentials(path)?),
            None => std::env::var("LLAMAPROBE_CREDENTIALS").ok(),
        };
        let secrets = fetch::Secrets {
            ca_file: self.ca_file.clone(),
            certificate: self.cert_file.clone().zip(self.cert_key_file.clone()),
            credentials,
        };
        let url = self.url.clone().unwrap_or_else(|| format!("http://{}", self.listen));
        fetch::Agent::at(&url, &secrets)
    }
}

/// The options of `top`.
#[derive(Debug, Args)]
pub struct TopArguments {
    /// Whom to ask
    #[command(flatten)]
    pub agent: AgentArguments,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub every: u64,
    /// Requests that are shown: `user=ada latency>1s`; `/` changes it
    #[arg(long, value_name = "TERMS", default_value = "")]
    pub filter: String,
    /// By what requests are sorted; `s` changes it
    #[arg(long, value_name = "COLUMN", default_value = SORTS[0], value_parser = SORTS)]
    pub sort: String,
    /// Print one frame, as large as the terminal or 80x24, and end
    #[arg(long)]
    pub once: bool,
}

impl TopArguments {
    /// What is to be shown.
    ///
    /// # Errors
    ///
    /// When the URL is none, or a file cannot be read or is bad.
    pub fn options(self) -> Result<TopOptions> {
        let Self { agent, every, filter, sort, once } = self;
        Ok(TopOptions { agent: agent.agent()?, every: Duration::from_secs(every), filter, sort, once })
    }
}

/// The options of `run`, as flags and environment or as the configuration file, which has the same names.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunArguments {
    /// Address of the HTTP endpoint; port 0 takes a free one [default: 127.0.0.1:9464]
    #[arg(long, env = "LLAMAPROBE_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Who may ask, and TLS: a web configuration file as Prometheus' exporters have it (`tls_server_config`,
    /// `basic_auth_users`, `rate_limit`, `http_server_config`), with `bearer_token_file` beside; read again when it changes
    #[arg(long, env = "LLAMAPROBE_WEB_CONFIG_FILE", value_name = "FILE")]
    pub web_config_file: Option<PathBuf>,
    /// Listen on more than loopback without asking for credentials, though the metrics name users: whoever reaches the
    /// address may read them [default: off]
    #[arg(long, env = "LLAMAPROBE_LISTEN_OPENLY", value_enum, value_name = "SWITCH", num_args = 0..=1,
          require_equals = true, default_missing_value = "on")]
    pub listen_openly: Option<Switch>,
    /// Observe only this process; can be given several times
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
    /// Observe only servers in the agent's own network namespace: those of its pod, where it runs as a sidecar [default: off]
    #[arg(long, env = "LLAMAPROBE_SIDECAR", value_enum, value_name = "SWITCH", num_args = 0..=1,
          require_equals = true, default_missing_value = "on")]
    pub sidecar: Option<Switch>,
    /// Who is asked what the pods of servers are called, for the labels namespace, pod and container [default: off]
    #[arg(long, env = "LLAMAPROBE_KUBERNETES", value_enum, value_name = "WHOM", help_heading = KUBERNETES_HEADING)]
    pub kubernetes: Option<kubernetes::Source>,
    /// Where it answers, such as https://10.0.0.1:10250; without, the API server of this pod's cluster, or the kubelet at
    /// the name of the node
    #[arg(long, env = "LLAMAPROBE_KUBERNETES_URL", value_name = "URL", help_heading = KUBERNETES_HEADING)]
    pub kubernetes_url: Option<String>,
    /// The authority of its certificate, PEM; that of the service account when absent
    #[arg(long, env = "LLAMAPROBE_KUBERNETES_CA_FILE", value_name = "FILE", help_heading = KUBERNETES_HEADING)]
    pub kubernetes_ca_file: Option<PathBuf>,
    /// The token that it is shown, read anew each time; that of the service account when absent
    #[arg(long, env = "LLAMAPROBE_KUBERNETES_TOKEN_FILE", value_name = "FILE", help_heading = KUBERNETES_HEADING)]
    pub kubernetes_token_file: Option<PathBuf>,
    /// The name of this node in Kubernetes
    #[arg(long, env = "LLAMAPROBE_NODE_NAME", value_name = "NAME", help_heading = KUBERNETES_HEADING)]
    pub node_name: Option<String>,
    /// Which finished requests to log, one JSON line each [default: off]
    #[arg(long, env = "LLAMAPROBE_LOG_REQUESTS", value_enum, value_name = "WHICH")]
    pub log_requests: Option<Logged>,
    /// The file of the request log, opened anew on SIGHUP; standard output when absent
    #[arg(long, env = "LLAMAPROBE_LOG_FILE", value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// With `--log-requests errors`, log requests at least this slow too
    #[arg(long, env = "LLAMAPROBE_LOG_SLOW_MS", value_name = "MILLISECONDS")]
    pub log_slow_ms: Option<u64>,
    /// A file that gets all that is known of each finished inference request, one JSON object each: for analysis. Opened
    /// anew on SIGHUP
    #[arg(long, env = "LLAMAPROBE_RECORD_FILE", value_name = "FILE")]
    pub record_file: Option<PathBuf>,
    /// A request header that names the user, such as X-User
    #[arg(long, env = "LLAMAPROBE_USER_HEADER", value_name = "NAME")]
    pub user_header: Option<String>,
    /// What names the user of a request, in the order in which it is asked: header, body (its `user`), key (a keyed hash
    /// of the API key), address (the client's) [default: header,body,key]
    #[arg(long, env = "LLAMAPROBE_USER_FROM", value_delimiter = ',', value_name = "SOURCES")]
    pub user_from: Option<Vec<Source>>,
    /// Users told apart of each server; the rest is `other` [default: 100]
    #[arg(long, env = "LLAMAPROBE_USERS", value_name = "N")]
    pub users: Option<usize>,
    /// A TOML file with names for hashes, addresses and other users: `"10.0.0.7" = "laptop"`; read again on SIGHUP
    #[arg(long, env = "LLAMAPROBE_USER_ALIASES", value_name = "FILE")]
    pub user_aliases: Option<PathBuf>,
    /// A file with a secret of 32 bytes or more that API keys are hashed with; without it hashes change with every start
    #[arg(long, env = "LLAMAPROBE_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// A TOML file with the prices of tokens, dollars per million, a table for each model and one named `default`:
    /// `prompt = 0.1`, `cached = 0.02`, `generated = 0.4`; read again on SIGHUP
    #[arg(long, env = "LLAMAPROBE_PRICE_FILE", value_name = "FILE")]
    pub price_file: Option<PathBuf>,
    /// What the host costs, dollars per hour: shared by the users of its servers by engine time
    #[arg(long, env = "LLAMAPROBE_HOST_PRICE", value_name = "DOLLARS")]
    pub host_price: Option<f64>,
    /// A file of phrases, one a line: answers whose first 256 bytes hold one count as refusals; read again on SIGHUP
    #[arg(long, env = "LLAMAPROBE_REFUSAL_FILE", value_name = "FILE")]
    pub refusal_file: Option<PathBuf>,
    /// Whether bounded parts of requests and answers are looked at for routes, codes and named fields. Off: only what
    /// sockets and probes tell [default: on]
    #[arg(long, env = "LLAMAPROBE_PAYLOAD", value_enum, value_name = "SWITCH")]
    pub payload: Option<Switch>,
    /// Publish the same also under the names that dashboards for vLLM or for llama-server's own metrics ask for
    #[arg(long, env = "LLAMAPROBE_COMPAT", value_enum, value_delimiter = ',', value_name = "NAMES")]
    pub compat: Option<Vec<Dialect>>,
    /// Write down what happens, without any text of prompts or answers, for `llamaprobe replay`: send it with a report of
    /// what is wrong
    #[arg(long, env = "LLAMAPROBE_JOURNAL", value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// How long the journal may become; it ends there [default: 256]
    #[arg(long, env = "LLAMAPROBE_JOURNAL_MEGABYTES", value_name = "MEGABYTES")]
    pub journal_megabytes: Option<u64>,
    /// Whether the journal holds the bytes of requests and answers, too, prompts and API keys among them [default: off]
    #[arg(long, env = "LLAMAPROBE_JOURNAL_PAYLOAD", value_enum, value_name = "SWITCH")]
    pub journal_payload: Option<Switch>,
    /// A directory for recordings: the last minutes are held in memory, as a journal, and written there when something is too
    /// slow (`--record-when`), on SIGUSR2, or by `POST /record`; `llamaprobe replay` plays them. Nothing is held without
    #[arg(long, env = "LLAMAPROBE_RECORD_DIR", value_name = "DIRECTORY")]
    pub record_dir: Option<PathBuf>,
    /// When a recording is made by itself: `ttft>2s or gap>500ms or duration>60s`, of a request; `queue>1s`; and `stall>5m`,
    /// a server that has requests and makes no decode call [default: stall>5m]
    #[arg(long, env = "LLAMAPROBE_RECORD_WHEN", value_name = "CONDITION")]
    pub record_when: Option<String>,
    /// From one recording that is made by itself to the next [default: 60]
    #[arg(long, env = "LLAMAPROBE_RECORD_PAUSE", value_name = "SECONDS")]
    pub record_pause: Option<u64>,
    /// How long all recordings may be together; the oldest go first [default: 256]
    #[arg(long, env = "LLAMAPROBE_RECORD_MEGABYTES", value_name = "MEGABYTES")]
    pub record_megabytes: Option<u64>,
    /// Memory for what is held, from 1 to 1024 [default: 16]
    #[arg(long, env = "LLAMAPROBE_RECORD_MEMORY", value_name = "MEGABYTES")]
    pub record_memory: Option<u64>,
    /// A TOML file with these options as keys, `-` written `_`
    #[arg(long, env = "LLAMAPROBE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// What to log to stderr: error, warn, info, debug, or directives such as `llamaprobe::bpf=debug` [default: info]
    #[arg(long, env = "LLAMAPROBE_LOG", value_name = "LEVEL")]
    pub log: Option<String>,
    /// Where an OpenTelemetry collector takes OTLP, such as http://127.0.0.1:4318; nothing is exported without. The
    /// variables OTEL_EXPORTER_OTLP_... say the rest
    #[arg(long, value_name = "URL", help_heading = OTLP_HEADING)]
    pub otlp_endpoint: Option<String>,
    /// What is exported, a list of: traces, metrics, logs [default: all]
    #[arg(long, env = "LLAMAPROBE_OTLP_SIGNALS", value_name = "LIST", help_heading = OTLP_HEADING)]
    pub otlp_signals: Option<String>,
    /// Share of the requests without `traceparent` that are traced, from 0 to 1; of the others the caller decides
    /// [default: 1]
    #[arg(long, env = "LLAMAPROBE_TRACE_RATIO", value_name = "RATIO", help_heading = OTLP_HEADING)]
    pub trace_ratio: Option<f64>,
    /// Whether each decode call that checks the guesses of speculative decoding is an event of its span [default: off]
    #[arg(long, env = "LLAMAPROBE_TRACE_DRAFTS", value_enum, value_name = "SWITCH", help_heading = OTLP_HEADING)]
    pub trace_drafts: Option<Switch>,
    /// Trace requests that were this slow in any case, as those that failed are: a list of ttft=N (time to the first
    /// token), duration=N, gap=N (longest time between two tokens), in milliseconds
    #[arg(long, env = "LLAMAPROBE_TRACE_SLOW_MS", value_name = "LIST", help_heading = OTLP_HEADING)]
    pub trace_slow_ms: Option<String>,
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

/// The options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// What is looked at, and how it is told.
    #[command(flatten)]
    pub report: ReportArguments,
    /// The price list of the agent: whether it has an entry for each model that is served
    #[arg(long, env = "LLAMAPROBE_PRICE_FILE", value_name = "FILE")]
    pub price_file: Option<PathBuf>,
    /// The configuration file of the agent, for its `price_file`
    #[arg(long, env = "LLAMAPROBE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl DoctorArguments {
    /// The prices, where there is a list.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or is bad.
    pub fn rates(&self) -> Result<Option<Rates>> {
        let file = match (&self.price_file, &self.config) {
            (Some(file), _) => Some(file.clone()),
            (None, Some(config)) => RunArguments::read(config)?.price_file,
            (None, None) => None,
        };
        let Some(prices) = file else { return Ok(None) };
        let billing = BillingOptions { prices: Some(prices), ..BillingOptions::default() };
        Ok(Some(billing.load()?.rates))
    }
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
    /// Who may ask there.
    pub web: WebOptions,
    /// Observe only these processes; all when empty.
    pub only: Vec<u32>,
    /// Observe only servers in the agent's own network namespace.
    pub sidecar: bool,
    /// Who is asked for names of pods, and how.
    pub kubernetes: kubernetes::Options,
    /// What to log.
    pub log: String,
    /// Where requests and figures go beside the endpoint.
    pub sinks: SinkOptions,
    /// What happens, written down.
    pub journal: JournalOptions,
    /// The last minutes of it, held.
    pub recorder: RecorderOptions,
    /// A request header that names the user.
    pub user_header: Option<String>,
    /// Users and prices.
    pub billing: BillingOptions,
    /// What API keys are hashed with; random when absent.
    pub secret: Option<Secret>,
    /// Whether payload is looked at.
    pub payload: bool,
    /// Whether each decode call that checks guesses is told.
    pub trace_drafts: bool,
    /// Under whose names metrics are published, too.
    pub compat: Vec<Dialect>,
}

impl Options {
    /// Whether somebody keeps what each decode call was.
    pub const fn wants_steps(&self) -> bool {
        self.journal.file.is_some() || self.recorder.directory.is_some()
    }
}

impl RunArguments {
    /// What is said of OTLP, which has an environment of its own.
    fn otlp(&self) -> otlp::Arguments {
        otlp::Arguments {
            otlp_endpoint: self.otlp_endpoint.clone(),
            otlp_signals: self.otlp_signals.clone(),
            trace_ratio: self.trace_ratio,
            trace_slow_ms: self.trace_slow_ms.clone(),
        }
    }

    /// Reads a configuration file.
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("bad configuration file {}", path.display()))
    }

    /// Joins flags, environment and file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or has an unknown key or a bad value; the message names both.
    pub fn resolve(self) -> Result<Options> {
        let file = match &self.config {
            None => Self::default(),
            Some(path) => Self::read(path)?,
        };
        let otlp = otlp::Options::resolve(&self.otlp(), &|name| std::env::var(name).ok(), &file.otlp())?;
        let user_header = self.user_header.or(file.user_header);
        if let Some(name) = &user_header {
            hyper::header::HeaderName::from_bytes(name.as_bytes()).with_context(|| {
                format!("--user-header is {name:?}: it should be a header's name such as X-User")
            })?;
        }
        let default = DEFAULT_LISTEN.parse().context("the default address")?;
        let billing = BillingOptions {
            sources: self.user_from.or(file.user_from).unwrap_or_else(|| DEFAULT_SOURCES.to_vec()),
            users: self.users.or(file.users).unwrap_or(DEFAULT_USERS),
            aliases: self.user_aliases.or(file.user_aliases),
            prices: self.price_file.or(file.price_file),
            refusals: self.refusal_file.or(file.refusal_file),
            host_price: self.host_price.or(file.host_price),
        };
        let payload = self.payload.or(file.payload) != Some(Switch::Off);
        let web = WebOptions {
            file: self.web_config_file.or(file.web_config_file),
            // Without payload only addresses name somebody.
            names_users: payload || billing.sources.contains(&Source::Address),
            openly: self.listen_openly.or(file.listen_openly) == Some(Switch::On),
        };
        let (log_file, records) = (self.log_file.or(file.log_file), self.record_file.or(file.record_file));
        ensure!(
            records.is_none() || records != log_file,
            "--record-file and --log-file are the same: each needs a file of its own"
        );
        Ok(Options {
            billing: billing.check()?,
            secret: self.key_file.or(file.key_file).as_deref().map(billing::secret).transpose()?,
            listen: self.listen.or(file.listen).unwrap_or(default),
            web,
            only: if self.pid.is_empty() { file.pid } else { self.pid },
            sidecar: self.sidecar.or(file.sidecar) == Some(Switch::On),
            kubernetes: kubernetes::Options {
                source: self.kubernetes.or(file.kubernetes),
                url: self.kubernetes_url.or(file.kubernetes_url),
                ca_file: self.kubernetes_ca_file.or(file.kubernetes_ca_file),
                token_file: self.kubernetes_token_file.or(file.kubernetes_token_file),
                node: self.node_name.or(file.node_name),
            },
            log: self.log.or(file.log).unwrap_or_else(|| "info".to_owned()),
            sinks: SinkOptions {
                log: LogOptions {
                    logged: self.log_requests.or(file.log_requests).unwrap_or(Logged::Off),
                    file: log_file,
                    slow: self.log_slow_ms.or(file.log_slow_ms).map(Duration::from_millis),
                },
                records,
                otlp,
            },
            journal: JournalOptions {
                file: self.journal.or(file.journal),
                most_bytes: self
                    .journal_megabytes
                    .or(file.journal_megabytes)
                    .unwrap_or(DEFAULT_JOURNAL)
                    .saturating_mul(1_000_000),
                payload: self.journal_payload.or(file.journal_payload) == Some(Switch::On),
            },
            recorder: RecorderOptions {
                directory: self.record_dir.or(file.record_dir),
                when: match self.record_when.or(file.record_when) {
                    Some(when) => when.parse().context("--record-when")?,
                    None => When::default(),
                },
                pause: Duration::from_secs(
                    self.record_pause.or(file.record_pause).unwrap_or(DEFAULT_RECORD_PAUSE),
                ),
                most_bytes: self
                    .record_megabytes
                    .or(file.record_megabytes)
                    .unwrap_or(DEFAULT_RECORDINGS)
                    .saturating_mul(1_000_000),
                memory: memory(self.record_memory.or(file.record_memory).unwrap_or(DEFAULT_MEMORY))?,
            },
            user_header,
            trace_drafts: self.trace_drafts.or(file.trace_drafts) == Some(Switch::On),
            payload,
            compat: self.compat.or(file.compat).unwrap_or_default(),
        })
    }
}

/// Memory of the recorder, bytes.
fn memory(megabytes: u64) -> Result<usize> {
    ensure!(
        (1..=1024).contains(&megabytes),
        "--record-memory is {megabytes}: it should be a number of megabytes from 1 to 1024"
    );
    Ok(usize::try_from(megabytes)? * 1_000_000)
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
    fn an_endpoint_names_users_where_something_can_name_them() {
        let web = |text: &str| {
            let web = resolved(text, None).unwrap().web;
            (web.names_users, web.openly)
        };
        assert_eq!(web(""), (true, false));
        assert_eq!(web("payload = \"off\"\n"), (false, false));
        assert_eq!(web("payload = \"off\"\nuser_from = [\"address\"]\n"), (true, false));
        assert_eq!(web("listen_openly = \"on\"\n"), (true, true));
        let flag = Cli::parse_from(["llamaprobe", "--listen-openly"]).run;
        assert_eq!(flag.listen_openly, Some(Switch::On));
    }

    #[test]
    fn mistakes_are_named() {
        for (file, named) in [
            ("lisen = 1\n", "lisen"),
            ("listen = \"here\"\n", "listen"),
            ("pid = [-1]\n", "pid"),
            ("otlp_endpoint = \"here\"\n", "otlp_endpoint"),
            ("trace_ratio = 2.0\n", "trace_ratio"),
            ("record_when = \"gap\"\n", "--record-when"),
            ("record_memory = 0\n", "--record-memory"),
            ("record_file = \"a\"\nlog_file = \"a\"\n", "--record-file"),
        ] {
            let message = format!("{:#}", resolved(file, None).unwrap_err());
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn other_names_can_be_asked_for_together() {
        use clap::Parser as _;
        let both = vec![Dialect::Vllm, Dialect::Llamacpp];
        assert_eq!(resolved("compat = [\"vllm\", \"llamacpp\"]\n", None).unwrap().compat, both);
        assert_eq!(resolved("", None).unwrap().compat, []);
        for arguments in [&["--compat", "vllm,llamacpp"][..], &["--compat", "vllm", "--compat", "llamacpp"]] {
            let cli = Cli::parse_from([&["llamaprobe"], arguments].concat());
            assert_eq!(cli.run.compat, Some(both.clone()));
        }
        let message = format!("{:#}", resolved("compat = [\"vlm\"]\n", None).unwrap_err());
        assert!(message.contains("compat") && message.contains("vllm"), "{message}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn anything_goes_in() {
        let whole = template::configuration();
        let seeds =
            [whole.as_bytes(), b"listen = \"127.0.0.1:1\"\npid = [7]\nusers = 5\nuser_from = [\"key\"]\n"];
        crate::fuzz::fuzz("configuration", &seeds, |bytes| {
            let _ = std::str::from_utf8(bytes).map(toml::from_str::<RunArguments>);
        });
    }
}
