//! Threads that a server starts while it serves a request, which work on that request: the parts of one of Vertex AI's
//! predictions. Only followed while a server is observed that serves such.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::tracepoint, programs::TracePointContext};
use llamaprobe_common::{loss::Loss, target::TargetConfig};
use llamaprobe_core::process::{Counters as _, Process as _};

use super::socket::server;
use crate::maps::THREADS;

/// Offsets of the parent's and the child's id in the record of `sched_process_fork`: where the names of both stand
/// elsewhere (since about Linux 6.14), and where they stand between (16 bytes each).
const LAYOUTS: [(usize, usize); 2] = [(12, 20), (24, 44)];

#[tracepoint(category = "sched", name = "sched_process_fork")]
fn lp_fork(call: TracePointContext) -> u32 {
    let Some(target) = server().filter(|target| target.has(TargetConfig::PREDICTS)) else { return 0 };
    let both = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes the entry.
    let Some(&key) = (unsafe { THREADS.get(both) }) else { return 0 };
    for (parent, child) in LAYOUTS {
        // SAFETY: the record and the buffer that it stands in are longer.
        let ids = unsafe { (call.read_at::<u32>(parent), call.read_at::<u32>(child)) };
        // The parent is the thread that runs: that tells which layout it is.
        if let (Ok(parent), Ok(child)) = ids
            && parent == both as u32
        {
            let child = both & !u64::from(u32::MAX) | u64::from(child);
            if THREADS.insert(child, key, 0).is_err() {
                target.lose(Loss::ThreadsFull);
            }
            return 0;
        }
    }
    0
}
