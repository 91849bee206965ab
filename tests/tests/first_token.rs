//! The time to the first token that the agent sees is the one that a client on the same host sees.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::request_log::{RequestLog, TraceId};
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::prompt;
use serde_json::json;

const REQUESTS: usize = 40;

#[test]
fn the_agent_and_the_client_agree() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in Build::WHEELS {
        let server = LlamaServer::start(build, &assets.tiny(), &["-np", "1", "-c", "4096", "-t", "1"])?;
        let log = RequestLog::new()?;
        let agent = Agent::start(&log.arguments()?)?;
        agent.wait_observed(&server)?;
        let mut seen = Vec::new();
        for index in 0..REQUESTS {
            let trace = TraceId::new();
            seen.push((trace, first_token(server.address(), trace, index)?));
        }
        let traces: Vec<_> = seen.iter().map(|(trace, _)| *trace).collect();
        let lines = log.wait(&traces)?;
        let mut differences = Vec::new();
        for (trace, client) in &seen {
            let line = lines.get(trace).and_then(|lines| lines.first());
            let line = line.with_context(|| format!("no line of {trace}:\n{}", log.text()))?;
            let agent = line.ttft_ms.with_context(|| format!("no ttft_ms: {line:?}"))?;
            differences.push(client.as_secs_f64() * 1e3 - agent);
        }
        differences.sort_by(f64::total_cmp);
        let median = f64::midpoint(differences[REQUESTS / 2 - 1], differences[REQUESTS / 2]);
        println!("{build:?}: client - agent: median {median:.3} ms of {differences:.3?}");
        assert!(median.abs() < 1.0, "{build:?}: median {median} ms of {differences:?}");
        agent.stop()?;
    }
    Ok(())
}

/// Streams a completion to its end; returns when its first event came.
fn first_token(address: SocketAddr, trace: TraceId, index: usize) -> Result<Duration> {
    let text = prompt(20 + index * 7 % 200, index);
    let body = json!({"prompt": text, "n_predict": 16, "ignore_eos": true, "stream": true}).to_string();
    let request = format!(
        "POST /completion HTTP/1.1\r\nHost: {address}\r\n{}Content-Length: {}\r\n\r\n{body}",
        trace.header(),
        body.len(),
    );
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let start = Instant::now();
    stream.write_all(request.as_bytes())?;
    let (mut text, mut first) = (Vec::new(), None);
    let mut bytes = [0; 16 << 10];
    loop {
        let count = stream.read(&mut bytes)?;
        let now = start.elapsed();
        text.extend_from_slice(&bytes[..count]);
        let said = String::from_utf8_lossy(&text);
        if first.is_none() && said.contains("data: ") && said.contains("\"content\":") {
            first = Some(now);
        }
        if count == 0 || text.ends_with(b"\r\n0\r\n\r\n") {
            ensure!(said.starts_with("HTTP/1.1 200"), "{said}");
            return first.with_context(|| format!("no event: {said}"));
        }
    }
}
