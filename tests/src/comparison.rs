//! The agent's counts beside the server's own.

use std::fmt;
use std::time::Duration;

use anyhow::Result;

use crate::agent::Agent;
use crate::exposition::{Exposition, Histogram};
use crate::server::LlamaServer;
use crate::traffic::{Request, run_checked};
use crate::wait_for;

/// How long the agent may take to show what it has counted.
const LAG: Duration = Duration::from_secs(3);

/// What both say at a moment when the server is idle.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The agent's metrics.
    pub agent: Exposition,
    /// The server's metrics.
    pub server: Exposition,
}

/// One figure from both sides, as the difference between two moments.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    /// What is counted.
    pub name: &'static str,
    /// What the agent counted.
    pub agent: f64,
    /// What the server counted; none if this version does not say.
    pub server: Option<f64>,
}

/// The figures of two moments.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Generated, prompt and cached tokens, and decode calls.
    pub counts: Vec<Count>,
    before: Exposition,
    after: Exposition,
    label: String,
}

impl Moment {
    /// Waits until the server is idle and asks both.
    pub fn now(agent: &Agent, server: &LlamaServer) -> Result<Self> {
        let idle = server.wait_idle()?;
        Ok(Self { agent: agent.scrape()?, server: idle })
    }

    /// Compares this moment with now. The agent is asked again for some seconds if it has not counted everything.
    pub fn compare(&self, agent: &Agent, server: &LlamaServer) -> Result<Comparison> {
        let idle = server.wait_idle()?;
        let compare = || {
            let now = Self { agent: agent.scrape()?, server: idle.clone() };
            Ok(Comparison::between(self, &now, server.label()))
        };
        let equal = wait_for("equal counts", LAG, || {
            compare().ok().filter(|it: &Comparison| it.differences().is_empty())
        });
        equal.or_else(|_| compare())
    }
}

/// Sends a request with and one without streaming, 50 tokens in all.
///
/// # Panics
///
/// When the agent counts something else than the server, or does not know the model by the server's name for it.
pub fn assert_counted(agent: &Agent, server: &LlamaServer) -> Result<()> {
    let before = Moment::now(agent, server)?;
    run_checked(server.address(), &[Request::exact(40, 20, 1), Request::completion("a", 30, true)], 1)?;
    let comparison = before.compare(agent, server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}\n{}", agent.log());
    assert_eq!(comparison.agent("generated tokens"), 50.0);
    let labels = [("server", &*server.label()), ("model", &*server.model())];
    assert_eq!(comparison.after().sum("llm_model_info", &labels), 1.0, "{labels:?}");
    Ok(())
}

impl Count {
    /// Whether both sides say the same, as far as the server says anything.
    pub fn equal(&self) -> bool {
        self.server.is_none_or(|server| server == self.agent)
    }
}

impl Comparison {
    fn between(before: &Moment, after: &Moment, label: String) -> Self {
        let mut comparison =
            Self { counts: Vec::new(), before: before.agent.clone(), after: after.agent.clone(), label };
        let server = |name: &str| Some(after.server.value(name)? - before.server.value(name)?);
        let tokens = |kind: &str| comparison.delta("llm_tokens_total", &[("type", kind)]);
        comparison.counts = vec![
            Count {
                name: "generated tokens",
                agent: tokens("generated"),
                server: server("llamacpp:tokens_predicted_total"),
            },
            Count {
                name: "prompt tokens",
                agent: tokens("prompt"),
                server: server("llamacpp:prompt_tokens_total"),
            },
            Count {
                name: "cached tokens",
                agent: tokens("cached"),
                server: server("llamacpp:prompt_tokens_cached_total"),
            },
            Count {
                name: "decode calls",
                agent: comparison.histogram("llm_batch_tokens").count,
                server: server("llamacpp:n_decode_total"),
            },
        ];
        comparison
    }

    /// What the agent counted under one of the names of `counts`; 0 if there is no such name.
    pub fn agent(&self, name: &str) -> f64 {
        self.counts.iter().find(|count| count.name == name).map_or(0.0, |count| count.agent)
    }

    /// By how much a metric of the agent rose, for this server and `labels`.
    pub fn delta(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> =
            [("server", self.label.as_str())].into_iter().chain(labels.iter().copied()).collect();
        self.after.sum(name, &labels) - self.before.sum(name, &labels)
    }

    /// By how much a metric of the agent about itself rose.
    pub fn own_delta(&self, name: &str) -> f64 {
        self.after.sum(name, &[]) - self.before.sum(name, &[])
    }

    /// What a histogram of the agent observed, for this server.
    pub fn histogram(&self, name: &str) -> Histogram {
        let labels = [("server", self.label.as_str())];
        self.after.histogram(name, &labels).since(&self.before.histogram(name, &labels))
    }

    /// The agent's metrics at the end.
    pub fn after(&self) -> &Exposition {
        &self.after
    }

    /// The figures that are not equal.
    pub fn differences(&self) -> Vec<&Count> {
        self.counts.iter().filter(|count| !count.equal()).collect()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20} {:>12} {:>12}  equal?", "", "agent", "server")?;
        for count in &self.counts {
            let server = count.server.map_or_else(|| "not said".to_owned(), |it| it.to_string());
            let equal = if count.server.is_none() {
                "-"
            } else if count.equal() {
                "yes"
            } else {
                "NO"
            };
            writeln!(f, "{:<20} {:>12} {server:>12}  {equal}", count.name, count.agent)?;
        }
        Ok(())
    }
}
