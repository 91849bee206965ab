//! The program text of a process beside the files it comes from: a probe that is attached shows as changed bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::wait_for;

/// How long the kernel may take to forget the probes of an agent that has ended: where they are perf events up to 0.2 s for
/// each.
const GONE: Duration = Duration::from_secs(30);

/// How much is compared at once.
const PAGE: usize = 4096;

/// Waits until the program text of a process is that of its files: no probe is left.
pub fn wait_restored(pid: u32) -> Result<()> {
    let clean = || changed(pid).ok().filter(BTreeMap::is_empty).map(drop);
    wait_for("the process's text to be as before", GONE, clean)
        .with_context(|| format!("changed bytes: {:?}", changed(pid)))
}

/// How many bytes of a process's executable mappings differ from their files, by file. Files without a difference
/// are left out.
pub fn changed(pid: u32) -> Result<BTreeMap<PathBuf, usize>> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut changed = BTreeMap::new();
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [range, "r-xp", offset, _device, _inode, path] = fields[..] else { continue };
        if !path.starts_with('/') {
            continue;
        }
        let hexadecimal =
            |text: &str| u64::from_str_radix(text, 16).with_context(|| format!("bad line: {line}"));
        let (from, to) = range.split_once('-').with_context(|| format!("bad line: {line}"))?;
        let (from, to, offset) = (hexadecimal(from)?, hexadecimal(to)?, hexadecimal(offset)?);
        let mut mapped = vec![0; usize::try_from(to - from)?];
        memory.read_exact_at(&mut mapped, from).with_context(|| format!("cannot read {line} of {pid}"))?;
        // The last page reaches behind the end of the file.
        let mut stored = vec![0; mapped.len()];
        let file = File::open(path)?;
        let mut filled = 0;
        while filled < stored.len() {
            match file.read_at(&mut stored[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        // By pages first: nearly all are equal, and there are tens of megabytes of them.
        let pages = mapped[..filled].chunks(PAGE).zip(stored[..filled].chunks(PAGE));
        let different: usize = pages
            .filter(|(mapped, stored)| mapped != stored)
            .map(|(mapped, stored)| mapped.iter().zip(stored).filter(|(a, b)| a != b).count())
            .sum();
        if different > 0 {
            *changed.entry(PathBuf::from(path)).or_default() += different;
        }
    }
    Ok(changed)
}
