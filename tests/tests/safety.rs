//! Whatever happens, to the server or to the agent: the server goes on.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::http;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, finishing, run_checked};
use serde_json::json;

#[test]
fn exceptions_pass_through_the_probes() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in Build::WHEELS {
        let mut server = LlamaServer::start(build, &assets.tiny(), &["-np", "2", "-c", "4096", "-t", "1"])?;
        let agent = Agent::observing(&server)?;
        let broken = json!({"prompt": "a", "n_predict": 8, "grammar": "root ::= ("});
        // Both tokens that spell q are forbidden, so whichever is chosen does not fit.
        let unfitting = json!({
            "prompt": "a", "n_predict": 8, "temperature": 0, "grammar": "root ::= \"q\"",
            "logit_bias": [[116, false], [340, false]],
        });
        // The first throws when the sampler is made, the second when a token is accepted.
        let thrown = [(400, broken), (500, unfitting)];
        for (status, body) in thrown {
            let reply = http::post(server.address(), "/completion", &body)?;
            assert_eq!(reply.status, status, "{reply:?}");
            let after = Moment::now(&agent, &server)?;
            run_checked(server.address(), &[Request::completion("b", 16, true)], 1)?;
            let comparison = after.compare(&agent, &server)?;
            assert!(comparison.differences().is_empty(), "after {status}:\n{comparison}");
        }
        server.assert_alive()?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn a_killed_agent_costs_no_request() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in Build::WHEELS {
        let mut server = LlamaServer::start(build, &assets.tiny(), &["-np", "4", "-c", "16384", "-t", "1"])?;
        let address = server.address();
        let clients = thread::spawn(move || run_checked(address, &finishing(200), 8));
        for _ in 0..5 {
            let agent = Agent::observing(&server)?;
            thread::sleep(Duration::from_millis(200));
            agent.kill()?;
        }
        assert_eq!(clients.join().expect("the clients do not panic")?.len(), 200);
        server.assert_alive()?;
    }
    Ok(())
}
