//! Processes come and go: who is looked at when, and what is attached for whom.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use llamaprobe_common::{event::ProcessEventKind, layout::ExtLayout, target::TargetConfig};
use tracing::{error, info, warn};

use super::{
    Agent, Switches,
    looks::{Looked, Rank},
    process::{Action, Process, reconcile},
    seats::Claim,
};
use crate::{
    bpf::{attach::Hook, events, read::Reading},
    discovery::Target,
    engines,
    judge::Judged,
    keeper::{Attach, Done, Failure, Order},
    plan::{Joining, Plan, Verdict, catalog::Role},
    session::Input,
};

/// How long after an event a process is looked at: a starting program maps a dozen files within this time.
const SETTLE: Duration = Duration::from_millis(20);
/// When a program that has just started is looked at: at last for libraries whose mapping was not told.
const STARTS: &[Duration] = &[SETTLE, ms(200), ms(700), ms(4000)];
/// The same for one that is called like a server: it may answer soon.
const SERVER_STARTS: &[Duration] = &[ms(3), ms(10), ms(20), ms(50), ms(200), ms(700), ms(4000)];
/// Processes that are known to map llama.cpp, whether or not there is a seat for each.
const MOST_PROCESSES: usize = 1024;
/// Files that could not be read and are remembered, so that each is said once.
const MOST_FAULTS: usize = 1024;
/// When what could not be finished is looked at again.
const SOON: Duration = ms(200);
/// Over how long the looks of a rescan are spread.
const SPREAD: Duration = Duration::from_secs(10);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Agent {
    pub(super) fn process_event(&mut self, entry: &[u8]) {
        if let Some(shown) = events::shown(entry) {
            return self.maps.learn(&shown);
        }
        let known = events::process(entry);
        let Some((event, kind)) =
            known.and_then(|event| Some((event, ProcessEventKind::from_wire(event.kind)?)))
        else {
            return warn!(len = entry.len(), "unknown process event");
        };
        let (now, pid) = (Instant::now(), event.tgid);
        let owner = event.owner;
        match kind {
            ProcessEventKind::Exec => {
                // Another program in the same process: what was counted before is not its.
                self.end(pid);
                let named = engines::may_serve(&event.comm);
                let (rank, times) = if named { (Rank::Likely, SERVER_STARTS) } else { (Rank::Any, STARTS) };
                self.look(pid, owner, rank, &Vec::from_iter(times.iter().map(|later| now + *later)));
            }
            ProcessEventKind::Exit => self.end(pid),
            ProcessEventKind::Stranger | ProcessEventKind::Listen => {
                if kind == ProcessEventKind::Stranger && self.strangers.len() < MOST_PROCESSES {
                    self.strangers.insert(pid);
                }
                self.look(pid, owner, Rank::Likely, &[now]);
            }
            ProcessEventKind::Map => self.look(pid, owner, Rank::Any, &[now + SETTLE]),
        }
    }

    /// Has a process of a user looked at, if it is one of those that are meant.
    pub(super) fn look(&self, pid: u32, owner: u32, rank: Rank, times: &[Instant]) {
        if self.only.is_empty() || self.only.contains(&pid) {
            self.looks.at(pid, owner, rank, times);
        }
    }

    /// Has all processes looked at, those of the first time at once.
    pub(super) fn rescan(&mut self) {
        self.room.order(Order::Memory);
        if self.only.is_empty() {
            self.looks.at_all();
        } else {
            let only = self.only.iter().map(|pid| (*pid, 0)).collect::<Vec<_>>();
            self.listed(Instant::now(), &only);
        }
    }

    /// These are all processes. One that was not known when they were `asked` for may have started since.
    fn listed(&mut self, asked: Instant, all: &[(u32, u32)]) {
        let pids: BTreeSet<u32> = all.iter().map(|(pid, _)| *pid).collect();
        if self.only.is_empty() {
            let gone = |(pid, process): (&u32, &Process)| {
                (process.since < asked && !pids.contains(pid)).then_some(*pid)
            };
            let gone: Vec<u32> = self.processes.iter().filter_map(gone).collect();
            gone.into_iter().for_each(|pid| self.end(pid));
            self.unobservable.retain(|pid, _| pids.contains(pid));
        }
        let now = Instant::now();
        let first = self.first.is_none();
        let step =
            if first { Duration::ZERO } else { SPREAD / u32::try_from(pids.len().max(1)).unwrap_or(1) };
        let mut time = now;
        for (pid, owner) in all {
            let rank = if first || self.processes.contains_key(pid) { Rank::Likely } else { Rank::Routine };
            self.look(*pid, *owner, rank, &[time]);
            time += step;
        }
        if first {
            self.first = Some(pids);
        }
        self.check_ready();
    }

    /// Ready is who has looked at, and attached for, all processes that were there at the start.
    pub(super) fn check_ready(&mut self) {
        if !self.health.is_ready()
            && self.first.as_ref().is_some_and(BTreeSet::is_empty)
            && self.processes.values().all(|process| process.attaching.is_none())
        {
            self.health.set_ready();
            self.room.order(Order::Memory);
            info!(targets = self.seats().len(), late_loads = self.late_loads, "ready");
        }
    }

    pub(super) fn looked(&mut self, looked: Looked) {
        match looked {
            Looked::All(asked, pids) => self.listed(asked, &pids),
            Looked::Process(pid, judged) => {
                self.judged(pid, judged);
                if let Some(first) = &mut self.first {
                    first.remove(&pid);
                }
                self.check_ready();
            }
            Looked::Abandoned(pid, device, why) => {
                let device = device.as_deref().unwrap_or("unknown");
                warn!(pid, device, ?why, "a look at a process did not end; it is left alone for a while");
                if let Some(first) = &mut self.first {
                    first.remove(&pid);
                }
                self.check_ready();
            }
            Looked::Connections(id, open) => {
                if self.is_observed(id) {
                    if let Err(error) = self.maps.adopt(id.pid, &open) {
                        warn!(
                            id.pid, %error,
                            "requests on connections that were open before are not followed"
                        );
                    }
                    self.follow_sessions();
                }
            }
            Looked::Thread(id, thread) => {
                if self.is_observed(id) {
                    self.apply(Input::Thread { pid: id.pid, thread });
                }
            }
            Looked::Fault(path, fault) => {
                // Each scout says it once.
                if self.faults.len() >= MOST_FAULTS {
                    self.faults.clear();
                }
                if self.faults.get(&path) != Some(&fault) {
                    warn!(path = %path.display(), fault, "a file that processes map cannot be read");
                    self.faults.insert(path, fault);
                }
            }
        }
    }

    /// Brings what is attached in line with what a process is now.
    fn judged(&mut self, pid: u32, judged: Judged) {
        match judged {
            Judged::Llama(target, _) | Judged::Opaque(target)
                if self.network.is_some_and(|own| own != target.place.network) =>
            {
                self.end(pid);
            }
            Judged::Llama(target, verdict) => {
                if self.processes.get(&pid).is_some_and(|known| known.id != target.id()) {
                    self.end(pid);
                }
                match verdict {
                    Verdict::Observable(plan) => self.watch(*target, plan),
                    Verdict::Unsupported(why) => self.refuse(pid, &target.comm, why),
                    Verdict::Foreign => self.end(pid),
                }
            }
            Judged::Opaque(target) => self.refuse(pid, &target.comm, target.why_opaque()),
            Judged::Closed | Judged::Nothing(_) => self.end(pid),
            // What it was it may still be.
            Judged::Costly => {}
        }
    }

    fn refuse(&mut self, pid: u32, comm: &str, why: &str) {
        // Its end forgets what was said of it.
        let said = self.unobservable.remove(&pid);
        self.end(pid);
        self.unobservable.insert(pid, why.to_owned());
        if said.as_deref() != Some(why) {
            warn!(pid, comm, why, "cannot be observed; `llamaprobe plan` tells more");
        }
    }

    /// Says how the batches of a process lie in its memory as soon as that is known, or that it is not.
    pub(super) fn tell_layouts(&mut self, pid: u32, reading: &Reading) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        for (image, state) in &reading.layouts {
            let layout = state.proved();
            if (layout.is_none() && state.shown == 0) || process.layouts.get(image) == Some(&layout) {
                continue;
            }
            process.layouts.insert(*image, layout);
            match layout {
                Some(ExtLayout { tokens, stride, .. }) => {
                    info!(pid, tokens, stride, "the layout of its batches is proved")
                }
                None => {
                    warn!(pid, "its batches lie in memory in no way that is known: prompt tokens are not")
                }
            }
        }
    }

    /// Looks anew at processes that have turned out to be servers.
    pub(super) fn look_at_new_servers(&mut self) {
        let turned = |(pid, process): (&u32, &mut Process)| {
            let undecided = !process.has_started && process.live?.flags & TargetConfig::EITHER != 0;
            process.has_started |= undecided && self.maps.noted(*pid) & TargetConfig::STARTED != 0;
            (undecided && process.has_started).then_some(*pid)
        };
        let turned: Vec<u32> = self.processes.iter_mut().filter_map(turned).collect();
        turned.into_iter().for_each(|pid| self.look(pid, 0, Rank::Likely, &[Instant::now()]));
    }

    /// The sockets are followed as long as there is a server.
    pub(super) fn follow_sockets(&mut self) {
        let observed = self.session.observed().map(|observed| observed.flags);
        let coming =
            self.processes.values().filter_map(|process| Some(process.attaching.as_ref()?.plan.flags));
        let http = observed.chain(coming).any(|flags| flags & TargetConfig::HTTP != 0);
        if http != self.follows_sockets && !self.sockets_unavailable {
            self.follows_sockets = http;
            self.room.order(Order::Sockets(http));
        }
        let predicts = http && self.session.observed().any(|observed| observed.target.told.predict.is_some());
        let wanted =
            if self.session.observed().next().is_some() { Switches::Followed } else { Switches::Left };
        if self.switches != Switches::Unavailable && wanted != self.switches {
            self.switches = wanted;
            self.room.order(Order::Switches(wanted == Switches::Followed));
        }
        if predicts != self.follows_offspring {
            self.follows_offspring = predicts;
            self.room.order(Order::Offspring(predicts));
        }
    }

    fn watch(&mut self, mut target: Target, mut plan: Plan) {
        let now = Instant::now();
        if self.processes.get(&target.pid).is_some_and(|process| process.has_started) {
            plan.commit_to_server();
        }
        if !self.payload {
            plan.flags |= TargetConfig::NO_PAYLOAD;
        }
        if self.trace_drafts {
            plan.flags |= TargetConfig::DRAFT_STEPS;
        }
        if self.wants_steps {
            plan.flags |= TargetConfig::STEPS;
        }
        if target.told.predict.is_some() {
            plan.flags |= TargetConfig::PREDICTS;
        }
        let pid = target.pid;
        let known = self.processes.get(&pid);
        if known.is_none() && self.processes.len() >= MOST_PROCESSES {
            return self.refuse(pid, &target.comm, "as many processes as possible are known already");
        }
        for action in reconcile(&plan, known, now) {
            match action {
                Action::LookSoon => return self.look(pid, target.owner, Rank::Likely, &[now + SOON]),
                Action::DetachOwn => self.room.order(Order::DetachOwn(pid)),
                Action::Observe => {
                    target.close();
                    return self.observe(target, plan);
                }
                Action::Attach => return self.attach(now, target, plan),
            }
        }
    }

    /// Has the probes of a plan attached for a process.
    fn attach(&mut self, now: Instant, mut target: Target, plan: Plan) {
        let pid = target.pid;
        let files = target.images.iter().filter_map(|it| Some((it.image.id, it.file.clone()?)));
        let (images, files) = files.unzip();
        target.close();
        self.orders += 1;
        let attach = Attach {
            number: self.orders,
            id: target.id(),
            hooks: plan.probes.iter().map(Hook::from).collect(),
            images,
            urgent: self.claim(&target) > Claim::Idle,
        };
        let process = self.processes.entry(pid).or_insert_with(|| Process::new(&target, now));
        process.attach(now, self.orders, target, plan);
        // Sockets first: a request whose beginning was not seen is not told.
        self.follow_sockets();
        self.room.order_with(Order::Attach(attach), files);
    }

    /// Something was done in the engine room.
    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Attached(number, id, failures) => {
                let process = self.processes.get_mut(&id.pid);
                match process.and_then(|process| process.attached(number, &failures)) {
                    Some((attached, old)) => {
                        // What the new order attaches is kept; the rest of the old ones has no user any more.
                        old.into_iter().for_each(|order| self.room.order(Order::Replace(order)));
                        self.attached(attached.target, attached.plan, &failures);
                    }
                    // It ended meanwhile: what was attached for it is not wanted any more.
                    None => self.room.order(Order::Release(number)),
                }
                self.check_ready();
            }
            Done::NoSockets(error) => {
                if !std::mem::replace(&mut self.sockets_unavailable, true) {
                    self.attach_failures += 1;
                    error!(%error, "HTTP requests cannot be followed; tokens and steps are");
                }
            }
            Done::NoOffspring(error) => warn!(%error, "tokens of predictions are nobody's"),
            Done::NoSwitches(error) => {
                self.switches = Switches::Unavailable;
                warn!(%error, "what holds decode steps back is not seen");
            }
            Done::NoSessions(error) => {
                warn!(%error, "requests over TLS on connections that were open before are not followed");
            }
            Done::Cost(programs) => self.programs = programs,
            Done::Memory(bytes) => self.memory = bytes,
            // Those are heard before they come here.
            Done::Loaded { .. } | Done::NotLoaded(_) | Done::Said(_) | Done::Scout(_) => {}
            Done::NoScout(_) | Done::Closed | Done::Ended(_) => {}
        }
    }

    fn attached(&mut self, target: Target, mut plan: Plan, failures: &[Failure]) {
        let pid = target.pid;
        self.attach_failures += failures.len() as u64;
        for Failure { place, cause, .. } in failures {
            let Some(probe) = plan.probes.get(*place) else { continue };
            let (name, file, offset) = (probe.probe.name(), probe.image.path.display(), probe.offset());
            let failure = format!("{name} at {file}+{offset:#x} ({}): {cause}", probe.symbol);
            error!(pid, failure, "a probe cannot be attached");
        }
        self.without_failed(pid, &mut plan);
        let probed = plan.joining() != Joining::Answers;
        if probed && !plan.probes.iter().any(|probe| probe.role == Role::Batch) {
            let denied = failures.iter().any(|failure| failure.denied);
            let why =
                if denied { self.needed.clone() } else { "its decode calls cannot be probed".to_owned() };
            return self.refuse(pid, &target.comm, &why);
        }
        self.unobservable.remove(&pid);
        self.observe(target, plan);
    }

    /// What is not attached is not served: the metrics of these roles stay absent.
    pub(super) fn without_failed(&self, pid: u32, plan: &mut Plan) {
        if self.processes.get(&pid).is_some_and(|process| process.without_failed(plan)) {
            self.room.order(Order::DetachOwn(pid));
        }
    }

    /// A process ended or is llama.cpp no longer. Nothing happens when it was not observed.
    pub(super) fn end(&mut self, pid: u32) {
        self.unobservable.remove(&pid);
        self.strangers.remove(&pid);
        if !self.processes.contains_key(&pid) {
            return;
        }
        self.unseat(pid);
        for order in self.processes.remove(&pid).map(|process| process.orders).unwrap_or_default() {
            self.room.order(Order::Release(order));
        }
    }
}
