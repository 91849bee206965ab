//! The agent's counts equal the server's own, under parallel requests of all kinds.

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::comparison::{Count, Moment};
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Timings, finishing, mix, run_checked};

const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];

/// Against the server's counters: requests that finish and fail, then also such that are cut and abandoned.
fn mixed_requests(build: Build) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(build, &assets.tiny(), &SERVER)?;
    let agent = Agent::observing(&server)?;
    let answered: Vec<_> = mix(48).into_iter().filter(|it| it.fate.is_answered()).collect();
    for requests in [answered, mix(48)] {
        let before = Moment::now(&agent, &server)?;
        run_checked(server.address(), &requests, 12)?;
        let comparison = before.compare(&agent, &server)?;
        let mut differences = comparison.differences();
        if build == Build::Decode && requests.len() == 48 {
            // This build counts the tokens of a request when its answer is complete; those of the others it forgets.
            let more =
                |it: &&Count| it.name == "generated tokens" && it.server.is_some_and(|own| own < it.agent);
            differences.retain(|it| !more(it));
        }
        assert!(differences.is_empty(), "\n{comparison}\n{:#?}", comparison.after());
        assert!(comparison.agent("generated tokens") > 400.0, "\n{comparison}");
        assert_eq!(comparison.own_delta("llamaprobe_lost_total"), 0.0);
    }
    agent.stop()
}

/// Against the sum of the answers, which also say what was cached where the server's counters do not.
fn finished_requests(build: Build) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(build, &assets.tiny(), &SERVER)?;
    let agent = Agent::observing(&server)?;
    let before = Moment::now(&agent, &server)?;
    let outcomes = run_checked(server.address(), &finishing(24), 8)?;
    let comparison = before.compare(&agent, &server)?;
    let sum =
        |part: fn(&Timings) -> u64| outcomes.iter().flat_map(|it| &it.timings).map(part).sum::<u64>() as f64;
    let answered = [sum(|it| it.predicted_n), sum(|it| it.prompt_n), sum(|it| it.cache_n)];
    let counted = ["generated tokens", "prompt tokens", "cached tokens"].map(|name| comparison.agent(name));
    assert_eq!(counted, answered, "agent, answers\n{comparison}");
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    agent.stop()
}

#[test]
fn mixed_requests_with_llama_process() -> Result<()> {
    mixed_requests(Build::Process)
}

#[test]
fn mixed_requests_with_llama_decode() -> Result<()> {
    mixed_requests(Build::Decode)
}

#[test]
fn finished_requests_with_llama_process() -> Result<()> {
    finished_requests(Build::Process)
}

#[test]
fn finished_requests_with_llama_decode() -> Result<()> {
    finished_requests(Build::Decode)
}

#[test]
fn mixed_requests_inside_python() -> Result<()> {
    mixed_requests(Build::Embedded)
}
