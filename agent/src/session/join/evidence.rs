//! Evidence for and against a pair of request and run.

use llamaprobe_common::request::{RequestKey, SlotEndEvent};

use crate::session::{payload::answer::Closing, runs::Run};

/// How far the end of an answer and that of its slot may be apart, nanoseconds: two threads of the server write the one
/// and leave the other, on a machine that may be busy.
pub(super) const SLACK_NS: u64 = 500_000_000;
/// How long a slot may run on after its client went: until the running step is over.
pub(super) const STEP_NS: u64 = 10_000_000_000;
/// Two distances differ if one is more than twice the other and this, nanoseconds.
pub(super) const NEAR_NS: u64 = 300_000;
/// Moments that are no farther apart are one to whoever reads the times of a request, nanoseconds.
const ALIKE_NS: u64 = 1_000_000;

/// How a request ended on its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It has not.
    Open,
    /// With a whole answer, whose last byte was written then.
    Answered(u64),
    /// Its client went; the server let go then.
    Gone(u64),
}

/// A request that may have run on a slot.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its identity.
    pub key: RequestKey,
    /// When its last byte was read, as far as that was told.
    pub read_ns: u64,
    /// When the first token was written into a stream; 0 when none was.
    pub token_ns: u64,
    /// How it ended.
    pub ending: Ending,
    /// Whether it cannot have ended so without a slot.
    pub ran: bool,
    /// Whether it may have been given several slots that do not share a prompt.
    pub several: bool,
    /// What its answer says.
    pub says: Closing,
}

impl Candidate {
    /// When it ended on its socket.
    pub(super) fn ended_ns(&self) -> u64 {
        match self.ending {
            Ending::Open => u64::MAX,
            Ending::Answered(at) | Ending::Gone(at) => at,
        }
    }
}

/// Whether every run that can be a request's has ended.
pub(super) fn is_ripe(candidate: &Candidate, runs: &[Run], now_ns: u64) -> bool {
    let (until, limit) = match candidate.ending {
        Ending::Open => return false,
        Ending::Answered(at) => (at, SLACK_NS),
        Ending::Gone(at) => (at, STEP_NS),
    };
    let may_be = |run: &Run| !run.is_ended() && (candidate.read_ns..=until).contains(&run.started_ns);
    now_ns > until.saturating_add(limit) || !runs.iter().any(may_be)
}

/// Whether a request can have asked for a run that has ended.
pub(super) fn fits(candidate: &Candidate, run: &Run, now_ns: u64) -> bool {
    let agrees = || candidate.several || agrees(&candidate.says, run);
    let ended_ns = run.ended_ns();
    in_time(candidate, run)
        && match candidate.ending {
            Ending::Open => now_ns <= ended_ns.saturating_add(SLACK_NS),
            Ending::Answered(at) => {
                run.last_token_ns() <= at && at.abs_diff(ended_ns) <= SLACK_NS && agrees()
            }
            Ending::Gone(at) => {
                at <= ended_ns + SLACK_NS && ended_ns <= at.saturating_add(STEP_NS) && agrees()
            }
        }
}

/// Whether a run begins after the request was read, and its first token was ready before one was written.
fn in_time(candidate: &Candidate, run: &Run) -> bool {
    let token_ns = run.first_token_ns();
    candidate.read_ns <= run.begun_ns()
        && (candidate.token_ns == 0 || (token_ns != 0 && token_ns <= candidate.token_ns))
}

/// Whether a run did what an answer says. Answers with several choices speak of one of them.
fn agrees(says: &Closing, run: &Run) -> bool {
    let Some(first) = run.first() else { return false };
    let same = |said: Option<u64>, own: u32| said.is_none_or(|said| said == u64::from(own));
    let generated =
        |said: Option<u64>| said.is_none() || run.slots.iter().any(|slot| same(said, slot.generated_tokens));
    // What could not be read contradicts nothing.
    let unknown = first.unread > 0;
    (unknown || same(says.prompt_n, first.prompt_tokens))
        && same(says.cache_n.or(says.usage_cached), first.cached_tokens)
        && (unknown || same(says.usage_prompt.or(says.evaluated), first.prompt_tokens + first.cached_tokens))
        && generated(says.predicted_n.or(says.usage_completion))
        && says.slot.is_none_or(|slot| run.slots.iter().any(|own| u64::try_from(own.slot) == Ok(slot)))
}

/// How far apart a request and a run that fits are in time, nanoseconds: by the durations that the answer says, by the
/// first token written, and by the end.
pub(super) fn distance(candidate: &Candidate, run: &Run) -> u64 {
    let (first, last) = (run.first_token_ns(), run.last_token_ns());
    let ns = |ms: f64| (ms * 1e6) as u64;
    let mut sum = match candidate.ending {
        Ending::Answered(at) | Ending::Gone(at) => at.abs_diff(run.ended_ns()),
        Ending::Open => u64::MAX,
    };
    if candidate.token_ns != 0 {
        sum = sum.saturating_add(candidate.token_ns.abs_diff(first));
    }
    if let (Some(prompt_ms), Some(predicted_ms)) = (candidate.says.prompt_ms, candidate.says.predicted_ms) {
        let prefill = first.saturating_sub(run.begun_ns()).abs_diff(ns(prompt_ms));
        sum =
            sum.saturating_add(prefill).saturating_add(last.saturating_sub(first).abs_diff(ns(predicted_ms)));
    }
    sum
}

/// Whether two runs differ in nothing that is told of a request, times within [`ALIKE_NS`].
pub(super) fn is_alike(one: &Run, other: &Run) -> bool {
    let (Some(first), Some(second)) = (one.first(), other.first()) else { return false };
    let tokens = |slot: &SlotEndEvent| (slot.prompt_tokens, slot.cached_tokens, slot.generated_tokens);
    let times = |run: &Run| [run.begun_ns(), run.first_token_ns(), run.last_token_ns()];
    one.slots.len() == 1
        && other.slots.len() == 1
        && tokens(first) == tokens(second)
        && times(one).into_iter().zip(times(other)).all(|(one, other)| one.abs_diff(other) <= ALIKE_NS)
}
