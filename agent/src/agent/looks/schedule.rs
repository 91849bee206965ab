//! Which process is looked at when: one entry a process, however often it is told of. Pure: times come as arguments.
//!
//! What looks cost is charged to the users whose processes they are for: of those that wait, the one of the user who cost
//! least goes first, and beyond a share of a core a rank waits. A process that is told of again and again waits longer
//! each time, and the longer the dearer a look at it is.
//!
//! No two look at one process at a time: what the first of them saw could come last, and is older.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use llamaprobe_common::numbered;

/// Further looks that may wait for one process.
const MOST_TIMES: usize = 8;
/// The longest wait of a process that is told of again and again.
const LONGEST: Duration = Duration::from_secs(8);
/// After so long without a look nothing is remembered of a process, and of what a user cost.
const FORGET: Duration = Duration::from_secs(60);
/// A process is looked at for one part in so many of its time.
const SHARE: u32 = 100;
/// Looks in a row without a wait: a program that starts maps its files within a few of them.
const FREE: u32 = 6;
/// How long a process is left alone at first when a look at it did not end.
const HOLD: Duration = Duration::from_secs(30);
/// The wait after these, doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(20);

numbered! {
    /// Who is looked at first.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) enum Rank {
        /// It is observed, is called like a server, or runs a probed function.
        Likely,
        /// It started, or mapped a file.
        Any,
        /// Nothing was told of it: it is looked at to be sure.
        Routine,
    }
}

impl Rank {
    /// The share of a core that looks of a rank may take in the long run, in hundredths, and in a burst.
    const fn budget(self) -> (u32, Duration) {
        match self {
            Self::Likely => (10, Duration::from_secs(4)),
            Self::Any => (6, Duration::from_secs(1)),
            Self::Routine => (3, Duration::from_secs(2)),
        }
    }
}

/// Time that was spent, and is forgiven at a rate.
#[derive(Clone, Copy, Debug)]
struct Debt {
    spent: Duration,
    since: Instant,
}

impl Debt {
    fn at(&self, now: Instant, hundredths: u32) -> Duration {
        self.spent.saturating_sub(now.saturating_duration_since(self.since) * hundredths / 100)
    }

    fn add(&mut self, now: Instant, hundredths: u32, cost: Duration) {
        *self = Self { spent: self.at(now, hundredths) + cost, since: now };
    }
}

/// The share of a core at which it is forgotten what a user cost, in hundredths.
const FORGIVEN: u32 = 2;

/// What is known of one process.
#[derive(Debug)]
struct Entry {
    rank: Rank,
    owner: u32,
    /// When to look; sorted.
    times: Vec<Instant>,
    /// Somebody looks at it: it is not in a queue.
    looking: bool,
    /// Something was told of it meanwhile.
    told: bool,
    /// When it was looked at last, and what that took.
    looked: Option<(Instant, Duration)>,
    /// Looks in a row that were asked for by what it did.
    streak: u32,
    /// Until when it is left alone, and how often that was so.
    held: Option<(Instant, u32)>,
}

impl Entry {
    /// Before when it is not worth another look.
    fn earliest(&self) -> Option<Instant> {
        let looked = self.looked.filter(|_| self.streak > FREE).map(|(when, cost)| {
            let wait = FIRST_WAIT * 2_u32.pow((self.streak - FREE).min(9));
            when + wait.min(LONGEST).max(cost * SHARE)
        });
        looked.max(self.held.map(|(until, _)| until))
    }
}

/// A process whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) pid: u32,
    pub(crate) rank: Rank,
    /// Since when it waits.
    pub(crate) since: Instant,
}

/// The processes to look at.
#[derive(Debug)]
pub(crate) struct Schedule {
    entries: HashMap<u32, Entry>,
    /// The first time of each process, by rank and owner.
    queues: [BTreeMap<u32, BTreeSet<(Instant, u32)>>; 3],
    owners: HashMap<u32, Debt>,
    spent: [Debt; 3],
    tidied: Instant,
}

impl Schedule {
    /// Nothing is to be looked at.
    pub(crate) fn new(now: Instant) -> Self {
        let none = Debt { spent: Duration::ZERO, since: now };
        let (entries, owners, queues) = Default::default();
        Self { entries, queues, owners, spent: [none; 3], tidied: now }
    }

    /// Looks at a process of a user at these times.
    pub(crate) fn add(&mut self, pid: u32, owner: u32, rank: Rank, times: &[Instant]) {
        self.unqueue(pid);
        let entry = self.entries.entry(pid).or_insert(Entry {
            rank,
            owner,
            times: Vec::new(),
            looking: false,
            told: false,
            looked: None,
            streak: 0,
            held: None,
        });
        // What has a look waiting keeps the better rank.
        entry.rank = if entry.times.is_empty() { rank } else { rank.min(entry.rank) };
        entry.owner = owner;
        entry.told = entry.looking;
        let earliest = entry.earliest();
        for time in times {
            let time = earliest.map_or(*time, |earliest| earliest.max(*time));
            if !entry.times.contains(&time) && entry.times.len() < MOST_TIMES {
                entry.times.push(time);
            }
        }
        entry.times.sort_unstable();
        self.queue(pid);
    }

