//! What has been counted, by labels: it outlives the processes that counted it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use llamaprobe_common::{probe::ProbeId, target::TargetStats};

use super::{Labels, cost::Basis, tally::Tally, usage::Usage, window::Window};
use crate::plan::catalog::Role;

/// How long a series outlives its last process: two scrapes of the usual interval and some.
pub const KEEP_ENDED: Duration = Duration::from_secs(45);

/// What has been counted under one set of labels.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) stats: TargetStats,
    pub(super) served: BTreeSet<(Role, ProbeId)>,
    pub(super) tally: Tally,
    pub(super) usage: Usage,
    pub(super) window: Window<Totals>,
    touched: Instant,
}

/// What the window's figures are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    /// Tokens by type.
    pub(super) tokens: [u64; 3],
    /// Cost in dollars, by [`Basis`].
    pub(super) dollars: [f64; Basis::ALL.len()],
}

/// The accounts.
#[derive(Debug, Default)]
pub(super) struct Ledger(BTreeMap<Labels, Account>);

impl Ledger {
    /// Books what a process has counted since `credited`, and says in `credited` that it did.
    pub(super) fn book(
        &mut self,
        now: Instant,
        labels: &Labels,
        served: &BTreeSet<(Role, ProbeId)>,
        stats: &TargetStats,
        credited: &mut TargetStats,
    ) {
        let account = self.account(now, labels);
        account.stats.add(&difference(stats, credited));
        account.served.clone_from(served);
        account.touched = now;
        *credited = *stats;
    }

    /// The account of these labels, opened when there is none.
    pub(super) fn account(&mut self, now: Instant, labels: &Labels) -> &mut Account {
        self.0.entry(labels.clone()).or_insert_with(|| Account {
            stats: TargetStats::default(),
            served: BTreeSet::new(),
            tally: Tally::default(),
            usage: Usage::default(),
            window: Window::default(),
            touched: now,
        })
    }

    /// What is counted of the requests of these labels.
    pub(super) fn tally(&mut self, now: Instant, labels: &Labels) -> &mut Tally {
        let account = self.account(now, labels);
        account.touched = now;
        &mut account.tally
    }

    /// Drops accounts that no living process has and none has touched for [`KEEP_ENDED`].
    pub(super) fn forget(&mut self, now: Instant, living: &BTreeSet<Labels>) {
        self.0.retain(|labels, account| {
            living.contains(labels) || now.duration_since(account.touched) < KEEP_ENDED
        });
    }

    /// The use of all servers.
    pub(super) fn usages(&mut self) -> impl Iterator<Item = &mut Usage> {
        self.0.values_mut().map(|account| &mut account.usage)
    }

    /// The accounts, sorted by labels.
    pub(super) fn accounts(&self) -> impl Iterator<Item = (&Labels, &Account)> {
        self.0.iter()
    }
}

/// What was counted since `before`. Counters of one process never go back.
fn difference(now: &TargetStats, before: &TargetStats) -> TargetStats {
    let mut difference = *now;
    let minus = |mine: &mut u64, theirs: &u64| *mine = mine.saturating_sub(*theirs);
    minus(&mut difference.accepted, &before.accepted);
    minus(&mut difference.rejected, &before.rejected);
    minus(&mut difference.shifts, &before.shifts);
    minus(&mut difference.engine_ns, &before.engine_ns);
    difference.hits.iter_mut().zip(&before.hits).for_each(|(a, b)| minus(a, b));
    difference.losses.iter_mut().zip(&before.losses).for_each(|(a, b)| minus(a, b));
    difference.tokens.iter_mut().zip(&before.tokens).for_each(|(a, b)| minus(a, b));
    difference.unattributed.iter_mut().zip(&before.unattributed).for_each(|(a, b)| minus(a, b));
    for (mine, theirs) in [
        (&mut difference.inter_token, &before.inter_token),
        (&mut difference.step, &before.step),
        (&mut difference.batch, &before.batch),
    ] {
        mine.counts.iter_mut().zip(&theirs.counts).for_each(|(a, b)| minus(a, b));
        minus(&mut mine.sum, &theirs.sum);
    }
    difference
}
