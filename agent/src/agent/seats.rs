//! Who is observed when there are more processes than rows of counters: who works before who only listens, who listens
//! before who does neither, and no user at the expense of the others. Pure: times come as arguments.
//!
//! Who has no seat keeps its probes, and is told of when one of them fires: it has a claim then.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use llamaprobe_common::target::MAX_TARGETS;

/// After so long without a hit a seat is free for one that works.
const SILENT: Duration = Duration::from_secs(60);

/// What speaks for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// It maps llama.cpp.
    Idle,
    /// It listens.
    Listens,
    /// It ran a probed function.
    Works,
}

/// The row of a process, and what speaks for its keeping it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    /// The number of the row.
    pub(super) index: u32,
    owner: u32,
    listens: bool,
    /// Hits when they were read last, and when they rose.
    hits: u64,
    worked: Option<Instant>,
}

impl Seat {
    /// A row for a process of a user, from now on.
    pub(super) fn new(now: Instant, index: u32, owner: u32, claim: Claim) -> Self {
        let worked = (claim == Claim::Works).then_some(now);
        Self { index, owner, listens: claim == Claim::Listens, hits: 0, worked }
    }

    /// Notes where its process is now: it may listen by now.
    pub(super) fn note(&mut self, listens: bool) {
        self.listens = listens;
    }

    /// Notes how often its probes have fired.
    pub(super) fn hits(&mut self, now: Instant, hits: u64) {
        if self.hits != hits {
            (self.hits, self.worked) = (hits, Some(now));
        }
    }

    const fn claim(&self) -> Claim {
        match (self.worked, self.listens) {
            (Some(_), _) => Claim::Works,
            (None, true) => Claim::Listens,
            (None, false) => Claim::Idle,
        }
    }
}

/// What came of asking for a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// This row, which was free.
    Free(u32),
    /// The row of this process, which is to give it up.
    Instead(u32),
    /// None.
    None,
}

/// Asks for a seat for a process of a user that has none; `taken` are the seats of all others.
pub(super) fn ask(taken: &BTreeMap<u32, Seat>, now: Instant, owner: u32, claim: Claim) -> Asked {
    let is_taken = |index: &u32| taken.values().any(|seat| seat.index == *index);
    if let Some(index) = (0..MAX_TARGETS).find(|index| !is_taken(index)) {
        return Asked::Free(index);
    }
    let mut held: BTreeMap<u32, usize> = BTreeMap::new();
    taken.values().for_each(|seat| *held.entry(seat.owner).or_default() += 1);
    let of = |owner: &u32| held.get(owner).copied().unwrap_or(0);
    let worst = taken.iter().min_by_key(|(_, seat)| (seat.claim(), Reverse(of(&seat.owner)), seat.worked));
    let yields = |seat: &Seat| {
        let silent = seat.worked.is_some_and(|at| now.saturating_duration_since(at) > SILENT);
        seat.claim() < claim || seat.claim() == claim && (of(&seat.owner) > of(&owner) + 1 || silent)
    };
    worst.filter(|(_, seat)| yields(seat)).map_or(Asked::None, |(pid, _)| Asked::Instead(*pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: u32 = 65_534;

    /// All seats taken by processes of a user from pid 1000 on.
    fn full(now: Instant, owner: u32, claim: Claim) -> BTreeMap<u32, Seat> {
        let mut seats = BTreeMap::new();
        for pid in 1000..1000 + MAX_TARGETS {
            let Asked::Free(index) = ask(&seats, now, owner, claim) else { panic!("{pid} finds none") };
            seats.insert(pid, Seat::new(now, index, owner, claim));
        }
        seats
    }

    fn hits(seats: &mut BTreeMap<u32, Seat>, now: Instant, pid: u32, hits: u64) {
        seats.get_mut(&pid).unwrap().hits(now, hits);
    }

    #[test]
    fn who_works_takes_the_seat_of_who_does_not() {
        let now = Instant::now();
        let mut seats = full(now, NOBODY, Claim::Idle);
        assert_eq!(ask(&seats, now, NOBODY, Claim::Idle), Asked::None);
        assert_eq!(ask(&seats, now, NOBODY, Claim::Listens), Asked::Instead(1000));
        hits(&mut seats, now, 1000, 5);
        seats.get_mut(&1001).unwrap().note(true);
        assert_eq!(ask(&seats, now, NOBODY, Claim::Works), Asked::Instead(1002));
        let index = seats.remove(&1002).unwrap().index;
        assert_eq!(ask(&seats, now, NOBODY, Claim::Idle), Asked::Free(index));
    }

    #[test]
    fn fakes_that_listen_keep_nobody_out_who_works() {
        let now = Instant::now();
        let seats = full(now, 0, Claim::Listens);
        assert_eq!(ask(&seats, now, 0, Claim::Listens), Asked::None, "one like the others waits");
        assert_eq!(ask(&seats, now, 0, Claim::Works), Asked::Instead(1000), "until it works");
        assert_eq!(ask(&seats, now, 33, Claim::Listens), Asked::Instead(1000), "or is another user's");
    }

    #[test]
    fn no_user_has_all_the_seats() {
        let now = Instant::now();
        let mut seats = full(now, NOBODY, Claim::Works);
        let mut mine = 0;
        while let Asked::Instead(pid) = ask(&seats, now, 1000, Claim::Works) {
            let index = seats.remove(&pid).unwrap().index;
            seats.insert(10_000 + mine, Seat::new(now, index, 1000, Claim::Works));
            mine += 1;
        }
        assert_eq!((mine, seats.len()), (MAX_TARGETS / 2, MAX_TARGETS as usize));
    }

    #[test]
    fn of_those_that_work_the_one_that_has_been_silent_longest_goes() {
        let now = Instant::now();
        let mut seats = full(now, 0, Claim::Works);
        assert_eq!(ask(&seats, now, 0, Claim::Works), Asked::None);
        let later = now + 2 * SILENT;
        (1000..1000 + MAX_TARGETS).filter(|pid| *pid != 1007).for_each(|pid| hits(&mut seats, later, pid, 9));
        assert_eq!(ask(&seats, later, 0, Claim::Works), Asked::Instead(1007));
        hits(&mut seats, later, 1007, 1);
        assert_eq!(ask(&seats, later, 0, Claim::Works), Asked::None);
    }
}
