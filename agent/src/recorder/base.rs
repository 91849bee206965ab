//! What was before a recording, as far as what follows needs it: the last that was said of each process that lives, and all
//! that was said of each request under way. In: what falls out of the ring, in order. Out: the same, to be played first.

use std::collections::{BTreeMap, BTreeSet};

use llamaprobe_common::request::RequestKey;

use super::ring::What;

/// Of which only the last counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Last {
    Begin(u32),
    Refresh(u32),
    Reading(u32),
    Prices,
    Billing,
}

/// A frame, and the how-manieth input it was.
type Kept = (u64, Box<[u8]>);

/// What was before.
#[derive(Debug)]
pub(super) struct Base {
    last: BTreeMap<Last, Kept>,
    requests: BTreeMap<RequestKey, Vec<Kept>>,
    /// Requests under way of which there was too much.
    given_up: BTreeSet<RequestKey>,
    /// Inputs so far.
    inputs: u64,
    /// Bytes of what is kept of processes,
    last_bytes: usize,
    /// and of requests,
    request_bytes: usize,
    /// and the most that these may have.
    most: usize,
}

impl Base {
    /// Nothing was before; of requests no more than `most` bytes will be kept.
    pub(super) fn new(most: usize) -> Self {
        Self {
            last: BTreeMap::new(),
            requests: BTreeMap::new(),
            given_up: BTreeSet::new(),
            inputs: 0,
            last_bytes: 0,
            request_bytes: 0,
            most,
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.last_bytes + self.request_bytes
    }

    /// Takes what is the oldest by now.
    pub(super) fn absorb(&mut self, what: What, frame: &[u8]) {
        self.inputs += 1;
        match what {
            What::Begin(pid) => {
                self.end(pid);
                self.keep(Last::Begin(pid), frame);
            }
            What::Refresh(pid) => self.keep(Last::Refresh(pid), frame),
            What::Reading(pid) => self.keep(Last::Reading(pid), frame),
            What::Prices => self.keep(Last::Prices, frame),
            What::Billing => self.keep(Last::Billing, frame),
            What::Fact(key) if !self.given_up.contains(&key) => {
                self.request_bytes += frame.len();
                self.requests.entry(key).or_default().push((self.inputs, frame.into()));
                self.make_room();
            }
            What::Over(key) => {
                self.given_up.remove(&key);
                self.forget(&key);
            }
            What::End(pid) => self.end(pid),
            What::Fact(_) | What::Passing => {}
        }
    }

    /// All of it, in the order in which it came.
    pub(super) fn frames(&self) -> Vec<u8> {
        let mut frames: Vec<&Kept> = self.last.values().chain(self.requests.values().flatten()).collect();
        frames.sort_unstable_by_key(|(at, _)| *at);
        frames.into_iter().flat_map(|(_, frame)| frame.iter().copied()).collect()
    }

    fn keep(&mut self, last: Last, frame: &[u8]) {
        self.last_bytes += frame.len();
        if let Some((_, old)) = self.last.insert(last, (self.inputs, frame.into())) {
            self.last_bytes -= old.len();
        }
    }

    fn forget(&mut self, key: &RequestKey) {
        let frames = self.requests.remove(key).unwrap_or_default();
        self.request_bytes -= frames.iter().map(|(_, frame)| frame.len()).sum::<usize>();
    }

    /// A process has ended, and its requests with it.
    fn end(&mut self, pid: u32) {
        for last in [Last::Begin(pid), Last::Refresh(pid), Last::Reading(pid)] {
            self.last_bytes -= self.last.remove(&last).map_or(0, |(_, old)| old.len());
        }
        self.given_up.retain(|key| key.tgid != pid);
        let keys: Vec<RequestKey> = self.requests.keys().filter(|key| key.tgid == pid).copied().collect();
        keys.iter().for_each(|key| self.forget(key));
    }

    /// The oldest request goes first: what follows of it is nobody's.
    fn make_room(&mut self) {
        while self.request_bytes > self.most
            && let Some((key, _)) = self.requests.first_key_value()
        {
            let key = *key;
            self.given_up.insert(key);
            self.forget(&key);
        }
    }
}
