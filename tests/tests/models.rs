//! What a server computes on, how long it loads, and what of its model is in memory.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build, workspace_root};
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;

const SERVER: [&str; 6] = ["-np", "2", "-c", "2048", "-t", "1"];

/// A metric of a server; `None` where it is absent.
fn of(metrics: &Exposition, name: &str, server: &LlamaServer) -> Option<f64> {
    let labels = [("server", &*server.label())];
    metrics.select(name, &labels).next()?;
    Some(metrics.sum(name, &labels))
}

/// Takes a file out of memory that a server has mapped.
fn page_out(assets: &Assets, server: &LlamaServer, file: &Path) -> Result<()> {
    let mut command = Command::new(assets.python());
    command.arg(workspace_root().join("tests/assets/hold_back.py"));
    command.args(["page-out", &server.pid().to_string()]).arg(file).stdin(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("no standard input")?.write_all(b"\n")?;
    ensure!(child.wait()?.success(), "{} cannot be paged out", file.display());
    Ok(())
}

#[test]
fn a_model_that_leaves_memory_is_told_before_anybody_waits_for_it() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    // Of its own, so that nobody else has its pages mapped; and on disk, or it would not leave memory.
    let scratch = Scratch::new()?;
    let model = scratch.copy(&assets.gemma(), "gemma.gguf")?;
    std::fs::File::open(&model)?.sync_all()?;
    let server = LlamaServer::start(Build::Process, &model, &SERVER)?;
    let look = || -> Result<[f64; 3]> {
        let agent = Agent::observing(&server)?;
        let metrics = agent.scrape()?;
        agent.stop()?;
        let figure = |name| of(&metrics, name, &server).with_context(|| format!("no {name}"));
        let [mapped, evicted] = [figure("llm_model_mapped_bytes")?, figure("llm_model_evicted_bytes")?];
        let resident = figure("llm_model_resident_ratio")?;
        println!("{mapped} bytes mapped, {resident} of them in memory, {evicted} bytes evicted");
        Ok([mapped, resident, evicted])
    };
    let [before, resident, _] = look()?;
    assert!(resident > 0.9, "it was read just now");
    page_out(&assets, &server, &model)?;
    let [mapped, resident, evicted] = look()?;
    assert_eq!(mapped, before, "it is mapped all the same");
    assert!(resident < 0.9, "LlmModelEvicted has nothing to fire for");
    assert!(evicted > mapped * 0.1, "the kernel put it out, and knows");
    Ok(())
}

#[test]
fn a_server_is_told_by_what_it_maps_and_holds_and_how_long_it_loads() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    // A build for Vulkan maps this library, with a GPU or without.
    let library = scratch.path().join("libggml-vulkan.so");
    let source = scratch.write("nothing.c", b"int ggml_backend_vk_nothing;")?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status()?;
    ensure!(built.success(), "{} does not build", source.display());

    // A model that takes longer to load than the agent to find who loads it.
    let agent = Agent::start(&[])?;
    let start = Instant::now();
    let plain = LlamaServer::start(Build::Process, &assets.gemma(), &SERVER)?;
    let wrapper: [OsString; 2] = ["env".into(), format!("LD_PRELOAD={}", library.display()).into()];
    let vulkan = Launch::new(Build::Process, &assets.gemma(), &SERVER)?.through(wrapper).start()?;
    for (server, built_for) in [(&plain, ""), (&vulkan, "vulkan")] {
        let load = agent
            .wait_metrics("the load of a server", |metrics| of(metrics, "llm_model_load_seconds", server))?;
        println!("built for {built_for:?}: {load} s");
        assert!(load > 0.0 && load < start.elapsed().as_secs_f64(), "{load} s, and the test began later");
        let labels = [("server", &*server.label()), ("backend", "cpu"), ("built_for", built_for)];
        let metrics = agent.scrape()?;
        assert_eq!(metrics.sum("llm_model_info", &labels), 1.0, "built for {built_for:?}");
        assert!(of(&metrics, "llm_cpu_seconds_total", server).is_some_and(|seconds| seconds > 0.0));
    }
    agent.stop()?;

    let late = Agent::observing(&plain)?;
    assert_eq!(of(&late.scrape()?, "llm_model_load_seconds", &plain), None, "nobody has seen it load");
    late.stop()
}
