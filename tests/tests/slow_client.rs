//! A client that does not read its answer: that is its own time, and nobody else's tokens wait for it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::Call;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::watch::{Watch, check};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::{Value, json};

/// How long it does not read.
const PAUSE: Duration = Duration::from_secs(4);

/// Sends a request by a connection with little room for the answer, reads nothing of it for a while, and then all.
fn slowly(address: std::net::SocketAddr, call: &Call) -> Result<usize> {
    let mut stream = TcpStream::connect(address)?;
    set_socket_recv_buffer_size(&stream, 4096)?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        call.path,
        call.trace.header(),
        call.body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(call.body.as_bytes())?;
    thread::sleep(PAUSE);
    // With so little room it would come in drops.
    set_socket_recv_buffer_size(&stream, 1 << 22)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.len())
}

fn ns(record: &Value, name: &str) -> Result<u64> {
    record["times"][name].as_u64().with_context(|| format!("no {name}: {record:#}"))
}

#[test]
fn a_client_that_does_not_read_holds_nobody_else_up() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "2", "-c", "32768", "-t", "1"];
    let watch = Watch::new(LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?)?;
    // Each event of the stream lists the twenty likeliest tokens: an answer of megabytes.
    let body = json!({
        "prompt": "red moon", "n_predict": 2000, "ignore_eos": true, "stream": true, "n_probs": 20, "user": "slow",
    });
    let slow = Call::post("/completion", &body);
    let address = watch.server.address();
    let told = thread::scope(|scope| -> Result<Vec<Value>> {
        let reader = scope.spawn(|| slowly(address, &slow));
        // Another one beside it, as long as it does not read.
        let body = json!({"prompt": "red moon", "n_predict": 300, "ignore_eos": true, "user": "quick"});
        let quick: Vec<_> = (0..4).map(|_| Call::post("/completion", &body)).collect();
        let mut told = watch.ask(&quick, 1)?;
        let bytes = reader.join().map_err(|_panic| anyhow::anyhow!("the client panicked"))??;
        ensure!(bytes > 2_000_000, "the answer had {bytes} bytes: all of it may wait in buffers");
        told.extend(watch.records([slow.trace].into_iter())?);
        Ok(told)
    })?;
    let (slow, quick) = told.split_last().context("nothing was told")?;
    check(slow)?;
    let (last, answered) = (ns(slow, "last_token_ns")?, ns(slow, "answered_ns")?);
    println!(
        "its last token after {:.3} s, its answer after {:.3} s; lost: {}",
        last as f64 / 1e9,
        answered as f64 / 1e9,
        slow["times"]["stall_ns"]
    );
    assert!(answered as f64 / 1e9 >= 0.98 * PAUSE.as_secs_f64(), "{slow:#}");
    assert!(answered > last + 500_000_000, "the engine had done with it long before: {slow:#}");
    for record in told.iter() {
        let stalls = record["times"]["stall_ns"].as_object().context("no stalls are told")?;
        assert_eq!(stalls.get("network"), None, "{record:#}");
    }
    for record in quick {
        check(record)?;
        let (last, answered) = (ns(record, "last_token_ns")?, ns(record, "answered_ns")?);
        println!("beside it: {:.3} s, answered after {:.3} s", last as f64 / 1e9, answered as f64 / 1e9);
        assert!(answered < 1_000_000_000, "it waited: {record:#}");
    }
    let metrics = watch.agent.scrape()?;
    let label = watch.server.label();
    assert!(metrics.select("llm_stall_seconds_total", &[("server", &label)]).next().is_some());
    let network = metrics.sum("llm_stall_seconds_total", &[("server", &label), ("cause", "network")]);
    assert!(network < 0.01, "{network} s");
    watch.agent.stop()
}
