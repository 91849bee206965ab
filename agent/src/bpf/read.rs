//! Reading and writing the maps: targets in, aggregates out.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
};

use aya::{
    Pod,
    maps::{HashMap, MapData, MapError, PerCpuValues},
};
use llamaprobe_common::{
    batch::Context,
    request::Peer,
    sequence::Sequence,
    target::{MAX_TARGETS, TargetConfig, TargetStats},
};

use super::{Kernel, LoadError};

/// What the kernel knows of one process at this moment.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Its counters, all CPUs together.
    pub stats: TargetStats,
    /// Its sequences, with the `seq_id` of each.
    pub sequences: Vec<(i32, Sequence)>,
    /// Its contexts, with their pointer.
    pub contexts: Vec<(u64, Context)>,
}

impl Kernel {
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
        self.update(pid, config)
    }

    /// Changes what the programs must know of an observed process; its counters go on.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn update(&mut self, pid: u32, config: TargetConfig) -> Result<(), LoadError> {
        self.targets.insert(pid, config, 0).map_err(|source| LoadError::map("fill", "TARGETS", source))
    }

    /// Stops to observe a process and forgets its sequences and contexts. What cannot be removed is gone already.
    pub fn forget(&mut self, pid: u32) {
        let _ = self.targets.remove(&pid);
        remove(&mut self.sequences, |key| key.tgid == pid);
        remove(&mut self.contexts, |key| key.tgid == pid);
        let peers = self.peers.iter().flatten().filter(|(_, key)| key.tgid == pid);
        let peers: Vec<Peer> = peers.map(|(peer, _)| peer).collect();
        remove(&mut self.peers, |peer| peers.contains(peer));
        remove(&mut self.connections, |key| key.tgid == pid);
        remove(&mut self.talks, |key| key.tgid == pid);
        remove(&mut self.threads, |key| key >> 32 == u64::from(pid));
        remove(&mut self.tasks, |key| key.tgid == pid);
        remove(&mut self.calls, |key| key >> 32 == u64::from(pid));
    }

    /// Connections on which nothing has been read yet, accepted and waiting for a thread or for the client, by process.
    pub fn unread(&self) -> BTreeMap<u32, usize> {
        let mut unread = BTreeMap::new();
        for (key, connection) in walk(&self.connections) {
            if connection.accepted_ns != 0 {
                *unread.entry(key.tgid).or_default() += 1;
            }
        }
        unread
    }

    /// How many entries each map that grows with the work holds, by name.
    pub fn occupancy(&self) -> [(&'static str, usize); 8] {
        [
            ("sequences", count(&self.sequences)),
            ("contexts", count(&self.contexts)),
            ("connections", count(&self.connections)),
            ("talks", count(&self.talks)),
            ("peers", count(&self.peers)),
            ("threads", count(&self.threads)),
            ("tasks", count(&self.tasks)),
            ("calls", count(&self.calls)),
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

    /// Reads what is counted for no process in particular.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn own_stats(&self) -> Result<TargetStats, LoadError> {
        self.stats(MAX_TARGETS)
    }

    /// Reads all that is known of a process.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn reading(&self, pid: u32, index: u32) -> Result<Reading, LoadError> {
        let sequences = self.sequences.iter().flatten().filter(|(key, _)| key.tgid == pid);
        let contexts = self.contexts.iter().flatten().filter(|(key, _)| key.tgid == pid);
        Ok(Reading {
            // First: what the sequences have used may then be ahead of the sums, never behind.
            stats: self.stats(index)?,
            sequences: sequences.map(|(key, state)| (key.sequence, state)).collect(),
            contexts: contexts.map(|(key, state)| (key.context, state)).collect(),
        })
    }
}

/// Steps of a walk, as a multiple of what was found: where entries go faster than that it ends early.
const STEPS: usize = 4;

/// The entries of a hash. A walk over one starts anew where its entry has gone meanwhile, so what is met again is the
/// same entry, not one more.
pub(super) fn walk<K: Pod + Ord, V: Pod>(map: &HashMap<MapData, K, V>) -> BTreeMap<K, V> {
    let mut all = BTreeMap::new();
    for (step, entry) in map.iter().enumerate() {
        // An entry that has gone between its key and its value is none.
        if let Ok((key, value)) = entry {
            all.insert(key, value);
        }
        if step > STEPS * (all.len() + 1024) {
            break;
        }
    }
    all
}

/// How many entries a hash holds, as [`walk`] finds them.
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
