//! Programs that embed libllama: no server, no server symbols, tokens all the same.

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::binding::Binding;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::skip;
use llamaprobe_tests::skip::privileged;

fn tokens_are_counted(mut binding: Binding) -> Result<()> {
    let agent = Agent::start(&["--pid", &binding.pid().to_string()])?;
    agent
        .wait_metrics("a target", |metrics| (metrics.sum("llamaprobe_targets", &[]) >= 1.0).then_some(()))?;
    let mut generated = 0;
    for _ in 0..3 {
        generated += binding.generate()?;
    }
    let counted = |metrics: &Exposition| metrics.sum("llm_tokens_total", &[("type", "generated")]);
    let equal = agent.wait_metrics("equal counts", |it| (counted(it) == generated as f64).then_some(()));
    let after = agent.scrape()?;
    assert!(equal.is_ok(), "generated {generated}, counted {}:\n{after:#?}", counted(&after));
    agent.stop()
}

fn python(mode: &str) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in Build::WHEELS {
        tokens_are_counted(Binding::python(&assets, build, mode)?)?;
    }
    Ok(())
}

#[test]
fn python_picks_from_the_logits() -> Result<()> {
    python("greedy")
}

#[test]
fn python_calls_a_sampler() -> Result<()> {
    python("sampler")
}

#[test]
fn python_checks_guesses_from_the_last_one_backwards() -> Result<()> {
    python("guesses")
}

#[test]
fn python_drives_a_file_that_also_holds_a_server() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    tokens_are_counted(Binding::python(&assets, Build::Embedded, "sampler")?)
}

#[test]
fn node_llama_cpp() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let Some(binding) = Binding::node(&assets)? else {
        skip("node-llama-cpp is not installed, for want of npm");
        return Ok(());
    };
    tokens_are_counted(binding)
}