    /// The next process to look at, if it is one's time and within what looks may cost. It comes to no other turn before this one
    /// is [`done`](Self::done), put off ([`again`](Self::again)) or [held](Self::hold).
    pub(crate) fn take(&mut self, now: Instant) -> Option<Turn> {
        let turn = Rank::ALL.into_iter().find_map(|rank| self.first(rank, now))?;
        self.unqueue(turn.pid);
        let entry = self.entries.get_mut(&turn.pid)?;
        // One look does for all that are due.
        entry.times.retain(|time| *time > now);
        (entry.looking, entry.told) = (true, false);
        Some(turn)
    }

    fn first(&self, rank: Rank, now: Instant) -> Option<Turn> {
        let (share, burst) = rank.budget();
        if self.spent[rank as usize].at(now, share) > burst {
            return None;
        }
        let cost = |owner| self.owners.get(owner).map_or(Duration::ZERO, |debt| debt.at(now, FORGIVEN));
        let due = self.queues[rank as usize].iter().filter_map(|(owner, queue)| {
            let (when, pid) = queue.first().filter(|(when, _)| *when <= now)?;
            Some((cost(owner), *when, *pid))
        });
        due.min().map(|(_, since, pid)| Turn { pid, rank, since })
    }

    /// When the next process is due, were there no limit to what looks may cost.
    pub(crate) fn next(&self) -> Option<Instant> {
        let queues = self.queues.iter().flat_map(BTreeMap::values);
        queues.filter_map(|queue| Some(queue.first()?.0)).min()
    }

    /// A process was looked at. What has ended is forgotten, unless something was told of it since.
    pub(crate) fn done(&mut self, turn: Turn, now: Instant, cost: Duration, alive: bool) {
        let (share, _) = turn.rank.budget();
        self.spent[turn.rank as usize].add(now, share, cost);
        let Some(entry) = self.entries.get_mut(&turn.pid) else { return };
        let owner = self.owners.entry(entry.owner).or_insert(Debt { spent: Duration::ZERO, since: now });
        owner.add(now, FORGIVEN, cost);
        entry.looked = Some((now, cost));
        entry.streak = if turn.rank == Rank::Any { entry.streak + 1 } else { entry.streak };
        entry.looking = false;
        if alive || entry.told {
            self.queue(turn.pid);
        } else {
            self.entries.remove(&turn.pid);
        }
        if now.saturating_duration_since(self.tidied) > FORGET {
            self.tidy(now);
        }
    }

    /// A look at a process came to nothing, by no fault of its own.
    pub(crate) fn again(&mut self, turn: Turn, times: &[Instant]) {
        let owner = self.entries.get_mut(&turn.pid).map_or(0, |entry| {
            entry.looking = false;
            entry.owner
        });
        self.add(turn.pid, owner, turn.rank, times);
    }

    /// A look at a process did not end: it is left alone for a while, longer each time.
    pub(crate) fn hold(&mut self, pid: u32, now: Instant) {
        self.unqueue(pid);
        if let Some(entry) = self.entries.get_mut(&pid) {
            let times = entry.held.map_or(0, |(_, times)| times + 1);
            let until = now + HOLD * 2_u32.pow(times.min(7));
            entry.held = Some((until, times));
            entry.times = vec![until];
            entry.looking = false;
        }
        self.queue(pid);
    }

    /// How many processes wait whose time has come.
    pub(crate) fn waiting(&self, now: Instant) -> usize {
        let queues = self.queues.iter().flat_map(BTreeMap::values);
        queues.map(|queue| queue.range(..=(now, u32::MAX)).count()).sum()
    }

    fn tidy(&mut self, now: Instant) {
        let old = |when: Instant| now.saturating_duration_since(when) > FORGET;
        self.entries.retain(|_, it| {
            it.looking || !it.times.is_empty() || it.looked.is_none_or(|(when, _)| !old(when))
        });
        self.owners.retain(|_, debt| !debt.at(now, FORGIVEN).is_zero());
        self.tidied = now;
    }

    fn queue(&mut self, pid: u32) {
        if let Some(entry) = self.entries.get(&pid)
            && !entry.looking
            && let Some(first) = entry.times.first()
        {
            self.queues[entry.rank as usize].entry(entry.owner).or_default().insert((*first, pid));
        }
    }

