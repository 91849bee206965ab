//! Nothing of a prompt, an answer or a key leaves the agent.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::executable;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::http::{self, Connection};
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::request_log::{RequestLog, TraceId};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::tls::Identity;
use llamaprobe_tests::wait_for;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
/// Marked requests that ask for no completion.
const NOT_LOGGED: usize = 12;
/// Stands in every prompt.
const PROMPT: &str = "zebra7prompt";
/// What the model is made to answer.
const ANSWER: &str = "quagga9answer";
/// The key that the clients send.
const KEY: &str = "sk-tapir5secretkey";
/// The key on the server's command line.
const SERVER_KEY: &str = "sk-okapi3serverkey";

/// An agent all of whose output is kept.
struct Kept {
    process: Process,
    address: SocketAddr,
    _scratch: Scratch,
    files: [PathBuf; 2],
}

impl Kept {
    fn start(server: &LlamaServer, more: &[&str]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let files = ["stdout", "stderr"].map(|name| scratch.path().join(name));
        let mut command = tied(executable()?);
        command.args(["run", "--listen", "127.0.0.1:0", "--log", "debug"]).args(more);
        command.stdin(Stdio::null()).stdout(File::create(&files[0])?).stderr(File::create(&files[1])?);
        let process = Process::start("llamaprobe", &mut command)?;
        let address = wait_for("the agent's address", PATIENCE, || {
            let text = fs::read_to_string(&files[0]).ok()?;
            text.lines().find_map(|line| line.strip_prefix("listening on http://")?.parse().ok())
        })?;
        let agent = Self { process, address, _scratch: scratch, files };
        wait_for("the server in the agent's metrics", PATIENCE, || {
            agent.get("/metrics").ok()?.contains(&server.label()).then_some(())
        })?;
        Ok(agent)
    }

    fn get(&self, path: &str) -> Result<String> {
        Ok(http::get(self.address, path)?.body)
    }

    /// What its endpoint tells, by path.
    fn told_over_http(&self) -> Result<Vec<(String, String)>> {
        let paths = ["/metrics", "/snapshot", "/history", "/readyz", "/healthz", "/", "/no/such/path"];
        paths.into_iter().map(|path| Ok((path.to_owned(), self.get(path)?))).collect()
    }

    /// What it wrote to its standard output and error.
    fn told_in_files(&self) -> Result<Vec<(String, String)>> {
        let text =
            |file: &PathBuf| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&fs::read(file)?).into_owned());
        self.files.iter().map(|file| Ok((file.display().to_string(), text(file)?))).collect()
    }
}

/// Sends marked requests to every route; returns the answers.
fn send_marked(server: &LlamaServer) -> Result<Vec<String>> {
    let grammar = format!("root ::= \"{ANSWER}\"");
    let text = format!("{PROMPT} one two {PROMPT}");
    let long = format!("{PROMPT} ").repeat(600);
    let messages = json!([{"role": "system", "content": PROMPT}, {"role": "user", "content": text}]);
    let tool = json!([{"type": "function", "function": {"name": PROMPT, "description": text, "parameters": {"type": "object", "properties": {}}}}]);
    let mut requests: Vec<(String, Value)> = Vec::new();
    for stream in [false, true] {
        let common = |more: Value| {
            let mut body = json!({"grammar": grammar, "n_predict": 30, "max_tokens": 30, "max_output_tokens": 30, "stream": stream, "stop": [PROMPT]});
            let fields =
                more.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
            body.as_object_mut().expect("it is an object").extend(fields);
            body
        };
        requests.extend([
            ("/completion".to_owned(), common(json!({"prompt": text}))),
            ("/completion".to_owned(), common(json!({"prompt": long}))),
            // A prompt that looks like the fields that the agent reads.
            ("/completion".to_owned(), common(json!({"prompt": format!("\"model\":\"{PROMPT}\",\"user\":\"{PROMPT}\"")}))),
            ("/v1/completions".to_owned(), common(json!({"prompt": text}))),
            ("/v1/chat/completions".to_owned(), common(json!({"messages": messages}))),
            ("/v1/messages".to_owned(), common(json!({"messages": messages.as_array().map(|it| &it[1..])}))),
            ("/v1/responses".to_owned(), common(json!({"input": text}))),
            // Refused, with the text in the message of the error.
            ("/completion".to_owned(), common(json!({"prompt": text, "grammar": format!("root ::= {PROMPT}(")}))),
            ("/completion".to_owned(), common(json!({"prompt": {"type": PROMPT, "error": {"type": PROMPT}}}))),
            ("/v1/chat/completions".to_owned(), common(json!({"messages": [{"role": PROMPT, "content": {"a": PROMPT}}]}))),
            ("/v1/chat/completions".to_owned(), json!({"messages": messages, "tools": tool, "max_tokens": 4, "stream": stream, "response_format": {"type": PROMPT}})),
            ("/tokenize".to_owned(), json!({"content": text})),
            (format!("/{PROMPT}?prompt={PROMPT}"), json!({"prompt": text})),
            (format!("/completion?prompt={PROMPT}&api_key={KEY}"), common(json!({"prompt": text}))),
        ]);
    }
    let mut answers = Vec::new();
    for (path, body) in requests {
        for header in [
            format!("Authorization: Bearer {SERVER_KEY}"),
            format!("X-Api-Key: {SERVER_KEY}"),
            format!("Authorization: Bearer {KEY}"),
        ] {
            let mut connection = Connection::open(server.endpoint())?;
            let headers = format!("{header}\r\nCookie: session={KEY}\r\n");
            connection.send_with("POST", &path, &headers, &body.to_string())?;
            answers.push(connection.receive(None)?.body);
        }
    }
    // Bodies that are no JSON, and one that never ends.
    for body in [
        format!("{{\"prompt\": \"{PROMPT}"),
        format!("{PROMPT} \"model\": {PROMPT}"),
        format!("{{\"error\":{{\"type\":\"{PROMPT}\"}}"),
    ] {
        let mut connection = Connection::open(server.endpoint())?;
        let headers = format!("Authorization: Bearer {SERVER_KEY}\r\n");
        connection.send_with("POST", "/v1/chat/completions", &headers, &body)?;
        answers.push(connection.receive(None)?.body);
    }
    Ok(answers)
}

