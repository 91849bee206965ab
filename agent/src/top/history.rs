//! The last documents of an agent, of which one is shown: the newest, or an earlier one that was gone back to.

use std::{collections::VecDeque, sync::Arc};

use llamaprobe_api::{Document, Request, Server};

/// Documents that are kept: a quarter of an hour, at one a second.
const MOST: usize = 900;

/// The documents, the oldest first.
#[derive(Debug, Default)]
pub struct History {
    documents: VecDeque<Arc<Document>>,
    /// How many documents before the newest one is shown; `None` follows the newest.
    back: Option<usize>,
}

impl History {
    /// A new document is there. What is looked at stays in place. One that is known already changes nothing: the agent
    /// makes one a second.
    pub fn push(&mut self, document: Document) {
        if self.documents.back().is_some_and(|last| last.taken_at == document.taken_at) {
            return;
        }
        // An agent that was started anew counts anew.
        if self.documents.back().is_some_and(|last| last.agent.started_at != document.agent.started_at) {
            self.documents.clear();
            self.back = self.back.map(|_| 0);
        }
        if self.documents.len() >= MOST {
            self.documents.pop_front();
        }
        self.documents.push_back(Arc::new(document));
        let most = self.documents.len() - 1;
        self.back = self.back.map(|back| (back + 1).min(most));
    }

    /// Stays at the document that is shown, or follows the newest again.
    pub fn hold(&mut self, hold: bool) {
        self.back = hold.then(|| self.back.unwrap_or(0));
    }

    /// Goes back by some documents, or forth by a negative number; at the newest it follows again.
    pub fn travel(&mut self, back: isize) {
        let at =
            self.back.unwrap_or(0).saturating_add_signed(back).min(self.documents.len().saturating_sub(1));
        self.back = (at > 0 || back > 0).then_some(at);
    }

    /// Whether an earlier document is looked at, or the newest is held; how many seconds ago it was made.
    pub fn held(&self) -> Option<f64> {
        self.back?;
        Some(self.documents.back()?.taken_at - self.shown()?.taken_at)
    }

    fn at(&self) -> Option<usize> {
        self.documents.len().checked_sub(1 + self.back.unwrap_or(0))
    }

    /// The document that is shown.
    pub fn shown(&self) -> Option<&Arc<Document>> {
        self.documents.get(self.at()?)
    }

    /// The one before, for rates.
    pub fn before(&self) -> Option<&Arc<Document>> {
        self.documents.get(self.at()?.checked_sub(1)?)
    }

    /// What a figure of a server grew by in a second, in the time up to the document that is shown.
    pub fn rate(&self, server: &Server, figure: impl Fn(&Server) -> f64) -> Option<f64> {
        let earlier = same_server(self.before()?, server)?;
        let span = self.shown()?.taken_at - self.before()?.taken_at;
        (span > 0.0).then(|| (figure(server) - figure(earlier)).max(0.0) / span)
    }

    /// What a figure of a server grew by in a second over the last documents, the oldest first; no more than `most`.
    pub fn rates(&self, server: &Server, figure: impl Fn(&Server) -> f64, most: usize) -> Vec<f64> {
        self.grew(most, |document| same_server(document, server).map(&figure))
    }

    /// Tokens per second of a request over the last documents, the oldest first; no more than `most`.
    pub fn speeds(&self, server: &Server, request: &Request, most: usize) -> Vec<f64> {
        self.grew(most, |document| {
            let same = same_server(document, server)?.latest.iter().find(|it| it.id == request.id)?;
            Some(same.tokens.generated as f64)
        })
    }

    /// What a figure grew by in a second from each of the last documents that has it to the next.
    fn grew(&self, most: usize, figure: impl Fn(&Document) -> Option<f64>) -> Vec<f64> {
        let Some(at) = self.at() else { return Vec::new() };
        let range = self.documents.range(at.saturating_sub(most)..=at);
        let known: Vec<(f64, f64)> =
            range.filter_map(|document| Some((document.taken_at, figure(document)?))).collect();
        let speed = |pair: &[(f64, f64)]| {
            let span = pair[1].0 - pair[0].0;
            if span > 0.0 { (pair[1].1 - pair[0].1).max(0.0) / span } else { 0.0 }
        };
        known.windows(2).map(speed).collect()
    }
}

fn same_server<'a>(document: &'a Document, server: &Server) -> Option<&'a Server> {
    document.servers.iter().find(|it| (&it.server, &it.model) == (&server.server, &server.model))
}
