//! What a process has of its machine at a look: what it computes on, processor time, and the weights that are in memory.

use std::{fs::File, os::fd::AsFd as _, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use super::process::{Mapping, ProcessRoot};
use crate::{bpf::page_cache, engines::backend};

/// What is looked at in one go, bytes.
const PIECE: u64 = 1 << 30;
/// What is looked at of all files together, bytes: 0.4 s where all is in memory, in pages of 4 kB.
const MOST: u64 = 64 << 30;

/// What a process has, as of a look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// What it computes on: a backend's name, `cpu`, or `unknown` where its descriptors cannot be read.
    pub backend: String,
    /// The backends other than the CPU that it is built for, with commas between.
    pub built_for: String,
    /// Processor time of its threads since its start.
    pub cpu: Duration,
    /// When it started, `CLOCK_MONOTONIC` nanoseconds; off by the time that the machine slept since.
    pub started_ns: u64,
    /// Bytes that it has had read from disk; `None` where the kernel does not say.
    pub read_bytes: Option<u64>,
    /// What of its mapped model is in memory; `None` where none is mapped, or the kernel does not say.
    pub weights: Option<Weights>,
}

/// What of the mapped parts of model files is in memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// Mapped: what was moved to a device is mapped no more.
    pub mapped: u64,
    /// Of these, in the page cache.
    pub resident: u64,
    /// Of these, put out for want of memory, and not read again so far.
    pub evicted: u64,
    /// Of the latter, so lately that to read them again now means that memory is short.
    pub recently_evicted: u64,
}

impl Weights {
    /// Those of one more file.
    pub(super) fn add(sum: &mut Option<Self>, of: Option<Self>) {
        if let Some(of) = of {
            let sum = sum.get_or_insert_default();
            sum.mapped += of.mapped;
            sum.resident += of.resident;
            sum.evicted += of.evicted;
            sum.recently_evicted += of.recently_evicted;
        }
    }

    /// What the page cache has of a mapping, by every so-manieth piece of it; `None` where the kernel does not say: before
    /// Linux 6.5, or to whoever could not write the file. `mincore` is no substitute: to these it says that all is there.
    pub(super) fn read(file: &File, mapping: &Mapping, every: u64) -> Option<Self> {
        // The file may be shorter than what is mapped of it.
        let end = file.metadata().ok()?.len().min(mapping.offset + (mapping.end - mapping.start));
        let mapped = end.saturating_sub(mapping.offset);
        if mapped == 0 {
            return None;
        }
        let (mut looked_at, mut pages) = (0, [0; 3]);
        for piece in (0..mapped.div_ceil(PIECE)).step_by(usize::try_from(every).ok()?) {
            let length = PIECE.min(mapped - piece * PIECE);
            let cached = page_cache(file.as_fd(), mapping.offset + piece * PIECE, length).ok()?;
            looked_at += length;
            pages[0] += cached.cached;
            pages[1] += cached.evicted;
            pages[2] += cached.recently_evicted;
        }
        let [resident, evicted, recently_evicted] = pages.map(|pages| {
            let bytes = u128::from((pages * rustix::param::page_size() as u64).min(looked_at));
            (bytes * u128::from(mapped) / u128::from(looked_at)) as u64
        });
        Some(Self { mapped, resident, evicted, recently_evicted })
    }
}

/// Of how many pieces of a mapping one is looked at, so that a look at all of them does not take long.
pub(super) fn every(mappings: &[Mapping]) -> u64 {
    let files = mappings.iter().filter(|mapping| !mapping.executable);
    files.map(|mapping| mapping.end - mapping.start).sum::<u64>().div_ceil(MOST).max(1)
}

impl Resources {
    /// Reads what there is of a process; what cannot be read is left out.
    pub(super) fn read(process: &ProcessRoot, mappings: &[Mapping], weights: Option<Weights>) -> Self {
        let names: Vec<&str> = mappings.iter().filter_map(|mapping| file_name(&mapping.path)).collect();
        let built_for = backend::mapped(&names);
        let backend = if built_for.is_empty() {
            backend::CPU
        } else {
            process.devices().map_or("unknown", |devices| backend::used(&built_for, &devices))
        };
        Self {
            backend: backend.to_owned(),
            built_for: built_for.iter().map(|backend| backend.name).collect::<Vec<_>>().join(","),
            cpu: process.cpu_time().unwrap_or_default(),
            started_ns: process.started_ns().unwrap_or_default(),
            read_bytes: process.read_bytes().ok(),
            weights,
        }
    }
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_was_written_is_in_memory_and_what_is_beyond_the_end_is_not_mapped() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 3 << 20]).unwrap();
        let mapping = |start: u64, end: u64, offset: u64| Mapping {
            start,
            end,
            offset,
            device: "0:1".into(),
            inode: 1,
            executable: false,
            path: file.path().to_owned(),
            deleted: false,
        };
        let opened = File::open(file.path()).unwrap();
        if page_cache(opened.as_fd(), 0, 1).is_err() {
            return println!("skipped: this kernel has no cachestat");
        }
        let read = Weights::read(&opened, &mapping(0, 4 << 20, 1 << 20), 1).unwrap();
        assert_eq!((read.mapped, read.resident), (2 << 20, 2 << 20));
        assert_eq!(Weights::read(&opened, &mapping(0, 4096, 4 << 20), 1), None);
        let large = [mapping(0, 100 << 30, 0), mapping(0, 100 << 30, 0)];
        assert_eq!((every(&large[..0]), every(&large)), (1, 4), "64 GB are looked at");
        let mut sum = None;
        Weights::add(&mut sum, None);
        assert_eq!(sum, None, "unknown is not nothing");
        Weights::add(&mut sum, Some(read));
        Weights::add(&mut sum, Some(read));
        assert_eq!(sum.unwrap().mapped, 4 << 20);
    }
}
