//! The one file of the agent with `unsafe`: functions made of chosen instructions, the call that gives the process a
//! mount namespace of its own, the registration of a ring buffer, the reading of its entries, the descriptors that a
//! child inherits, memory that is given back, and what the page cache holds of a file.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use aya::Pod;
use rustix::{
    io::{self, FdFlags},
    thread::UnshareFlags,
};
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

/// Lets a program that is started from here inherit all that keeps probes attached. Returns how many links that are.
///
/// # Errors
///
/// When the descriptors cannot be listed.
pub fn bequeath_links() -> std::io::Result<usize> {
    let mut links = 0;
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        // As fs/anon_inodes.c and kernel/bpf/syscall.c name it.
        let is_link = fs::read_link(entry.path()).is_ok_and(|it| it.as_os_str() == "anon_inode:bpf_link");
        let number = entry.file_name().to_str().and_then(|number| number.parse::<RawFd>().ok());
        let Some(number) = number.filter(|_| is_link) else { continue };
        // SAFETY: only a flag of the descriptor is set; if it was closed meanwhile, or became another, the worst is that a
        // child inherits one too many.
        let link = unsafe { BorrowedFd::borrow_raw(number) };
        links += usize::from(io::fcntl_setfd(link, FdFlags::empty()).is_ok());
    }
    Ok(links)
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

/// Pages of a range of a file.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PageCache {
    /// In memory.
    pub cached: u64,
    /// In memory, and not written yet.
    pub dirty: u64,
    /// In memory, and being written.
    pub writeback: u64,
    /// Put out for want of memory, as far as the kernel remembers.
    pub evicted: u64,
    /// Of these, the ones that memory would have sufficed for, had it been a little larger.
    pub recently_evicted: u64,
}

/// What is in memory of `length` bytes of a file: cachestat(2), Linux 6.5. It takes longer the more is in memory.
///
/// # Errors
///
/// `ENOSYS` before that, `EPERM` for a file that the caller could not write, `EOPNOTSUPP` on hugetlbfs.
pub fn page_cache(file: BorrowedFd<'_>, offset: u64, length: u64) -> std::io::Result<PageCache> {
    /// On every architecture.
    const CACHESTAT: std::ffi::c_long = 451;
    unsafe extern "C" {
        fn syscall(number: std::ffi::c_long, ...) -> std::ffi::c_long;
    }
    let (range, mut pages) = ([offset, length], PageCache::default());
    // SAFETY: the call reads two numbers and writes five, which is what these pointers lead to; both live on.
    let failed = unsafe { syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), &raw mut pages, 0_u32) };
    if failed == 0 { Ok(pages) } else { Err(std::io::Error::last_os_error()) }
}
