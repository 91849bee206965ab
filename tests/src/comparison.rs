//! The agent's counts beside the server's own.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use llamaprobe_common::named;

use crate::agent::Agent;
use crate::exposition::{Exposition, Histogram};
use crate::server::LlamaServer;
use crate::traffic::{Request, run_checked};
use crate::wait_for;

/// How long the agent may take to show what it has counted.
const LAG: Duration = Duration::from_secs(3);

named! {
    /// A figure that servers say themselves.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Figure {
        /// Generated tokens.
        Generated = "generated tokens",
        /// Prompt tokens that were computed.
        Prompt = "prompt tokens",
        /// Prompt tokens that were found in the cache.
        Cached = "cached tokens",
        /// Decode calls.
        DecodeCalls = "decode calls",
    }
}

impl Figure {
    /// Those that llama-server says up to about b10800.
    pub const BUT_CACHED: &[Self] = &[Self::Generated, Self::Prompt, Self::DecodeCalls];

    /// The server's own metric.
    fn metric(self) -> &'static str {
        match self {
            Self::Generated => "llamacpp:tokens_predicted_total",
            Self::Prompt => "llamacpp:prompt_tokens_total",
            Self::Cached => "llamacpp:prompt_tokens_cached_total",
            Self::DecodeCalls => "llamacpp:n_decode_total",
        }
    }

    /// What the agent counted of it.
    fn counted(self, comparison: &Comparison) -> f64 {
        let tokens = |kind| comparison.delta("llm_tokens_total", &[("type", kind)]);
        match self {
            Self::Generated => tokens("generated"),
            Self::Prompt => tokens("prompt"),
            Self::Cached => tokens("cached"),
            Self::DecodeCalls => comparison.histogram("llm_batch_tokens").count,
        }
    }
}

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
    /// What the server counted; none if it does not say.
    pub server: Option<f64>,
    /// Whether a server of this build says it: then a figure that is missing is a difference.
    pub comparable: bool,
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
            Ok(Comparison::between(self, &now, server))
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
    /// One that both sides must have.
    pub fn of_both(name: &'static str, agent: f64, server: f64) -> Self {
        Self { name, agent, server: Some(server), comparable: true }
    }

    /// Whether both sides say the same; also if the server does not say what a server of its build never says.
    pub fn equal(&self) -> bool {
        self.server.map_or(!self.comparable, |server| server == self.agent)
    }
}

impl Comparison {
    fn between(before: &Moment, after: &Moment, server: &LlamaServer) -> Self {
        let mut comparison = Self {
            counts: Vec::new(),
            before: before.agent.clone(),
            after: after.agent.clone(),
            label: server.label(),
        };
        let said = |name: &str| Some(after.server.value(name)? - before.server.value(name)?);
        let count = |figure: Figure| Count {
            name: figure.name(),
            agent: figure.counted(&comparison),
            server: said(figure.metric()),
            comparable: server.says().contains(&figure),
        };
        comparison.counts = Figure::ALL.map(count).into();
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
            let equal = match (count.equal(), count.server) {
                (true, None) => "-",
                (true, Some(_)) => "yes",
                (false, _) => "NO",
            };
            writeln!(f, "{:<20} {:>12} {server:>12}  {equal}", count.name, count.agent)?;
        }
        Ok(())
    }
}
