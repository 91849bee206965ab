//! What has been counted, by labels: it outlives the processes that counted it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use llamaprobe_common::{
    probe::ProbeId,
    target::{TargetStats, TokenType},
};

use super::{
    Labels, Record,
    cost::Basis,
    shown::{LAST, ShownRequest},
    stalls::Lost,
    steps::Steps,
    tally::Tally,
    usage::Usage,
    window::Window,
};
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
    pub(super) lost: Option<Lost>,
    pub(super) window: Window<Totals>,
    /// The last inference requests that are over, the oldest first.
    last: VecDeque<ShownRequest>,
    touched: Instant,
}

impl Account {
    /// A request is over: it is shown for a while, with the longest of the decode calls of its process.
    pub(super) fn show(&mut self, record: &Record, steps: Option<&Steps>) {
        if self.last.len() >= LAST {
            self.last.pop_front();
        }
        let label = |user: Option<&str>| self.usage.label(user).to_owned();
        let mut shown = ShownRequest::finished(record, label);
        shown.longest_steps = steps.map_or_else(Vec::new, |steps| steps.longest(&shown.time()));
        self.last.push_back(shown);
    }

    /// They can be added to.
    pub(super) fn last_mut(&mut self) -> impl Iterator<Item = &mut ShownRequest> {
        self.last.iter_mut()
    }

    /// The last requests that are over, the latest first.
    pub(super) fn last(&self) -> impl Iterator<Item = &ShownRequest> {
        self.last.iter().rev()
    }
}

/// What the window's figures are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    /// Tokens by type.
    pub(super) tokens: [u64; TokenType::COUNT],
    /// Cost in dollars, by [`Basis`].
    pub(super) dollars: [f64; Basis::COUNT],
}

/// The accounts.
#[derive(Debug)]
pub(super) struct Ledger {
    accounts: BTreeMap<Labels, Account>,
    /// Users told apart in each.
    users: usize,
}

impl Ledger {
    /// No account yet; each will tell `users` apart.
    pub(super) fn new(users: usize) -> Self {
        Self { accounts: BTreeMap::new(), users }
    }

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
        account.stats.add(&stats.since(credited));
        account.served.clone_from(served);
        account.touched = now;
        *credited = *stats;
    }

    /// Books what decode steps have lost: nothing, perhaps, but that is known then.
    pub(super) fn lose(&mut self, now: Instant, labels: &Labels, lost: &Lost) {
        self.account(now, labels).lost.get_or_insert_default().add(lost);
    }

    /// The account of these labels, opened when there is none.
    pub(super) fn account(&mut self, now: Instant, labels: &Labels) -> &mut Account {
        let users = self.users;
        self.accounts.entry(labels.clone()).or_insert_with(|| Account {
            stats: TargetStats::default(),
            served: BTreeSet::new(),
            tally: Tally::default(),
            usage: Usage::new(users),
            lost: None,
            window: Window::default(),
            last: VecDeque::new(),
            touched: now,
        })
    }

    /// The account of these labels, if there is one.
    pub(super) fn opened(&mut self, labels: &Labels) -> Option<&mut Account> {
        self.accounts.get_mut(labels)
    }

    /// What is counted of the requests of these labels.
    pub(super) fn tally(&mut self, now: Instant, labels: &Labels) -> &mut Tally {
        let account = self.account(now, labels);
        account.touched = now;
        &mut account.tally
    }

    /// Drops accounts that no living process has and none has touched for [`KEEP_ENDED`].
    pub(super) fn forget(&mut self, now: Instant, living: &BTreeSet<Labels>) {
        self.accounts.retain(|labels, account| {
            living.contains(labels) || now.duration_since(account.touched) < KEEP_ENDED
        });
    }

    /// Forgets all that was counted.
    pub(super) fn clear(&mut self) {
        self.accounts.clear();
    }

    /// The use of all servers.
    pub(super) fn usages(&mut self) -> impl Iterator<Item = &mut Usage> {
        self.accounts.values_mut().map(|account| &mut account.usage)
    }

    /// The accounts, sorted by labels.
    pub(super) fn accounts(&self) -> impl Iterator<Item = (&Labels, &Account)> {
        self.accounts.iter()
    }
}
