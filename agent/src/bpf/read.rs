//! Reading and writing the maps: targets in, aggregates out.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::Hash,
};

use aya::{
    Pod,
    maps::{HashMap, MapData, MapError, PerCpuValues},
};
use llamaprobe_common::{
    batch::Context as State,
    event::ShownEvent,
    layout::{CANDIDATES, ExtLayout, FOUND, LayoutKey, LayoutState},
    part::Clock,
    request::Peer,
    sequence::Sequence,
    stall::Step,
    target::{MAX_TARGETS, Notes, TargetConfig, TargetStats, place},
};

use serde::{Deserialize, Serialize};

use super::{LoadError, Maps, entries::entries};
use crate::plan::layout;

/// What the kernel knows of a context, as far as it is told.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Context {
    /// When the last decode call was entered, `CLOCK_MONOTONIC` nanoseconds.
    pub entered_ns: u64,
    /// `n_ctx`: all sequences together; 0 when unknown.
    pub n_ctx: u32,
    /// `n_ctx_seq`: one sequence; 0 when unknown.
    pub n_ctx_seq: u32,
    /// [`PENDING`](State::PENDING) and the like.
    pub flags: u32,
}

impl From<State> for Context {
    fn from(state: State) -> Self {
        let State { entered_ns, n_ctx, n_ctx_seq, flags, .. } = state;
        Self { entered_ns, n_ctx, n_ctx_seq, flags }
    }
}

/// What the kernel knows of one process at this moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reading {
    /// Its counters, all CPUs together.
    pub stats: TargetStats,
    /// Its sequences, with the `seq_id` of each.
    pub sequences: Vec<(i32, Sequence)>,
    /// Its contexts, with their pointer.
    pub contexts: Vec<(u64, Context)>,
    /// It is a server: a slot of it has started.
    pub is_server: bool,
    /// Stalls of its threads that were not told, where any are.
    pub untold: Option<Untold>,
    /// How batches lie in its memory, by the number of the file.
    pub layouts: Vec<(u32, LayoutState)>,
}

/// Stalls of threads that were summed up and not told: thread by thread, not of the whole pool. Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untold {
    /// Those that were too short.
    pub short_ns: u64,
    /// Those of which there were too many.
    pub many_ns: u64,
}

impl Maps {
    /// Starts to observe a process. The index must be free; its counters begin at zero.
    ///
    /// # Errors
    ///
    /// When a map cannot be written.
    pub fn observe(&mut self, pid: u32, config: TargetConfig) -> Result<(), LoadError> {
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        let blank = PerCpuValues::try_from(vec![TargetStats::default(); cpus])
            .map_err(|source| LoadError::map("clear", "STATS", MapError::from(source)))?;
        self.stats.set(config.index, blank, 0).map_err(|source| LoadError::map("clear", "STATS", source))?;
        self.notes
            .set(config.index, Notes::default(), 0)
            .map_err(|source| LoadError::map("clear", "NOTES", source))?;
        self.clocks
            .set(config.index, Clock::BLANK, 0)
            .map_err(|source| LoadError::map("clear", "CLOCKS", source))?;
        self.steps
            .set(config.index, Step::default(), 0)
            .map_err(|source| LoadError::map("clear", "STEPS", source))?;
        self.update(pid, config)
    }

