//! A process that maps llama.cpp: what is wanted for it, what is there, and what brings the two together. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use llamaprobe_common::{layout::ExtLayout, target::TargetConfig};

use super::seats::Seat;
use crate::{
    discovery::{Target, image::ImageId, process::ProcessId},
    keeper::Failure,
    plan::{Plan, catalog::Role},
};

/// When a probe that could not be attached is tried again.
const AGAIN: Duration = Duration::from_secs(25);

/// A place where a probe is attached: a file, and the offset of an instruction in it.
pub(super) type Place = (ImageId, u64);

/// A process that maps llama.cpp.
pub(crate) struct Process {
    /// Which it is: another one may have its number later.
    pub(super) id: ProcessId,
    /// Since when it is known.
    pub(super) since: Instant,
    /// Its row of counters, if it has one.
    pub(super) seat: Option<Seat>,
    /// What the programs know of it, when it is observed.
    pub(super) live: Option<TargetConfig>,
    /// What it will be when its probes are attached.
    pub(super) attaching: Option<Box<Attaching>>,
    /// The orders by which its probes were attached.
    pub(super) orders: Vec<u64>,
    /// Where the last of them attaches.
    sites: BTreeSet<Place>,
    /// Where nothing could be attached, and when that was tried.
    failed: BTreeSet<Place>,
    tried: Instant,
    /// A return probe is attached for it alone.
    tls: bool,
    /// A slot has started: it is a server.
    pub(super) has_started: bool,
    /// What was said of the layout of its batches, by file.
    pub(super) layouts: BTreeMap<u32, Option<ExtLayout>>,
}

/// What is attached for a process at this moment.
pub(super) struct Attaching {
    /// The number of the order.
    pub(super) number: u64,
    /// The process as it was looked at.
    pub(super) target: Target,
    /// What is attached.
    pub(super) plan: Plan,
}

/// What is to be done so that what is there is what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Something is being attached: what was found meanwhile is found again in a moment.
    LookSoon,
    /// What is attached for the process alone goes.
    DetachOwn,
    /// Probes are attached.
    Attach,
    /// All that is wanted is there: it is observed.
    Observe,
}

impl Action {
    /// For people and scripts.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::LookSoon => "look again soon",
            Self::DetachOwn => "detach what is its own",
            Self::Attach => "attach",
            Self::Observe => "observe",
        }
    }
}

/// What is to be done for a process for which `wanted` is planned, of which `actual` is there.
pub(crate) fn reconcile(wanted: &Plan, actual: Option<&Process>, now: Instant) -> Vec<Action> {
    let Some(actual) = actual else { return vec![Action::Attach] };
    if actual.attaching.is_some() {
        return vec![Action::LookSoon];
    }
    let mut actions = Vec::new();
    if actual.tls && !has_tls(wanted) {
        // It is under a seccomp filter by now: no return probe may stay.
        actions.push(Action::DetachOwn);
    }
    let is_there = actual.sites == places(wanted);
    let may_wait = actual.failed.is_empty() || now.saturating_duration_since(actual.tried) < AGAIN;
    actions.push(if is_there && may_wait { Action::Observe } else { Action::Attach });
    actions
}

impl Process {
    /// One for which nothing is done yet.
    pub(super) fn new(target: &Target, now: Instant) -> Self {
        Self {
            id: target.id(),
            since: now,
            seat: None,
            live: None,
            attaching: None,
            orders: Vec::new(),
            sites: BTreeSet::new(),
            failed: BTreeSet::new(),
            tried: now,
            tls: false,
            has_started: false,
            layouts: BTreeMap::new(),
        }
    }

    /// A plan is being attached by an order.
    pub(super) fn attach(&mut self, now: Instant, number: u64, target: Target, plan: Plan) {
        (self.sites, self.tried) = (places(&plan), now);
        self.attaching = Some(Box::new(Attaching { number, target, plan }));
    }

    /// An order was carried out, but for these of its probes. Returns what was attached and the orders that it replaces; `None`
    /// when it is not the one that is waited for.
    pub(super) fn attached(
        &mut self,
        number: u64,
        failures: &[Failure],
    ) -> Option<(Box<Attaching>, Vec<u64>)> {
        let attached = self.attaching.take_if(|it| it.number == number)?;
        self.tls = has_tls(&attached.plan);
        let failed = failures.iter().filter_map(|failure| attached.plan.probes.get(failure.place));
        self.failed = failed.map(|probe| (probe.image.id, probe.offset())).collect();
        Some((attached, std::mem::replace(&mut self.orders, vec![number])))
    }

    /// Takes out of a plan what could not be attached: the metrics of these roles stay absent. Returns whether half of a
    /// conversation is left, which would be worse than none.
    pub(super) fn without_failed(&self, plan: &mut Plan) -> bool {
        let failed = |place: Place| self.failed.contains(&place);
        let half = plan.probes.iter().any(|it| it.role == Role::Tls && failed((it.image.id, it.offset())));
        plan.probes.retain(|it| !failed((it.image.id, it.offset())));
        if half {
            plan.drop_tls("its library cannot be probed");
        }
        half
    }
}

