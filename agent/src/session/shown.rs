//! Requests one by one, as they are shown to whoever looks: those under way, and the last that are over.

use std::ops::Range;

use llamaprobe_common::{request::RequestKey, sequence::Sequence, stall::Cause, step::StepEvent};

use super::{
    Record,
    cache::CacheMiss,
    cancels::Cancels,
    finished::Outcome,
    identity::Naming,
    parts::TokenTime,
    request::Request,
    stalls::Lost,
    steps::longest,
    usage::Usage,
    waits::{Copies, Culprit},
};
use crate::engines::Route;

/// Requests of a server that are shown after their end.
pub const LAST: usize = 64;
/// Requests of a server that are shown while they are under way.
pub const MOST: usize = 256;
/// Requests that are named of those for which one has waited.
const CULPRITS: usize = 8;

/// Tells a request from all others of its server, also later: how people name it.
pub fn request_id(key: RequestKey) -> String {
    format!("{:x}-{:x}", key.arrived_ns, key.fd)
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits for a slot.
    Queue,
    /// Its prompt is computed.
    Prefill,
    /// Its tokens are generated.
    Decode,
    /// It is over.
    Done {
        /// How it ended.
        outcome: Outcome,
        /// Status code, as in [`Finished::code`].
        code: u16,
    },
}

/// A request as it is shown. Times are `CLOCK_MONOTONIC` nanoseconds, 0 where there was no such moment so far.
#[derive(Clone, Debug)]
pub struct ShownRequest {
    /// Its identity.
    pub key: RequestKey,
    /// Under which user its tokens count.
    pub user: String,
    /// What is asked for.
    pub route: Route,
    /// How far it has come.
    pub state: State,
    /// Its slot, or that of the first of its tasks.
    pub slot: Option<i32>,
    /// When a thread of the server could have begun with it.
    pub arrived_ns: u64,
    /// Until when its server loaded its model again for it.
    pub loaded_ns: u64,
    /// When the engine turned to its prompt.
    pub prefill_ns: u64,
    /// When its first token was ready.
    pub first_token_ns: u64,
    /// When its last token so far was ready.
    pub last_token_ns: u64,
    /// When it was over, or the time that is now.
    pub until_ns: u64,
    /// The longest gap between two of its tokens.
    pub worst_gap_ns: u64,
    /// Where the time of its tokens went, once it is over and where that is told.
    pub token_time: Option<TokenTime>,
    /// The user for whom it waited most, once it is over.
    pub slowed_by: Option<String>,
    /// The requests for which it waited, who cost it most first, once it is over; their users as labels have them.
    pub waited_for: Vec<Culprit>,
    /// What caches were copied for it, nanoseconds.
    pub copies: Copies,
    /// What the steps that it waited for have lost, once it is over.
    pub lost: Lost,
    /// What made its longest gap so long, where most of it was lost to one cause.
    pub worst_gap_cause: Option<Cause>,
    /// The decode calls that took longest while it had a slot, the longest first, where each is told.
    pub longest_steps: Vec<StepEvent>,
    /// The request by whose end the server ended this one, too.
    pub cancelled_by: Option<RequestKey>,
    /// What it missed in the cache, once it is over.
    pub cache_miss: Option<CacheMiss>,
    /// The id of its trace, where that leads somewhere.
    pub trace_id: Option<[u8; 16]>,
    /// Tokens by [`TokenType`](llamaprobe_common::target::TokenType).
    pub tokens: [u64; 3],
    /// Positions that its slots hold.
    pub context_used: u64,
}

impl ShownRequest {
    /// From when until when decode calls began that it took part in; empty where it never had a slot.
    pub fn time(&self) -> Range<u64> {
        match self.state {
            _ if self.prefill_ns == 0 => 0..0,
            State::Done { .. } => self.prefill_ns..self.last_token_ns,
            _ => self.prefill_ns..self.until_ns,
        }
    }

    /// A decode call is over, which it may have taken part in.
    pub(super) fn add(&mut self, step: &StepEvent) {
        if self.time().contains(&step.start_ns) {
            self.longest_steps.push(*step);
            self.longest_steps = longest(self.longest_steps.iter());
        }
    }

    /// One that is over, its users called as `label` says.
    pub(crate) fn finished(record: &Record, label: impl Fn(Option<&str>) -> String) -> Self {
        let request = &record.request;
        let labelled =
            |culprit: &Culprit| Culprit { user: Some(label(culprit.user.as_deref())), ..culprit.clone() };
        Self {
            key: request.key,
            user: label(request.user.as_deref()),
            route: request.route,
            state: State::Done { outcome: request.outcome, code: request.code },
            slot: request.slot,
            arrived_ns: request.arrived_ns,
            loaded_ns: request.loaded_ns,
            prefill_ns: request.prefill_ns,
            first_token_ns: request.first_token_ns,
            last_token_ns: request.last_token_ns,
            until_ns: request.answered_ns.max(request.arrived_ns),
            worst_gap_ns: request.worst_gap_ns,
            token_time: request.token_time,
            slowed_by: request.slowed_by.first().map(|it| label(it.user.as_deref())),
            copies: request.copies,
            waited_for: request.slowed_by.iter().take(CULPRITS).map(labelled).collect(),
            lost: *request.losses.all(),
            worst_gap_cause: request.worst_gap_cause(),
            longest_steps: Vec::new(),
            cancelled_by: request.cancelled_by,
            cache_miss: request.cache_miss,
            trace_id: record.trace_id(),
            tokens: [request.prompt_tokens, request.cached_tokens, request.generated_tokens],
            context_used: request.context_used,
        }
    }
}

impl Request {
    /// It as it is at `now_ns`, while it is under way; `own` are its sequences as they were read last.
    pub(super) fn shown(
        &self,
        naming: &Naming,
        usage: &Usage,
        own: &[&Sequence],
        now_ns: u64,
        cancels: Option<&Cancels>,
    ) -> ShownRequest {
        let used = self.used();
        let earliest =
            |of: fn(&Sequence) -> u64| own.iter().map(|it| of(it)).filter(|ns| *ns != 0).min().unwrap_or(0);
        let first_token_ns = earliest(|it| it.first_token_ns);
        let slot = self.slot();
        let state = match slot {
            None => State::Queue,
            Some(_) if first_token_ns == 0 && used.tokens[2] == 0 => State::Prefill,
            Some(_) => State::Decode,
        };
        ShownRequest {
            key: self.key(),
            user: usage.label(self.who(naming).as_deref()).to_owned(),
            route: self.route().unwrap_or(Route::Unknown),
            state,
            slot,
            arrived_ns: self.arrived_ns(),
            loaded_ns: self.loaded_ns(),
            prefill_ns: earliest(|it| it.prefill_ns),
            first_token_ns,
            last_token_ns: own.iter().map(|it| it.last_token_ns).max().unwrap_or(0),
            until_ns: now_ns.max(self.arrived_ns()),
            worst_gap_ns: own.iter().map(|it| it.worst_gap_ns).max().unwrap_or(0),
            token_time: None,
            slowed_by: None,
            waited_for: Vec::new(),
            copies: self.copies(),
            lost: Lost::default(),
            worst_gap_cause: None,
            longest_steps: Vec::new(),
            cancelled_by: self.cancelled_by(cancels, now_ns),
            cache_miss: None,
            trace_id: None,
            tokens: used.tokens,
            context_used: own.iter().map(|it| u64::from(it.n_past)).sum(),
        }
    }
}