/// The servers: one of plain HTTP, one that speaks TLS.
fn launches(model: &Path) -> Result<[Launch; 2]> {
    let launch =
        |build| Launch::new(build, model, &["-np", "2", "-c", "8192", "-t", "1", "--api-key", SERVER_KEY]);
    Ok([launch(Build::Process)?, launch(Build::Monolith)?.over_tls(&Identity::new()?)])
}

#[test]
fn no_prompt_no_answer_no_key() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for launch in launches(&assets.tiny())? {
        no_prompt_no_answer_no_key_of(&launch.start()?)?;
    }
    Ok(())
}

fn no_prompt_no_answer_no_key_of(server: &LlamaServer) -> Result<()> {
    // Once with the log in a file, once on standard output.
    for to_file in [true, false] {
        let log = RequestLog::new()?;
        let arguments = log.arguments()?;
        let scratch = Scratch::new()?;
        let records = scratch.path().join("records.ndjson");
        let record = ["--record-file", records.to_str().context("the path is no text")?];
        let to = if to_file { &arguments[..] } else { &arguments[..2] };
        let mut agent = Kept::start(server, &[to, &record].concat())?;
        let answers = send_marked(server)?;
        // The markers really went through the server.
        for marker in [ANSWER, PROMPT] {
            ensure!(answers.iter().any(|it| it.contains(marker)), "{marker} is in no answer: {answers:#?}");
        }
        let logged = wait_for("lines of the requests", PATIENCE, || {
            let text = if to_file { log.text() } else { fs::read_to_string(&agent.files[0]).ok()? };
            let count = text.lines().filter(|line| line.contains("\"inference_complete\"")).count();
            (count >= answers.len() - NOT_LOGGED).then_some(count)
        })?;
        let mut told = agent.told_over_http()?;
        ensure!(agent.process.stop()?.success(), "the agent failed");
        told.extend(agent.told_in_files()?);
        told.push(("the request log".to_owned(), log.text()));
        let recorded = fs::read_to_string(&records)?;
        ensure!(recorded.lines().count() >= logged, "fewer records than lines: {recorded}");
        told.push(("the record file".to_owned(), recorded));
        println!("{} answers, {logged} lines", answers.len());
        let mut leaks = Vec::new();
        for (place, text) in &told {
            for marker in [PROMPT, ANSWER, KEY, SERVER_KEY] {
                leaks.extend(
                    text.lines()
                        .filter(|line| line.contains(marker))
                        .map(|line| format!("{marker} in {place}: {line}")),
                );
            }
        }
        assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    }
    Ok(())
}

#[test]
fn the_hash_of_a_key_means_nothing_elsewhere() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "1", "-c", "4096", "-t", "1"])?;
    let mut runs = Vec::new();
    for _ in 0..2 {
        let log = RequestLog::new()?;
        let mut agent = Kept::start(&server, &log.arguments()?)?;
        let mut users = Vec::new();
        for key in [KEY, KEY, "another"] {
            let trace = TraceId::new();
            let headers = format!("{}Authorization: Bearer {key}\r\n", trace.header());
            let mut connection = Connection::open(server.address())?;
            connection.send_with("POST", "/completion", &headers, r#"{"prompt": "a", "n_predict": 2}"#)?;
            ensure!(connection.receive(None)?.status == 200, "not answered");
            let lines = log.wait(&[trace])?;
            let line = lines.get(&trace).and_then(|lines| lines.first()).context("no line")?;
            users.push(line.user_id.clone().with_context(|| format!("no user_id: {line:?}"))?);
        }
        assert_eq!(users[0], users[1], "one run tells one user from another");
        assert_ne!(users[0], users[2], "one run tells one user from another");
        runs.push(users);
        ensure!(agent.process.stop()?.success(), "the agent failed");
    }
    println!("{runs:?}");
    assert_ne!(runs[0][0], runs[1][0], "the hash is the same in two runs: {runs:?}");
    Ok(())
}
