//! What is told of a request's body and of the end of its answer, however these come.

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::Call;
use llamaprobe_tests::http::Connection;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::request_log::{Line, RequestLog, TraceId};
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::tls::Identity;
use serde_json::json;

const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];

fn line(log: &RequestLog, trace: TraceId) -> Result<Line> {
    let lines = log.wait(&[trace])?.remove(&trace).unwrap_or_default();
    ensure!(lines.len() == 1, "{} lines of one request", lines.len());
    lines.into_iter().next().context("no line")
}

/// A body whose fields of interest stand behind 100 kB, which is far more than is looked at.
fn long_body() -> String {
    // A map would be sorted.
    format!(
        r#"{{"prompt":"a b c","n_predict":4,"ignore_eos":true,"metadata":{{"text":"{}"}},"stream":true,"user":"eve"}}"#,
        "model \\\"user\\\": ".repeat(7_000)
    )
}

#[test]
fn the_user_behind_a_long_text() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let launch = |build| Launch::new(build, &assets.tiny(), &SERVER);
    for launch in [launch(Build::Process)?, launch(Build::Monolith)?.over_tls(&Identity::new()?)] {
        let server = launch.start()?;
        let log = RequestLog::new()?;
        let agent = Agent::start(&log.arguments()?)?;
        agent.wait_observed(&server)?;
        let body = long_body();
        // At once; and such that the last fields come in pieces, long and short.
        for ends in [&[][..], &[90, 40, 30, 20, 10, 5, 1], &[700, 300, 120, 60], &[3_000, 2_000, 64]] {
            let trace = TraceId::new();
            let mut connection = Connection::open(server.endpoint())?;
            connection.send_in_pieces("POST", "/completion", &trace.header(), &body, ends)?;
            ensure!(connection.receive(None)?.status == 200, "not answered");
            let line = line(&log, trace)?;
            assert_eq!(line.user_id.as_deref(), Some("eve"), "pieces of {ends:?}: {line:?}");
            assert_eq!((line.completion_tokens, line.join.as_str()), (4, "exact"), "{line:?}");
        }
        assert_eq!(agent.scrape()?.sum("llamaprobe_lost_total", &[("server", &server.label())]), 0.0);
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn the_reason_of_the_end_in_every_format() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let log = RequestLog::new()?;
    let agent = Agent::start(&log.arguments()?)?;
    agent.wait_observed(&server)?;
    // A grammar that allows one text lets the model end by itself.
    let limit = json!({"max_tokens": 3, "n_predict": 3, "max_output_tokens": 3, "ignore_eos": true});
    let stop =
        json!({"max_tokens": 50, "n_predict": 50, "max_output_tokens": 50, "grammar": "root ::= \"ab\""});
    let asked = [
        ("/completion", json!({"prompt": ["a b", "c d e", "f"]})),
        ("/completion", json!({"prompt": "a b", "n_cmpl": 3})),
        ("/v1/completions", json!({"prompt": "a b", "n": 2})),
        ("/v1/completions", json!({"prompt": ["a b", "c d"]})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}], "n": 2})),
        ("/v1/responses", json!({"input": "a b"})),
    ];
    let mut mistakes = Vec::new();
    for (path, body) in &asked {
        for stream in [false, true] {
            for (reason, how) in [("length", &limit), ("stop", &stop)] {
                let mut whole = body.clone();
                whole["stream"] = stream.into();
                for (name, value) in how.as_object().context("no object")? {
                    whole[name] = value.clone();
                }
                let call = Call::post(path, &whole);
                let answer = call.send(server.endpoint(), &mut None)?;
                ensure!(answer.status() == Some(200), "not answered: {answer:?}");
                let line = line(&log, call.trace)?;
                if line.finish_reason != reason {
                    mistakes.push(format!("{path} {whole}: {} is not {reason}", line.finish_reason));
                }
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    agent.stop()
}
