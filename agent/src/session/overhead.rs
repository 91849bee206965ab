//! What probes cost the processes they are in.

use std::time::{Duration, Instant};

use llamaprobe_common::{probe::ProbeId, target::TargetStats};

use super::observed::Observed;
use crate::{bpf::calibrate::Prices, plan::site::Stepping};

/// The shortest interval the overhead is computed over.
const INTERVAL: Duration = Duration::from_secs(10);

/// The share of time that a process spends in probes, over a sliding interval.
#[derive(Debug, Default)]
pub(super) struct Overhead {
    from: Option<(Instant, f64)>,
    pub(super) ratio: f64,
}

impl Overhead {
    /// `spent` is the time spent in probes since the process is observed.
    pub(super) fn update(&mut self, now: Instant, spent: f64) {
        let Some((from, before)) = self.from else {
            self.from = Some((now, spent));
            return;
        };
        let elapsed = now.duration_since(from);
        if elapsed >= INTERVAL {
            self.ratio = (spent - before).max(0.0) / elapsed.as_secs_f64();
            self.from = Some((now, spent));
        }
    }
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
