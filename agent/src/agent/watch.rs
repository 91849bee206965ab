//! Processes come and go: who is looked at when, and what is attached for whom.

use std::{
    collections::BTreeSet,
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

use super::{Agent, Seat, own::monotonic_ns};
use crate::{
    bpf::{events, read::Reading},
    discovery::{Look, Target, image::ImageId, process::Listener},
    doctor::{self, NEEDED},
    plan::{self, Joining, Plan, Verdict, catalog::Role},
};

/// How long after an event a process is looked at: a starting program maps a dozen files within this time.
pub(super) const SETTLE: Duration = Duration::from_millis(20);
/// Further looks at a program that has just started: for libraries whose mapping was not told.
const LATER: [Duration; 3] = [Duration::from_millis(200), Duration::from_millis(700), Duration::from_secs(4)];

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
        let now = Instant::now();
        self.due.insert((now + SETTLE, event.tgid));
        if matches!(kind, ProcessEventKind::Exec) {
            // Another program in the same process: what was counted before is not its.
            self.end(event.tgid);
            self.due.extend(LATER.map(|later| (now + later, event.tgid)));
        }
    }

    pub(super) fn look_due(&mut self) {
        let now = Instant::now();
        let mut pids = BTreeSet::new();
        while let Some(&(when, pid)) = self.due.first()
            && when <= now
        {
            self.due.pop_first();
            pids.insert(pid);
        }
        pids.into_iter().for_each(|pid| self.look(pid));
    }

    pub(super) fn rescan(&mut self) {
        let pids = match self.scanner.processes() {
            Ok(pids) => pids,
            Err(error) => return error!(%error, "cannot list processes"),
        };
        let gone: Vec<u32> = self.seats.keys().copied().filter(|pid| !pids.contains(pid)).collect();
        gone.into_iter().for_each(|pid| self.end(pid));
        self.unobservable.retain(|pid, _| pids.contains(pid));
        pids.into_iter().for_each(|pid| self.look(pid));
        self.scanner.forget_except(self.session.targets());
        if !self.ready {
            self.ready = true;
            info!(targets = self.seats.len(), late_loads = self.kernel.sees_late_loads(), "ready");
        }
    }

    /// Looks at one process and brings what is attached in line with what it is now.
    pub(super) fn look(&mut self, pid: u32) {
        if !self.only.is_empty() && !self.only.contains(&pid) {
            return;
        }
        if let Some(seat) = self.seats.get(&pid)
            && !self.scanner.is_alive(pid, seat.start_time)
        {
            self.end(pid);
        }
        match self.scanner.look(pid) {
            Look::Found(target) => {
                let no_return =
                    self.release.and_then(|release| doctor::no_return_probe(target.seccomp, release));
                match plan::plan(&target.plain_images()).without_return_probes(no_return) {
                    Verdict::Observable(plan) => self.watch(*target, plan),
                    Verdict::Unsupported(why) => self.refuse(pid, &target.comm, why),
                    Verdict::Foreign => self.end(pid),
                }
            }
            Look::Opaque(target) if target.is_listening_server() => self.watch(*target, plan::sockets_only()),
            Look::Opaque(target) => self.refuse(pid, &target.comm, target.why_opaque()),
            Look::Nothing | Look::Closed => self.end(pid),
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
        turned.into_iter().for_each(|pid| self.look(pid));
    }

    /// The sockets are followed as long as there is a server.
    pub(super) fn follow_sockets(&mut self) {
        let http = self.session.targets().any(|target| {
            self.session.plan(target.pid).is_some_and(|plan| plan.flags & TargetConfig::HTTP != 0)
        });
        if let Err(error) = self.kernel.follow_sockets(http)
            && !std::mem::replace(&mut self.deaf, true)
        {
            self.attach_failures += 1;
            error!(%error, "HTTP requests cannot be followed; tokens and steps are");
        }
    }

    fn watch(&mut self, target: Target, mut plan: Plan) {
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
        let pid = target.pid;
        // First who, then where: what fires in between is counted, not reported as a stranger's.
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
        let writes = if self.billing.refusals.is_some() { TEXT_WRITES } else { WRITES };
        let config = TargetConfig { index, flags: plan.flags, port: port(&target), writes };
        let seated = match self.seats.get(&pid) {
            Some(seat) if seat.config == config => Ok(()),
            Some(_) => self.kernel.update(pid, config),
            None => self.kernel.observe(pid, config),
        };
        if let Err(error) = seated {
            return error!(pid, %error, "cannot observe");
        }
        let has_started = self.kernel.noted(pid) & TargetConfig::STARTED != 0;
        let layouts = self.seats.remove(&pid).map(|seat| seat.layouts).unwrap_or_default();
        self.seats.insert(pid, Seat { start_time: target.start_time, config, has_started, layouts });
        let has_tls = |plan: &Plan| plan.probes.iter().any(|probe| probe.role == Role::Tls);
        if self.session.plan(pid).is_some_and(has_tls) && !has_tls(&plan) {
            // It is under a seccomp filter by now: no return probe may stay.
            self.kernel.detach_own(pid);
        }
        let known = self.session.plan(pid).map(sites);
        if known.as_ref().is_some_and(|known| *known == sites(&plan)) {
            return self.session.refresh(now, target, plan);
        }
        self.kernel.keep(pid, &plan.probes);
        let file =
            |id| target.images.iter().find(|mapped| mapped.image.id == id).map(|mapped| mapped.file.clone());
        let failures = self.kernel.attach(pid, &plan.probes, file);
        self.attach_failures += failures.len() as u64;
        for failure in &failures {
            error!(pid, %failure, "a probe cannot be attached");
        }
        // What is not attached is not served: the metrics of these roles stay absent.
        plan.probes.retain(|probe| !failures.iter().any(|failure| failure.is_of(probe)));
        let tls = [ProbeId::SslRead, ProbeId::SslWrite, ProbeId::SslAccept];
        if failures.iter().any(|failure| tls.contains(&failure.probe)) {
            // Half of a conversation would be worse than none.
            self.kernel.detach_own(pid);
            plan.drop_tls("its library cannot be probed");
        }
        let probed = plan.joining() != Joining::Answers;
        if probed && !plan.probes.iter().any(|probe| probe.role == Role::Batch) {
            let denied = failures.iter().any(|failure| failure.cause.is_permission());
            let why = if denied { NEEDED } else { "its decode calls cannot be probed" };
            return self.refuse(pid, &target.comm, why);
        }
        self.unobservable.remove(&pid);
        info!(
            pid,
            comm = target.comm,
            probes = plan.probes.len(),
            missing = ?plan.missing.iter().map(|missing| missing.role.name()).collect::<Vec<_>>(),
            "observing"
        );
        if known.is_some() {
            self.session.refresh(now, target, plan);
            return self.follow_sockets();
        }
        // Connections that stay open over many requests may have been accepted long ago.
        let http = plan.flags & TargetConfig::HTTP != 0;
        let open = if http { self.scanner.connections(&target) } else { Vec::new() };
        self.otlp.meet(pid, &target.comm);
        self.session.begin(now, target, plan);
        self.follow_sockets();
        if let Err(error) = self.kernel.adopt(pid, &open) {
            warn!(pid, %error, "requests on connections that were open before are not followed");
        }
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
        if let Err(error) = self.kernel.follow_sessions(unknown) {
            warn!(%error, "requests over TLS on connections that were open before are not followed");
        }
    }

    fn free_index(&self) -> Option<u32> {
        (0..MAX_TARGETS).find(|index| self.seats.values().all(|seat| seat.config.index != *index))
    }

    /// A process ended or is llama.cpp no longer. Nothing happens when it was not observed.
    pub(super) fn end(&mut self, pid: u32) {
        self.unobservable.remove(&pid);
        let Some(seat) = self.seats.remove(&pid) else { return };
        let last = self.kernel.reading(pid, seat.config.index).unwrap_or_else(|error| {
            error!(pid, %error, "the last counts are lost");
            Reading::default()
        });
        let records = self.session.end(Instant::now(), monotonic_ns(), pid, &last, self.prices);
        self.tell(&records);
        self.otlp.part(pid);
        self.kernel.forget(pid);
        self.kernel.release(pid);
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
