//! Memory and time.

use std::{cell::Cell, collections::BTreeMap, vec::Vec};

use llamaprobe_common::loss::Loss;

use crate::machine::{Machine, Memory, Plain};

/// A machine without a verifier. What was not put into its memory cannot be read.
#[derive(Default)]
pub struct Host {
    /// `CLOCK_MONOTONIC`.
    pub now: Cell<u64>,
    regions: BTreeMap<u64, Vec<u8>>,
}

impl Host {
    /// Puts bytes at an address.
    pub fn put(&mut self, address: u64, bytes: impl Into<Vec<u8>>) {
        self.regions.insert(address, bytes.into());
    }

    /// Puts words at an address.
    pub fn put_words(&mut self, address: u64, words: &[u64]) {
        self.put(address, words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>());
    }

    /// `len` bytes at an address.
    pub fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
        let (base, region) = self.regions.range(..=address).next_back()?;
        let from = usize::try_from(address - base).ok()?;
        region.get(from..from.checked_add(len)?)
    }
}

impl Memory for Host {
    fn read<T: Plain>(&self, address: u64) -> Result<T, Loss> {
        self.bytes(address, size_of::<T>()).map(T::of_bytes).ok_or(Loss::Unreadable)
    }
}

impl Machine for Host {
    fn now(&self) -> u64 {
        self.now.get()
    }
}
