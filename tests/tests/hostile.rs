//! Clients that send what is no request, or send it in pieces: the server answers as without the agent, and the agent
//! counts what was answered.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Call, Tokens};
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::wait_for;
use serde_json::json;

/// How long a silent server is listened to: longer than it keeps an idle connection.
const SILENCE: Duration = Duration::from_secs(8);

/// Good requests in unusual packets, and how many they are.
fn unusual() -> Vec<(Attack, usize)> {
    let attack =
        |name, pieces, pause| Attack { name, pieces, pause: Duration::from_millis(pause), end: End::Listen };
    let (one, two) = (completion("one"), completion("two"));
    let in_pieces = |size: usize| one.chunks(size).map(<[u8]>::to_vec).collect();
    let text = String::from_utf8_lossy(&one).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let expecting = vec![format!("{head}\r\nExpect: 100-continue\r\n\r\n").into_bytes(), body.into()];
    vec![
        (attack("the head split in the middle", vec![one[..20].to_vec(), one[20..].to_vec()], 50), 1),
        (attack("twenty bytes at a time", in_pieces(20), 20), 1),
        (attack("one byte at a time", in_pieces(1), 50), 1),
        // As curl does with large bodies.
        (attack("a body that waits for 100 Continue", expecting, 50), 1),
        (attack("two requests in one packet", vec![[one.clone(), two.clone()].concat()], 0), 2),
        (attack("four requests in one packet", vec![[one.clone(), two.clone(), one, two].concat()], 0), 4),
    ]
}

#[test]
fn unusual_packets_are_counted_as_what_they_are() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "2", "-c", "8192", "-t", "1"];
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let log = RequestLog::new()?;
    let pid = server.pid().to_string();
    let agent = Agent::start(&[&log.arguments()?[..], &["--pid", &pid]].concat())?;
    agent.wait_observed(&server)?;
    let mut mistakes = Vec::new();
    for (attack, requests) in unusual() {
        let (before, lines) = (agent.scrape()?, log.lines()?.len());
        let statuses = attack.run(server.address())?;
        let good = statuses.iter().filter(|line| line.contains("200")).count();
        assert_eq!(good, requests, "{}: {statuses:?}", attack.name);
        let rise = |labels: &[(&str, &str)]| {
            Ok::<_, anyhow::Error>(
                agent.scrape()?.sum("llm_requests_total", labels) - before.sum("llm_requests_total", labels),
            )
        };
        let exact = [("route", "/completion"), ("code", "200"), ("finish_reason", "length")];
        let right = || Ok::<_, anyhow::Error>([rise(&exact)?, rise(&[])?] == [requests as f64; 2]);
        let settled = wait_for("the counts", Duration::from_secs(2), || right().ok()?.then_some(()));
        let logged = log.lines()?.split_off(lines);
        if settled.is_err() || logged.len() != requests {
            let (exact, all) = (rise(&exact)?, rise(&[])?);
            mistakes.push(format!(
                "{}: {requests} requests, but {exact} of /completion with 200, {all} in all: {logged:#?}",
                attack.name
            ));
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    agent.stop()
}

/// What a client does with its connection.
struct Attack {
    name: &'static str,
    /// What is sent; each piece by itself.
    pieces: Vec<Vec<u8>>,
    /// The time between two pieces.
    pause: Duration,
    end: End,
}

/// How a client ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// It reads until the server closes, or is silent.
    Listen,
    /// It says that it will send no more, and reads.
    HalfClose,
    /// It closes at once.
    Close,
}

