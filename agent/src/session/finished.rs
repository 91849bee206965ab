//! A request that is over: what became of it.

use std::net::IpAddr;

use llamaprobe_common::{copying::Operation, part::Part, request::RequestKey, stall::Cause};

use super::{
    cache::CacheMiss,
    charge::Charge,
    parts::TokenTime,
    payload::{body::Body, head::Head, route::Route},
    stalls::Losses,
    waits::{Copies, Culprit, Waited, told},
};

/// The code of a request whose client went before there was an answer, as proxies write it.
pub const CLIENT_GONE: u16 = 499;

/// The code of a request whose answer was written, but not seen: payload is not looked at, or the server died.
pub const UNKNOWN: u16 = 0;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The model stopped.
    Stop,
    /// The limit of tokens was reached.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// The server refused or failed.
    Error,
    /// The client went before the end.
    Cancelled,
    /// The agent ended before it did: what is told of it is what was known by then.
    Interrupted,
    /// The answer has no such reason, or it was not looked at.
    None,
    /// What would say so was lost.
    Unknown,
}

impl Outcome {
    /// The value of the `finish_reason` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

/// How a request and its slots were brought together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Join {
    /// By the task its thread waited for.
    Exact,
    /// The same, but tokens of its prompt may be missing: while it was computed a batch could not be read to its end.
    Partial,
    /// It was its turn to take the slot, and its answer does not contradict.
    Order,
    /// Older ones waited, and what the answers say tells them apart.
    Timings,
    /// To no slot, since none is seen: tokens are those that its answer says.
    Answer,
    /// Several slots may have run for it: it is joined to none.
    Ambiguous,
    /// It must have run on a slot, and none was seen that can be it; of a slot, the same of its request.
    Unmatched,
    /// What would say so was lost.
    Uncertain,
    /// It ran on no slot.
    None,
}

impl Join {
    /// Those that are counted.
    pub const COUNTED: [Self; 8] = [
        Self::Exact,
        Self::Partial,
        Self::Order,
        Self::Timings,
        Self::Answer,
        Self::Ambiguous,
        Self::Unmatched,
        Self::Uncertain,
    ];

    /// Whether it tells the tokens of a request.
    pub const fn is_joined(self) -> bool {
        matches!(self, Self::Exact | Self::Partial | Self::Order | Self::Timings | Self::Answer)
    }

    /// The value in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Partial => "partial",
            Self::Order => "order",
            Self::Timings => "timings",
            Self::Answer => "answer",
            Self::Ambiguous => "ambiguous",
            Self::Unmatched => "unmatched",
            Self::Uncertain => "uncertain",
            Self::None => "none",
        }
    }
}

/// A decode call that checked guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftStep {
    /// When its last token was ready, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// Tokens that had been guessed.
    pub drafted: u32,
    /// Those of them that were right.
    pub accepted: u32,
}

/// A request that is over. Times are `CLOCK_MONOTONIC` nanoseconds, 0 where there was no such moment.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its identity.
    pub key: RequestKey,
    /// What was asked for.
    pub route: Route,
    /// Status code; [`CLIENT_GONE`] when there was no answer, [`UNKNOWN`] when it was not seen.
    pub code: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// The answer came in chunks.
    pub stream: bool,
    /// What its head said; `None` when it was malformed or not seen.
    pub head: Option<Head>,
    /// Named fields of its body.
    pub body: Body,
    /// The type of the error, as the server names it.
    pub error_type: Option<String>,
    /// When a thread of the server could have begun with it.
    pub arrived_ns: u64,
    /// Until when its server loaded its model again, which slept when it arrived.
    pub loaded_ns: u64,
    /// When the engine turned to its prompt.
    pub prefill_ns: u64,
    /// When its first token was ready.
    pub first_token_ns: u64,
    /// When its last token was ready.
    pub last_token_ns: u64,
    /// When the server had handed over the last byte of the answer, or the client went.
    pub answered_ns: u64,
    /// The longest gap between two of its tokens.
    pub worst_gap_ns: u64,
    /// Where the time of its tokens went; `None` where that is not known, or there were none.
    pub token_time: Option<TokenTime>,
    /// What caches were saved and restored for it.
    pub copies: Copies,
    /// The requests for whose prompts and caches it waited, who cost it most first.
    pub slowed_by: Vec<Culprit>,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Not all decode calls could be read while it ran: how many prompt tokens were computed is not known.
    pub prompt_unknown: bool,
    /// Prompt tokens reused.
    pub cached_tokens: u64,
    /// The request whose client went and whose slot was not this one's, if the server ended this one by that.
    pub cancelled_by: Option<RequestKey>,
    /// What it missed in the cache, if it did.
    pub cache_miss: Option<CacheMiss>,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Slot of its first task.
    pub slot: Option<i32>,
    /// Its first task.
    pub task: Option<i32>,
    /// Positions its slots held at the end.
    pub context_used: u64,
    /// A slot that it restored from a file, or erased, and the tokens that the slot holds since.
    pub restored: Option<(i32, u64)>,
    /// How it was joined.
    pub join: Join,
    /// Tasks that left no slot: they took none, or their launch failed.
    pub stale_tasks: Vec<i32>,
    /// The client's address, over TCP.
    pub client: Option<IpAddr>,
    /// Who asked.
    pub user: Option<String>,
    /// What it used.
    pub used: Charge,
    /// What of that is not booked yet.
    pub due: Charge,
    /// Tokens generated after the client had gone.
    pub wasted_tokens: u64,
    /// Draft tokens, and those of them that were accepted.
    pub draft_tokens: [u64; 2],
    /// The decode calls that checked guesses, as far as they were told.
    pub draft_steps: Vec<DraftStep>,
    /// What the steps that it waited for have lost.
    pub losses: Losses,
    /// It came through a TLS session.
    pub tls: bool,
    /// The server says that it cut the prompt or the answer for want of context.
    pub truncated: bool,
    /// There was text in its answer, as far as that was seen.
    pub has_text: bool,
    /// Whether its answer begins with a phrase of the operator's list; `None` without such a list.
    pub refused: Option<bool>,
}

