//! The one file of the agent with `unsafe`: functions made of chosen instructions, the call that gives the process a
//! mount namespace of its own, the registration of a ring buffer, the reading of its entries, signals that are not heard,
//! memory that is given back, the clock of another process, what the page cache holds of a file, and the calls of bpf(2) that
//! aya does not make.

use std::{
    ffi::{CStr, c_char, c_long},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    ptr,
    time::Duration,
};

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_info, bpf_prog_type};
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
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: it takes a number, may be called at any time by any thread (malloc_trim(3)), and touches nothing in use.
        let _ = unsafe { malloc_trim(0) };
    }
}

/// A program for links of type `uprobe_multi`.
pub(super) struct Loadable<'a> {
    /// What the kernel shows of its name: the first 15 bytes.
    pub(super) name: &'a str,
    /// Its licence, which decides about the helpers it may call.
    pub(super) license: &'a CStr,
    /// What it does.
    pub(super) instructions: &'a [bpf_insn],
}

/// Loads a program. What the verifier says is written to `log`, with its NUL; it says nothing where that is empty.
///
/// # Errors
///
/// What the kernel answers.
pub(super) fn load(program: &Loadable<'_>, log: &mut [u8]) -> std::io::Result<OwnedFd> {
    let mut attr = blank();
    // SAFETY: of a union that is all zero every member is valid.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    load.insns = program.instructions.as_ptr() as u64;
    load.insn_cnt = size(program.instructions.len());
    load.license = program.license.as_ptr() as u64;
    let shown = load.prog_name.len() - 1;
    for (to, from) in load.prog_name[..shown].iter_mut().zip(program.name.bytes()) {
        // Signed on x86-64, unsigned on Arm.
        *to = c_char::from_ne_bytes([from]);
    }
    if !log.is_empty() {
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = size(log.len());
    }
    let mut tries = 0;
    loop {
        // SAFETY: instructions, licence and log outlive the call, and each is as long as it says.
        let loaded = unsafe { descriptor(bpf_cmd::BPF_PROG_LOAD, &mut attr) };
        tries += 1;
        // A signal makes the verifier give up; libbpf asks again as often.
        let again = loaded.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        if !again || tries == 5 {
            return loaded;
        }
    }
}

/// Where a link attaches.
pub(super) struct LinkSite<'a> {
    /// A path to the file.
    pub(super) path: &'a CStr,
    /// Offset in it, bytes.
    pub(super) offset: u64,
    /// What the program is told of the site.
    pub(super) cookie: u64,
    /// For this process alone; for all, if 0. Negative for none, which the kernel refuses.
    pub(super) pid: i32,
    /// Where the function returns, not where it begins.
    pub(super) at_return: bool,
}

