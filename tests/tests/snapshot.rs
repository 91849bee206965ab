//! The document of `/snapshot`: the server's own counts, one document a second, and agents of other versions.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_api::{Document, SCHEMA, Server};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, run_checked};
use llamaprobe_tests::{http, wait_for};
use serde_json::{Value, json};

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
const PATIENCE: Duration = Duration::from_secs(15);

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let reply = http::get(address, path)?;
    ensure!(reply.status == 200, "{path} answers {}: {}", reply.status, reply.body);
    Ok(reply.body)
}

/// A document, and its only server.
fn read(agent: &Agent) -> Result<(Document, Server)> {
    let document: Document = serde_json::from_str(&get(agent.address(), "/snapshot")?)?;
    let server = document.servers.first().cloned().context("no server")?;
    Ok((document, server))
}

#[test]
fn the_document_has_the_servers_own_counts() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::start(&["--pid", &server.pid().to_string()])?;
    agent.wait_observed(&server)?;
    let requests: Vec<_> =
        (0..12).map(|index| Request::completion("a word", 3 + index, index % 2 == 0)).collect();
    run_checked(server.address(), &requests, 2)?;
    let own = server.wait_idle()?;
    let count = |name: &str| own.value(name).map(|value| value as u64).with_context(|| format!("no {name}"));
    let generated = count("llamacpp:tokens_predicted_total")?;
    let prompt = count("llamacpp:prompt_tokens_total")?;
    let told = || {
        let (document, told) = read(&agent).ok()?;
        let finished: u64 =
            told.requests.iter().filter(|it| it.route == "/completion").map(|it| it.count).sum();
        (told.tokens.generated == generated && finished == 12).then_some((document, told))
    };
    let (document, told) = wait_for("a document with all of it", PATIENCE, told)?;
    assert_eq!(document.schema, SCHEMA);
    assert_eq!((told.tokens.prompt, told.tokens.generated), (prompt, generated));
    assert_eq!((&told.server, &told.model), (&server.label(), &server.model()));
    assert_eq!(told.live.as_ref().map(|live| live.pid), Some(server.pid()));
    let of_users: u64 = told.users.iter().map(|user| user.generated).sum();
    assert_eq!(of_users, generated, "the users together");
    assert_eq!(told.request_duration.context("no durations")?.count, 12);
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() - document.taken_at;
    assert!((-1.0..5.0).contains(&age), "{age} s old");
    assert!(document.agent.started_at < document.taken_at);

    // The same to people, by the endpoint and by the command.
    let line = format!("{}  {}", server.label(), server.model());
    let listen = agent.address().to_string();
    let command = agent::run(&["snapshot", "--listen", &listen])?;
    for text in [get(agent.address(), "/snapshot?format=table")?, String::from_utf8(command.stdout)?] {
        assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        assert!(text.contains(&format!("{generated} generated")), "{text}");
    }
    let whole: Document =
        serde_json::from_value(agent::run_json(&["snapshot", "--json", "--listen", &listen])?)?;
    assert_eq!(whole.servers[0].tokens, told.tokens);
    assert_eq!(http::get(agent.address(), "/snapshot?format=tabel")?.status, 400);
    agent.stop()
}

#[test]
fn a_document_is_made_at_most_once_a_second() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let agent = Agent::start(&["--pid", &std::process::id().to_string()])?;
    let (start, mut moments) = (Instant::now(), Vec::new());
    while start.elapsed() < Duration::from_secs(3) {
        let document: Document = serde_json::from_str(&get(agent.address(), "/snapshot")?)?;
        moments.push(document.taken_at);
        // Each question is a connection, of which the host has only so many.
        thread::sleep(Duration::from_millis(5));
    }
    let asked = moments.len();
    moments.dedup();
    println!("{} documents for {asked} questions in {:?}", moments.len(), start.elapsed());
    assert!(asked > 20, "{asked}");
    assert!((2..=start.elapsed().as_secs() as usize + 1).contains(&moments.len()), "{moments:?}");
    agent.stop()
}

/// Answers one question with this document, as an agent would.
fn stranger(document: &Value) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{document}");
    thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            asked.extend(byte);
        }
        stream.write_all(answer.as_bytes())?;
        Ok(())
    });
    Ok(address)
}

#[test]
fn the_command_says_when_the_agent_is_newer() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let ask = |document: &Value, more: &[&str]| -> Result<_> {
        let listen = stranger(document)?.to_string();
        let output = agent::run(&[&["snapshot", "--listen", &listen][..], more].concat())?;
        let texts = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok((output.status.code(), texts))
    };
    let mut document = serde_json::to_value(Document { schema: SCHEMA, ..Document::default() })?;
    let (code, [shown, said]) = ask(&document, &[])?;
    assert!(code == Some(0) && said.is_empty() && shown.contains("0 observed"), "{shown}{said}");
    document["schema"] = json!(SCHEMA + 1);
    document["new"] = json!(1);
    let (code, [shown, said]) = ask(&document, &["--json"])?;
    assert!(code == Some(0) && said.contains("newer"), "{said}");
    assert_eq!(serde_json::from_str::<Value>(&shown)?, document, "as it came");
    document["servers"] = json!({ "elsewhere": [] });
    let (code, [_, said]) = ask(&document, &[])?;
    assert!(code == Some(2) && said.contains("newer than this command"), "{said}");
    document["schema"] = json!(SCHEMA);
    let (code, [_, said]) = ask(&document, &[])?;
    assert!(code == Some(2) && said.contains("no document"), "{said}");
    Ok(())
}
