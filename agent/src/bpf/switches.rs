//! The switches of threads: followed while a process is observed, since every switch of the machine costs a look.

use std::{fs, io};

use aya::{
    Btf, BtfError, Ebpf,
    maps::{Array, MapData},
    programs::{BtfTracePoint, ProgramError, tp_btf::BtfTracePointLink},
};
use linux_raw_sys::general as calls;
use llamaprobe_common::stall::{CALLS, Cause, IDLE, KernelLayout, NO_FIELD};

use super::{Attacher, LoadError, btf, raw};

const PROGRAM: &str = "lp_switch";
/// Where the kernel describes itself.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Why it is not known what holds decode steps back.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The kernel does not say where it keeps what it knows of threads.
    #[error("{BTF}: {0}; a kernel with CONFIG_DEBUG_INFO_BTF=y says where it keeps what it knows of threads")]
    Description(io::Error),
    /// What it says is not understood.
    #[error("{BTF} says nothing of threads that this build understands")]
    Unknown,
    /// What is needed of it could not be read.
    #[error("{BTF}: {0}")]
    Btf(#[from] BtfError),
    /// The program was refused or could not be attached.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What the running kernel says of itself.
///
/// # Errors
///
/// When it says nothing, or nothing that is understood.
pub fn kernel_layout() -> Result<KernelLayout, SwitchError> {
    let bytes = fs::read(BTF).map_err(SwitchError::Description)?;
    let layout = btf::layout(&bytes).ok_or(SwitchError::Unknown)?;
    if [layout.pid, layout.tgid, layout.state].contains(&NO_FIELD) {
        Err(SwitchError::Unknown)
    } else {
        Ok(layout)
    }
}

/// The causes that are not told from others where a kernel keeps its things so.
pub fn not_told(layout: &KernelLayout) -> Vec<Cause> {
    let lacks = |fields: &[u32]| fields.iter().all(|field| *field == NO_FIELD);
    let mut causes = Vec::new();
    if lacks(&[layout.throttled, layout.throttle_count]) {
        causes.push(Cause::Throttled);
    }
    if lacks(&[layout.flags]) && lacks(&[layout.memstall]) {
        causes.push(Cause::Memory);
    }
    if lacks(&[layout.iowait]) || lacks(&[layout.call]) {
        causes.extend([Cause::PageFault, Cause::BlockIo]);
    }
    if lacks(&[layout.call]) {
        causes.extend([Cause::Device, Cause::Network, Cause::Lock, Cause::Sleep]);
    }
    causes
}

/// What a thread waits for that sleeps in a system call, where that is not the disk, of which the kernel says so itself.
fn class(call: u32) -> u32 {
    match call {
        calls::__NR_fsync | calls::__NR_fdatasync | calls::__NR_io_uring_enter => Cause::BlockIo as u32,
        calls::__NR_futex | calls::__NR_futex_waitv | calls::__NR_futex_wait => Cause::Lock as u32,
        // A driver's own, or the way to wait for what it has been told.
        calls::__NR_ioctl | calls::__NR_ppoll | calls::__NR_pselect6 | calls::__NR_epoll_pwait => {
            Cause::Device as u32
        }
        #[cfg(target_arch = "x86_64")]
        calls::__NR_poll | calls::__NR_select | calls::__NR_epoll_wait => Cause::Device as u32,
        calls::__NR_sendto | calls::__NR_sendmsg | calls::__NR_recvfrom | calls::__NR_recvmsg => {
            Cause::Network as u32
        }
        calls::__NR_write | calls::__NR_writev | calls::__NR_read | calls::__NR_readv => {
            Cause::Network as u32
        }
        calls::__NR_nanosleep | calls::__NR_clock_nanosleep => Cause::Sleep as u32,
        _ => IDLE,
    }
}

/// Tells the programs what system calls wait for.
pub(super) fn fill_classes(map: &mut Array<&mut MapData, u32>) -> Result<(), LoadError> {
    for call in 0..CALLS {
        map.set(call, class(call), 0).map_err(|source| LoadError::map("fill", "CALL_CLASSES", source))?;
    }
    Ok(())
}

fn program(ebpf: &mut Ebpf) -> Result<&mut BtfTracePoint, LoadError> {
    let program = ebpf.program_mut(PROGRAM).ok_or_else(|| LoadError::Absent(format!("program {PROGRAM}")))?;
    program.try_into().map_err(|source| LoadError::program("open", PROGRAM, source))
}

impl Attacher {
    /// Starts or stops to follow the switches of threads. The program is loaded when it is needed first: what the kernel
    /// says of its types takes megabytes for a moment.
    ///
    /// # Errors
    ///
    /// When the kernel does not describe itself, or refuses the program.
    pub fn follow_switches(&mut self, follow: bool) -> Result<(), SwitchError> {
        if !follow {
            self.switches = None;
        } else if self.switches.is_none() {
            if let Some(error) = self.undescribed.take() {
                return Err(error);
            }
            let program = program(&mut self.ebpf)?;
            let failed = |what| move |source: ProgramError| LoadError::program(what, PROGRAM, source);
            if program.fd().is_err() {
                let loaded = program.load("sched_switch", &Btf::from_sys_fs()?);
                // Twenty megabytes in small pieces.
                raw::give_memory_back();
                loaded.map_err(failed("load"))?;
            }
            let link = program.attach().and_then(|id| program.take_link(id)).map_err(failed("attach"))?;
            self.switches = Some(link);
        }
        Ok(())
    }
}

/// The attached tracepoint; dropping it detaches.
pub(super) type SwitchLink = BtfTracePointLink;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_their_causes() {
        for (call, cause) in [
            (calls::__NR_futex, Cause::Lock as u32),
            (calls::__NR_clock_nanosleep, Cause::Sleep as u32),
            (calls::__NR_sendto, Cause::Network as u32),
            (calls::__NR_ioctl, Cause::Device as u32),
            (calls::__NR_getpid, IDLE),
        ] {
            assert_eq!(class(call), cause, "{call}");
        }
    }
}
