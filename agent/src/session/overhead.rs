//! What observing costs the processes that are observed: their probes, and their share of the tracepoints.

use std::time::{Duration, Instant};

use llamaprobe_common::{probe::ProbeId, target::TargetStats};

use super::observed::Observed;
use crate::{bpf::calibrate::Prices, plan::site::Stepping};

/// The shortest interval the overhead is computed over.
const INTERVAL: Duration = Duration::from_secs(10);

/// The share of time that a process spends on being observed, over a sliding interval.
#[derive(Debug, Default)]
pub(super) struct Overhead {
    from: Option<(Instant, f64)>,
    pub(super) ratio: f64,
}

impl Overhead {
    /// `spent` is the time spent in probes since the process is observed, `tracepoints` the share of time that it spends in
    /// programs at tracepoints.
    pub(super) fn update(&mut self, now: Instant, spent: f64, tracepoints: f64) {
        let Some((from, before)) = self.from else {
            self.from = Some((now, spent));
            return;
        };
        let elapsed = now.duration_since(from);
        if elapsed >= INTERVAL {
            self.ratio = (spent - before).max(0.0) / elapsed.as_secs_f64() + tracepoints;
            self.from = Some((now, spent));
        }
    }
}

/// The share of time that each of `observed` processes spends in programs at tracepoints. These are not counted by process:
/// each has the same part of what they take wherever they run, which is more than its own.
pub(super) fn tracepoints(prices: Prices, observed: usize) -> f64 {
    f64::from(prices.tracepoints_ppb) * 1e-9 / observed.max(1) as f64
}

/// Seconds spent in probes: hits times the price of the site each was attached to, and of the program that ran there.
pub(super) fn spent(observed: &Observed, stats: &TargetStats, prices: Prices) -> f64 {
    let price = |id: ProbeId| {
        let Some(hook) = observed.hooks.iter().find(|hook| hook.probe() == id) else {
            return prices.of(Stepping::Emulated);
        };
        prices.of(hook.stepping).saturating_add(prices.bodies[usize::from(hook.program)])
    };
    let spent = ProbeId::ALL.iter().map(|&id| stats.hits[id as usize] as f64 * f64::from(price(id)) * 1e-9);
    spent.sum()
}
