//! What a process and those that it has started use.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use llamaprobe_tests::process::children;

/// Time of a processor that a process and its descendants have used, those of their threads included that have ended.
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

fn used_alone(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(") ").context("no end of the name in stat")?;
    // In user mode and in the kernel: the 14th and the 15th, of which two stand before.
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

fn memory_alone(pid: u32, name: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).context("no such line of smaps_rollup")?;
    Ok(line.trim_matches([':', ' ']).trim_end_matches(" kB").trim().parse::<f64>()? / 1e3)
}
