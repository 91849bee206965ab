//! What this process may do.

use super::{Check, KernelVersion, Roots, Verdict, kernel_version, unreadable};
use crate::bpf::Way;
use std::{ffi::OsString, fs};

/// Number of CAP_SYS_ADMIN in linux/capability.h, as are the other numbers here.
pub(super) const SYS_ADMIN: u8 = 21;
const DAC_OVERRIDE: u8 = 1;
const DAC_READ_SEARCH: u8 = 2;
const SYS_PTRACE: u8 = 19;
const PERFMON: u8 = 38;
const BPF: u8 = 39;
const CHECKPOINT_RESTORE: u8 = 40;

pub(super) const UNPRIVILEGED_BPF: &str = "sys/kernel/unprivileged_bpf_disabled";
const PARANOID: &str = "sys/kernel/perf_event_paranoid";
const STATS: &str = "sys/kernel/bpf_stats_enabled";
const AS_ROOT: &str = "run as root or with sudo";

/// What the agent needs where uprobes are attached in this way, for every place that says so.
#[must_use]
pub const fn needed(way: Way) -> &'static str {
    match way {
        Way::Links => {
            "run as root (sudo llamaprobe), or with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
        }
        Way::PerfEvents => {
            "run as root (sudo llamaprobe), or with CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. The service gets \
             CAP_SYS_ADMIN by `sudo install -D -m 644 /usr/share/llamaprobe/sys-admin.conf \
             /etc/systemd/system/llamaprobe.service.d/sys-admin.conf && sudo systemctl daemon-reload && sudo systemctl \
             restart llamaprobe`"
        }
    }
}

/// Inode numbers of the first namespaces, PROC_PID_INIT_INO and PROC_USER_INIT_INO in linux/proc_ns.h.
const INITIAL_PID: &str = "pid:[4026531836]";
const INITIAL_USER: &str = "user:[4026531837]";

/// The effective capabilities of this process, or why they are not known.
pub(super) struct Capabilities(Result<u64, String>);

impl Capabilities {
    pub(super) fn read(roots: &Roots) -> Self {
        Self(match roots.read_proc("self/status") {
            Ok(status) => effective(&status).ok_or_else(|| "no CapEff line in self/status".to_owned()),
            Err(error) => Err(unreadable(&roots.proc.join("self/status"), &error)),
        })
    }

    /// Whether the capability is in effect; an unknown set has none.
    pub(super) fn has(&self, number: u8) -> bool {
        self.0.as_ref().is_ok_and(|set| set & (1 << number) != 0)
    }
}

