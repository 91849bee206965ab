//! What is looked at, and how: the server and the request that are chosen, order, filter. Pure.

use std::{cmp::Ordering, time::Duration};

use llamaprobe_api::{Document, Request, Server};

use super::{history::History, query::Query};

/// By what requests are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// Those under way first, the oldest of them on top; then the last that ended.
    #[default]
    Age,
    /// The longest first.
    Latency,
    /// The one with the longest gap between two tokens first.
    Gap,
    /// The one with most tokens first.
    Tokens,
    /// By user.
    User,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Age, Self::Latency, Self::Gap, Self::Tokens, Self::User];
    /// Their names, in the same order.
    pub const NAMES: [&'static str; 5] = ["age", "latency", "gap", "tokens", "user"];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.name() == name)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The one after it.
    pub const fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    fn compare(self, one: &Request, other: &Request) -> Ordering {
        let tokens = |request: &Request| {
            let tokens = &request.tokens;
            tokens.prompt + tokens.cached + tokens.generated
        };
        match self {
            // As the agent has them.
            Self::Age => Ordering::Equal,
            Self::Latency => other.duration_ms.total_cmp(&one.duration_ms),
            Self::Gap => other.worst_gap_ms.unwrap_or(0.0).total_cmp(&one.worst_gap_ms.unwrap_or(0.0)),
            Self::Tokens => tokens(other).cmp(&tokens(one)),
            Self::User => one.user.cmp(&other.user),
        }
    }
}

/// What lies over the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// Nothing.
    #[default]
    None,
    /// The request that is chosen, in detail.
    Request,
    /// The keys.
    Help,
    /// A filter is typed; this is there so far.
    Filter(String),
}

/// The state of the screen.
#[derive(Debug)]
pub struct View {
    /// The agent that is asked, as it is called.
    pub agent: String,
    /// How often it is asked.
    pub every: Duration,
    /// Its documents.
    pub history: History,
    /// Why there is no newer one.
    pub error: Option<String>,
    /// What is said below until the next key.
    pub message: Option<String>,
    /// Which requests are shown.
    pub query: Query,
    /// The filter as it was typed.
    pub typed: String,
    /// How they are sorted.
    pub sort: Sort,
    /// The other way round.
    pub reverse: bool,
    /// The number of the server that is chosen.
    pub server: usize,
    /// The id of the request that is chosen; the first one if it is not there.
    pub request: Option<String>,
    /// What lies over them.
    pub layer: Layer,
}

impl View {
    /// Nothing is known yet.
    pub fn new(agent: String, every: Duration) -> Self {
        Self {
            agent,
            every,
            history: History::default(),
            error: None,
            message: None,
            query: Query::default(),
            typed: String::new(),
            sort: Sort::default(),
            reverse: false,
            server: 0,
            request: None,
            layer: Layer::None,
        }
    }

    /// The agent has answered, or not.
    pub fn take(&mut self, answer: Result<Document, String>) {
        match answer {
            Ok(document) => {
                self.history.push(document);
                self.error = None;
            }
            Err(error) => self.error = Some(error),
        }
    }

    /// The server that is chosen; the last one where there are fewer by now.
    pub fn server(&self) -> Option<&Server> {
        let servers = &self.history.shown()?.servers;
        servers.get(self.server.min(servers.len().checked_sub(1)?))
    }

    /// Its requests that are shown, in order.
    pub fn requests(&self) -> Vec<&Request> {
        let Some(server) = self.server() else { return Vec::new() };
        let mut requests: Vec<&Request> = server.latest.iter().filter(|it| self.query.takes(it)).collect();
        requests.sort_by(|one, other| self.sort.compare(one, other));
        if self.reverse {
            requests.reverse();
        }
        requests
    }

    /// The place of the request that is chosen among them.
    pub fn chosen(&self, requests: &[&Request]) -> usize {
        let is_chosen = |it: &&Request| Some(&it.id) == self.request.as_ref();
        requests.iter().position(is_chosen).unwrap_or(0)
    }

    /// Chooses the request that stands so many places below, or above by a negative number.
    pub fn step(&mut self, by: isize) {
        let requests = self.requests();
        let Some(last) = requests.len().checked_sub(1) else { return };
        let at = self.chosen(&requests).saturating_add_signed(by).min(last);
        self.request = Some(requests[at].id.clone());
    }

    /// Chooses the server after, or before by a negative number.
    pub fn step_server(&mut self, by: isize) {
        let count = self.history.shown().map_or(0, |document| document.servers.len());
        if count > 0 {
            let at = self.server.min(count - 1) as isize + by;
            self.server = at.rem_euclid(count as isize) as usize;
            self.request = None;
        }
    }
}