/// Attaches a program by a link of type `uprobe_multi`, which detaches when it is closed.
///
/// # Errors
///
/// What the kernel answers.
pub(super) fn link(program: BorrowedFd<'_>, site: &LinkSite<'_>) -> std::io::Result<OwnedFd> {
    const AT_RETURN: u32 = aya_obj::generated::BPF_F_UPROBE_MULTI_RETURN;
    let mut attr = blank();
    // SAFETY: as in `load`.
    let create = unsafe { &mut attr.link_create };
    create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    create.attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    // SAFETY: as in `load`.
    let sites = unsafe { &mut create.__bindgen_anon_3.uprobe_multi };
    sites.path = site.path.as_ptr() as u64;
    sites.offsets = ptr::from_ref(&site.offset) as u64;
    sites.cookies = ptr::from_ref(&site.cookie) as u64;
    sites.cnt = 1;
    sites.flags = if site.at_return { AT_RETURN } else { 0 };
    sites.pid = site.pid.cast_unsigned();
    // SAFETY: the path ends with a NUL, offset and cookie are one number each, and all outlive the call.
    unsafe { descriptor(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// Puts a program into an array of programs.
///
/// # Errors
///
/// What the kernel answers.
pub(super) fn set_program(array: BorrowedFd<'_>, place: u32, program: BorrowedFd<'_>) -> std::io::Result<()> {
    let program = program.as_raw_fd();
    let mut attr = blank();
    // SAFETY: as in `load`.
    let update = unsafe { &mut attr.__bindgen_anon_2 };
    update.map_fd = array.as_raw_fd().cast_unsigned();
    update.key = ptr::from_ref(&place) as u64;
    update.__bindgen_anon_1.value = ptr::from_ref(&program) as u64;
    // SAFETY: keys and values of such an array are of four bytes, and both outlive the call.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Nanoseconds that a program has run for and number of its runs, as far as the kernel kept them.
///
/// # Errors
///
/// What the kernel answers.
pub(super) fn ran(program: BorrowedFd<'_>) -> std::io::Result<(u64, u64)> {
    // SAFETY: it holds numbers only, of which zero is one.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = blank();
    // SAFETY: as in `load`.
    let query = unsafe { &mut attr.info };
    query.bpf_fd = program.as_raw_fd().cast_unsigned();
    query.info = ptr::from_mut(&mut info) as u64;
    query.info_len = size(size_of::<bpf_prog_info>());
    // SAFETY: the kernel writes no more than that, and asks for nothing where the lengths in it are zero.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok((info.run_time_ns, info.run_cnt))
}

/// Entries of a hash that one call of the kernel has read.
pub(super) struct Batch<K, V> {
    /// Their keys.
    pub(super) keys: Vec<K>,
    /// The value of each.
    pub(super) values: Vec<V>,
    /// Where the next call goes on; none at the end.
    pub(super) next: Option<u32>,
}

/// Reads a hash, bucket by bucket, from a place on or from its beginning, up to `most` entries (Linux 5.6).
///
/// # Errors
///
/// What the kernel answers: `ENOSPC` where the first bucket alone has more.
pub(super) fn read<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<u32>,
    most: usize,
) -> std::io::Result<Batch<K, V>> {
    let (mut keys, mut values, mut next) = (Vec::with_capacity(most), Vec::with_capacity(most), 0_u32);
    let mut attr = blank();
    // SAFETY: as in `load`.
    let batch = unsafe { &mut attr.batch };
    batch.map_fd = map.as_raw_fd().cast_unsigned();
    batch.in_batch = from.as_ref().map_or(0, |from| ptr::from_ref(from) as u64);
    batch.out_batch = ptr::from_mut(&mut next) as u64;
    batch.keys = keys.as_mut_ptr() as u64;
    batch.values = values.as_mut_ptr() as u64;
    batch.count = size(most);
    // SAFETY: a place is of four bytes, there is room for so many keys and values, and all outlive the call.
    let read = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
    let next = match read {
        Ok(_) => Some(next),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // SAFETY: as in `load`. The kernel writes there how many it has read.
    let count = unsafe { attr.batch.count } as usize;
    assert!(count <= most, "the kernel has read {count} entries, of {most} at most");
    // SAFETY: there is room for so many, all have been written, and any bytes are a key and a value.
    unsafe {
        keys.set_len(count);
        values.set_len(count);
    }
    Ok(Batch { keys, values, next })
}

fn blank() -> bpf_attr {
    // SAFETY: it holds numbers only.
    unsafe { std::mem::zeroed() }
}

fn size(of: usize) -> u32 {
    of.try_into().expect("programs, logs and structures are far below 4 GB")
}

/// # Safety
///
/// What `attr` points to must be as the command wants it.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> std::io::Result<c_long> {
    // SAFETY: `attr` is as long as is said; the rest is the caller's word.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(done) }
}

/// # Safety
///
/// As [`bpf`], and the command must be one that returns a new descriptor.
unsafe fn descriptor(command: bpf_cmd, attr: &mut bpf_attr) -> std::io::Result<OwnedFd> {
    // SAFETY: the caller's word.
    let done = unsafe { bpf(command, attr) }?;
    let number = RawFd::try_from(done).expect("a descriptor is an int");
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Processor time of a process, that of its threads included that have ended; `None` of one that is not there.
pub fn processor_time(pid: u32) -> Option<Duration> {
    /// `CPUCLOCK_SCHED` of linux/posix-timers.h.
    const SCHED: i32 = 2;
    let clock = !pid.cast_signed() << 3 | SCHED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one time, which lives on.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (failed == 0).then(|| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
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
    const CACHESTAT: c_long = 451;
    let (range, mut pages) = ([offset, length], PageCache::default());
    // SAFETY: the call reads two numbers and writes five, which is what these pointers lead to; both live on.
    let failed = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), &raw mut pages, 0_u32) };
    if failed == 0 { Ok(pages) } else { Err(std::io::Error::last_os_error()) }
}