    fn unqueue(&mut self, pid: u32) {
        if let Some(entry) = self.entries.get(&pid)
            && let Some(first) = entry.times.first()
            && let Some(queue) = self.queues[entry.rank as usize].get_mut(&entry.owner)
        {
            queue.remove(&(*first, pid));
            if queue.is_empty() {
                self.queues[entry.rank as usize].remove(&entry.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const CHEAP: Duration = Duration::from_micros(100);

    fn turns(schedule: &mut Schedule, now: Instant, cost: Duration) -> Vec<u32> {
        std::iter::from_fn(|| {
            let turn = schedule.take(now)?;
            schedule.done(turn, now, cost, true);
            Some(turn.pid)
        })
        .collect()
    }

    #[test]
    fn a_process_waits_once_however_often_it_is_told_of() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        for _ in 0..1000 {
            schedule.add(7, 0, Rank::Any, &[now, now + 200 * MS]);
        }
        assert_eq!(schedule.waiting(now), 1);
        assert_eq!(turns(&mut schedule, now, CHEAP), [7]);
        assert_eq!(schedule.next(), Some(now + 200 * MS), "the later look stays");
        assert_eq!(turns(&mut schedule, now + 200 * MS, CHEAP), [7]);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn nobody_looks_at_a_process_at_which_another_looks() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.add(7, 0, Rank::Likely, &[now, now + MS, now + 2 * MS]);
        let turn = schedule.take(now).unwrap();
        let later = now + 5 * MS;
        assert_eq!((schedule.take(later), schedule.next()), (None, None));
        schedule.add(7, 0, Rank::Likely, &[later]);
        assert_eq!(schedule.take(later), None);
        // It has started another program as it was looked at.
        schedule.done(turn, later, CHEAP, false);
        let turn = schedule.take(later).unwrap();
        assert_eq!(schedule.next(), None, "one look does for all that are due");
        schedule.again(turn, &[later]);
        let turn = schedule.take(later).unwrap();
        schedule.done(turn, later, CHEAP, false);
        assert!(schedule.entries.is_empty());
    }

    #[test]
    fn who_is_likely_goes_first_and_then_who_cost_least() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.add(1, 1000, Rank::Any, &[now]);
        let turn = schedule.take(now).unwrap();
        schedule.done(turn, now, 300 * MS, true);
        for (pid, owner, rank) in [(1, 1000, Rank::Any), (2, 1000, Rank::Any), (3, 0, Rank::Any)] {
            schedule.add(pid, owner, rank, &[now]);
        }
        schedule.add(4, 1000, Rank::Likely, &[now]);
        schedule.add(5, 0, Rank::Routine, &[now]);
        assert_eq!(turns(&mut schedule, now, CHEAP), [4, 3, 1, 2, 5]);
    }

    #[test]
    fn beyond_its_share_a_rank_waits_and_others_do_not() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        (0..100).for_each(|pid| schedule.add(pid, 65534, Rank::Any, &[now]));
        assert_eq!(turns(&mut schedule, now, 300 * MS).len(), 4, "a burst of a second");
        schedule.add(500, 0, Rank::Likely, &[now]);
        assert_eq!(turns(&mut schedule, now, CHEAP), [500]);
        assert_eq!(schedule.waiting(now), 96);
        // 0.2 s over: at 6 hundredths of a core that takes 3.4 s.
        assert!(turns(&mut schedule, now + 3300 * MS, 300 * MS).is_empty());
        assert_eq!(turns(&mut schedule, now + 3400 * MS, 300 * MS).len(), 1);
    }

    #[test]
    fn one_that_is_told_of_for_ever_waits_longer_and_longer() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        let (mut now, mut looks) = (start, 0);
        while now < start + Duration::from_secs(60) {
            schedule.add(7, 65534, Rank::Any, &[now]);
            looks += turns(&mut schedule, now, CHEAP).len();
            now += MS;
        }
        assert!((15..30).contains(&looks), "{looks}");
        // A dear one takes a hundredth of the time.
        let mut schedule = Schedule::new(now);
        schedule.add(8, 1000, Rank::Any, &[now]);
        let turn = schedule.take(now).unwrap();
        (0..=FREE).for_each(|_| schedule.done(turn, now, 200 * MS, true));
        schedule.add(8, 1000, Rank::Any, &[now]);
        assert_eq!(schedule.next(), Some(now + 20_000 * MS));
    }

    #[test]
    fn one_that_hangs_is_left_alone_longer_each_time() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(now);
        let mut waits = Vec::new();
        for _ in 0..3 {
            schedule.add(7, 0, Rank::Likely, &[now]);
            while schedule.take(now).is_none() {
                now = schedule.next().unwrap();
            }
            schedule.hold(7, now);
            schedule.add(7, 0, Rank::Likely, &[now]);
            assert!(schedule.take(now).is_none(), "whatever it does meanwhile");
            waits.push(schedule.next().unwrap() - now);
        }
        assert_eq!(waits, [HOLD, 2 * HOLD, 4 * HOLD]);
    }

    #[test]
    fn what_has_ended_leaves_nothing() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        for pid in 0..10_000 {
            schedule.add(pid, pid, Rank::Any, &[now, now + 200 * MS, now + 700 * MS]);
            let turn = schedule.take(now).unwrap();
            schedule.done(turn, now, CHEAP / 100, false);
        }
        assert!(schedule.entries.is_empty() && schedule.next().is_none());
        schedule.tidy(now + 2 * FORGET);
        assert!(schedule.owners.is_empty());
    }
}
