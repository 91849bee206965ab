//! Requests by all kinds of callers, and what tests of OTLP ask the agent.

use anyhow::Result;
use llamaprobe_common::numbered;
use serde_json::{Map, Value, json};

use crate::agent::Agent;
use crate::client::Call;
use crate::traffic::{Fate, prompt};

/// Variables for agents that do not wait long.
pub const FAST: [(&str, &str); 3] = [
    ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ("OTEL_BLRP_SCHEDULE_DELAY", "100"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
];

numbered! {
    /// What a caller sends of its trace.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Caller {
        /// A parent that is sampled.
        Sampled,
        /// Nothing.
        Absent,
        /// A parent that is not sampled.
        NotSampled,
        /// A parent that is none.
        Invalid,
        /// A parent that is sampled, with a state.
        Stateful,
    }
}

impl Caller {
    fn headers(self, call: &Call) -> String {
        let parent = |flags: &str| format!("traceparent: 00-{}-00f067aa0ba902b7-{flags}\r\n", call.trace);
        match self {
            Self::Sampled => parent("01"),
            Self::Stateful => format!("{}tracestate: vendor=1,other=2\r\n", parent("01")),
            Self::NotSampled => parent("00"),
            Self::Invalid => format!("traceparent: 00-{}-0000000000000000-01\r\n", call.trace),
            Self::Absent => String::new(),
        }
    }

    /// Whether it is the parent of the request's span.
    pub fn is_parent(self) -> bool {
        matches!(self, Self::Sampled | Self::Stateful | Self::NotSampled)
    }
}

/// Request number `index`, and what its caller sends. Each kind comes with each kind of caller. Its conversation has its
/// trace's id as name, so that its span is found whatever its trace.
pub fn call(index: usize) -> (Call, Caller) {
    let tokens = 8 + index * 5 % 30;
    let text = prompt(20 + index * 13 % 200, index % 11);
    let chat = |stream: bool| json!({"model": "asked", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0.25, "ignore_eos": true, "stream": stream});
    let plain =
        |stream: bool| json!({"prompt": text, "n_predict": tokens, "ignore_eos": true, "stream": stream});
    let call = match index % 10 {
        0 => Call::post("/completion", &plain(false)),
        1 => Call::post("/completion", &plain(true)),
        2 => Call::post("/v1/chat/completions", &chat(false)),
        3 => Call::post("/v1/chat/completions", &chat(true)),
        4 => Call::post("/v1/messages", &chat(false)),
        5 => Call::post(
            "/v1/responses",
            &json!({"input": text, "max_output_tokens": tokens, "ignore_eos": true}),
        ),
        6 => Call::post("/v1/chat/completions", &chat(false)),
        7 => Call::post("/completion", &json!({"prompt": text, "grammar": "root ::= ("}))
            .with_fate(Fate::Refused),
        8 => Call::post(
            "/completion",
            &json!({"prompt": text, "n_predict": 1500, "ignore_eos": true, "stream": true}),
        )
        .with_fate(Fate::Cut(5)),
        _ => Call { body: "{\"messages\":".to_owned(), ..Call::post("/v1/chat/completions", &Value::Null) }
            .with_fate(Fate::Refused),
    };
    let caller = Caller::ALL[index / 10 % Caller::COUNT];
    let headers = format!("{}X-Conversation-Id: {}\r\n", caller.headers(&call), call.trace);
    (Call { headers: Some(headers), ..call }, caller)
}

/// The operation of a path, as the conventions name it.
pub fn operation(path: &str) -> &'static str {
    if path == "/completion" { "text_completion" } else { "chat" }
}

/// Waits until the agent has sent everything of `signal`.
pub fn wait_sent(agent: &Agent, signal: &str) -> Result<()> {
    agent.wait_metrics(&format!("{signal} to be sent"), |metrics| {
        (metrics.sum("llamaprobe_otlp_waiting", &[("signal", signal)]) == 0.0).then_some(())
    })
}

/// A count of the agent's about its export.
pub fn counter(agent: &Agent, what: &str, labels: &[(&str, &str)]) -> Result<u64> {
    Ok(agent.scrape()?.sum(&format!("llamaprobe_otlp_{what}"), labels) as u64)
}

/// Whether a resource is that of the server with this address.
pub fn is_of(resource: &Map<String, Value>, server: &str) -> bool {
    resource["service.instance.id"].as_str().is_some_and(|instance| instance.ends_with(server))
}
