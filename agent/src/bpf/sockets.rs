//! The system calls of servers: attached while there is a server whose requests are followed, since other processes
//! on the host make the same calls and each costs them a look-up.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use aya::maps::MapError;
use aya::programs::{TracePoint, trace_point::TracePointLink};
use llamaprobe_common::{
    request::{Connection, ConnectionKey, EndEvent, EndReason, Peer, RequestKey},
    task::TaskKey,
};

use super::{Attacher, LoadError, Maps, entries::entries};
use crate::engines::{Serving, serving::Call};

/// What tells the descriptor of a TLS session.
const SESSION_CALL: Call = Call::new("lp_tls_socket", "syscalls", "sys_enter_read");

/// What notes the arguments of reads and writes, on a kernel that does not say where it keeps them.
const NOTES: [Call; 2] = [
    Call::new("lp_recv", "syscalls", "sys_enter_recvfrom"),
    Call::new("lp_send", "syscalls", "sys_enter_sendto"),
];

/// What tells the threads that a server starts.
const FORK: Call = Call::new("lp_fork", "sched", "sched_process_fork");

/// What is followed of servers: the calls by which those of any engine accept, read and write, each once.
fn calls() -> Vec<Call> {
    let mut calls = Vec::new();
    for call in Serving::all().flat_map(|serving| serving.calls) {
        if !calls.contains(call) {
            calls.push(*call);
        }
    }
    calls
}

/// `BPF_NOEXIST` of linux/bpf.h.
const NOT_YET_THERE: u64 = 1;

/// The attached tracepoints; dropping them detaches.
pub(super) type SocketLinks = Vec<TracePointLink>;

/// An address as the kernel programs note it.
fn peer(address: SocketAddr) -> Peer {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    Peer { address: ip.octets(), port: address.port().into() }
}

impl Attacher {
    /// Loads the programs of the system calls.
    pub(super) fn load_sockets(&mut self) -> Result<(), LoadError> {
        // A program may serve two calls.
        let all = calls().into_iter().chain(NOTES).chain([SESSION_CALL, FORK]);
        let names: BTreeSet<_> = all.map(|call| call.program).collect();
        for name in names {
            let program = self.tracepoint(name)?;
            program.load().map_err(|source| LoadError::program("load", name, source))?;
        }
        Ok(())
    }

    /// Starts or stops to follow the sockets of servers. All or none.
    ///
    /// # Errors
    ///
    /// When a tracepoint cannot be attached: no tracefs, or a kernel without system-call tracepoints.
    pub fn follow_sockets(&mut self, follow: bool) -> Result<(), LoadError> {
        if !follow {
            self.sockets.clear();
        } else if self.sockets.is_empty() {
            let mut links = SocketLinks::new();
            let notes = if self.described { &[][..] } else { &NOTES };
            for call in calls().iter().chain(notes).copied() {
                links.push(self.attach_call(call)?);
            }
            self.sockets = links;
        }
        Ok(())
    }

    /// Starts or stops to look for the descriptors of TLS sessions.
    ///
    /// # Errors
    ///
    /// As [`Maps::follow_sockets`].
    pub fn follow_sessions(&mut self, follow: bool) -> Result<(), LoadError> {
        if !follow {
            self.sessions = None;
        } else if self.sessions.is_none() {
            self.sessions = Some(self.attach_call(SESSION_CALL)?);
        }
        Ok(())
    }

    /// Starts or stops to follow the threads that servers start for a request.
    ///
    /// # Errors
    ///
    /// As [`Maps::follow_sockets`].
    pub fn follow_offspring(&mut self, follow: bool) -> Result<(), LoadError> {
        if !follow {
            self.offspring = None;
        } else if self.offspring.is_none() {
            self.offspring = Some(self.attach_call(FORK)?);
        }
        Ok(())
    }

    fn attach_call(&mut self, call: Call) -> Result<TracePointLink, LoadError> {
        let program = self.tracepoint(call.program)?;
        let link = program.attach(call.category, call.event).and_then(|id| program.take_link(id));
        link.map_err(|source| LoadError::program("attach", call.program, source))
    }

    fn tracepoint(&mut self, name: &str) -> Result<&mut TracePoint, LoadError> {
        let program =
            self.ebpf.program_mut(name).ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
        program.try_into().map_err(|source| LoadError::program("open", name, source))
    }
}

impl Maps {
    /// Whether a process has a connection that was open before and of which no thread was seen since.
    pub fn has_adopted(&self, pid: u32) -> bool {
        let all = entries(&self.connections, "CONNECTIONS");
        all.iter().any(|(key, it)| key.tgid == pid && it.flags & Connection::ADOPTED != 0)
    }

    /// Takes up connections that a server had open before it was observed.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn adopt(&mut self, pid: u32, open: &[(i32, Option<SocketAddr>)]) -> Result<(), LoadError> {
        for &(fd, client) in open {
            let key = ConnectionKey { tgid: pid, fd };
            let peer = client.map(peer).unwrap_or_default();
            let open = Connection { peer, sequence: -1, flags: Connection::ADOPTED, ..Connection::default() };
            match self.connections.insert(key, open, NOT_YET_THERE) {
                Ok(()) => {}
                // It was accepted meanwhile, and more is known of it than here.
                Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::AlreadyExists => {
                    continue;
                }
                Err(source) => return Err(LoadError::map("fill", "CONNECTIONS", source)),
            }
            if peer.port != 0 {
                self.peers.insert(peer, key, 0).map_err(|source| LoadError::map("fill", "PEERS", source))?;
            }
        }
        Ok(())
    }

    /// Whether a request is still under way on its connection.
    pub fn is_under_way(&self, request: RequestKey) -> bool {
        let key = ConnectionKey { tgid: request.tgid, fd: request.fd };
        self.connections.get(&key, 0).is_ok_and(|state| state.arrived_ns == request.arrived_ns)
    }

    /// What was written of the answer of a request under way, as if that were its end.
    pub fn answer_so_far(&self, request: RequestKey) -> Option<EndEvent> {
        let key = ConnectionKey { tgid: request.tgid, fd: request.fd };
        let state = self.connections.get(&key, 0).ok().filter(|it| it.arrived_ns == request.arrived_ns)?;
        Some(EndEvent::of(key, &state, EndReason::LastChunk, state.last_write_ns))
    }

    /// Forgets a task that took no slot: its request is over.
    pub fn forget_task(&mut self, pid: u32, task: i32) {
        // Gone already when the task took a slot after all.
        let _ = self.tasks.remove(&TaskKey { tgid: pid, task });
    }
}
