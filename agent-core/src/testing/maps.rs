//! The states of contexts and sequences.

use std::{boxed::Box, collections::HashMap, hash::Hash};

use llamaprobe_common::{
    batch::{Context, ContextKey},
    loss::Loss,
    sequence::{Sequence, SequenceKey},
};

use super::batch::blank;
use crate::{
    maps::{Contexts, Maps, Memories, Sequences},
    sequences::BLANK,
};

/// A map with a bound.
pub struct Bounded<K, V> {
    /// What is in it.
    pub entries: HashMap<K, V>,
    /// How many entries find room.
    pub room: usize,
}

impl<K, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), room: usize::MAX }
    }
}

impl<K: Copy + Eq + Hash, V> Bounded<K, V> {
    /// Puts an entry, if there is one for the key or room for it.
    pub fn put(&mut self, key: K, value: V) -> bool {
        let fits = self.entries.contains_key(&key) || self.entries.len() < self.room;
        if fits {
            self.entries.insert(key, value);
        }
        fits
    }
}

/// The maps of the account of tokens.
pub type HostMaps =
    Maps<Bounded<ContextKey, Box<Context>>, Bounded<ContextKey, u64>, Bounded<SequenceKey, Sequence>>;

impl Contexts for Bounded<ContextKey, Box<Context>> {
    fn find(&mut self, key: &ContextKey) -> Option<&mut Context> {
        self.entries.get_mut(key).map(Box::as_mut)
    }

    fn find_or_make(&mut self, key: &ContextKey) -> Result<&mut Context, Loss> {
        if !self.entries.contains_key(key) && !self.put(*key, Box::new(blank())) {
            return Err(Loss::ContextsFull);
        }
        Contexts::find(self, key).ok_or(Loss::ContextsFull)
    }

    fn remove(&mut self, key: &ContextKey) {
        self.entries.remove(key);
    }
}

impl Memories for Bounded<ContextKey, u64> {
    fn find(&self, key: &ContextKey) -> Option<u64> {
        self.entries.get(key).copied()
    }

    fn insert(&mut self, key: &ContextKey, context: u64) -> Result<(), Loss> {
        if self.put(*key, context) { Ok(()) } else { Err(Loss::ContextsFull) }
    }

    fn remove(&mut self, key: &ContextKey) {
        self.entries.remove(key);
    }
}

impl Sequences for Bounded<SequenceKey, Sequence> {
    fn find(&mut self, key: &SequenceKey) -> Option<&mut Sequence> {
        self.entries.get_mut(key)
    }

    fn find_or_make(&mut self, key: &SequenceKey) -> Result<&mut Sequence, Loss> {
        if !self.entries.contains_key(key) && !self.put(*key, BLANK) {
            return Err(Loss::SequencesFull);
        }
        Sequences::find(self, key).ok_or(Loss::SequencesFull)
    }

    fn remove(&mut self, key: &SequenceKey) {
        self.entries.remove(key);
    }
}
