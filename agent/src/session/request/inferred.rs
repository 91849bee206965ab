//! The part of a request that is joined to its slots by inference.

use llamaprobe_common::request::{RequestEventKind, SlotStartEvent};

use super::{Finished, Join, Outcome, Request, Task};
use crate::session::{
    join::{Candidate, Ending},
    payload::answer::Closing,
    runs::Run,
};

impl Finished {
    /// With the tokens that its answer says, and the first at the time when it was written into a stream.
    pub(super) fn with_said(self, says: &Closing, token_ns: u64) -> Self {
        let cached_tokens = says.cache_n.or(says.usage_cached).unwrap_or(0);
        let whole = says.usage_prompt.map(|whole| whole.saturating_sub(cached_tokens));
        Self {
            join: Join::Answer,
            cached_tokens,
            prompt_tokens: says.prompt_n.or(whole).unwrap_or(0),
            prompt_unknown: says.prompt_n.or(whole).is_none(),
            generated_tokens: says.predicted_n.or(says.usage_completion).unwrap_or(0),
            first_token_ns: token_ns,
            ..self
        }
    }
}

impl Request {
    /// Its slots are to be inferred: it is over only when that was tried.
    pub fn infer(&mut self) {
        self.inferred = true;
    }

    /// Nothing is seen of slots: its answer is all there is.
    pub fn believe(&mut self) {
        self.believed = true;
    }

    /// Whether it waits for what its slots did to be inferred. What the server refused ran on none.
    pub(super) fn is_unjoined(&self) -> bool {
        let refused = self.code() >= 400;
        self.inferred && self.joined.is_none() && self.is_inference() && !refused
    }

    /// What is known of it for the join to slots; `None` when there is nothing to join.
    pub fn candidate(&self) -> Option<Candidate> {
        if !self.is_unjoined() {
            return None;
        }
        let stream = self.answer.status.as_ref().is_some_and(|status| status.chunked || status.stream);
        let outcome = Some(self.code()).filter(|code| *code != 0).map(|code| self.outcome(code, stream));
        let (ending, ran) = match &self.end {
            None => (Ending::Open, false),
            Some(end) => match outcome {
                Some(Outcome::Cancelled) | None => (Ending::Gone(end.closed_ns), self.answer.token_ns != 0),
                Some(Outcome::Error) => (Ending::Answered(end.answered_ns), false),
                Some(_) => (Ending::Answered(end.answered_ns), true),
            },
        };
        Some(Candidate {
            key: self.key,
            read_ns: self.read_ns,
            token_ns: self.answer.token_ns,
            ending,
            ran,
            several: self.body.several,
            says: self.closing().clone(),
        })
    }

    /// It was joined, perhaps to nothing.
    pub fn join(&mut self, join: Join, run: Option<&Run>) {
        self.joined = Some(join);
        for slot in run.iter().flat_map(|run| &run.slots) {
            let started = SlotStartEvent {
                kind: RequestEventKind::SlotStart as u32,
                task: slot.task,
                request: self.key,
                at_ns: slot.launched_ns,
                slot: slot.slot,
                origin: -1,
            };
            self.tasks.push(Task { started: Some(started), ended: Some(*slot), ..Task::new(slot.task) });
        }
    }
}
