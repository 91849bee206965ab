//! The system calls of servers: attached while there is a server whose requests are followed, since other processes
//! on the host make the same calls and each costs them a look-up.

use aya::programs::{TracePoint, trace_point::TracePointLink};
use llamaprobe_common::{
    request::{Connection, ConnectionKey, TAIL_BYTES},
    task::TaskKey,
};

use super::{Kernel, LoadError};

/// Program and tracepoint of each system call that is followed.
const CALLS: [(&str, &str); 7] = [
    ("lp_accept", "sys_exit_accept4"),
    ("lp_take_up", "sys_enter_getpeername"),
    ("lp_recv", "sys_enter_recvfrom"),
    ("lp_received", "sys_exit_recvfrom"),
    ("lp_send", "sys_enter_sendto"),
    ("lp_shutdown", "sys_enter_shutdown"),
    ("lp_close", "sys_enter_close"),
];

/// The attached tracepoints; dropping them detaches.
pub(super) type SocketLinks = Vec<TracePointLink>;

const OPEN: Connection = Connection {
    accepted_ns: 0,
    unread_ns: 0,
    arrived_ns: 0,
    last_write_ns: 0,
    bytes_out: 0,
    bytes_in: 0,
    reads: 0,
    writes: 0,
    tail_len: [0; 2],
    tail: 0,
    reserved: 0,
    tails: [[0; TAIL_BYTES]; 2],
};

impl Kernel {
    /// Loads the programs of the system calls.
    pub(super) fn load_sockets(&mut self) -> Result<(), LoadError> {
        for (name, _) in CALLS {
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
            for (name, event) in CALLS {
                let program = self.tracepoint(name)?;
                let link = program
                    .attach("syscalls", event)
                    .and_then(|id| program.take_link(id))
                    .map_err(|source| LoadError::program("attach", name, source))?;
                links.push(link);
            }
            self.sockets = links;
        }
        Ok(())
    }

    /// Takes up connections that a server had open before it was observed.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn adopt(&mut self, pid: u32, descriptors: &[i32]) -> Result<(), LoadError> {
        for &fd in descriptors {
            let key = ConnectionKey { tgid: pid, fd };
            self.connections
                .insert(key, OPEN, 0)
                .map_err(|source| LoadError::map("fill", "CONNECTIONS", source))?;
        }
        Ok(())
    }

    /// Forgets a task that took no slot: its request is over.
    pub fn forget_task(&mut self, pid: u32, task: i32) {
        // Gone already when the task took a slot after all.
        let _ = self.tasks.remove(&TaskKey { tgid: pid, task });
    }

    fn tracepoint(&mut self, name: &str) -> Result<&mut TracePoint, LoadError> {
        let program =
            self.ebpf.program_mut(name).ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
        program.try_into().map_err(|source| LoadError::program("open", name, source))
    }
}
