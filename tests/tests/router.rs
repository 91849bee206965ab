//! A server without a model starts one server for each model and passes requests on: they count once.

use anyhow::{Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::client::Call;
use llamaprobe_tests::http::{self, Connection};
use llamaprobe_tests::request_log::{RequestLog, TraceId};
use llamaprobe_tests::router::Router;
use llamaprobe_tests::skip::privileged;
use serde_json::json;

fn chat(model: &str, stream: bool) -> Call {
    let body = json!({
        "model": model, "messages": [{"role": "user", "content": "a b"}], "max_tokens": 5, "ignore_eos": true,
        "stream": stream,
    });
    Call::post("/v1/chat/completions", &body)
}

#[test]
fn a_request_counts_where_it_runs() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let router = Router::start(&assets)?;
    for model in Router::MODELS {
        ensure!(
            chat(model, false).send(router.address(), &mut None)?.status() == Some(200),
            "{model} does not answer"
        );
    }
    let servers = router.servers()?;
    ensure!(servers.len() == Router::MODELS.len(), "{servers:?}");
    let log = RequestLog::new()?;
    let agent = Agent::start(&log.arguments()?)?;
    let router_label = router.address().to_string();
    agent.wait_metrics("the router and its servers", |metrics| {
        let all = servers.iter().chain([&router_label]).all(|server| metrics.mentions("server", server));
        all.then_some(())
    })?;

    let mut calls = Vec::new();
    for (model, stream) in Router::MODELS.iter().flat_map(|model| [(model, false), (model, true)]) {
        let call = chat(model, stream);
        ensure!(call.send(router.address(), &mut None)?.status() == Some(200), "not answered");
        calls.push(call);
    }
    let refused = chat("unknown", false).send(router.address(), &mut None)?;
    ensure!(refused.status().is_some_and(|status| status >= 400), "{refused:?}");
    ensure!(http::get(router.address(), "/props")?.status == 200, "no properties");

    let keyed = TraceId::new();
    let headers = format!("{}Authorization: Bearer secret\r\n", keyed.header());
    let mut connection = Connection::open(router.address())?;
    connection.send_with("POST", "/v1/chat/completions", &headers, &chat(Router::MODELS[0], false).body)?;
    ensure!(connection.receive(None)?.status == 200, "not answered");
    let by_key = log.wait(&[keyed])?.remove(&keyed).unwrap_or_default();
    assert!(by_key.len() == 1 && by_key[0].user_id.is_some(), "who asks is passed on, too: {by_key:?}");

    // The router passes the trace on, so that the line of the server that runs the request can be found by it.
    let traces: Vec<_> = calls.iter().map(|call| call.trace).collect();
    let lines = log.wait(&traces)?;
    for (trace, lines) in &lines {
        ensure!(lines.len() == 1, "{} lines of {trace}: {lines:#?}", lines.len());
        let line = &lines[0];
        assert!(servers.contains(&line.server), "{line:?}");
        assert_eq!(
            (line.join.as_str(), line.completion_tokens, line.status),
            ("exact", 5, Some(200)),
            "{line:?}"
        );
    }
    assert_eq!(lines.len(), calls.len());
    let metrics = agent.wait_metrics("the router's other routes", |metrics| {
        let labels = [("server", &*router_label), ("route", "/props")];
        (metrics.sum("llm_requests_total", &labels) == 1.0).then(|| metrics.clone())
    })?;
    let chats = |server: &str| {
        metrics.sum("llm_requests_total", &[("server", server), ("route", "/v1/chat/completions")])
    };
    let counts: Vec<_> = servers.iter().map(|server| chats(server)).collect();
    assert!(counts.iter().all(|count| *count >= 2.0) && counts.iter().sum::<f64>() == 5.0, "{counts:?}");
    assert_eq!(chats(&router_label), 0.0, "what is passed on is not the router's");
    assert_eq!(metrics.sum("llm_requests_in_flight", &[("server", &router_label)]), 0.0);
    assert!(metrics.select("llm_slots", &[("server", &router_label)]).next().is_none(), "it has no slots");
    agent.stop()
}
