//! What the agent is proved with, as data: [`builds`] of llama.cpp, [`modes`] of its server, and [`places`] where it may
//! run. The tests try the part that the set-up installs; `cargo xtask compat` tries all, and writes what it saw down.

pub mod builds;
pub mod modes;
pub mod places;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::agent::Agent;
use crate::assets::Assets;
use crate::client::{Call, Tokens};
use crate::comparison::{Count, Figure, Moment};
use crate::server::LlamaServer;
use crate::traffic::prompt;

/// What came out of a case.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Both sides counted.
    Counted(Vec<Count>),
    /// The agent says why it cannot observe this, as it should.
    Refused(String),
    /// It could not be tried; why.
    NotRun(String),
}

impl Outcome {
    /// Whether it is as it has to be: something was counted on both sides, and the same.
    pub fn is_right(&self) -> bool {
        match self {
            Self::Refused(why) => !why.is_empty(),
            Self::NotRun(_) => false,
            Self::Counted(counts) => {
                let compared = counts.iter().filter(|count| count.server.is_some());
                compared.clone().any(|count| count.agent > 0.0) && counts.iter().all(Count::equal)
            }
        }
    }

    /// How many figures both sides said.
    pub fn compared(&self) -> usize {
        match self {
            Self::Counted(counts) => counts.iter().filter(|count| count.server.is_some()).count(),
            Self::Refused(_) | Self::NotRun(_) => 0,
        }
    }

    /// This and that: figures of one name are added up.
    fn and(self, other: Self) -> Self {
        let (Self::Counted(mut counts), Self::Counted(more)) = (self.clone(), other.clone()) else {
            return if matches!(self, Self::Counted(_)) { other } else { self };
        };
        for more in more {
            match counts.iter_mut().find(|count| count.name == more.name) {
                Some(count) => {
                    count.agent += more.agent;
                    count.server = count.server.zip(more.server).map(|(one, other)| one + other);
                    count.comparable &= more.comparable;
                }
                None => counts.push(more),
            }
        }
        Self::Counted(counts)
    }
}

/// Pairs of figures, the agent's before the server's.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::NotRun(why) => write!(f, "not run: {why}"),
            Self::Counted(counts) => {
                for (index, count) in counts.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    let sign = if count.equal() { "=" } else { "≠" };
                    match count.server {
                        Some(server) => write!(f, "{comma}{} {} {sign} {server}", count.name, count.agent)?,
                        None => write!(f, "{comma}{} {} (not said)", count.name, count.agent)?,
                    }
                }
                Ok(())
            }
        }
    }
}

type Trial = Box<dyn Fn(&Assets) -> Result<Outcome>>;

/// Something that is tried.
pub struct Case {
    /// Which table it is of.
    pub table: &'static str,
    /// What it is.
    pub name: String,
    /// What has to be there for it.
    pub needs: Vec<PathBuf>,
    trial: Trial,
}

impl Case {
    /// Tries it.
    pub fn run(&self, assets: &Assets) -> Result<Outcome> {
        if let Some(missing) = self.needs.iter().find(|path| !path.exists()) {
            return Ok(Outcome::NotRun(format!("{} is missing", missing.display())));
        }
        (self.trial)(assets)
    }

    /// Tries it, and fails unless it comes out right.
    pub fn check(&self, assets: &Assets) -> Result<Outcome> {
        let outcome = self.run(assets)?;
        ensure!(outcome.is_right(), "{}: {}: {outcome}", self.table, self.name);
        Ok(outcome)
    }
}

/// Every case of every table.
pub fn cases(assets: &Assets) -> Vec<Case> {
    let builds = builds::BUILDS.iter().map(|build| build.case(assets));
    let modes = modes::MODES.iter().flat_map(|mode| mode.cases(assets));
    let places = places::PLACES.iter().map(|place| place.case(assets));
    builds.chain(modes).chain(places).collect()
}

/// Compares with what both sides said before, and counts losses, which have to be none.
fn compared(before: &Moment, agent: &Agent, server: &LlamaServer) -> Result<Vec<Count>> {
    let comparison = before.compare(agent, server)?;
    let mut counts = comparison.counts.clone();
    counts.push(Count::of_both("lost", comparison.own_delta("llamaprobe_lost_total"), 0.0));
    Ok(counts)
}

/// Sums of what answers say, against what the agent counted of these servers since its beginning.
fn by_answers(agent: &Agent, servers: &[String], said: &[Tokens]) -> Result<Vec<Count>> {
    let sum = |of: fn(&Tokens) -> u64| said.iter().map(of).sum::<u64>() as f64;
    let of_answers = [
        (Figure::Generated, "generated", sum(|it| it.generated)),
        (Figure::Prompt, "prompt", sum(|it| it.prompt - it.cached)),
        (Figure::Cached, "cached", sum(|it| it.cached)),
    ];
    let counts = || -> Result<Vec<Count>> {
        let metrics = agent.scrape()?;
        let one = |&(figure, kind, said): &(Figure, &str, f64)| {
            let tokens = |server| metrics.sum("llm_tokens_total", &[("server", server), ("type", kind)]);
            Count::of_both(figure.name(), servers.iter().map(|server| tokens(server)).sum(), said)
        };
        let lost = Count::of_both("lost", metrics.sum("llamaprobe_lost_total", &[]), 0.0);
        Ok(of_answers.iter().map(one).chain([lost]).collect())
    };
    agent
        .wait_metrics("equal counts", |_| counts().ok().filter(|it| it.iter().all(Count::equal)))
        .or_else(|_| counts())
}

/// A plain request and one that is streamed; what their answers say.
fn two_calls(path: &'static str, server: &LlamaServer) -> Result<[Tokens; 2]> {
    let call = |stream: bool| -> Result<Tokens> {
        let body = json!({"prompt": prompt(30, 2), "n_predict": 25, "ignore_eos": true, "stream": stream});
        let answer = Call::post(path, &body).send(server.endpoint(), &mut None)?;
        ensure!(answer.status() == Some(200), "{answer:?}");
        answer.tokens.context("no figures in the answer")
    };
    Ok([call(false)?, call(true)?])
}
