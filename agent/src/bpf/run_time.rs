//! What the kernel programs themselves cost. The kernel keeps the run time of programs while it is asked to, which costs
//! every program on the host some 40 ns a run: it is asked for a second of every half minute.
//!
//! Out: [`Sample`]. To ask the kernel takes CAP_SYS_ADMIN; without it there is nothing unless an administrator has asked for good, by
//! `sysctl kernel.bpf_stats_enabled=1`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use serde::{Deserialize, Serialize};
use tracing::debug;

use super::{Attacher, raw};
use crate::plan::catalog::Program;

/// Says whether the kernel keeps run times for good.
const KEPT: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// How long the kernel keeps run times.
const WINDOW: Duration = Duration::from_secs(1);
/// From one such window to the next.
const EVERY: Duration = Duration::from_secs(30);

/// What is known of the programs' cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Nanoseconds of one run of each program, by its number; 0 for one that has not run in a window yet.
    pub bodies: [u32; Program::COUNT],
    /// Time of the programs at tracepoints, in whichever process they ran, in billionths of one processor's, in the last
    /// window.
    pub tracepoints_ppb: u32,
    /// Time of all programs of the agent, in whichever process they ran, per time of one processor, in the last window.
    pub cpu_ratio: Option<f64>,
}

/// Run time of a program and number of its runs, since it was loaded and as far as they were kept.
#[derive(Clone, Copy, Debug, Default)]
struct Ran {
    time: Duration,
    runs: u64,
}

/// Starts a thread that samples the programs that an [`Attacher`] has loaded, and tells each sample.
///
/// # Errors
///
/// When no thread can be started, or no descriptor is left.
pub fn start(attacher: &Attacher, tell: impl Fn(Sample) + Send + 'static) -> io::Result<()> {
    let others = attacher.ebpf.programs();
    let others = others.filter_map(|(name, program)| Some((name, program.fd().ok()?.as_fd())));
    let all = others.chain(attacher.uprobes.own());
    let programs = all.map(|(name, program)| Ok((name.to_owned(), program.try_clone_to_owned()?)));
    let programs = programs.collect::<io::Result<Programs>>()?;
    let run = move || {
        loop {
            match measure(&programs) {
                Ok(sample) => tell(sample),
                Err(error) => return debug!(%error, "the kernel does not tell the run time of programs"),
            }
            sleep(EVERY);
        }
    };
    thread::Builder::new().name("run times".into()).spawn(run)?;
    Ok(())
}

/// The loaded programs, by name.
type Programs = BTreeMap<String, OwnedFd>;

fn measure(programs: &Programs) -> io::Result<Sample> {
    let kept = match enable_stats(Stats::RunTime) {
        Ok(kept) => Some(kept),
        Err(_) if fs::read_to_string(KEPT).is_ok_and(|kept| kept.trim() == "1") => None,
        Err(error) => return Err(error.io_error),
    };
    let (start, before) = (Instant::now(), read(programs)?);
    sleep(WINDOW);
    let (elapsed, after) = (start.elapsed(), read(programs)?);
    drop(kept);
    let ratio = |of: fn(&str) -> bool| {
        let time = |ran: &BTreeMap<&str, Ran>| {
            ran.iter().filter(|(name, _)| of(name)).map(|(_, ran)| ran.time).sum::<Duration>()
        };
        time(&after).saturating_sub(time(&before)).as_secs_f64() / elapsed.as_secs_f64()
    };
    let tracepoints_ppb = (ratio(|name| !is_probe(name)) * 1e9) as u32;
    Ok(Sample { bodies: bodies(&after), tracepoints_ppb, cpu_ratio: Some(ratio(|_| true)) })
}

/// Whether a program runs at a probe, and not at a tracepoint.
fn is_probe(name: &str) -> bool {
    let names = |program: &Program| {
        [Some(program.name()), program.at_return(), program.at_end()].into_iter().flatten()
    };
    Program::ALL.iter().flat_map(names).any(|probe| probe == name)
}

fn read(programs: &Programs) -> io::Result<BTreeMap<&str, Ran>> {
    let read = programs.iter().map(|(name, program)| {
        let (nanoseconds, runs) = raw::ran(program.as_fd())?;
        Ok((name.as_str(), Ran { time: Duration::from_nanos(nanoseconds), runs }))
    });
    read.collect()
}

/// What one run of each takes; what runs at the end of the same function belongs to it.
fn bodies(ran: &BTreeMap<&str, Ran>) -> [u32; Program::COUNT] {
    Program::ALL.map(|program| {
        let of = |name: Option<&str>| name.and_then(|name| ran.get(name)).copied().unwrap_or_default();
        let entry = of(Some(program.name()));
        let time = entry.time + of(program.at_return()).time + of(program.at_end()).time;
        let one = time.as_nanos().checked_div(u128::from(entry.runs)).unwrap_or(0);
        u32::try_from(one).unwrap_or(u32::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_probe_is_a_tracepoint() {
        assert!(["lp_batch", "lp_tls_read_end"].iter().all(|name| is_probe(name)));
        assert!(!["lp_switch", "lp_sent", "lp_exec"].iter().any(|name| is_probe(name)));
    }

    #[test]
    fn the_time_of_a_run_is_that_of_entry_and_end() {
        let of = |time, runs| Ran { time: Duration::from_nanos(time), runs };
        let ran = BTreeMap::from([
            ("lp_batch", of(9_000, 9)),
            ("lp_tls_read", of(1_000, 10)),
            ("lp_tls_read_end", of(2_000, 5)),
            ("lp_exec", of(77, 1)),
        ]);
        let bodies = bodies(&ran);
        assert_eq!(bodies[Program::Batch as usize], 1_000);
        assert_eq!(bodies[Program::TlsRead as usize], 300);
        assert_eq!(bodies.iter().filter(|ns| **ns > 0).count(), 2);
    }
}
