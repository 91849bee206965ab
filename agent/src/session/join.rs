//! Which request ran on which slot, where the server's functions that would say so are not visible. Pure.
//!
//! In: runs of slots, and requests as far as their sockets tell. Out: verdicts. Three kinds of evidence exclude a pair:
//! time (a run begins after its request was read, its tokens are ready before they are written, and it ends about when
//! the answer does), the figures of the answer (tokens of `timings` or `usage`, `id_slot`), and that a run has one
//! request. What is then left to a run, or to a request that must have run, is its own. Between several that are left
//! the nearest in time is taken if no other is nearly as near, or all are alike in tokens and times; otherwise the
//! request is ambiguous and joined to none.

mod evidence;

#[cfg(test)]
mod tests;

use llamaprobe_common::request::RequestKey;

pub use self::evidence::{Candidate, Ending};
use self::evidence::{NEAR_NS, SLACK_NS, STEP_NS, distance, fits, is_alike, is_ripe};
use super::{
    finished::Join,
    runs::{Run, Runs},
};

/// Pairs that are looked at without a pause.
const MUCH: usize = 10_000;
/// Ambiguous requests that are remembered; of more the oldest is forgotten.
const MAX_LEFTOVERS: usize = 1024;
/// The pause, nanoseconds.
const PAUSE_NS: u64 = 100_000_000;

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
    leftovers: Vec<Candidate>,
    unmatched: usize,
    /// When this was last done.
    decided_ns: u64,
}

impl Joins {
    /// Joins what can be joined at `now_ns`. `candidates` are all requests of the process that are not joined.
    pub fn decide(&mut self, candidates: &[Candidate], now_ns: u64) -> Vec<Verdict> {
        // Every request is held against every run: what is much is not done at every event.
        let much = (candidates.len() + self.leftovers.len()) * self.runs.all().len() > MUCH;
        if much && now_ns < self.decided_ns.saturating_add(PAUSE_NS) {
            return Vec::new();
        }
        self.decided_ns = now_ns;
        let mut board = Board::new(self.runs.all(), candidates, &self.leftovers, now_ns);
        let mut decisions = Vec::new();
        while let Some(decision) = board.decide().or_else(|| board.give_up()) {
            board.remove(&decision);
            decisions.push(decision);
        }
        let nobodys: Vec<usize> = board.runs_without_owner().collect();
        self.unmatched += nobodys.iter().filter(|run| !board.doubtful[**run]).count();
        let verdict = |decision: &Decision| Verdict {
            key: candidates[decision.candidate].key,
            join: decision.join,
            run: decision.run.map(|run| self.runs.all()[run].clone()),
        };
        let verdicts = decisions.iter().map(verdict).collect();
        let ambiguous = decisions.iter().filter(|decision| decision.join == Join::Ambiguous);
        self.leftovers.extend(ambiguous.map(|decision| candidates[decision.candidate].clone()));
        let many = self.leftovers.len().saturating_sub(MAX_LEFTOVERS);
        self.leftovers.drain(..many);
        self.leftovers.retain(|leftover| leftover.ended_ns().saturating_add(2 * STEP_NS) > now_ns);
        self.runs.remove(decisions.iter().filter_map(|decision| decision.run).chain(nobodys).collect());
        verdicts
    }

    /// Runs since the last call that no request can have asked for.
    pub fn take_unmatched(&mut self) -> usize {
        std::mem::take(&mut self.unmatched) + self.runs.take_given_up()
    }
}

/// What becomes of a request, by number of request and run.
struct Decision {
    candidate: usize,
    join: Join,
    run: Option<usize>,
}

/// Which runs that have ended fit which requests.
struct Board<'a> {
    runs: &'a [Run],
    candidates: &'a [Candidate],
    now_ns: u64,
    /// The requests that a run fits; none for runs that have not ended or have their request.
    owners: Vec<Vec<usize>>,
    /// The runs that fit a request.
    options: Vec<Vec<usize>>,
    /// Whether every run that can be the request's has ended.
    ripe: Vec<bool>,
    /// Whether a request that was told to be ambiguous may own the run.
    doubtful: Vec<bool>,
    decided: Vec<bool>,
    joined: Vec<bool>,
}

impl<'a> Board<'a> {
    fn new(runs: &'a [Run], candidates: &'a [Candidate], leftovers: &[Candidate], now_ns: u64) -> Self {
        let mut options = vec![Vec::new(); candidates.len()];
        let mut owners = vec![Vec::new(); runs.len()];
        for (at, run) in runs.iter().enumerate().filter(|(_, run)| run.is_ended()) {
            for (candidate, _) in
                candidates.iter().enumerate().filter(|(_, candidate)| fits(candidate, run, now_ns))
            {
                options[candidate].push(at);
                owners[at].push(candidate);
            }
        }
        let is_doubtful =
            |run: &Run| run.is_ended() && leftovers.iter().any(|leftover| fits(leftover, run, now_ns));
        Self {
            owners,
            options,
            ripe: candidates.iter().map(|candidate| is_ripe(candidate, runs, now_ns)).collect(),
            doubtful: runs.iter().map(is_doubtful).collect(),
            decided: vec![false; candidates.len()],
            joined: vec![false; runs.len()],
            runs,
            candidates,
            now_ns,
        }
    }