impl Finished {
    /// Whether it asked the engine for something; a preflight of the same path does not.
    pub fn is_inference(&self) -> bool {
        self.head.as_ref().is_some_and(Head::is_inference)
    }

    /// Its input, as the API's `usage` says it: what was computed and what was reused.
    pub fn input_tokens(&self) -> Option<u64> {
        (!self.prompt_unknown).then_some(self.prompt_tokens + self.cached_tokens)
    }

    /// The tokens it is told with, as a charge.
    pub fn said(&self) -> Charge {
        Charge { tokens: [self.prompt_tokens, self.cached_tokens, self.generated_tokens], engine_ns: 0 }
    }

    /// Nanoseconds between two moments, if there were both.
    fn between(from: u64, to: u64) -> Option<u64> {
        (from != 0 && to != 0).then(|| to.saturating_sub(from))
    }

    /// From arrival until its server had loaded its model again.
    pub fn load_ns(&self) -> Option<u64> {
        Self::between(self.arrived_ns, self.loaded_ns)
    }

    /// From there, or from arrival, until the engine turned to it.
    pub fn queue_ns(&self) -> Option<u64> {
        Self::between(self.arrived_ns.max(self.loaded_ns), self.prefill_ns)
    }

    /// From there to the first token.
    pub fn prefill_ns(&self) -> Option<u64> {
        Self::between(self.prefill_ns, self.first_token_ns)
    }

    /// From the first token to the last.
    pub fn decode_ns(&self) -> Option<u64> {
        Self::between(self.first_token_ns, self.last_token_ns)
    }

    /// From arrival to the first token.
    pub fn ttft_ns(&self) -> Option<u64> {
        Self::between(self.arrived_ns, self.first_token_ns)
    }

    /// From arrival to the last byte of the answer.
    pub fn latency_ns(&self) -> u64 {
        self.answered_ns.saturating_sub(self.arrived_ns)
    }

    /// The longest gap between two of its tokens, if there were two and they were told.
    pub fn worst_gap(&self) -> Option<u64> {
        let told = self.generated_tokens > 1 && self.outcome != Outcome::Interrupted;
        told.then_some(self.worst_gap_ns)
    }

    /// What most of that gap was.
    pub fn worst_part(&self) -> Option<Part> {
        self.worst_gap()?;
        Some(self.token_time.as_ref()?.worst_part)
    }

    /// The parts of the time of its tokens that are not 0, nanoseconds.
    pub fn parts(&self) -> impl Iterator<Item = (Part, u64)> {
        let times = self.token_time.iter();
        times.flat_map(|time| Part::ALL.map(|part| (part, time.get(part)))).filter(|(_, ns)| *ns > 0)
    }

    /// How long it waited for the prompts of others, nanoseconds, if it did.
    pub fn neighbour_prefill_ns(&self) -> Option<u64> {
        self.token_time.as_ref().map(|time| time.get(Part::NeighbourPrefill)).filter(|ns| *ns > 0)
    }

    /// What of it is named: how long it waited for others, and for what.
    pub fn waited(&self) -> Waited {
        let mut all = Waited::default();
        self.slowed_by.iter().for_each(|culprit| all += culprit.waited);
        all
    }

    /// What caches were copied for it, nanoseconds; what is not 0.
    pub fn copies(&self) -> impl Iterator<Item = (Operation, u64)> {
        told(self.copies)
    }

    /// What made that gap so long, where most of it was lost to one cause that is known.
    pub fn worst_gap_cause(&self) -> Option<Cause> {
        self.losses.cause_of_gap(self.first_token_ns, self.worst_gap()?)
    }

    /// Time per output token after the first.
    pub fn time_per_token_ns(&self) -> Option<u64> {
        let gaps = self.generated_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some(self.decode_ns()? / gaps)
    }
}
