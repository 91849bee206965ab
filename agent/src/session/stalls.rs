//! What held decode steps back: stalls of single threads in, time lost by cause out.
//!
//! A step needs all threads that compute it: a moment in which one of them is off its processor is lost, however busy the
//! others are, since they wait for it at the next barrier. So a moment is charged once, to the first of the causes that
//! hold at it in the order of [`Cause`], and what is charged for a step is never more than the step took.

#[cfg(test)]
mod tests;

use llamaprobe_common::stall::{Cause, StallEvent};

/// Stalls of one step that are kept until they are charged; a step with more is charged bit by bit.
const MOST_OPEN: usize = 8192;

/// Steps of a request whose losses are kept one by one: the longest gap between two tokens is among those that lost most.
const WORST: usize = 8;

/// Time that was lost, by cause, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    ns: [u64; Cause::COUNT],
}

impl Lost {
    /// Only to one cause.
    #[cfg(test)]
    pub fn staged(cause: Cause, ns: u64) -> Self {
        let mut lost = Self::default();
        lost.ns[cause as usize] = ns;
        lost
    }

    /// To one cause.
    pub const fn to(&self, cause: Cause) -> u64 {
        self.ns[cause as usize]
    }

    /// To all of them.
    pub fn total(&self) -> u64 {
        self.ns.iter().sum()
    }

    /// The causes to which time was lost, each with that time.
    pub fn causes(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL.into_iter().map(|cause| (cause, self.to(cause))).filter(|(_, ns)| *ns > 0)
    }

    /// The cause that most was lost to.
    fn worst(&self) -> Option<Cause> {
        self.causes().max_by_key(|(_, ns)| *ns).map(|(cause, _)| cause)
    }

    /// Adds what was lost beside.
    pub fn add(&mut self, other: &Self) {
        self.ns.iter_mut().zip(other.ns).for_each(|(mine, more)| *mine += more);
    }
}

/// A stretch of time.
type Span = (u64, u64);

/// The stalls of the step of a process that was stalled last.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    step_ns: u64,
    /// What is not charged yet.
    open: Vec<(Span, Cause)>,
    /// What of the step is charged, in order, no two of them in touch.
    charged: Vec<Span>,
}

/// What was lost in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLoss {
    /// When its decode call was entered.
    pub step_ns: u64,
    /// How much.
    pub lost: Lost,
}

impl Stalls {
    /// A thread was stalled. Returns what was lost in the step before, if this is of another.
    pub(super) fn add(&mut self, event: &StallEvent) -> Option<StepLoss> {
        let other = event.step_ns != self.step_ns || self.open.len() >= MOST_OPEN;
        let done = if other { self.charge() } else { None };
        if event.step_ns != self.step_ns {
            self.step_ns = event.step_ns;
            self.charged.clear();
        }
        // A number that is none comes from another build.
        let cause = Cause::from_wire(event.cause).unwrap_or(Cause::Unexplained);
        self.open.push(((event.from_ns, event.ready_ns), cause));
        self.open.push(((event.ready_ns, event.to_ns), Cause::Runnable));
        done
    }

    /// Charges what is known of the step.
    pub(super) fn charge(&mut self) -> Option<StepLoss> {
        let open = std::mem::take(&mut self.open);
        let mut lost = Lost::default();
        for cause in Cause::ALL {
            let own = open.iter().filter(|(span, of)| *of == cause && span.0 < span.1).map(|(span, _)| *span);
            let before = length(&self.charged);
            self.charged = union(self.charged.iter().copied().chain(own).collect());
            lost.ns[cause as usize] = length(&self.charged) - before;
        }
        (lost.total() > 0).then_some(StepLoss { step_ns: self.step_ns, lost })
    }
}

/// The same time as stretches in order, no two of them in touch.
fn union(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut joined: Vec<Span> = Vec::with_capacity(spans.len());
    for (from, to) in spans {
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    joined
}

fn length(spans: &[Span]) -> u64 {
    spans.iter().map(|(from, to)| to - from).sum()
}

/// What a request lost while it had a slot: every request that has one takes part in the steps, and waits for them.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    all: Lost,
    /// The steps in which most was lost.
    worst: Vec<StepLoss>,
}

impl Losses {
    /// A step that it waited for lost time.
    pub fn add(&mut self, step: &StepLoss) {
        self.all.add(&step.lost);
        self.worst.push(*step);
        if self.worst.len() > WORST {
            self.worst.sort_unstable_by_key(|step| std::cmp::Reverse(step.lost.total()));
            self.worst.truncate(WORST);
        }
    }

    /// All of it.
    pub fn all(&self) -> &Lost {
        &self.all
    }

    /// What made the longest gap between two of its tokens so long, if most of that gap was lost: a gap holds one step.
    pub(super) fn cause_of_gap(&self, first_token_ns: u64, gap_ns: u64) -> Option<Cause> {
        let between = self.worst.iter().filter(|step| first_token_ns != 0 && step.step_ns >= first_token_ns);
        let most = between.max_by_key(|step| step.lost.total())?;
        if most.lost.total() > gap_ns / 2 { most.lost.worst() } else { None }
    }
}
