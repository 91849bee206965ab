//! seccomp: which system calls can be made. One that was forgotten here fails, as one does that a kernel does not know; one
//! that only an intruder makes ends the process.

use std::collections::BTreeMap;

use linux_raw_sys::general as calls;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// What every process makes: memory, time, signals, and what is open.
const BASE: &[u32] = &[
    calls::__NR_brk,
    calls::__NR_clock_getres,
    calls::__NR_clock_gettime,
    calls::__NR_clock_nanosleep,
    calls::__NR_close,
    calls::__NR_exit,
    calls::__NR_exit_group,
    calls::__NR_fcntl,
    calls::__NR_fstat,
    calls::__NR_futex,
    calls::__NR_getegid,
    calls::__NR_geteuid,
    calls::__NR_getgid,
    calls::__NR_getpid,
    calls::__NR_getrandom,
    calls::__NR_gettid,
    calls::__NR_gettimeofday,
    calls::__NR_getuid,
    calls::__NR_lseek,
    calls::__NR_madvise,
    calls::__NR_mmap,
    calls::__NR_mprotect,
    calls::__NR_mremap,
    calls::__NR_munmap,
    calls::__NR_nanosleep,
    calls::__NR_prctl,
    calls::__NR_pread64,
    calls::__NR_read,
    calls::__NR_readv,
    calls::__NR_recvmsg,
    calls::__NR_restart_syscall,
    calls::__NR_rseq,
    calls::__NR_rt_sigaction,
    calls::__NR_rt_sigprocmask,
    calls::__NR_rt_sigreturn,
    calls::__NR_sched_yield,
    calls::__NR_sendmsg,
    calls::__NR_set_robust_list,
    calls::__NR_sigaltstack,
    calls::__NR_tgkill,
    calls::__NR_write,
    calls::__NR_writev,
];

/// Finds and opens files.
const FILES: &[u32] = &[
    calls::__NR_faccessat,
    calls::__NR_faccessat2,
    calls::__NR_fstatfs,
    calls::__NR_getcwd,
    calls::__NR_getdents64,
    calls::__NR_newfstatat,
    calls::__NR_openat,
    calls::__NR_openat2,
    calls::__NR_readlinkat,
    calls::__NR_statx,
    calls::__NR_uname,
];

/// Serves and exports, writes files, starts threads.
const SERVES: &[u32] = &[
    calls::__NR_accept,
    calls::__NR_accept4,
    calls::__NR_bind,
    calls::__NR_clone,
    calls::__NR_clone3,
    calls::__NR_close_range,
    calls::__NR_connect,
    calls::__NR_dup,
    calls::__NR_dup3,
    calls::__NR_epoll_create1,
    calls::__NR_epoll_ctl,
    calls::__NR_epoll_pwait,
    calls::__NR_epoll_pwait2,
    calls::__NR_eventfd2,
    calls::__NR_fallocate,
    calls::__NR_fdatasync,
    calls::__NR_flock,
    calls::__NR_fsync,
    calls::__NR_ftruncate,
    calls::__NR_getpeername,
    calls::__NR_getppid,
    calls::__NR_getrusage,
    calls::__NR_getsockname,
    calls::__NR_getsockopt,
    calls::__NR_ioctl,
    calls::__NR_membarrier,
    calls::__NR_pipe2,
    calls::__NR_ppoll,
    calls::__NR_prlimit64,
    calls::__NR_pwrite64,
    calls::__NR_recvfrom,
    calls::__NR_recvmmsg,
    calls::__NR_renameat,
    calls::__NR_renameat2,
    calls::__NR_sched_getaffinity,
    calls::__NR_sendmmsg,
    calls::__NR_sendto,
    calls::__NR_setsockopt,
    calls::__NR_shutdown,
    calls::__NR_socket,
    calls::__NR_sysinfo,
    calls::__NR_umask,
    calls::__NR_unlinkat,
    calls::__NR_wait4,
    calls::__NR_waitid,
];

/// Asks what is in memory of a model.
const MODELS: &[u32] = &[calls::__NR_cachestat];

/// Takes the rights of the user on whom it looks.
const BECOMES: &[u32] = &[
    calls::__NR_getgroups,
    calls::__NR_getresgid,
    calls::__NR_getresuid,
    calls::__NR_setgroups,
    calls::__NR_setresgid,
    calls::__NR_setresuid,
];

/// What older C libraries, and musl, make in the place of some of them.
#[cfg(target_arch = "x86_64")]
const OLDER_FILES: &[u32] =
    &[calls::__NR_access, calls::__NR_lstat, calls::__NR_open, calls::__NR_readlink, calls::__NR_stat];
