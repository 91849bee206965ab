//! Who pays: what requests and processes have used is booked under the user's name, and priced.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use llamaprobe_common::{batch::Context, sequence::Sequence, target::TargetConfig};
use serde::{Deserialize, Serialize};

use super::{
    Labels, Session,
    charge::Charge,
    cost::{Basis, HostTime, Rates},
    finished::{Finished, Join},
    identity::Naming,
    ledger::Totals,
    payload::text::Phrases,
};
use crate::bpf::read::Reading;

/// How requests are booked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Billing {
    /// How requests get their users' names.
    pub naming: Naming,
    /// Users told apart of each server.
    pub users: usize,
    /// What use costs.
    pub rates: Rates,
    /// With what an answer begins that is a refusal. It is known only where answers are read.
    #[serde(skip)]
    pub phrases: Phrases,
}

/// The books.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) rates: Rates,
    pub(super) host: HostTime,
    /// Models of which it was said that they have no price.
    unpriced: BTreeSet<String>,
}

impl Books {
    pub(super) fn new(now: Instant, billing: &Billing) -> Self {
        Self { rates: billing.rates.clone(), host: HostTime::new(now), unpriced: BTreeSet::new() }
    }
}

impl Session {
    /// Names and prices are others from now on.
    pub(super) fn rebill(&mut self, billing: Billing) {
        self.requests.rename(billing.naming);
        self.books.rates = billing.rates;
        self.books.unpriced.clear();
    }

    /// Models that are served and have no price, though there is a price list. Each is told once.
    pub(super) fn take_unpriced(&mut self) -> Vec<String> {
        let Books { rates, unpriced, .. } = &mut self.books;
        let served = self.watched.values().filter_map(|watched| watched.labels.as_ref());
        let models = served.map(|labels| &labels.model).filter(|model| !model.is_empty());
        let without = models.filter(|model| !rates.tokens.is_empty() && rates.of(model).is_none());
        without.filter(|model| unpriced.insert((*model).clone())).cloned().collect()
    }

    /// Charges a user of a server.
    fn charge(&mut self, now: Instant, labels: &Labels, user: Option<&str>, charge: Charge) {
        if charge.is_empty() {
            return;
        }
        let prices = self.books.rates.of(&labels.model);
        self.ledger.account(now, labels).usage.charge(user, charge, prices);
    }

    /// Charges what a finished request has not been charged with before. Returns its cost by [`Basis`].
    pub(super) fn charge_finished(
        &mut self,
        now: Instant,
        labels: &Labels,
        request: &Finished,
    ) -> [Option<f64>; 2] {
        self.charge(now, labels, request.user.as_deref(), request.due);
        let usage = &mut self.ledger.account(now, labels).usage;
        for culprit in &request.slowed_by {
            usage.wait(request.user.as_deref(), culprit.user.as_deref(), culprit.waited.total_ns());
        }
        let prices = self.books.rates.of(&labels.model);
        let by_tokens = |used: Charge| prices.map(|prices| prices.dollars(used));
        match request.join {
            // What it used is not known, which is not nothing.
            Join::Ambiguous | Join::Unmatched | Join::Uncertain | Join::Partial => [None; 2],
            Join::Answer => [by_tokens(request.said()), None],
            _ => [by_tokens(request.used), self.books.rates.engine(request.used.engine_ns)],
        }
    }

    /// Charges what requests under way have used up to a reading of their process, and what belongs to none.
    pub(super) fn charge_running(&mut self, now: Instant, pid: u32, labels: &Labels, reading: &Reading) {
        let active = reading.sequences.iter().map(|(_, sequence)| sequence);
        for sequence in active.filter(|sequence| sequence.flags & Sequence::ACTIVE != 0) {
            self.requests.progress(&sequence.request, sequence.task, Charge::of_sequence(sequence));
        }
        for (user, due) in self.requests.take_due(pid) {
            self.charge(now, labels, user.as_deref(), due);
        }
        let prices = self.books.rates.of(&labels.model);
        let mut held_back = self.unjoined(pid, reading);
        held_back.add(self.requests.due(pid));
        let account = self.ledger.account(now, labels);
        account.usage.balance(Charge::of_process(&account.stats).since(held_back), prices);
        let (charge, dollars) = account.usage.total();
        account.window.note(now, Totals { tokens: charge.tokens, dollars });
    }

    /// A process has ended: what was held back for requests that will not be told any more belongs to none.
    pub(super) fn release_held(&mut self, now: Instant, pid: u32) {
        let Some(labels) = self.watched.get(&pid).and_then(|watched| watched.labels.clone()) else { return };
        let prices = self.books.rates.of(&labels.model);
        let account = self.ledger.account(now, &labels);
        account.usage.balance(Charge::of_process(&account.stats), prices);
    }

    /// What was used for requests that are not known yet: where joins are inferred, tokens are charged when the request is
    /// told, since what was charged to nobody is never taken back.
    fn unjoined(&self, pid: u32, reading: &Reading) -> Charge {
        let Some(mut unjoined) = self.requests.unjoined(pid) else { return Charge::default() };
        let running = reading.sequences.iter().map(|(_, sequence)| sequence);
        running
            // Of those that ran before the agent came no request will be told.
            .filter(|sequence| sequence.flags & Sequence::ACTIVE != 0 && sequence.launched_ns != 0)
            .for_each(|sequence| unjoined.add(Charge::of_sequence(sequence)));
        unjoined
    }

    /// Shares the host's time out, after all processes have been read.
    pub(super) fn share_host(&mut self, now: Instant, now_ns: u64) {
        let Some(per_hour) = self.books.rates.host_per_hour else { return };
        let used = Duration::from_nanos(self.ledger.usages().map(|usage| usage.unshared_ns()).sum());
        let part = self.books.host.share(now, used, self.running(now_ns));
        let dollars_per_ns = per_hour / 3.6e12 * part;
        self.ledger.usages().for_each(|usage| usage.share(dollars_per_ns));
    }

    /// Time that decode calls under way have taken.
    fn running(&self, now_ns: u64) -> Duration {
        let servers =
            self.watched.values().filter(|watched| watched.observed.flags & TargetConfig::SLOTS != 0);
        let contexts = servers.flat_map(|watched| &watched.contexts).map(|(_, context)| context);
        let pending = contexts.filter(|context| context.flags & Context::PENDING != 0);
        Duration::from_nanos(pending.map(|context| now_ns.saturating_sub(context.entered_ns)).sum())
    }

    /// What the host costs an hour, and what of that nobody has used so far, dollars.
    pub(super) fn host(&self) -> Option<(f64, f64)> {
        let per_hour = self.books.rates.host_per_hour?;
        Some((per_hour, self.books.host.idle().as_secs_f64() / 3600.0 * per_hour))
    }

    /// How many users are told apart.
    pub(super) fn users(&self) -> usize {
        let users = self.ledger.accounts().flat_map(|(_, account)| account.usage.told_apart());
        users.collect::<BTreeSet<_>>().len()
    }

    /// Whether costs on a basis are known for a model.
    pub(super) fn is_priced(&self, model: &str, basis: Basis) -> bool {
        match basis {
            Basis::Tokens => self.books.rates.of(model).is_some(),
            Basis::Host => self.books.rates.host_per_hour.is_some(),
        }
    }
}
