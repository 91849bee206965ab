//! The one file of the agent with `unsafe`: functions made of chosen instructions, the call that gives the process a
//! mount namespace of its own, the registration of a ring buffer, the reading of its entries, signals that are not heard,
//! and memory that is given back.

use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use rustix::{io, process::Signal, thread::UnshareFlags};
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

/// A ring buffer, or what reads one, that can be waited for.
///
/// # Errors
///
/// When the runtime cannot watch one more descriptor.
pub fn waitable<T: AsFd + AsRawFd>(ring: T) -> std::io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor that it lends is its own, which stays open as long as it lives.
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

/// From now on no signal by which people and service managers end a program ends this one, nor what it starts.
pub fn ignore_ends() {
    unsafe extern "C" {
        fn signal(number: i32, handler: usize) -> usize;
    }
    const IGNORE: usize = 1;
    for ends in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        // SAFETY: no handler is set that could run (signal(2): SIG_IGN is 1).
        let _ = unsafe { signal(ends.as_raw(), IGNORE) };
    }
}

/// From now on what is large goes back to the system as soon as it is not needed. glibc learns from each large piece that
/// is freed to keep the next ones, up to 32 MB, and the top of a thread's arena is never trimmed afterwards.
pub(super) fn keep_no_large_memory() {
    #[cfg(target_env = "gnu")]
    {
        const TRIM_THRESHOLD: i32 = -1;
        const MMAP_THRESHOLD: i32 = -3;
        const BYTES: i32 = 128 << 10;
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        for parameter in [TRIM_THRESHOLD, MMAP_THRESHOLD] {
            // SAFETY: it takes two numbers, and may be called at any time (mallopt(3)).
            let _ = unsafe { mallopt(parameter, BYTES) };
        }
    }
}

/// Gives memory back to the system that the allocator keeps for later: glibc holds on to what lies between pieces in use.
pub(super) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: it takes a number, may be called at any time by any thread (malloc_trim(3)), and touches nothing in use.
        let _ = unsafe { malloc_trim(0) };
    }
}
