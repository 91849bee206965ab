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
use llamaprobe_tests::wait_for;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

/// How long after an answer its counts may lag behind.
const LAG: std::time::Duration = std::time::Duration::from_secs(10);

const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];

fn line(log: &RequestLog, trace: TraceId) -> Result<Line> {
    let lines = log.wait(&[trace])?.remove(&trace).unwrap_or_default();
    ensure!(lines.len() == 1, "{} lines of one request", lines.len());
    lines.into_iter().next().context("no line")
}

/// A body whose fields of interest stand behind 100 kB.
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

/// A completion of two tokens for a user, as bytes.
fn completion(trace: TraceId, user: &str, headers: &str, chunks: Option<usize>) -> Vec<u8> {
    let body = format!(r#"{{"prompt":"a b","n_predict":2,"ignore_eos":true,"user":"{user}"}}"#);
    let (framing, content) = match chunks {
        None => (format!("Content-Length: {}", body.len()), body),
        Some(size) => {
            let chunk = |part: &[u8]| format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part));
            let chunks: String = body.as_bytes().chunks(size).map(chunk).collect();
            ("Transfer-Encoding: chunked".to_owned(), format!("{chunks}0\r\n\r\n"))
        }
    };
    let named = trace.header();
    format!("POST /completion HTTP/1.1\r\nHost: h\r\n{headers}{named}{framing}\r\n\r\n{content}").into_bytes()
}

#[test]
fn requests_as_people_send_them() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = Launch::new(Build::Process, &assets.tiny(), &[&SERVER[..], &["--api-key", "k"]].concat())?;
    let server = server.start()?;
    let log = RequestLog::new()?;
    let agent = Agent::start(&[&log.arguments()?[..], &["--pid", &server.pid().to_string()]].concat())?;
    agent.wait_observed(&server)?;
    let key = "Authorization: Bearer k\r\n";
    // Chunks of every size, and a head of 150 kB.
    let long = format!("{}{key}", format!("Cookie: {}\r\n", "c".repeat(7_900)).repeat(19));
    for (headers, chunks) in
        [(key, Some(1)), (key, Some(40)), (key, Some(4_000)), (&long, None), (&long, Some(7))]
    {
        let trace = TraceId::new();
        let mut connection = Connection::open(server.endpoint())?;
        connection.send_bytes(&completion(trace, "ann", headers, chunks))?;
        ensure!(connection.receive(None)?.status == 200, "not answered");
        let line = line(&log, trace)?;
        assert_eq!(
            (line.user_id.as_deref(), line.completion_tokens),
            (Some("ann"), 2),
            "{chunks:?}: {line:?}"
        );
    }
    // Many in one segment.
    let traces: Vec<TraceId> = (0..20).map(|_| TraceId::new()).collect();
    let mut connection = Connection::open(server.endpoint())?;
    let each = |(n, trace): (usize, &TraceId)| completion(*trace, &format!("u{n}"), key, None);
    connection.send_bytes(&traces.iter().enumerate().flat_map(each).collect::<Vec<u8>>())?;
    for (n, trace) in traces.iter().enumerate() {
        ensure!(connection.receive(None)?.status == 200, "not answered");
        assert_eq!(line(&log, *trace)?.user_id, Some(format!("u{n}")));
    }
    drop(connection);
    // Refused before its body was read, at once and late: one request each.
    let refused = || agent.scrape().map(|metrics| metrics.sum("llm_requests_total", &[("code", "401")]));
    for late in [false, true] {
        let mut connection = Connection::open(server.endpoint())?;
        let body = "x".repeat(200_000);
        let head = format!("POST /completion HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.send_bytes(head.as_bytes())?;
        if late {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        // The server may have closed it by now.
        let _ = connection.send_bytes(body.as_bytes());
        let _ = connection.receive(None);
    }
    wait_for("the refused ones", LAG, || refused().ok().filter(|count| *count >= 2.0))?;
    let after = agent.scrape()?;
    assert_eq!(refused()?, 2.0);
    for (label, value) in [("code", "499"), ("route", "other"), ("finish_reason", "unknown")] {
        assert_eq!(after.sum("llm_requests_total", &[(label, value)]), 0.0, "{label}={value}");
    }
    assert_eq!(after.sum("llamaprobe_lost_total", &[("server", &server.label())]), 0.0);
    agent.stop()
}

#[test]
fn idle_connections_hide_nobody() -> Result<()> {
    const IDLE: usize = 2_500;
    let Some(assets) = privileged() else { return Ok(()) };
    // Of the server, too, which inherits it.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let log = RequestLog::new()?;
    let agent = Agent::start(&[&log.arguments()?[..], &["--pid", &server.pid().to_string()]].concat())?;
    agent.wait_observed(&server)?;
    // Some of them do not find a thread of the server: they stay accepted and unread.
    let idle: Vec<Connection> = (0..IDLE).map_while(|_| Connection::open(server.endpoint()).ok()).collect();
    ensure!(idle.len() == IDLE, "only {} connections: too few descriptors?", idle.len());
    for n in 0..10 {
        let trace = TraceId::new();
        let mut connection = Connection::open(server.endpoint())?;
        connection.send_bytes(&completion(trace, "ann", "Connection: close\r\n", None))?;
        ensure!(connection.receive(None)?.status == 200, "not answered");
        assert_eq!(line(&log, trace)?.completion_tokens, 2, "request {n}");
    }
    assert_eq!(agent.scrape()?.sum("llamaprobe_lost_total", &[("server", &server.label())]), 0.0);
    drop(idle);
    agent.stop()
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
