//! Hashes as a whole: many entries by one call of the kernel, which goes from bucket to bucket, so that each is met once
//! whatever comes and goes meanwhile.

use std::{io, os::fd::AsFd as _};

use aya::{
    Pod,
    maps::{HashMap, IterableMap as _, MapData},
};
use tracing::error;

use super::raw;

/// Bytes of the entries that one call reads.
const BYTES: usize = 16 << 10;
/// Where they are large, at least so many.
const FEWEST: usize = 16;

/// All entries; none where the kernel refuses, which is said.
pub(super) fn entries<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, name: &'static str) -> Vec<(K, V)> {
    read(map).unwrap_or_else(|error| {
        error!(name, %error, "a map of the kernel cannot be read");
        Vec::new()
    })
}

fn read<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>) -> io::Result<Vec<(K, V)>> {
    let mut most = (BYTES / (size_of::<K>() + size_of::<V>())).max(FEWEST);
    let (mut all, mut from) = (Vec::new(), None);
    loop {
        match raw::read(map.map().fd().as_fd(), from, most) {
            Ok(batch) => {
                all.extend(batch.keys.into_iter().zip(batch.values));
                from = batch.next;
                if from.is_none() {
                    return Ok(all);
                }
            }
            // One bucket has more.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => most *= 2,
            Err(error) => return Err(error),
        }
    }
}
