//! Every build of the agent's table, of every engine: what is planned for it, what fires, and that its tokens are counted.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use llamaprobe::engines::{ENGINES, Engine, build};
use llamaprobe_common::probe::ProbeId;
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::binding::Binding;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, run_checked};
use serde_json::Value;

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
/// Tokens of each request to a server.
const TOKENS: u32 = 20;

/// A program that runs a build.
enum Program {
    Server(LlamaServer),
    Binding(Binding),
}

impl Program {
    /// Starts the program for a build of an engine; none where that is not installed.
    fn start(engine: &Engine, build: &build::Build, assets: &Assets) -> Result<Option<Self>> {
        let known = Build::ALL.into_iter().find(|known| known.name() == build.name());
        Ok(match (known, build.package) {
            (Some(known), _) if engine.serving.is_some() => {
                Some(Self::Server(LlamaServer::start(known, &assets.tiny(), &SERVER)?))
            }
            (Some(known), _) => Some(Self::Binding(Binding::python(assets, known, "sampler")?)),
            (None, "node-llama-cpp") => Binding::node(assets)?.map(Self::Binding),
            (None, _) => bail!("nothing is known of {}: see `cargo xtask setup`", build.name()),
        })
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Server(server) => server.pid(),
            Self::Binding(binding) => binding.pid(),
        }
    }

    /// Generates some times; returns how many tokens.
    fn generate(&mut self) -> Result<usize> {
        let mut generated = 0;
        for seed in 0..3 {
            generated += match self {
                Self::Server(server) => {
                    run_checked(server.address(), &[Request::exact(30, TOKENS, seed)], 1)?;
                    TOKENS as usize
                }
                Self::Binding(binding) => binding.generate()?,
            };
        }
        Ok(generated)
    }
}

/// What the metrics say of probes that have fired.
fn fired(metrics: &Exposition) -> BTreeSet<String> {
    let hits = metrics.select("llamaprobe_probe_hits_total", &[]).filter(|sample| sample.value > 0.0);
    hits.filter_map(|sample| sample.labels.get("probe").cloned()).collect()
}

fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// A list of the only process in a plan.
fn list<'a>(plan: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    plan["processes"][0][name].as_array().into_iter().flatten()
}

fn is_as_expected(engine: &Engine, build: &build::Build, mut program: Program) -> Result<()> {
    let what = format!("{} of {}", engine.name, build.name());
    let expected = names(build.fires.iter().map(|id| id.name()));
    let pid = program.pid().to_string();
    let output = agent::run(&["plan", "--json", "--pid", &pid])?;
    let plan: Value = serde_json::from_slice(&output.stdout)?;
    let missing = names(build.missing.iter().map(|role| role.name()));
    let absent = names(list(&plan, "missing").filter_map(|it| it["role"].as_str()));
    assert_eq!(absent, missing, "{what}: {plan:#}");
    assert_eq!(output.status.code(), Some(i32::from(!missing.is_empty())), "{what}");
    let (passing, lasting): (Vec<_>, Vec<_>) =
        list(&plan, "probes").partition(|probe| probe["until_slot"] == true);
    let [passing, lasting] =
        [passing, lasting].map(|it| names(it.iter().filter_map(|it| it["probe"].as_str())));

    let agent = Agent::start(&["--pid", &pid])?;
    agent.wait_metrics("a target", |it| (it.sum("llamaprobe_targets", &[]) >= 1.0).then_some(()))?;
    let generated = program.generate()?;
    let tokens = |it: &Exposition| it.sum("llm_tokens_total", &[("type", "generated")]);
    let counted = if expected.is_empty() { 0.0 } else { generated as f64 };
    let counts = agent.wait_metrics("equal counts", |it| (tokens(it) == counted).then_some(()));
    let metrics = agent.scrape()?;
    assert!(counts.is_ok(), "{what}: generated {generated}, counted {}", tokens(&metrics));
    let fired = fired(&metrics);
    assert!(fired.is_superset(&expected), "{what}: only {fired:?}");
    // What a server has no use for fires or not, until it is given up; and caches are copied as it likes.
    let copies = [
        ProbeId::StateSeqGet,
        ProbeId::StateSeqSet,
        ProbeId::StateSeqSize,
        ProbeId::ContextSeqGet,
        ProbeId::ContextSeqSet,
    ];
    let passing = &(&passing - &lasting) | &names(copies.map(ProbeId::name));
    let more: Vec<_> = fired.difference(&expected).filter(|probe| !passing.contains(*probe)).collect();
    assert!(more.is_empty(), "{what}: {more:?}, too");
    agent.stop()
}

#[test]
fn what_is_expected_of_a_build_fires() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for engine in ENGINES {
        for build in engine.builds {
            match Program::start(engine, build, &assets).with_context(|| build.name())? {
                Some(program) => is_as_expected(engine, build, program).with_context(|| build.name())?,
                None => skip(&format!("{} is not installed", build.name())),
            }
        }
    }
    Ok(())
}

#[test]
fn every_build_that_is_installed_is_in_the_table() {
    let listed: BTreeSet<String> =
        ENGINES.iter().flat_map(|engine| engine.builds).map(build::Build::name).collect();
    let installed = names(Build::ALL.map(Build::name));
    assert!(listed.is_superset(&installed), "{listed:?}");
}
