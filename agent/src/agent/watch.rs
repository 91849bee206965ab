//! Processes come and go: who is looked at when, and what is attached for whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use llamaprobe_common::{
    event::ProcessEventKind,
    layout::ExtLayout,
    probe::ProbeId,
    request::{TEXT_WRITES, WRITES},
    target::{MAX_TARGETS, TargetConfig},
};
use tracing::{error, info, warn};

use super::{
    Agent, Seat,
    looks::{Looked, Rank},
    own::monotonic_ns,
    room::{Attach, Done, Order},
};
use crate::{
    bpf::{attach::AttachError, events, read::Reading},
    discovery::{Target, image::ImageId, process::Listener},
    doctor::NEEDED,
    judge::Judged,
    plan::{Joining, Plan, Verdict, catalog::Role},
};

/// How long after an event a process is looked at: a starting program maps a dozen files within this time.
const SETTLE: Duration = Duration::from_millis(20);
/// When a program that has just started is looked at: at last for libraries whose mapping was not told.
const STARTS: &[Duration] = &[SETTLE, ms(200), ms(700), ms(4000)];
/// The same for one that is called like a server: it may answer soon.
const SERVER_STARTS: &[Duration] = &[ms(3), ms(10), ms(20), ms(50), ms(200), ms(700), ms(4000)];
/// What programs are called that are servers.
const SERVERS: [&[u8]; 2] = [b"llama", b"ollama"];
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
            return self.kernel.learn(&shown);
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
                let named = SERVERS.iter().any(|name| event.comm.starts_with(name));
                let (rank, times) = if named { (Rank::Likely, SERVER_STARTS) } else { (Rank::Any, STARTS) };
                self.look(pid, owner, rank, &Vec::from_iter(times.iter().map(|later| now + *later)));
            }
            ProcessEventKind::Exit => self.end(pid),
            ProcessEventKind::Stranger | ProcessEventKind::Listen => {
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
        if self.only.is_empty() {
            self.looks.at_all();
        } else {
            let only = self.only.iter().map(|pid| (*pid, 0)).collect::<Vec<_>>();
            self.listed(&only);
        }
    }

    fn listed(&mut self, all: &[(u32, u32)]) {
        let pids: BTreeSet<u32> = all.iter().map(|(pid, _)| *pid).collect();
        if self.only.is_empty() {
            let gone: Vec<u32> = self.seats.keys().copied().filter(|pid| !pids.contains(pid)).collect();
            gone.into_iter().for_each(|pid| self.end(pid));
            self.unobservable.retain(|pid, _| pids.contains(pid));
        }
        let now = Instant::now();
        let first = self.first.is_none();
        let step =
            if first { Duration::ZERO } else { SPREAD / u32::try_from(pids.len().max(1)).unwrap_or(1) };
        let mut time = now;
        for (pid, owner) in all {
            let rank = if first || self.seats.contains_key(pid) { Rank::Likely } else { Rank::Routine };
            self.look(*pid, *owner, rank, &[time]);
            time += step;
        }
        if first {
            self.first = Some(pids);
        }
        self.settle_first();
    }

    /// Ready is who has looked at, and attached for, all processes that were there at the start.
    pub(super) fn settle_first(&mut self) {
        if !self.health.is_ready()
            && self.first.as_ref().is_some_and(BTreeSet::is_empty)
            && self.seats.values().all(|seat| seat.attaching.is_none())
        {
            self.health.set_ready();
            info!(targets = self.seats.len(), late_loads = self.kernel.sees_late_loads(), "ready");
        }
    }

    pub(super) fn looked(&mut self, looked: Looked) {
        match looked {
            Looked::All(pids) => self.listed(&pids),
            Looked::Process(pid, judged) => {
                self.judged(pid, judged);
                if let Some(first) = &mut self.first {
                    first.remove(&pid);
                }
                self.settle_first();
            }
            Looked::Abandoned(pid, device, why) => {
                let device = device.as_deref().unwrap_or("unknown");
                warn!(pid, device, ?why, "a look at a process did not end; it is left alone for a while");
                if let Some(first) = &mut self.first {
                    first.remove(&pid);
                }
                self.settle_first();
            }
            Looked::Connections(id, open) => {
                if self.seats.get(&id.pid).is_some_and(|seat| seat.start_time == id.start_time) {
                    if let Err(error) = self.kernel.adopt(id.pid, &open) {
                        warn!(
                            id.pid, %error,
                            "requests on connections that were open before are not followed"
                        );
                    }
                    self.follow_sessions();
                }
            }
            Looked::Fault(path, fault) => {
                warn!(path = %path.display(), fault, "a file that processes map cannot be read");
            }
        }
    }

    /// Brings what is attached in line with what a process is now.
    fn judged(&mut self, pid: u32, judged: Judged) {
        match judged {
            Judged::Llama(target, verdict) => {
                if self.seats.get(&pid).is_some_and(|seat| seat.start_time != target.start_time) {
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
        let Some(seat) = self.seats.get_mut(&pid) else { return };
        for (image, state) in &reading.layouts {
            let layout = state.proved();
            if (layout.is_none() && state.shown == 0) || seat.layouts.get(image) == Some(&layout) {
                continue;
            }
            seat.layouts.insert(*image, layout);
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
    pub(super) fn settle_servers(&mut self) {
        let turned = |(pid, seat): (&u32, &mut Seat)| {
            let undecided = !seat.has_started && seat.config.flags & TargetConfig::EITHER != 0;
            seat.has_started |= undecided && self.kernel.noted(*pid) & TargetConfig::STARTED != 0;
            (undecided && seat.has_started).then_some(*pid)
        };
        let turned: Vec<u32> = self.seats.iter_mut().filter_map(turned).collect();
        turned.into_iter().for_each(|pid| self.look(pid, 0, Rank::Likely, &[Instant::now()]));
    }

    /// The sockets are followed as long as there is a server.
    pub(super) fn follow_sockets(&mut self) {
        let observed = self.session.targets().filter_map(|target| self.session.plan(target.pid));
        let coming = self.seats.values().filter_map(|seat| Some(&seat.attaching.as_ref()?.1));
        let http = observed.chain(coming).any(|plan| plan.flags & TargetConfig::HTTP != 0);
        if http != self.follows_sockets && !self.deaf {
            self.follows_sockets = http;
            self.room.order(Order::Sockets(http));
        }
        let predicts = http && self.session.targets().any(|target| target.told.predict.is_some());
        if predicts != self.follows_offspring {
            self.follows_offspring = predicts;
            self.room.order(Order::Offspring(predicts));
        }
    }

    fn watch(&mut self, mut target: Target, mut plan: Plan) {
        let now = Instant::now();
        if self.seats.get(&target.pid).is_some_and(|seat| seat.has_started) {
            plan.settle_for_server();
        }
        if !self.payload {
            plan.flags |= TargetConfig::NO_PAYLOAD;
        }
        if self.trace_drafts {
            plan.flags |= TargetConfig::DRAFT_STEPS;
        }
        if target.told.predict.is_some() {
            plan.flags |= TargetConfig::PREDICTS;
        }
        let pid = target.pid;
        if self.seats.get(&pid).is_some_and(|seat| seat.attaching.is_some()) {
            // What was found meanwhile is found again.
            return self.look(pid, target.owner, Rank::Likely, &[now + SOON]);
        }
        let index = match self.seats.get(&pid) {
            Some(seat) => seat.config.index,
            None => match self.free_index() {
                Some(index) => index,
                None => {
                    return self.refuse(
                        pid,
                        &target.comm,
                        "as many processes as possible are observed already",
                    );
                }
            },
        };
        let has_tls = |plan: &Plan| plan.probes.iter().any(|probe| probe.role == Role::Tls);
        if self.session.plan(pid).is_some_and(has_tls) && !has_tls(&plan) {
            // It is under a seccomp filter by now: no return probe may stay.
            self.room.order(Order::DetachOwn(pid));
        }
        let config = self.config(index, &target, &plan);
        if self.session.plan(pid).map(sites).is_some_and(|known| known == sites(&plan)) {
            target.close();
            if self.seat(&target, config) {
                self.session.refresh(now, target, plan);
            }
            return;
        }
        let files = target.images.iter().filter_map(|it| Some((it.image.id, it.file.clone()?))).collect();
        target.close();
        let urgent = !target.listeners.is_empty();
        let attach = Attach { id: target.id(), probes: plan.probes.clone(), files, urgent };
        let seat = self.seats.entry(pid).or_insert(Seat {
            start_time: target.start_time,
            config,
            live: false,
            attaching: None,
            has_started: false,
            layouts: BTreeMap::new(),
        });
        seat.attaching = Some(Box::new((target, plan)));
        // Sockets first: a request whose beginning was not seen is not told.
        self.follow_sockets();
        self.room.order(Order::Attach(Box::new(attach)));
    }

    fn config(&self, index: u32, target: &Target, plan: &Plan) -> TargetConfig {
        let writes = if self.billing.refusals.is_some() { TEXT_WRITES } else { WRITES };
        TargetConfig { index, flags: plan.flags, port: port(target), writes }
    }

    /// Tells the programs whom they serve.
    fn seat(&mut self, target: &Target, config: TargetConfig) -> bool {
        let Some(seat) = self.seats.get_mut(&target.pid) else { return false };
        let seated = match seat.live {
            true if seat.config == config => Ok(()),
            true => self.kernel.update(target.pid, config),
            false => self.kernel.observe(target.pid, config),
        };
        if let Err(error) = &seated {
            error!(pid = target.pid, %error, "cannot observe");
        }
        (seat.config, seat.live) = (config, seated.is_ok());
        seat.has_started = self.kernel.noted(target.pid) & TargetConfig::STARTED != 0;
        seated.is_ok()
    }

    /// Something was done in the engine room.
    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Attached(id, failures) => {
                let seat = self.seats.get_mut(&id.pid).filter(|seat| seat.start_time == id.start_time);
                match seat.and_then(|seat| seat.attaching.take()) {
                    Some(attached) => self.attached(attached.0, attached.1, &failures),
                    // It ended meanwhile: what was attached for it is not wanted any more.
                    None => self.room.order(Order::Release(id.pid)),
                }
                self.settle_first();
            }
            Done::NoSockets(error) => {
                if !std::mem::replace(&mut self.deaf, true) {
                    self.attach_failures += 1;
                    error!(%error, "HTTP requests cannot be followed; tokens and steps are");
                }
            }
            Done::NoOffspring(error) => warn!(%error, "tokens of predictions are nobody's"),
            Done::NoSessions(error) => {
                warn!(%error, "requests over TLS on connections that were open before are not followed");
            }
        }
    }

    fn attached(&mut self, target: Target, mut plan: Plan, failures: &[AttachError]) {
        let (now, pid) = (Instant::now(), target.pid);
        self.attach_failures += failures.len() as u64;
        for failure in failures {
            error!(pid, %failure, "a probe cannot be attached");
        }
        // What is not attached is not served: the metrics of these roles stay absent.
        plan.probes.retain(|probe| !failures.iter().any(|failure| failure.is_of(probe)));
        let tls = [ProbeId::SslRead, ProbeId::SslWrite, ProbeId::SslAccept];
        if failures.iter().any(|failure| tls.contains(&failure.probe)) {
            // Half of a conversation would be worse than none.
            self.room.order(Order::DetachOwn(pid));
            plan.drop_tls("its library cannot be probed");
        }
        let probed = plan.joining() != Joining::Answers;
        if probed && !plan.probes.iter().any(|probe| probe.role == Role::Batch) {
            let denied = failures.iter().any(|failure| failure.cause.is_permission());
            let why = if denied { NEEDED } else { "its decode calls cannot be probed" };
            return self.refuse(pid, &target.comm, why);
        }
        let Some(index) = self.seats.get(&pid).map(|seat| seat.config.index) else { return };
        // Where first, then who: all probes of a process begin to count at the same moment.
        let config = self.config(index, &target, &plan);
        if !self.seat(&target, config) {
            return self.end(pid);
        }
        self.unobservable.remove(&pid);
        info!(
            pid,
            comm = target.comm,
            probes = plan.probes.len(),
            missing = ?plan.missing.iter().map(|missing| missing.role.name()).collect::<Vec<_>>(),
            "observing"
        );
        if self.session.plan(pid).is_some() {
            self.session.refresh(now, target, plan);
            return self.follow_sockets();
        }
        // Connections that stay open over many requests may have been accepted long ago.
        if plan.flags & TargetConfig::HTTP != 0 {
            self.looks.at_connections(target.id(), target.listeners.clone());
        }
        self.otlp.meet(pid, &target.comm);
        self.session.begin(now, target, plan);
        self.follow_sockets();
        self.follow_sessions();
    }

    /// Connections over TLS that were open before are found by the system calls of the library, which cost everybody on
    /// the host a look-up: only as long as there may be such.
    pub(super) fn follow_sessions(&mut self) {
        let tls = self.session.targets().filter(|target| {
            let plan = self.session.plan(target.pid);
            plan.is_some_and(|plan| plan.probes.iter().any(|probe| probe.role == Role::Tls))
        });
        let unknown = tls.map(|target| target.pid).any(|pid| self.kernel.has_adopted(pid));
        if unknown != self.follows_sessions {
            self.follows_sessions = unknown;
            self.room.order(Order::Sessions(unknown));
        }
    }

    fn free_index(&self) -> Option<u32> {
        (0..MAX_TARGETS).find(|index| self.seats.values().all(|seat| seat.config.index != *index))
    }

    /// A process ended or is llama.cpp no longer. Nothing happens when it was not observed.
    pub(super) fn end(&mut self, pid: u32) {
        self.unobservable.remove(&pid);
        let Some(seat) = self.seats.remove(&pid) else { return };
        self.room.order(Order::Release(pid));
        if !seat.live {
            return;
        }
        let last = self.kernel.reading(pid, seat.config.index).unwrap_or_else(|error| {
            error!(pid, %error, "the last counts are lost");
            Reading::default()
        });
        let records = self.session.end(Instant::now(), monotonic_ns(), pid, &last, self.prices);
        self.tell(&records);
        self.otlp.part(pid);
        self.kernel.forget(pid);
        info!(pid, "ended");
    }
}

/// The one TCP port a process listens on; 0 when there is none, or several.
fn port(target: &Target) -> u32 {
    let mut ports = target.listeners.iter().filter_map(|listener| match listener {
        Listener::Tcp(address) => Some(u32::from(address.port())),
        Listener::Unix(_) => None,
    });
    let first = ports.next().unwrap_or(0);
    if ports.all(|port| port == first) { first } else { 0 }
}

/// What a plan attaches: two plans with the same sites need no change.
fn sites(plan: &Plan) -> BTreeSet<(ImageId, u64)> {
    plan.probes.iter().map(|probe| (probe.image.id, probe.offset())).collect()
}