fn attacks() -> Vec<Attack> {
    let at_once = |name, bytes: &[u8]| Attack {
        name,
        pieces: vec![bytes.to_vec()],
        pause: Duration::ZERO,
        end: End::Listen,
    };
    let mebibyte = "a".repeat(1 << 20);
    // All bytes in all neighbourhoods, always the same.
    let mut state = 1_u32;
    let mut garbage = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    let binary: Vec<u8> = (0..64 << 10).map(|_| garbage()).collect();
    let mut list = vec![
        at_once("no version", b"GET /health\r\n\r\n"),
        at_once("unknown version", b"GET /health HTTP/9.9\r\nHost: a\r\n\r\n"),
        at_once("unknown method", b"BREW /completion HTTP/1.1\r\nHost: a\r\n\r\n"),
        at_once("no colon in a header", b"GET /health HTTP/1.1\r\nHost a\r\n\r\n"),
        at_once("only line feeds", b"GET /health HTTP/1.1\nHost: a\n\n"),
        at_once("bytes behind ASCII in the path", b"GET /\xff\xfe\x80 HTTP/1.1\r\nHost: a\r\n\r\n"),
        at_once("a zero in the head", b"GET /health\0 HTTP/1.1\r\nHost: a\0b\r\n\r\n"),
        at_once("empty lines first", b"\r\n\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n"),
        at_once("a length that is no number", b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n{}"),
        at_once("a negative length", b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n{}"),
        at_once(
            "a length beyond 64 bits",
            b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
        ),
        at_once(
            "two lengths",
            b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        ),
        at_once(
            "a bad chunk",
            b"POST /completion HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        ),
        at_once(
            "a bad traceparent",
            b"GET /health HTTP/1.1\r\nHost: a\r\ntraceparent: 00-zz-\xff-\r\nAuthorization: \xff\r\n\r\n",
        ),
        at_once("a header of 1 MiB", format!("GET /health HTTP/1.1\r\nX: {mebibyte}\r\n\r\n").as_bytes()),
        at_once("a path of 1 MiB", format!("GET /{mebibyte} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()),
        at_once(
            "thousands of headers",
            format!("GET /health HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(20_000)).as_bytes(),
        ),
        at_once("binary garbage", &binary),
        at_once("a TLS greeting", &[b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".as_slice(), &binary[..500]].concat()),
        at_once("a request and garbage", &[completion("one"), binary[..4096].to_vec()].concat()),
        at_once("a body that is missing", b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"),
    ];
    list.push(Attack { end: End::Close, ..at_once("a request, and gone", &completion("gone")) });
    list.push(Attack { end: End::Close, ..at_once("half a head, and gone", b"POST /completion HTT") });
    list.push(Attack {
        end: End::HalfClose,
        ..at_once("half a head, and half closed", b"POST /completion HTT")
    });
    list.push(Attack { end: End::HalfClose, ..at_once("a request, and half closed", &completion("half")) });
    list.push(Attack { end: End::Close, ..at_once("nothing, and gone", b"") });
    list.push(Attack { end: End::HalfClose, ..at_once("nothing, and half closed", b"") });
    list.push(at_once("nothing", b""));
    list
}

fn completion(prompt: &str) -> Vec<u8> {
    let body = json!({"prompt": prompt, "n_predict": 4, "ignore_eos": true, "temperature": 0}).to_string();
    let head = format!("POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    format!("{head}{body}").into_bytes()
}

impl Attack {
    /// Runs it; returns the status lines of the answers.
    fn run(&self, address: SocketAddr) -> Result<Vec<String>> {
        let mut stream = TcpStream::connect(address).context(self.name)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        for piece in &self.pieces {
            // The server may have answered and closed before it had everything.
            if stream.write_all(piece).is_err() {
                break;
            }
            thread::sleep(self.pause);
        }
        let mut text = Vec::new();
        match self.end {
            End::Close => return Ok(Vec::new()),
            End::HalfClose => stream.shutdown(Shutdown::Write)?,
            End::Listen => {}
        }
        let mut bytes = [0; 16 << 10];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => text.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        // A second answer follows the body of the first without a line break.
        let lines =
            text.match_indices("HTTP/1.1 ").map(|(at, _)| text[at..].lines().next().unwrap_or_default());
        Ok(lines.map(str::to_owned).collect())
    }
}

/// Runs all attacks at once; returns the status lines by attack.
fn run(address: SocketAddr, attacks: &[Attack]) -> Result<BTreeMap<&'static str, Vec<String>>> {
    thread::scope(|scope| {
        let threads: Vec<_> =
            attacks.iter().map(|attack| (attack.name, scope.spawn(|| attack.run(address)))).collect();
        let outcome = |(name, thread): (&'static str, thread::ScopedJoinHandle<'_, Result<_>>)| {
            Ok((name, thread.join().map_err(|_panic| anyhow::anyhow!("the client of {name} panicked"))??))
        };
        threads.into_iter().map(outcome).collect()
    })
}

/// The answers that the agent has counted, by status code; requests without an answer are left out.
fn counted(metrics: &Exposition) -> BTreeMap<String, f64> {
    let mut codes = BTreeMap::new();
    for sample in metrics.select("llm_requests_total", &[]) {
        // The harness asks for the server's metrics itself.
        if sample.labels["route"] != "/metrics" && sample.labels["code"] != "499" {
            *codes.entry(sample.labels["code"].clone()).or_default() += sample.value;
        }
    }
    codes
}

#[test]
fn the_server_answers_as_without_the_agent() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    // As many threads as clients: nobody waits for somebody else's silence.
    let arguments = ["-np", "2", "-c", "8192", "-t", "1", "--threads-http", "48"];
    let mut server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let attacks = attacks();
    let without = run(server.address(), &attacks)?;
    server.wait_idle()?;

    let log = RequestLog::new()?;
    let pid = server.pid().to_string();
    let agent = Agent::start(&[&log.arguments()?[..], &["--pid", &pid]].concat())?;
    agent.wait_observed(&server)?;
    let with = run(server.address(), &attacks)?;
    server.wait_idle()?;
    for (name, lines) in &with {
        println!("{name}: {lines:?}");
    }
    assert_eq!(with, without);
    server.assert_alive()?;

    let mut seen = BTreeMap::new();
    for line in with.values().flatten() {
        let code = line.split("HTTP/1.1 ").nth(1).and_then(|rest| rest.get(..3)).context("no status code")?;
        *seen.entry(code.to_owned()).or_default() += 1.0;
    }
    // A client that went, or whose connection was reset, did not see the answer that the server wrote.
    let unseen = attacks.len() - with.values().filter(|lines| !lines.is_empty()).count() + 1;
    let agrees = |told: &BTreeMap<String, f64>| {
        let count = |codes: &BTreeMap<String, f64>, code: &str| codes.get(code).copied().unwrap_or(0.0);
        let more = told.values().sum::<f64>() - seen.values().sum::<f64>();
        seen.keys().all(|code| count(told, code) >= count(&seen, code)) && more <= unseen as f64
    };
    let start = Instant::now();
    let agreed = wait_for("the agent to count all answers", SILENCE, || {
        agent.scrape().ok().map(|it| counted(&it)).filter(&agrees)
    });
    let metrics = agent.scrape()?;
    println!("the clients saw {seen:?}, the agent {:?} after {:?}", counted(&metrics), start.elapsed());
    let series: Vec<_> = metrics.select("llm_requests_total", &[]).collect();
    assert!(
        agreed.is_ok(),
        "the clients saw {seen:?}, the agent {:?}: {series:#?}\n{}",
        counted(&metrics),
        log.text()
    );
    assert_eq!(
        metrics.sum("llamaprobe_lost_total", &[]),
        0.0,
        "{:?}",
        metrics.select("llamaprobe_lost_total", &[]).filter(|it| it.value > 0.0).collect::<Vec<_>>()
    );

    // Afterwards an honest request is served and counted.
    let call = Call::post("/completion", &json!({"prompt": "after", "n_predict": 9, "ignore_eos": true}));
    let answer = call.send(server.address(), &mut None)?;
    assert_eq!(answer.status(), Some(200));
    let lines = log.wait(&[call.trace])?;
    let line =
        lines.get(&call.trace).and_then(|lines| lines.first()).context("no line of the honest request")?;
    let told =
        Tokens { prompt: line.prompt_tokens, cached: line.cached_tokens, generated: line.completion_tokens };
    assert_eq!((Some(told), line.join.as_str()), (answer.tokens, "exact"));
    agent.wait_metrics("no request under way", |metrics| {
        let sum = |name| metrics.sum(name, &[("server", &server.label())]);
        (sum("llm_queue_depth") + sum("llm_requests_in_flight") == 0.0).then_some(())
    })?;
    agent.stop()
}
