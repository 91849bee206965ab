//! The one file of the agent with `unsafe`: functions made of chosen instructions, and the call that gives the
//! process a mount namespace of its own.

use rustix::{io, thread::UnshareFlags};

/// Begins with an instruction that the kernel emulates.
#[unsafe(naked)]
pub extern "C" fn emulated() {
    #[cfg(target_arch = "x86_64")]
    core::arch::naked_asm!("nop", "ret");
    #[cfg(target_arch = "aarch64")]
    core::arch::naked_asm!("b 1f", "1: ret");
}

/// Begins with an instruction that is single-stepped.
#[unsafe(naked)]
pub extern "C" fn single_stepped() {
    #[cfg(target_arch = "x86_64")]
    core::arch::naked_asm!("xor eax, eax", "ret");
    #[cfg(target_arch = "aarch64")]
    core::arch::naked_asm!("mov x9, xzr", "ret");
}

/// Leaves the mount namespace of the host for a copy of it. To be called before any thread is started.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: what makes the call unsafe is `UnshareFlags::FILES`, which is not given.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}