#[cfg(target_arch = "x86_64")]
const OLDER_SERVES: &[u32] = &[
    calls::__NR_dup2,
    calls::__NR_epoll_create,
    calls::__NR_epoll_wait,
    calls::__NR_eventfd,
    calls::__NR_pipe,
    calls::__NR_poll,
    calls::__NR_rename,
    calls::__NR_select,
    calls::__NR_time,
    calls::__NR_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_FILES: &[u32] = &[];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_SERVES: &[u32] = &[];

/// What is done with maps: look up, update, delete, next key, what a map is, and look up many; `enum bpf_cmd` of linux/bpf.h.
const MAPS: [u64; 6] = [1, 2, 3, 4, 15, 24];
/// `BPF_PROG_LOAD`.
const PROG_LOAD: u64 = 5;

/// What only an intruder makes: other programs, other processes, other file systems, another kernel.
const HOSTILE: &[u32] = &[
    calls::__NR_execve,
    calls::__NR_execveat,
    calls::__NR_ptrace,
    calls::__NR_process_vm_readv,
    calls::__NR_process_vm_writev,
    calls::__NR_pidfd_getfd,
    calls::__NR_init_module,
    calls::__NR_finit_module,
    calls::__NR_delete_module,
    calls::__NR_mount,
    calls::__NR_umount2,
    calls::__NR_move_mount,
    calls::__NR_fsopen,
    calls::__NR_fsmount,
    calls::__NR_pivot_root,
    calls::__NR_chroot,
    calls::__NR_setns,
    calls::__NR_unshare,
    calls::__NR_kexec_load,
    calls::__NR_reboot,
    calls::__NR_perf_event_open,
    calls::__NR_open_by_handle_at,
    calls::__NR_io_uring_setup,
    calls::__NR_keyctl,
];

/// What the keeper makes all the same: scouts, and probes on kernels that have no links for them.
const KEPT: [u32; 2] = [calls::__NR_execve, calls::__NR_perf_event_open];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Leaves the keeper, and its scouts, everything but what only an intruder makes: it does what no list of calls could
/// tell from harm, but never looks into another process's memory, and never changes a file system or the kernel.
pub(super) fn of_keeper() -> Result<(), Error> {
    let mut hostile = all(&[HOSTILE]);
    hostile.retain(|call, _| KEPT.iter().all(|kept| i64::from(*kept) != *call));
    end(hostile)
}

/// Leaves the agent what it makes, on this thread and those that it starts.
pub(super) fn of_agent() -> Result<(), Error> {
    restrict(&[BASE, FILES, OLDER_FILES, SERVES, OLDER_SERVES], &MAPS)
}

/// Leaves a scout what it makes.
pub(super) fn of_scout() -> Result<(), Error> {
    restrict(&[BASE, FILES, OLDER_FILES, BECOMES, MODELS], &[])
}

/// Leaves a parser what it makes: what it reads is open.
pub(super) fn of_parser() -> Result<(), Error> {
    restrict(&[BASE, &[calls::__NR_statx, calls::__NR_newfstatat]], &[])
}

fn restrict(lists: &[&[u32]], maps: &[u64]) -> Result<(), Error> {
    let mut used = all(lists);
    if !maps.is_empty() {
        used.insert(calls::__NR_bpf.into(), commands(maps)?);
    }
    let mut hostile = all(&[HOSTILE]);
    hostile.insert(calls::__NR_bpf.into(), commands(&[PROG_LOAD])?);
    let refuse = SeccompAction::Errno(rustix::io::Errno::PERM.raw_os_error().unsigned_abs());
    // What the one ends the other need not allow: the strictest answer counts.
    end(hostile)?;
    apply_filter(&compiled(used, refuse, SeccompAction::Allow)?)
}

/// Whoever makes one of these is ended.
fn end(hostile: Rules) -> Result<(), Error> {
    apply_filter(&compiled(hostile, SeccompAction::Allow, SeccompAction::KillProcess)?)
}

fn all(lists: &[&[u32]]) -> Rules {
    lists.iter().flat_map(|list| list.iter()).map(|call| (i64::from(*call), Vec::new())).collect()
}

/// A call whose first argument is one of these.
fn commands(commands: &[u64]) -> Result<Vec<SeccompRule>, Error> {
    let is = |command: &u64| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *command);
    let rules = commands.iter().map(|command| SeccompRule::new(vec![is(command)?]));
    Ok(rules.collect::<Result<_, _>>()?)
}

fn compiled(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> Result<BpfProgram, Error> {
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, otherwise, matching, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hostile_is_used() {
        for lists in [
            &[BASE, FILES, OLDER_FILES, SERVES, OLDER_SERVES][..],
            &[BASE, FILES, OLDER_FILES, BECOMES, MODELS],
        ] {
            let used = all(lists);
            assert!(HOSTILE.iter().all(|call| !used.contains_key(&i64::from(*call))));
        }
        let rules = commands(&MAPS).unwrap();
        assert!(rules.len() == MAPS.len() && !MAPS.contains(&PROG_LOAD));
    }
}