/// Where a plan attaches: two plans with the same places need no change.
fn places(plan: &Plan) -> BTreeSet<Place> {
    plan.probes.iter().map(|probe| (probe.image.id, probe.offset())).collect()
}

fn has_tls(plan: &Plan) -> bool {
    plan.probes.iter().any(|probe| probe.role == Role::Tls)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llamaprobe_common::{cookie::Cookie, probe::ProbeId};

    use super::*;
    use crate::{
        discovery::image::{Image, Machine},
        plan::{
            Probe,
            catalog::Program,
            site::{Probed, Site, Stepping},
        },
        session::staged::process,
    };

    fn target() -> Target {
        process(7)
    }

    /// A plan with a probe for each of these roles, at offsets from 0 on.
    fn plan(roles: &[Role]) -> Plan {
        let image = Arc::new(Image {
            id: ImageId { device: 1, inode: 1, size: 1, modified_ns: 0 },
            path: "libllama.so".into(),
            build_id: None,
            machine: Machine::X86_64,
            symbols: vec![],
            imports: vec![],
            stripped: false,
        });
        let stepping = Stepping::Emulated;
        let probe = |(offset, role): (u64, &Role)| Probe {
            role: *role,
            probe: ProbeId::DecodeExt,
            image: image.clone(),
            symbol: String::new(),
            entry: offset,
            site: Site { offset: 0, instruction: Probed::default(), stepping, entry_stepping: stepping },
            end: None,
            program: Program::Batch,
            cookie: Cookie::plain(ProbeId::DecodeExt),
            until_slot: false,
        };
        Plan { probes: (0..).zip(roles).map(probe).collect(), ..Plan::default() }
    }

    /// A process for which a plan was attached by order 1, but for these offsets.
    fn attached(roles: &[Role], failed: &[u64], now: Instant) -> Process {
        let mut process = Process::new(&target(), now);
        process.attach(now, 1, target(), plan(roles));
        assert!(process.attached(2, &[]).is_none(), "another order");
        let failure = |place: &u64| Failure { place: *place as usize, cause: String::new(), denied: false };
        let failed: Vec<_> = failed.iter().map(failure).collect();
        assert!(
            process
                .attached(1, &failed)
                .is_some_and(|(attached, old)| attached.number == 1 && old.is_empty())
        );
        process
    }

    #[test]
    fn what_is_wanted_and_not_there_is_attached() {
        let now = Instant::now();
        let wanted = plan(&[Role::Batch, Role::Token]);
        assert_eq!(reconcile(&wanted, None, now), [Action::Attach]);
        let process = attached(&[Role::Batch], &[], now);
        assert_eq!(reconcile(&wanted, Some(&process), now), [Action::Attach]);
        assert_eq!(reconcile(&plan(&[Role::Batch]), Some(&process), now), [Action::Observe]);
    }

    #[test]
    fn while_something_is_attached_nothing_else_is() {
        let now = Instant::now();
        let mut process = attached(&[Role::Batch], &[], now);
        process.attach(now, 2, target(), plan(&[Role::Batch, Role::Token]));
        assert_eq!(reconcile(&plan(&[Role::Batch]), Some(&process), now), [Action::LookSoon]);
        let (_, old) = process.attached(2, &[]).unwrap();
        assert_eq!((old, process.orders.as_slice()), (vec![1], &[2][..]), "it replaces the one before");
    }

    #[test]
    fn what_failed_is_tried_again_after_a_while() {
        let now = Instant::now();
        let process = attached(&[Role::Batch, Role::Token], &[1], now);
        let wanted = plan(&[Role::Batch, Role::Token]);
        assert_eq!(reconcile(&wanted, Some(&process), now), [Action::Observe]);
        assert_eq!(reconcile(&wanted, Some(&process), now + AGAIN), [Action::Attach]);
        let mut settled = wanted;
        assert!(!process.without_failed(&mut settled));
        assert_eq!(settled.probes.iter().map(|it| it.role).collect::<Vec<_>>(), [Role::Batch]);
    }

    #[test]
    fn a_return_probe_goes_where_it_may_not_stay_and_half_a_conversation_is_none() {
        let now = Instant::now();
        let process = attached(&[Role::Batch, Role::Tls], &[], now);
        let actions = reconcile(&plan(&[Role::Batch]), Some(&process), now);
        assert_eq!(actions, [Action::DetachOwn, Action::Attach]);
        let process = attached(&[Role::Batch, Role::Tls, Role::Tls], &[2], now);
        let mut settled = plan(&[Role::Batch, Role::Tls, Role::Tls]);
        assert!(process.without_failed(&mut settled));
        assert!(!has_tls(&settled) && settled.probes.len() == 1);
    }
}