fn effective(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

/// Rights that only some targets call for: the name, what else grants it, and what is lost without it.
const WANTED: [(&str, &[u8], &str); 3] = [
    ("cap_sys_ptrace", &[SYS_PTRACE], "servers of other users cannot be looked at: maps and root are closed"),
    (
        "cap_dac_read_search",
        &[DAC_READ_SEARCH, DAC_OVERRIDE],
        "servers whose program or libraries only their owner may read are lost",
    ),
    (
        "cap_checkpoint_restore",
        &[CHECKPOINT_RESTORE, SYS_ADMIN],
        "servers whose libraries were replaced or deleted since their start are lost",
    ),
];

pub(super) fn capabilities(capabilities: &Capabilities, way: Way) -> Vec<Check> {
    const NAME: &str = "capabilities";
    if let Err(reason) = &capabilities.0 {
        return vec![Check::new(NAME, Verdict::Degraded, format!("unknown: {reason}")).with_remedy(AS_ROOT)];
    }
    let may_load = capabilities.has(BPF) && capabilities.has(PERFMON);
    let found = |verdict, found| Check::new(NAME, verdict, found);
    let mut checks = vec![match way {
        _ if capabilities.has(SYS_ADMIN) => found(Verdict::Ok, "probes can be loaded and attached"),
        Way::Links if may_load => found(
            Verdict::Ok,
            "probes can be loaded and attached, for which this kernel wants no CAP_SYS_ADMIN",
        ),
        Way::Links => found(Verdict::Fatal, "without CAP_BPF and CAP_PERFMON no probe can be attached")
            .with_remedy(needed(way)),
        // Linux 6.18 opens a perf event of a uprobe for CAP_SYS_ADMIN only (measured); the check was looser once.
        Way::PerfEvents if may_load => {
            found(Verdict::Degraded, "without CAP_SYS_ADMIN this kernel may refuse to attach probes")
                .with_remedy(needed(way))
        }
        Way::PerfEvents => {
            found(Verdict::Fatal, "without CAP_SYS_ADMIN no probe can be attached").with_remedy(needed(way))
        }
    }];
    checks.extend(WANTED.iter().map(|&(name, granting, loss)| {
        if granting.iter().any(|&number| capabilities.has(number)) {
            Check::new(name, Verdict::Ok, "granted")
        } else {
            Check::new(name, Verdict::Degraded, format!("not granted: {loss}"))
                .with_remedy(format!("{AS_ROOT}, or grant {}", name.to_uppercase()))
        }
    }));
    checks
}

/// The kernel keeps the run time of programs for CAP_SYS_ADMIN, or for all when it is told to.
pub(super) fn run_times(roots: &Roots, capabilities: &Capabilities) -> Check {
    const NAME: &str = "run times";
    if capabilities.has(SYS_ADMIN) || sysctl(roots, STATS).is_ok_and(|kept| kept == 1) {
        return Check::new(NAME, Verdict::Ok, "what the kernel programs take can be measured");
    }
    Check::new(
        NAME,
        Verdict::Note,
        "not told without CAP_SYS_ADMIN: llamaprobe_programs_cpu_ratio is absent, and llamaprobe_overhead_ratio counts what \
         reaching a probe takes, without what its program does",
    )
    .with_remedy("sysctl kernel.bpf_stats_enabled=1, which costs each BPF program of the host some 40 ns a run")
}

/// In a user namespace every capability may be shown, yet the kernel asks for those of the initial one.
pub(super) fn user_namespace(roots: &Roots) -> Check {
    const NAME: &str = "user namespace";
    match namespace(roots, "user") {
        Ok(namespace) if namespace == INITIAL_USER => Check::new(NAME, Verdict::Ok, "initial"),
        Ok(namespace) => Check::new(
            NAME,
            Verdict::Fatal,
            format!("{}, not the initial one: capabilities do not count here", namespace.display()),
        )
        .with_remedy("run on the host or in a container of root, not in a rootless one"),
        Err(reason) => Check::new(NAME, Verdict::Note, reason),
    }
}

/// The kernel reports process ids of the initial namespace; in another one they name nothing, or someone else.
pub(super) fn pid_namespace(roots: &Roots) -> Check {
    const NAME: &str = "pid namespace";
    const REMEDY: &str = "share the host's: `hostPID: true` in Kubernetes, `--pid=host` in Docker";
    match namespace(roots, "pid") {
        Ok(namespace) if namespace == INITIAL_PID => Check::new(NAME, Verdict::Ok, "initial"),
        Ok(namespace) => Check::new(
            NAME,
            Verdict::Degraded,
            format!("{}, not the initial one: servers outside are not seen", namespace.display()),
        )
        .with_remedy(REMEDY),
        Err(reason) => Check::new(NAME, Verdict::Degraded, reason).with_remedy(REMEDY),
    }
}

fn namespace(roots: &Roots, kind: &str) -> Result<OsString, String> {
    let path = roots.proc.join("self/ns").join(kind);
    fs::read_link(&path).map(Into::into).map_err(|error| unreadable(&path, &error))
}

/// Restricts only processes without CAP_PERFMON. 3 and 4 are levels of distributions.
pub(super) fn perf_event_paranoid(roots: &Roots, capabilities: &Capabilities) -> Check {
    const NAME: &str = "perf_event_paranoid";
    let exempt = capabilities.has(PERFMON) || capabilities.has(SYS_ADMIN);
    match sysctl(roots, PARANOID) {
        Ok(level) if exempt => {
            Check::new(NAME, Verdict::Ok, format!("{level}, with no effect on this process"))
        }
        Ok(level) if level < 0 => Check::new(NAME, Verdict::Ok, level.to_string()),
        Ok(level) => Check::new(NAME, Verdict::Note, format!("{level}, in force without CAP_PERFMON"))
            .with_remedy(AS_ROOT),
        Err(reason) => Check::new(NAME, Verdict::Note, reason),
    }
}

pub(super) fn unprivileged_bpf_disabled(roots: &Roots) -> Check {
    const NAME: &str = "unprivileged_bpf_disabled";
    match sysctl(roots, UNPRIVILEGED_BPF) {
        Ok(level) => {
            Check::new(NAME, Verdict::Ok, format!("{level}, with no effect on a privileged process"))
        }
        Err(reason) => Check::new(NAME, Verdict::Note, reason),
    }
}

fn sysctl(roots: &Roots, path: &str) -> Result<i64, String> {
    let text = roots.read_proc(path).map_err(|error| unreadable(&roots.proc.join(path), &error))?;
    let text = text.trim();
    text.parse().map_err(|_| format!("no number in {}: `{text}`", roots.proc.join(path).display()))
}

/// BPF maps count as locked memory only before 5.11; since then they count for the control group.
pub(super) fn memlock(roots: &Roots) -> Check {
    const NAME: &str = "memlock";
    const CGROUP: KernelVersion = KernelVersion { major: 5, minor: 11, patch: 0 };
    let limit = match roots.read_proc("self/limits") {
        Ok(limits) => memlock_limit(&limits).unwrap_or("unknown").to_owned(),
        Err(error) => unreadable(&roots.proc.join("self/limits"), &error),
    };
    match kernel_version(roots) {
        Some(version) if version < CGROUP && limit != "unlimited" => Check::new(
            NAME,
            Verdict::Degraded,
            format!("{limit}: kernel {version} counts BPF maps against it"),
        )
        .with_remedy("ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit"),
        _ => Check::new(NAME, Verdict::Ok, format!("{limit}; BPF maps do not count against it")),
    }
}

/// The soft limit, as `/proc/PID/limits` writes it: bytes or `unlimited`.
fn memlock_limit(limits: &str) -> Option<&str> {
    limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?.split_whitespace().next()
}
