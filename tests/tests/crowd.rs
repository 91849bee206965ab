//! Many at once: as many clients as slots, and one request with as many prompts as a crowd.

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Fate, Request, run_checked};
use serde_json::json;

/// Tokens of the prompts that share batches.
const LENGTHS: [usize; 6] = [3, 13, 40, 79, 157, 400];

#[test]
fn sixty_four_clients_of_sixty_four_slots() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "64", "-c", "32768", "-t", "1"];
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let agent = Agent::observing(&server)?;
    let before = Moment::now(&agent, &server)?;
    let request =
        |index: usize| Request::exact(LENGTHS[index % LENGTHS.len()], 1 + (index % 5) as u32, index);
    let requests: Vec<_> = (0..512).map(request).collect();
    run_checked(server.address(), &requests, 64)?;
    let comparison = before.compare(&agent, &server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}\n{:#?}", comparison.after());
    let prompts: usize = (0..requests.len()).map(|index| LENGTHS[index % LENGTHS.len()]).sum();
    assert_eq!(comparison.agent("prompt tokens"), prompts as f64);
    assert!(comparison.agent("decode calls") < 256.0, "no crowd in the batches:\n{comparison}");
    for lost in ["llamaprobe_lost_total", "llamaprobe_unattributed_tokens_total"] {
        assert_eq!(comparison.own_delta(lost), 0.0, "{lost}");
    }
    assert_eq!(comparison.delta("llamaprobe_join_total", &[("method", "exact")]), requests.len() as f64);
    agent.stop()
}

#[test]
fn one_request_with_two_hundred_prompts() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "4", "-c", "4096", "-t", "1"];
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let agent = Agent::observing(&server)?;
    let before = Moment::now(&agent, &server)?;
    let prompts: Vec<_> = (0..200).map(|index| format!("text {index}")).collect();
    let body = json!({"prompt": prompts, "n_predict": 3, "ignore_eos": true, "user": "harness"});
    let request = Request { path: "/completion", body: body.to_string(), fate: Fate::Finished };
    // The answer is an array, without timings of the whole.
    let outcomes = llamaprobe_tests::traffic::run(server.address(), &[request], 1)?;
    assert!(outcomes[0].reply.as_ref().is_some_and(|reply| reply.status == 200), "{outcomes:?}");
    let comparison = before.compare(&agent, &server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}\n{:#?}", comparison.after());
    let of = |user| comparison.delta("llm_tokens_total", &[("type", "generated"), ("user", user)]);
    assert_eq!((of("harness"), of("none")), (600.0, 0.0));
    let joins = |method| comparison.delta("llamaprobe_join_total", &[("method", method)]);
    assert_eq!((joins("exact"), joins("unmatched")), (1.0, 0.0));
    assert_eq!(comparison.own_delta("llamaprobe_lost_total"), 0.0);
    agent.stop()
}
