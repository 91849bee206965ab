//! A client that names each of its requests by a trace id, so that the agent's line about it can be found.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Deserialize as _;
use serde_json::Value;

use crate::http::{Connection, Endpoint, Reply};
use crate::request_log::TraceId;
use crate::traffic::{Fate, Timings};

/// A request to send.
#[derive(Clone, Debug)]
pub struct Call {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The path.
    pub path: &'static str,
    /// The body.
    pub body: String,
    /// What should become of it.
    pub fate: Fate,
    /// Whether it asks the server to close the connection behind the answer.
    pub one_shot: bool,
    /// Its name.
    pub trace: TraceId,
    /// Header lines that it sends instead of a `traceparent` with its name.
    pub headers: Option<String>,
}

impl Call {
    /// A request with a JSON body that is answered to the end.
    pub fn post(path: &'static str, body: &Value) -> Self {
        let (body, trace) = (body.to_string(), TraceId::new());
        Self { method: "POST", path, body, fate: Fate::Finished, one_shot: false, trace, headers: None }
    }

    /// A request without a body.
    pub fn get(path: &'static str) -> Self {
        Self { method: "GET", body: String::new(), ..Self::post(path, &Value::Null) }
    }

    /// The same with another header.
    pub fn with_header(self, name: &str, value: &str) -> Self {
        let own = self.headers.unwrap_or_else(|| self.trace.header());
        Self { headers: Some(format!("{own}{name}: {value}\r\n")), ..self }
    }

    /// The same with another fate.
    pub fn with_fate(self, fate: Fate) -> Self {
        Self { fate, ..self }
    }

    /// Sends it over `kept`, or over a new connection which `kept` holds afterwards if it can be used again.
    pub fn send(&self, endpoint: impl Into<Endpoint>, kept: &mut Option<Connection>) -> Result<Answer> {
        let context = || format!("{} {} ({:?}, trace {})", self.method, self.path, self.fate, self.trace);
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => Connection::open(endpoint).with_context(context)?,
        };
        let close = if self.one_shot { "Connection: close\r\n" } else { "" };
        let own = self.headers.clone().unwrap_or_else(|| self.trace.header());
        let headers = format!("{own}{close}");
        let start = Instant::now();
        connection.send_with(self.method, self.path, &headers, &self.body).with_context(context)?;
        let reply = match self.fate {
            Fate::Abandoned(after) => {
                thread::sleep(after);
                None
            }
            Fate::Cut(events) => Some(connection.receive(Some(events)).with_context(context)?),
            Fate::Finished | Fate::Refused => Some(connection.receive(None).with_context(context)?),
        };
        let latency = start.elapsed();
        *kept = reply.as_ref().is_some_and(|reply| reply.reusable).then_some(connection);
        let documents = reply.as_ref().map_or_else(Vec::new, Reply::documents);
        let timings = documents.iter().rev().find_map(|it| Timings::deserialize(it.get("timings")?).ok());
        let tokens = timings.map(Tokens::from).or_else(|| Tokens::of(&documents));
        Ok(Answer { call: self.clone(), reply, latency, timings, tokens })
    }
}

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The request.
    pub call: Call,
    /// The answer; none if the client did not wait for it.
    pub reply: Option<Reply>,
    /// From before the request was sent until the client had read what it wanted.
    pub latency: Duration,
    /// The server's figures.
    pub timings: Option<Timings>,
    /// The counts of tokens, from `timings` or `usage`.
    pub tokens: Option<Tokens>,
}

impl Answer {
    /// The status code, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.reply.as_ref().map(|reply| reply.status)
    }

    /// Whether the client read the whole answer.
    pub fn is_whole(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| !reply.cut)
    }
}

/// Tokens of a request as the server counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Prompt tokens, computed and cached.
    pub prompt: u64,
    /// Prompt tokens found in the cache.
    pub cached: u64,
    /// Generated tokens.
    pub generated: u64,
}

impl From<Timings> for Tokens {
    fn from(it: Timings) -> Self {
        Self { prompt: it.prompt_n + it.cache_n, cached: it.cache_n, generated: it.predicted_n }
    }
}

impl Tokens {
    /// Reads the `usage` objects of an answer; the formats that have no `timings` name them in two ways.
    fn of(documents: &[Value]) -> Option<Self> {
        let mut found = None;
        for document in documents {
            for usage in
                ["/usage", "/message/usage", "/response/usage"].iter().filter_map(|at| document.pointer(at))
            {
                let tokens: &mut Self = found.get_or_insert_default();
                let number = |at: &str| usage.pointer(at).and_then(Value::as_u64);
                if let (Some(cached), Some(computed)) =
                    (number("/cache_read_input_tokens"), number("/input_tokens"))
                {
                    (tokens.cached, tokens.prompt) = (cached, cached + computed);
                } else if let Some(prompt) = number("/input_tokens") {
                    tokens.prompt = prompt;
                    tokens.cached = number("/input_tokens_details/cached_tokens").unwrap_or(0);
                }
                tokens.generated = number("/output_tokens").unwrap_or(tokens.generated);
            }
        }
        found
    }
}

/// Sends `calls` from `clients` threads at once, each keeping its connection as long as it can.
pub fn run(endpoint: impl Into<Endpoint>, calls: &[Call], clients: usize) -> Result<Vec<Answer>> {
    let endpoint = &endpoint.into();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                let own = calls.iter().skip(client).step_by(clients);
                scope.spawn(move || {
                    let mut connection = None;
                    own.map(|call| call.send(endpoint.clone(), &mut connection)).collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        let mut answers = Vec::new();
        for thread in threads {
            answers.extend(thread.join().map_err(|_panic| anyhow::anyhow!("a client thread panicked"))??);
        }
        Ok(answers)
    })
}
