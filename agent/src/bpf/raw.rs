//! The one file of the agent with `unsafe`: functions made of chosen instructions, the call that gives the process a
//! mount namespace of its own, the registration of a ring buffer, and the reading of its entries.

use aya::{
    Pod,
    maps::{MapData, RingBuf},
};
use rustix::{io, thread::UnshareFlags};
use tokio::io::unix::AsyncFd;

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

/// A ring buffer that can be waited for.
///
/// # Errors
///
/// When the runtime cannot watch one more descriptor.
pub fn waitable(ring: RingBuf<MapData>) -> std::io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the descriptor belongs to the ring buffer's map, which stays open as long as the buffer lives.
    unsafe { AsyncFd::register(ring) }.map_err(Into::into)
}

/// The value that an entry of a ring buffer holds; `None` when the entry is of another size.
pub fn value<T: Pod>(entry: &[u8]) -> Option<T> {
    if entry.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: any bytes are a `T`, there are as many as it has, and the read asks for no alignment.
    Some(unsafe { entry.as_ptr().cast::<T>().read_unaligned() })
}
