//! When a recording is made by itself: `ttft>2s or gap>500ms or duration>60s`.

use std::{str::FromStr, time::Duration};

use llamaprobe_common::named;

use crate::{duration::duration, session::finished::Finished};

named! {
    /// Why a recording is made. The name is the value of the `reason` label, and stands in the name of the file.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Reason {
        /// A request waited too long for a slot,
        Queue = "queue",
        /// or for its first token,
        FirstToken = "ttft",
        /// or between two of its tokens,
        Gap = "gap",
        /// or took too long in all.
        Duration = "duration",
        /// A server has requests and computes nothing.
        Stall = "stall",
        /// SIGUSR2.
        Signal = "signal",
        /// `POST /record`.
        Asked = "asked",
    }
}

impl Reason {
    /// Those that a condition may name: what takes its time.
    const MEASURED: [Self; 5] = [Self::Queue, Self::FirstToken, Self::Gap, Self::Duration, Self::Stall];

    fn of(self, request: &Finished) -> Option<u64> {
        match self {
            Self::Queue => request.queue_ns(),
            Self::FirstToken => request.ttft_ns(),
            Self::Gap => request.worst_gap(),
            Self::Duration => Some(request.latency_ns()),
            // Told of servers, or by somebody.
            Self::Stall | Self::Signal | Self::Asked => None,
        }
    }
}

/// What makes a recording: any of these that takes longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct When(Vec<(Reason, Duration)>);

/// Why that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    /// A term has no `>`.
    #[error("{0:?} is no condition: it should be such as ttft>2s or gap>500ms or duration>60s")]
    Term(String),
    /// There is no such measure.
    #[error("{0:?} is not measured: queue, ttft, gap and duration of a request are, and stall of a server")]
    Measure(String),
    /// The limit is no time.
    #[error("{0:?} is no time such as 500ms, 1.5s or 2m")]
    Time(String),
}

/// `5m`: what the alert `LlmStalled` looks back.
impl Default for When {
    fn default() -> Self {
        Self(vec![(Reason::Stall, Duration::from_secs(300))])
    }
}

impl FromStr for When {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<Self, WhenError> {
        let terms: Vec<_> = text.split(" or ").map(term).collect::<Result<_, _>>()?;
        Ok(Self(terms))
    }
}

fn term(text: &str) -> Result<(Reason, Duration), WhenError> {
    let (name, limit) = text.split_once('>').ok_or_else(|| WhenError::Term(text.trim().to_owned()))?;
    let (name, limit) = (name.trim(), limit.trim());
    let measure = Reason::MEASURED.into_iter().find(|measure| measure.name() == name);
    let measure = measure.ok_or_else(|| WhenError::Measure(name.to_owned()))?;
    let limit = duration(limit).ok_or_else(|| WhenError::Time(limit.to_owned()))?;
    Ok((measure, limit))
}

impl When {
    /// What a request took too long for, if anything.
    pub fn breach(&self, request: &Finished) -> Option<Reason> {
        let over = |(measure, limit): &&(Reason, Duration)| {
            measure.of(request).is_some_and(|ns| u128::from(ns) > limit.as_nanos())
        };
        self.0.iter().find(over).map(|(measure, _)| *measure)
    }

    /// How long a server may have requests and compute nothing, if that is looked for.
    pub fn stall(&self) -> Option<Duration> {
        self.0.iter().filter(|(measure, _)| *measure == Reason::Stall).map(|(_, limit)| *limit).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::staged::{MS, chat_events, finished, key};

    #[test]
    fn any_of_the_terms_is_a_breach() {
        // First token after 32 ms, gaps of 8 ms, answered after 60 ms.
        let request = finished(key(1_000), &chat_events(key(1_000)));
        assert_eq!((request.ttft_ns(), request.worst_gap()), (Some(32 * MS), Some(8 * MS)));
        for (text, breach) in [
            ("ttft>31ms", Some("ttft")),
            ("ttft>32ms", None),
            ("gap>0.5s or duration>0.059s", Some("duration")),
            ("ttft>2s or gap>500ms or duration>60s", None),
            ("gap > 7ms", Some("gap")),
            ("stall>1ms", None),
            ("queue>0ms", Some("queue")),
        ] {
            assert_eq!(text.parse::<When>().unwrap().breach(&request).map(Reason::name), breach, "{text}");
        }
    }

    #[test]
    fn stalls_are_looked_for_where_they_are_asked_for() {
        assert_eq!(When::default().stall(), Some(Duration::from_secs(300)));
        assert_eq!("gap>1s".parse::<When>().unwrap().stall(), None);
        assert_eq!("gap>1s or stall>1.5m".parse::<When>().unwrap().stall(), Some(Duration::from_secs(90)));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            ("", "no condition"),
            ("ttft", "\"ttft\" is no condition"),
            ("ttft>2s and gap>1s", "2s and gap>1s"),
            ("colour>1s", "\"colour\" is not measured"),
            ("gap>500", "\"500\" is no time"),
            ("gap>-1s", "\"-1s\" is no time"),
            ("gap>infs", "\"infs\" is no time"),
        ] {
            let message = text.parse::<When>().unwrap_err().to_string();
            assert!(message.contains(named), "{text}: {message}");
        }
    }
}
