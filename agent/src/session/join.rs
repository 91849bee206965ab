//! Which request ran on which slot, where the server's functions that would say so are not visible. Pure.
//!
//! In: runs of slots, and requests as far as their sockets tell. Out: verdicts. Three kinds of evidence exclude a pair:
//! time (a run begins after its request was read, its tokens are ready before they are written, and it ends about when
//! the answer does), the figures of the answer (tokens of `timings` or `usage`, `id_slot`), and that a run has one
//! request. What is then left to a run, or to a request that must have run, is its own. Between several that are left
//! the nearest in time is taken if no other is nearly as near; otherwise the request is ambiguous and joined to none.

#[cfg(test)]
mod tests;

use llamaprobe_common::request::RequestKey;

use super::{
    payload::answer::Closing,
    request::Join,
    runs::{Run, Runs},
};

/// How far the end of an answer and that of its slot may be apart, nanoseconds: two threads of the server write the one
/// and leave the other, on a machine that may be busy.
const SLACK_NS: u64 = 500_000_000;
/// How long a slot may run on after its client went: until the running step is over.
const STEP_NS: u64 = 10_000_000_000;
/// Two distances differ if one is more than twice the other and this, nanoseconds.
const NEAR_NS: u64 = 300_000;

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
pub struct Asker {
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

/// What became of a request.
#[derive(Debug)]
pub struct Verdict {
    /// The request.
    pub key: RequestKey,
    /// How it was joined.
    pub join: Join,
    /// To what.
    pub run: Option<Run>,
}

/// The runs of a process and who may own them.
#[derive(Debug, Default)]
pub struct Joins {
    /// Runs whose request is not known yet.
    pub runs: Runs,
    /// Requests that are told already, as ambiguous, but own runs that others must not get.
    ghosts: Vec<Asker>,
    unmatched: usize,
}

impl Joins {
    /// Joins what can be joined at `now_ns`. `askers` are all requests of the process that are not joined.
    pub fn settle(&mut self, mut askers: Vec<Asker>, now_ns: u64) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        loop {
            let (asker, join, run) = match self.decide(&askers, now_ns) {
                Some(decision) => decision,
                None => match self.give_up(&askers, now_ns) {
                    Some(asker) => (asker, Join::Ambiguous, None),
                    None => break,
                },
            };
            let asker = askers.remove(asker);
            verdicts.push(Verdict { key: asker.key, join, run: run.map(|run| self.runs.remove(run)) });
            if join == Join::Ambiguous {
                self.ghosts.push(asker);
            }
        }
        self.sweep(&askers, now_ns);
        verdicts
    }

    /// Runs since the last call that no request can have asked for.
    pub fn take_unmatched(&mut self) -> usize {
        std::mem::take(&mut self.unmatched) + self.runs.take_given_up()
    }

    /// A pair that is certain, or a request that ran on nothing.
    fn decide(&self, askers: &[Asker], now_ns: u64) -> Option<(usize, Join, Option<usize>)> {
        let fits = |asker: &Asker, run: &Run| fits(asker, run, now_ns);
        for (at, run) in self.ended() {
            let mut owners = askers.iter().enumerate().filter(|(_, asker)| fits(asker, run));
            let (Some((owner, asker)), None) = (owners.next(), owners.next()) else { continue };
            let only = |other: &Run| askers.iter().filter(|asker| fits(asker, other)).count() == 1;
            let rival = self.ended().any(|(other, run)| other != at && fits(asker, run) && only(run));
            let ghost = self.ghosts.iter().any(|ghost| fits(ghost, run));
            if asker.ending != Ending::Open && !asker.is_unsure() && !rival && !ghost {
                return Some((owner, label(asker, run, askers), Some(at)));
            }
        }
        for (at, asker) in askers.iter().enumerate().filter(|(_, asker)| self.is_ripe(asker, now_ns)) {
            let own: Vec<_> = self.ended().filter(|(_, run)| fits(asker, run)).collect();
            let join = |(at_run, run): (usize, &Run)| Some((at, label(asker, run, askers), Some(at_run)));
            match own[..] {
                [] => return Some((at, if asker.ran { Join::Unmatched } else { Join::None }, None)),
                _ if asker.is_unsure() => return Some((at, Join::Ambiguous, None)),
                [(run, own)] if asker.ran => {
                    let needs = |other: &Asker| {
                        other.ran
                            && fits(other, own)
                            && !self.ended().any(|(it, r)| it != run && fits(other, r))
                    };
                    if !askers.iter().any(|other| other.key != asker.key && needs(other)) {
                        return join((run, own));
                    }
                }
                _ => {}
            }
            if let Some(nearest) = self.nearest(asker, &own, askers, now_ns) {
                return join(nearest);
            }
        }
        None
    }

