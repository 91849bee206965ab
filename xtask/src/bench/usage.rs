//! What a process and those that it has started use.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use llamaprobe_tests::process::children;

/// Time of a processor that a process and its descendants have used, but for threads that have ended.
pub fn used(pid: u32) -> Result<Duration> {
    tree(pid)?.into_iter().map(used_alone).sum()
}

/// Megabytes of a line of `smaps_rollup`, of a process and its descendants.
pub fn memory(pid: u32, name: &str) -> Result<f64> {
    tree(pid)?.into_iter().map(|pid| memory_alone(pid, name)).sum()
}

/// Processor time of a process and its descendants while something happens, per second of it, and how long that took.
pub fn load(pid: u32, what: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let (begun, before) = (Instant::now(), used(pid)?);
    what()?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok((used(pid)?.saturating_sub(before).as_secs_f64() / seconds, seconds))
}

/// A process and its descendants.
fn tree(pid: u32) -> Result<Vec<u32>> {
    let mut all = vec![pid];
    for child in children(pid)?.into_keys() {
        all.extend(tree(child)?);
    }
    Ok(all)
}

/// By `schedstat`, in nanoseconds: `stat` counts in hundredths of a second, which is as much as a few hundred requests take.
fn used_alone(pid: u32) -> Result<Duration> {
    let mut used = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // It may have ended meanwhile.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let first = text.split(' ').next().context("an empty schedstat")?;
        used += Duration::from_nanos(first.parse()?);
    }
    Ok(used)
}

fn memory_alone(pid: u32, name: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).context("no such line of smaps_rollup")?;
    Ok(line.trim_matches([':', ' ']).trim_end_matches(" kB").trim().parse::<f64>()? / 1e3)
}