    /// Changes what the programs must know of an observed process; its counters go on.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn update(&mut self, pid: u32, mut config: TargetConfig) -> Result<(), LoadError> {
        config.flags |= self.noted(pid);
        self.places.set(place(pid), 1, 0).map_err(|source| LoadError::map("fill", "PLACES", source))?;
        self.targets.insert(pid, config, 0).map_err(|source| LoadError::map("fill", "TARGETS", source))
    }

    /// What the programs have noted in the flags of a process.
    pub fn noted(&self, pid: u32) -> u32 {
        self.targets.get(&pid, 0).map_or(0, |config| config.flags & TargetConfig::NOTED)
    }

    /// Takes up what was found in the memory that an event shows: the next calls prove it or do not.
    pub fn learn(&mut self, shown: &ShownEvent) {
        let key = LayoutKey { tgid: shown.tgid, image: shown.image };
        let Some(found) = layout::find(shown) else { return };
        let Ok(mut state) = self.layouts.get(&key, 0) else { return };
        if state.chosen != 0
            || state.candidates[FOUND..] == found
            || found.iter().any(|it| ExtLayout::KNOWN.contains(it))
        {
            return;
        }
        state.candidates[FOUND..].copy_from_slice(&found);
        state.agreed = [0; CANDIDATES - FOUND];
        // Gone with its process, if it is.
        let _ = self.layouts.insert(key, state, 0);
    }

    /// The programs do not know a process any more; what they know of it stays.
    pub fn observe_no_more(&mut self, pid: u32) {
        // It may have ended.
        let _ = self.targets.remove(&pid);
        let left = self.targets.keys().flatten().any(|other| place(other) == place(pid));
        if !left {
            // Where it stays set, nothing is slower than a look-up.
            let _ = self.places.set(place(pid), 0, 0);
        }
    }

    /// Stops to observe a process and forgets its sequences and contexts. What cannot be removed is gone already.
    pub fn forget(&mut self, pid: u32) {
        self.observe_no_more(pid);
        remove(&mut self.sequences, |key| key.tgid == pid);
        remove(&mut self.contexts, |key| key.tgid == pid);
        remove(&mut self.layouts, |key| key.tgid == pid);
        remove(&mut self.memories, |key| key.tgid == pid);
        let peers = self.peers.iter().flatten().filter(|(_, key)| key.tgid == pid);
        let peers: Vec<Peer> = peers.map(|(peer, _)| peer).collect();
        remove(&mut self.peers, |peer| peers.contains(peer));
        remove(&mut self.connections, |key| key.tgid == pid);
        remove(&mut self.talks, |key| key.tgid == pid);
        remove(&mut self.threads, |key| key >> 32 == u64::from(pid));
        remove(&mut self.tasks, |key| key.tgid == pid);
        remove(&mut self.calls, |key| key >> 32 == u64::from(pid));
        let threads = self.scheduled.iter().flatten().filter(|(_, thread)| thread.tgid == pid);
        let threads: Vec<u32> = threads.map(|(tid, _)| tid).collect();
        remove(&mut self.scheduled, |tid| threads.contains(tid));
    }

    /// Connections on which nothing has been read yet, accepted and waiting for a thread or for the client, by process.
    pub fn unread(&self) -> BTreeMap<u32, usize> {
        let mut unread = BTreeMap::new();
        for (key, connection) in entries(&self.connections, "CONNECTIONS") {
            if connection.accepted_ns != 0 {
                *unread.entry(key.tgid).or_default() += 1;
            }
        }
        unread
    }

    /// The slots of all servers as they are now, by process: a slot is a sequence without a context in its key.
    pub fn slots(&self) -> BTreeMap<u32, Vec<Sequence>> {
        let mut slots: BTreeMap<u32, Vec<Sequence>> = BTreeMap::new();
        for (key, state) in entries(&self.sequences, "SEQUENCES") {
            if key.context == 0 {
                slots.entry(key.tgid).or_default().push(state);
            }
        }
        slots
    }

    /// How many entries each map that grows with the work holds, by name.
    pub fn occupancy(&self) -> [(&'static str, usize); 9] {
        [
            ("sequences", entries(&self.sequences, "SEQUENCES").len()),
            ("contexts", entries(&self.contexts, "CONTEXTS").len()),
            ("connections", entries(&self.connections, "CONNECTIONS").len()),
            ("talks", count(&self.talks)),
            ("peers", entries(&self.peers, "PEERS").len()),
            ("threads", entries(&self.threads, "THREADS").len()),
            ("tasks", entries(&self.tasks, "TASKS").len()),
            ("calls", entries(&self.calls, "CALLS").len()),
            ("scheduled", entries(&self.scheduled, "SCHEDULED").len()),
        ]
    }

    /// Reads the counters at `index`.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn stats(&self, index: u32) -> Result<TargetStats, LoadError> {
        let values = self.stats.get(&index, 0).map_err(|source| LoadError::map("read", "STATS", source))?;
        let mut sum = TargetStats::default();
        values.iter().for_each(|cpu| sum.add(cpu));
        Ok(sum)
    }

    /// Stalls of the process at `index` that were not told.
    fn untold(&self, index: u32) -> Option<Untold> {
        let step = self.steps.get(&index, 0).ok()?;
        Some(Untold { short_ns: step.short_ns, many_ns: step.untold_ns })
    }

    /// The thread of the process at `index` that made its last decode call for a request; `None` before one was made.
    pub fn decoder(&self, index: u32) -> Option<u32> {
        self.steps.get(&index, 0).ok().map(|step| step.decoder).filter(|tid| *tid != 0)
    }

    /// Reads what is counted for no process in particular.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn own_stats(&self) -> Result<TargetStats, LoadError> {
        self.stats(MAX_TARGETS)
    }

    /// Reads all that is known of these processes, given with the rows of their counters, by one walk over each map.
    pub fn readings(&self, processes: &[(u32, u32)]) -> BTreeMap<u32, Result<Reading, LoadError>> {
        // The counters first: what the sequences have used may then be ahead of the sums, never behind.
        let stats = |index: u32| {
            let untold = self.untold(index);
            self.stats(index).map(|stats| Reading { stats, untold, ..Reading::default() })
        };
        let mut readings: BTreeMap<_, _> =
            processes.iter().map(|(pid, index)| (*pid, stats(*index))).collect();
        if readings.is_empty() {
            return readings;
        }
        let is_server = |pid: u32| {
            let config = self.targets.get(&pid, 0);
            config.is_ok_and(|it| TargetConfig::effective(it.flags) & TargetConfig::SLOTS != 0)
        };
        let servers: BTreeSet<u32> = readings.keys().copied().filter(|pid| is_server(*pid)).collect();
        for (pid, reading) in &mut readings {
            if let Ok(reading) = reading {
                reading.is_server = servers.contains(pid);
            }
        }
        for (key, state) in entries(&self.sequences, "SEQUENCES") {
            // What a server decoded before it was known to be one is on no slot.
            if key.context != 0 && servers.contains(&key.tgid) {
                continue;
            }
            if let Some(Ok(reading)) = readings.get_mut(&key.tgid) {
                reading.sequences.push((key.sequence, state));
            }
        }
        for (key, state) in entries(&self.contexts, "CONTEXTS") {
            if let Some(Ok(reading)) = readings.get_mut(&key.tgid) {
                reading.contexts.push((key.context, state.into()));
            }
        }
        for (key, state) in entries(&self.layouts, "LAYOUTS") {
            if key.image != LayoutKey::ALL
                && let Some(Ok(reading)) = readings.get_mut(&key.tgid)
            {
                reading.layouts.push((key.image, state));
            }
        }
        readings
    }

    /// Reads all that is known of a process.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn reading(&self, pid: u32, index: u32) -> Result<Reading, LoadError> {
        self.readings(&[(pid, index)]).remove(&pid).unwrap_or_else(|| Ok(Reading::default()))
    }
}

/// Steps of a walk, as a multiple of what was found: where entries go faster than that it ends early.
const STEPS: usize = 4;

/// How many entries a hash holds whose values are too large to be read for that. A walk over its keys starts anew where one
/// has gone meanwhile, so what is met again is the same entry, not one more.
fn count<K: Pod + Eq + Hash, V: Pod>(map: &HashMap<MapData, K, V>) -> usize {
    let mut all = HashSet::new();
    for (step, key) in map.keys().enumerate() {
        all.extend(key);
        if step > STEPS * (all.len() + 1024) {
            break;
        }
    }
    all.len()
}

/// Removes the entries whose key is meant. All keys are read first: a walk over a hash starts anew where its entry goes.
fn remove<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, meant: impl Fn(&K) -> bool) {
    let keys: Vec<K> = map.keys().flatten().filter(meant).collect();
    for key in keys {
        let _ = map.remove(&key);
    }
}