    /// The run that is nearest to a request and to which the request is nearest, both by far.
    fn nearest<'a>(
        &self,
        asker: &Asker,
        own: &[(usize, &'a Run)],
        askers: &[Asker],
        now_ns: u64,
    ) -> Option<(usize, &'a Run)> {
        let &(at, run) = own.iter().min_by_key(|(_, run)| distance(asker, run))?;
        let near = distance(asker, run);
        let by_far = |other: u64| other > near.saturating_mul(2) + NEAR_NS;
        let others = own.iter().filter(|(other, _)| *other != at).map(|(_, run)| distance(asker, run));
        let rivals =
            askers.iter().chain(&self.ghosts).filter(|it| it.key != asker.key && fits(it, run, now_ns));
        let closed = |rival: &Asker| rival.ending != Ending::Open && by_far(distance(rival, run));
        (asker.ran && others.into_iter().all(by_far) && rivals.into_iter().all(closed)).then_some((at, run))
    }

    /// The oldest request that is not told apart from others by now and will not be later.
    fn give_up(&self, askers: &[Asker], now_ns: u64) -> Option<usize> {
        let open = |run: &Run| {
            let mut owners = askers.iter().filter(|asker| fits(asker, run, now_ns));
            owners.any(|asker| !self.is_ripe(asker, now_ns))
        };
        let hopeless = |asker: &Asker| {
            self.is_ripe(asker, now_ns)
                && (asker.ended_ns().saturating_add(STEP_NS) < now_ns
                    || !self.ended().any(|(_, run)| fits(asker, run, now_ns) && open(run)))
        };
        let stuck = askers.iter().enumerate().filter(|(_, asker)| hopeless(asker));
        stuck.min_by_key(|(_, asker)| asker.read_ns).map(|(at, _)| at)
    }

    /// Drops runs that can have no owner any more, and those whose owner was ambiguous.
    fn sweep(&mut self, askers: &[Asker], now_ns: u64) {
        for at in (0..self.runs.all().len()).rev() {
            let run = &self.runs.all()[at];
            if !run.is_ended() || askers.iter().any(|asker| fits(asker, run, now_ns)) {
                continue;
            }
            if !self.ghosts.iter().any(|ghost| fits(ghost, run, now_ns)) {
                self.unmatched += 1;
            }
            self.runs.remove(at);
        }
        self.ghosts.retain(|ghost| ghost.ended_ns().saturating_add(2 * STEP_NS) > now_ns);
    }

    fn ended(&self) -> impl Iterator<Item = (usize, &Run)> {
        self.runs.all().iter().enumerate().filter(|(_, run)| run.is_ended())
    }

    /// Whether every run that can be a request's has ended.
    fn is_ripe(&self, asker: &Asker, now_ns: u64) -> bool {
        let (until, limit) = match asker.ending {
            Ending::Open => return false,
            Ending::Answered(at) => (at, SLACK_NS),
            Ending::Gone(at) => (at, STEP_NS),
        };
        let may_be = |run: &Run| !run.is_ended() && (asker.read_ns..=until).contains(&run.started_ns);
        now_ns > until.saturating_add(limit) || !self.runs.all().iter().any(may_be)
    }
}

impl Asker {
    fn ended_ns(&self) -> u64 {
        match self.ending {
            Ending::Open => u64::MAX,
            Ending::Answered(at) | Ending::Gone(at) => at,
        }
    }

    /// Whether a run that fits may be only a part of what was done for it.
    fn is_unsure(&self) -> bool {
        self.several
    }
}

/// Whether a request can have asked for a run that has ended.
fn fits(asker: &Asker, run: &Run, now_ns: u64) -> bool {
    let agrees = || agrees(&asker.says, run);
    let ended_ns = run.ended_ns();
    in_time(asker, run)
        && match asker.ending {
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
fn in_time(asker: &Asker, run: &Run) -> bool {
    let token_ns = run.first_token_ns();
    asker.read_ns <= run.begun_ns() && (asker.token_ns == 0 || (token_ns != 0 && token_ns <= asker.token_ns))
}

/// Whether a run did what an answer says. Answers with several choices speak of one of them.
fn agrees(says: &Closing, run: &Run) -> bool {
    let Some(first) = run.first() else { return false };
    let same = |said: Option<u64>, own: u32| said.is_none_or(|said| said == u64::from(own));
    let generated =
        |said: Option<u64>| said.is_none() || run.slots.iter().any(|slot| same(said, slot.generated_tokens));
    same(says.prompt_n, first.prompt_tokens)
        && same(says.cache_n.or(says.usage_cached), first.cached_tokens)
        && same(says.usage_prompt.or(says.evaluated), first.prompt_tokens + first.cached_tokens)
        && generated(says.predicted_n.or(says.usage_completion))
        && says.slot.is_none_or(|slot| run.slots.iter().any(|own| u64::try_from(own.slot) == Ok(slot)))
}

/// How far apart a request and a run that fits are in time, nanoseconds: by the times of the answer where it has some,
/// else by the first token written, else by the end.
fn distance(asker: &Asker, run: &Run) -> u64 {
    let (first, last) = (run.first_token_ns(), run.last_token_ns());
    let ns = |ms: f64| (ms * 1e6) as u64;
    match (asker.says.prompt_ms, asker.says.predicted_ms, asker.ending) {
        (Some(prompt_ms), Some(predicted_ms), _) if first != 0 => {
            let prefill = first.saturating_sub(run.begun_ns()).abs_diff(ns(prompt_ms));
            prefill.saturating_add((last - first).abs_diff(ns(predicted_ms)))
        }
        _ if asker.token_ns != 0 => asker.token_ns.abs_diff(first),
        (.., Ending::Answered(at)) if last != 0 => at.abs_diff(last),
        (.., Ending::Answered(at) | Ending::Gone(at)) => at.abs_diff(run.ended_ns()),
        (.., Ending::Open) => u64::MAX,
    }
}

/// By order if the request is the oldest that waited, else by what the answers say.
fn label(asker: &Asker, run: &Run, askers: &[Asker]) -> Join {
    let older = |other: &&Asker| other.read_ns < asker.read_ns && in_time(other, run);
    if askers.iter().any(|other| older(&other)) { Join::Timings } else { Join::Order }
}
