//! A deterministic mix of requests, as a llama-server meets it: plain and streamed, good and bad, finished and cut.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::{Connection, Reply};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is answered to the end.
    Finished,
    /// The server refuses it, with a status from 400 up.
    Refused,
    /// The client goes away after this many events of the stream.
    Cut(usize),
    /// The client goes away before the answer, after this time.
    Abandoned(Duration),
}

impl Fate {
    /// Whether the client waits for the whole answer.
    pub fn is_answered(self) -> bool {
        matches!(self, Self::Finished | Self::Refused)
    }
}

/// A request to send.
#[derive(Clone, Debug)]
pub struct Request {
    /// The path, such as `/completion`.
    pub path: &'static str,
    /// The body; JSON if the request is a good one.
    pub body: String,
    /// What should become of it.
    pub fate: Fate,
}

/// What the server says about a finished request. `_n` are tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt that were found in the cache.
    pub cache_n: u64,
    /// Tokens of the prompt that were computed.
    pub prompt_n: u64,
    /// Time from the start in the slot to the first token.
    pub prompt_ms: f64,
    /// Generated tokens.
    pub predicted_n: u64,
    /// Time from the first token to the last.
    pub predicted_ms: f64,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The request.
    pub request: Request,
    /// The answer; none if the client did not wait for it.
    pub reply: Option<Reply>,
    /// The server's own figures; only finished requests have them.
    pub timings: Option<Timings>,
}

impl Request {
    /// A request of `prompt` for exactly `tokens` tokens.
    pub fn completion(prompt: &str, tokens: u32, stream: bool) -> Self {
        let body = json!({"prompt": prompt, "n_predict": tokens, "ignore_eos": true, "stream": stream});
        Self { path: "/completion", body: body.to_string(), fate: Fate::Finished }
    }

    /// The same in the form of a chat.
    pub fn chat(prompt: &str, tokens: u32, stream: bool) -> Self {
        let messages = json!([{"role": "user", "content": prompt}]);
        let body = json!({"messages": messages, "max_tokens": tokens, "ignore_eos": true, "stream": stream});
        Self { path: "/v1/chat/completions", body: body.to_string(), fate: Fate::Finished }
    }

    /// A request of a prompt of exactly `prompt` tokens that the cache does not know, for exactly `generated` tokens.
    ///
    /// The tokens are words of the tiny models; `seed` chooses them.
    pub fn exact(prompt: usize, generated: u32, seed: usize) -> Self {
        let tokens: Vec<_> = (0..prompt).map(|index| 360 + (index * 17 + seed * 31) % 150).collect();
        let body = json!({
            "prompt": tokens, "n_predict": generated, "ignore_eos": true, "cache_prompt": false, "temperature": 0,
        });
        Self { path: "/completion", body: body.to_string(), fate: Fate::Finished }
    }

    /// The same request with another fate.
    pub fn with_fate(self, fate: Fate) -> Self {
        Self { fate, ..self }
    }

    fn refused(path: &'static str, body: String) -> Self {
        Self { path, body, fate: Fate::Refused }
    }
}

impl Outcome {
    /// Fails if the request had another fate than it should.
    pub fn check(&self) -> Result<()> {
        let Request { path, fate, .. } = self.request;
        let status = self.reply.as_ref().map_or(0, |reply| reply.status);
        let cut = self.reply.as_ref().is_some_and(|reply| reply.cut);
        let right = match fate {
            Fate::Finished => status == 200 && !cut && self.timings.is_some(),
            Fate::Refused => (400..=599).contains(&status),
            Fate::Cut(_) => status == 200 && cut,
            Fate::Abandoned(_) => self.reply.is_none(),
        };
        ensure!(right, "POST {path} should be {fate:?}, but: {:?}", self.reply);
        Ok(())
    }
}

/// A prompt of about `tokens` tokens with the vocabulary of the tiny models, other words for another `seed`.
pub fn prompt(tokens: usize, seed: usize) -> String {
    // One token for the space and one for the letter.
    let letter = |index: usize| u8::try_from((index * (seed % 7 + 1) * 7 + seed) % 26).unwrap_or(0) + b'a';
    (0..tokens.div_ceil(2)).flat_map(|index| [char::from(letter(index)), ' ']).collect()
}

