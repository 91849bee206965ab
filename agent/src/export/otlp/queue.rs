//! What waits to be sent: bounded, the oldest goes first when it is full, and every item is accounted for.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use llamaprobe_common::named;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use crate::lock::lock;

named! {
    /// Why something was not delivered.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Loss {
        /// More came than could be sent.
        QueueFull = "queue_full",
        /// The collector took the request and rejected some of it.
        Rejected = "rejected",
        /// The collector refuses such requests.
        Refused = "refused",
        /// What answered is no collector.
        BadAnswer = "bad_answer",
        /// The collector could not be reached, or put us off, for too long.
        Unreachable = "unreachable",
        /// The agent ended before.
        Shutdown = "shutdown",
    }
}

/// Spans, data points or records so far: what was made is what was exported, was lost, or waits.
#[derive(Debug, Default)]
pub struct Counts {
    made: AtomicU64,
    exported: AtomicU64,
    lost: [AtomicU64; Loss::COUNT],
}

impl Counts {
    /// What a collector has taken.
    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// What was lost for this reason.
    pub fn lost(&self, loss: Loss) -> u64 {
        self.lost[loss as usize].load(Ordering::Relaxed)
    }

    /// What was lost for any reason.
    pub fn lost_at_all(&self) -> u64 {
        Loss::ALL.into_iter().map(|loss| self.lost(loss)).sum()
    }

    /// What waits, or is on its way.
    pub fn waiting(&self) -> u64 {
        self.made.load(Ordering::Relaxed).saturating_sub(self.exported() + self.lost_at_all())
    }

    pub(super) fn make(&self, n: u64) {
        self.made.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn export(&self, n: u64) {
        self.exported.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn lose(&self, loss: Loss, n: u64) {
        self.lost[loss as usize].fetch_add(n, Ordering::Relaxed);
    }
}

/// A queue between the agent and a task that sends.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    filled: Notify,
    room: u64,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Waiting<T> {
    items: VecDeque<(T, u64)>,
    weight: u64,
}

/// Some items, and what they weigh together.
pub(super) type Batch<T> = (Vec<T>, u64);

impl<T> Queue<T> {
    /// A queue of items that weigh `room` together.
    pub(super) fn new(room: u64, counts: Arc<Counts>) -> Self {
        let waiting = Mutex::new(Waiting { items: VecDeque::new(), weight: 0 });
        Self { waiting, filled: Notify::new(), room, counts }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        // No code that can panic runs under the lock.
        lock(&self.waiting)
    }

    /// Adds an item of `weight` spans, points or records. Never waits: the oldest make room.
    pub(super) fn push(&self, item: T, weight: u64) {
        self.counts.make(weight);
        let mut waiting = self.lock();
        while waiting.weight + weight > self.room
            && let Some((_, lost)) = waiting.items.pop_front()
        {
            waiting.weight -= lost;
            self.counts.lose(Loss::QueueFull, lost);
        }
        waiting.items.push_back((item, weight));
        waiting.weight += weight;
        drop(waiting);
        self.filled.notify_one();
    }

    /// The next items, `most` together unless a single one is more: as soon as there are that many, `delay` after the
    /// first, or when `closing` turns true. `None` when it is closing and nothing waits.
    pub(super) async fn next(
        &self,
        most: u64,
        delay: Duration,
        closing: &mut watch::Receiver<bool>,
    ) -> Option<Batch<T>> {
        let mut deadline = None;
        loop {
            {
                let mut waiting = self.lock();
                let due = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if waiting.items.is_empty() {
                    if *closing.borrow() {
                        return None;
                    }
                } else if waiting.weight >= most || due || *closing.borrow() {
                    return Some(take(&mut waiting, most));
                } else {
                    deadline.get_or_insert_with(|| Instant::now() + delay);
                }
            }
            tokio::select! {
                () = self.filled.notified() => {}
                _ = closing.changed() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }
}

fn take<T>(waiting: &mut Waiting<T>, most: u64) -> Batch<T> {
    let (mut items, mut total) = (Vec::new(), 0);
    while let Some((_, weight)) = waiting.items.front()
        && (total == 0 || total + weight <= most)
        && let Some((item, weight)) = waiting.items.pop_front()
    {
        items.push(item);
        total += weight;
    }
    waiting.weight -= total;
    (items, total)
}
