//! Requests one by one, as they are shown to whoever looks: those under way, and the last that are over.

use llamaprobe_common::{request::RequestKey, sequence::Sequence};

use super::{
    finished::{Finished, Outcome},
    identity::Naming,
    parts::TokenTime,
    request::Request,
    usage::Usage,
};
use crate::engines::Route;

/// Requests of a server that are shown after their end.
pub const LAST: usize = 64;
/// Requests of a server that are shown while they are under way.
pub const MOST: usize = 256;

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
    /// The user whose prompts it waited for most, once it is over.
    pub slowed_by: Option<String>,
    /// Tokens by [`TokenType`](llamaprobe_common::target::TokenType).
    pub tokens: [u64; 3],
    /// Positions that its slots hold.
    pub context_used: u64,
}

impl ShownRequest {
    /// One that is over.
    pub(crate) fn finished(request: &Finished, usage: &Usage) -> Self {
        Self {
            key: request.key,
            user: usage.label(request.user.as_deref()).to_owned(),
            route: request.route,
            state: State::Done { outcome: request.outcome, code: request.code },
            slot: request.slot,
            arrived_ns: request.arrived_ns,
            prefill_ns: request.prefill_ns,
            first_token_ns: request.first_token_ns,
            last_token_ns: request.last_token_ns,
            until_ns: request.answered_ns.max(request.arrived_ns),
            worst_gap_ns: request.worst_gap_ns,
            token_time: request.token_time,
            slowed_by: request.slowed_by.first().map(|it| usage.label(it.user.as_deref()).to_owned()),
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
            prefill_ns: earliest(|it| it.prefill_ns),
            first_token_ns,
            last_token_ns: own.iter().map(|it| it.last_token_ns).max().unwrap_or(0),
            until_ns: now_ns.max(self.arrived_ns()),
            worst_gap_ns: own.iter().map(|it| it.worst_gap_ns).max().unwrap_or(0),
            token_time: None,
            slowed_by: None,
            tokens: used.tokens,
            context_used: own.iter().map(|it| u64::from(it.n_past)).sum(),
        }
    }
}