/// `count` requests of all kinds. A slot should hold at least 4,096 tokens, and all slots less than 40,000.
pub fn mix(count: usize) -> Vec<Request> {
    let mut requests: Vec<_> = (0..count).map(mixed).collect();
    // A client that leaves a plain request is noticed after a second, so this one has to last.
    for request in requests.iter_mut().skip(5).step_by(24) {
        *request =
            Request::completion("long", 3500, false).with_fate(Fate::Abandoned(Duration::from_millis(100)));
    }
    requests
}

/// `count` requests that are all answered to the end.
pub fn finishing(count: usize) -> Vec<Request> {
    (0..count)
        .map(|index| mixed(index * 2))
        .map(|request| match request.fate {
            Fate::Finished => request,
            _ => Request::completion(&prompt(33, 5), 17, true),
        })
        .collect()
}

fn mixed(index: usize) -> Request {
    let tokens = 8 + u32::try_from(index * 5 % 40).unwrap_or(0);
    let long = prompt(120 + index * 13 % 200, index);
    let short = prompt(6 + index % 9, index % 4);
    match index % 12 {
        0 => Request::completion(&short, tokens, false),
        1 => Request::chat(&short, tokens, true),
        2 => Request::completion(&long, tokens, true),
        3 => Request::refused("/completion", json!({"prompt": short, "grammar": "root ::= ("}).to_string()),
        4 => Request { path: "/v1/completions", ..Request::completion(&long, tokens, true) },
        5 => Request::completion(&short, 300, true).with_fate(Fate::Cut(3)),
        6 => Request::chat(&long, tokens, false),
        7 => {
            Request::refused("/completion", json!({"prompt": prompt(40_000, 1), "n_predict": 4}).to_string())
        }
        8 => Request { path: "/v1/completions", ..Request::completion(&short, tokens, false) },
        9 => Request::refused("/v1/chat/completions", "{\"messages\":".to_owned()),
        10 => Request::chat(&long, 300, true).with_fate(Fate::Cut(5)),
        _ => Request::refused("/no/such/route", "{}".to_owned()),
    }
}

/// Sends `requests` from `clients` threads at once, each keeping its connection as long as it can.
pub fn run(address: SocketAddr, requests: &[Request], clients: usize) -> Result<Vec<Outcome>> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                let own = requests.iter().skip(client).step_by(clients);
                scope.spawn(move || {
                    let mut connection = None;
                    own.map(|request| send(address, &mut connection, request)).collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        let mut outcomes = Vec::new();
        for thread in threads {
            outcomes.extend(thread.join().map_err(|_panic| anyhow::anyhow!("a client thread panicked"))??);
        }
        Ok(outcomes)
    })
}

/// Sends `requests` and fails unless each has the fate it should have.
pub fn run_checked(address: SocketAddr, requests: &[Request], clients: usize) -> Result<Vec<Outcome>> {
    let outcomes = run(address, requests, clients)?;
    outcomes.iter().try_for_each(Outcome::check)?;
    Ok(outcomes)
}

fn send(address: SocketAddr, kept: &mut Option<Connection>, request: &Request) -> Result<Outcome> {
    let context = || format!("POST {}", request.path);
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(address).with_context(context)?,
    };
    connection.send("POST", request.path, &request.body).with_context(context)?;
    let reply = match request.fate {
        Fate::Abandoned(after) => {
            thread::sleep(after);
            return Ok(Outcome { request: request.clone(), reply: None, timings: None });
        }
        Fate::Cut(events) => connection.receive(Some(events)).with_context(context)?,
        Fate::Refused | Fate::Finished => connection.receive(None).with_context(context)?,
    };
    *kept = reply.reusable.then_some(connection);
    let timings = reply.documents().iter().rev().find_map(read_timings);
    Ok(Outcome { request: request.clone(), reply: Some(reply), timings })
}

fn read_timings(document: &Value) -> Option<Timings> {
    Timings::deserialize(document.get("timings")?).ok()
}
