//! Who of the processes that run llama.cpp is observed: there are fewer seats than there may be such processes.

use std::{collections::BTreeMap, time::Instant};

use llamaprobe_common::{
    request::{TEXT_WRITES, WRITES},
    target::TargetConfig,
};
use tracing::{error, info};

use super::{
    Agent,
    seats::{Asked, Claim, Seat, ask},
};
use crate::{
    bpf::read::Reading,
    discovery::{
        Target,
        process::{Listener, ProcessId},
    },
    export::sink::Process,
    keeper::Order,
    plan::{Plan, catalog::Role},
    session::{Input, observed::Observed},
};

impl Agent {
    fn config(&self, index: u32, target: &Target, plan: &Plan) -> TargetConfig {
        let writes = if self.billing.refusals.is_some() { TEXT_WRITES } else { WRITES };
        TargetConfig { index, flags: plan.flags, port: port(target), writes }
    }

    pub(super) fn claim(&self, target: &Target) -> Claim {
        if self.strangers.contains(&target.pid) {
            Claim::Works
        } else if target.listeners.is_empty() {
            Claim::Idle
        } else {
            Claim::Listens
        }
    }

    /// The row of a process, which it is given if it has a claim. What others have to give up goes on when it is theirs
    /// again.
    fn row(&mut self, target: &Target) -> Option<u32> {
        let (now, pid) = (Instant::now(), target.pid);
        let claim = self.claim(target);
        self.strangers.remove(&pid);
        if let Some(seat) = self.processes.get_mut(&pid)?.seat.as_mut() {
            seat.note(!target.listeners.is_empty());
            return Some(seat.index);
        }
        let mut asked = ask(&self.seats(), now, target.owner, claim);
        if !matches!(asked, Asked::Free(_)) {
            // Who works is known as of the last reading.
            for seat in self.processes.values_mut().filter_map(|process| process.seat.as_mut()) {
                if let Ok(stats) = self.maps.stats(seat.index) {
                    seat.hits(now, stats.hits.iter().sum());
                }
            }
            asked = ask(&self.seats(), now, target.owner, claim);
        }
        let index = match asked {
            Asked::Free(index) => index,
            Asked::Instead(other) => {
                let index = self.processes.get(&other)?.seat?.index;
                self.unseat(other);
                info!(pid = other, instead = pid, "gives its seat up");
                index
            }
            Asked::None => return None,
        };
        self.processes.get_mut(&pid)?.seat = Some(Seat::new(now, index, target.owner, claim));
        Some(index)
    }

    /// The seats that are taken, by process.
    pub(super) fn seats(&self) -> BTreeMap<u32, Seat> {
        self.processes.iter().filter_map(|(pid, process)| Some((*pid, process.seat?))).collect()
    }

    pub(super) fn is_observed(&self, id: ProcessId) -> bool {
        self.processes.get(&id.pid).is_some_and(|known| known.id == id && known.live.is_some())
    }

    /// All that is to be attached for a process is: it is observed from now on, if there is a seat for it.
    pub(super) fn observe(&mut self, target: Target, mut plan: Plan) {
        let pid = target.pid;
        self.without_failed(pid, &mut plan);
        let Some(index) = self.row(&target) else { return };
        // Where first, then who: all probes of a process begin to count at the same moment.
        let config = self.config(index, &target, &plan);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let told = match process.live {
            Some(live) if live == config => Ok(()),
            Some(_) => self.maps.update(pid, config),
            None => self.maps.observe(pid, config),
        };
        if let Err(error) = told {
            error!(pid, %error, "cannot observe");
            return self.end(pid);
        }
        process.has_started |= self.maps.noted(pid) & TargetConfig::STARTED != 0;
        if process.live.replace(config).is_some() {
            self.apply(Input::Refresh(Box::new(Observed::new(target, &plan))));
            return self.follow_sockets();
        }
        info!(
            pid,
            comm = target.comm,
            probes = plan.probes.len(),
            missing = ?plan.missing.iter().map(|missing| missing.role.name()).collect::<Vec<_>>(),
            "observing"
        );
        // Connections that stay open over many requests may have been accepted long ago.
        if plan.flags & TargetConfig::HTTP != 0 {
            self.looks.at_connections(target.id(), target.listeners.clone());
        }
        self.workloads.learn(super::observed(&self.processes));
        self.sinks.started(Process { pid, name: &target.comm });
        self.apply(Input::Begin(Box::new(Observed::new(target, &plan))));
        self.follow_sockets();
        self.follow_sessions();
    }

    /// Connections over TLS that were open before are found by the system calls of the library, which cost everybody on
    /// the host a look-up: only as long as there may be such.
    pub(super) fn follow_sessions(&mut self) {
        let tls = self.session.observed().filter(|observed| observed.has(Role::Tls));
        let unknown = tls.map(|observed| observed.target.pid).any(|pid| self.maps.has_adopted(pid));
        if unknown != self.follows_sessions {
            self.follows_sessions = unknown;
            self.room.order(Order::Sessions(unknown));
        }
    }

    /// A process is observed no more. Its probes stay: when they fire it has a claim to a seat.
    pub(super) fn unseat(&mut self, pid: u32) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.seat = None;
        let Some(config) = process.live.take() else { return };
        let last = self.maps.reading(pid, config.index).unwrap_or_else(|error| {
            error!(pid, %error, "the last counts are lost");
            Reading::default()
        });
        self.apply(Input::End { pid, last: Box::new(last) });
        self.reader.end(pid);
        self.sinks.ended(pid);
        self.maps.forget(pid);
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