    /// A pair that is certain, or a request that ran on nothing.
    fn decide(&self) -> Option<Decision> {
        self.only_owner()
            .or_else(|| (0..self.candidates.len()).find_map(|candidate| self.only_option(candidate)))
    }

    /// A run that fits one request alone.
    fn only_owner(&self) -> Option<Decision> {
        self.owners.iter().enumerate().find_map(|(run, owners)| {
            let &[candidate] = &owners[..] else { return None };
            let rival = |other: &usize| *other != run && self.owners[*other] == [candidate];
            let open =
                self.candidates[candidate].ending == Ending::Open || self.candidates[candidate].several;
            let certain = !open && !self.doubtful[run] && !self.options[candidate].iter().any(rival);
            certain.then(|| self.join(candidate, run))
        })
    }

    /// What is to be said of a request all of whose runs have ended.
    fn only_option(&self, at: usize) -> Option<Decision> {
        let candidate = &self.candidates[at];
        if self.decided[at] || !self.ripe[at] {
            return None;
        }
        let without_run = |join| Some(Decision { candidate: at, join, run: None });
        match self.options[at][..] {
            [] => return without_run(if candidate.ran { Join::Unmatched } else { Join::None }),
            _ if candidate.several => return without_run(Join::Ambiguous),
            [run] if candidate.ran => {
                let needs = |other: &usize| {
                    *other != at && self.candidates[*other].ran && self.options[*other] == [run]
                };
                if !self.owners[run].iter().any(needs) {
                    return Some(self.join(at, run));
                }
            }
            _ => {}
        }
        self.nearest(at).map(|run| self.join(at, run))
    }

    /// The run that is nearest to a request that must have run, and to which the request is nearest, both by far.
    /// Between runs that are alike it is no matter which request gets which.
    fn nearest(&self, at: usize) -> Option<usize> {
        let candidate = &self.candidates[at];
        let far = |other: usize, run: usize| distance(&self.candidates[other], &self.runs[run]);
        let &run = self.options[at].iter().min_by_key(|run| far(at, **run)).filter(|_| candidate.ran)?;
        let near = far(at, run);
        let by_far = |other: u64| other > near.saturating_mul(2).saturating_add(NEAR_NS);
        let alike = |other: &usize| *other != run && is_alike(&self.runs[*other], &self.runs[run]);
        let apart = |other: &usize| *other == run || alike(other) || by_far(far(at, *other));
        let clear = |rival: &usize| {
            let closed = self.candidates[*rival].ending != Ending::Open;
            *rival == at || closed && (by_far(far(*rival, run)) || self.options[*rival].iter().any(alike))
        };
        (self.options[at].iter().all(apart) && self.owners[run].iter().all(clear)).then_some(run)
    }

    /// The oldest request that is not told apart from others by now and will not be later.
    fn give_up(&self) -> Option<Decision> {
        let waits = |run: &usize| self.owners[*run].iter().any(|owner| !self.ripe[*owner]);
        let hopeless = |at: &usize| {
            let late = self.candidates[*at].ended_ns().saturating_add(2 * SLACK_NS) < self.now_ns;
            !self.decided[*at] && self.ripe[*at] && (late || !self.options[*at].iter().any(waits))
        };
        let candidate =
            (0..self.candidates.len()).filter(hopeless).min_by_key(|at| self.candidates[*at].read_ns)?;
        Some(Decision { candidate, join: Join::Ambiguous, run: None })
    }

    /// By order if no more requests are older than slots were taken before, else by what the answers say.
    fn join(&self, at: usize, run: usize) -> Decision {
        let read_ns = self.candidates[at].read_ns;
        let older = self
            .candidates
            .iter()
            .zip(&self.decided)
            .filter(|(it, decided)| !**decided && it.read_ns < read_ns);
        let started_ns = self.runs[run].started_ns;
        let before =
            self.runs.iter().zip(&self.joined).filter(|(it, joined)| !**joined && it.started_ns < started_ns);
        let join = if older.count() <= before.count() { Join::Order } else { Join::Timings };
        Decision { candidate: at, join, run: Some(run) }
    }

    fn remove(&mut self, decision: &Decision) {
        self.decided[decision.candidate] = true;
        for run in std::mem::take(&mut self.options[decision.candidate]) {
            self.owners[run].retain(|owner| *owner != decision.candidate);
            self.doubtful[run] |= decision.join == Join::Ambiguous;
        }
        if let Some(run) = decision.run {
            self.joined[run] = true;
            for owner in std::mem::take(&mut self.owners[run]) {
                self.options[owner].retain(|option| *option != run);
            }
        }
    }

    /// Runs that have ended, are nobody's, and can become nobody's any more.
    fn runs_without_owner(&self) -> impl Iterator<Item = usize> {
        let nobodys =
            |run: &usize| self.runs[*run].is_ended() && !self.joined[*run] && self.owners[*run].is_empty();
        (0..self.runs.len()).filter(nobodys)
    }
}
