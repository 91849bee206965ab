//! Whether the agent can work on this machine, and why not.
//!
//! In: `/proc` and `/sys`, or directories that stand for them. Out: a [`Report`] of [`Check`]s, each with what was
//! found and what to do about it. Nothing is changed or printed, nothing but a program
//! of two instructions is loaded, to see what the kernel takes, and a file that cannot be read is a
//! finding like any other.

mod kernel;
mod machine;
mod report;
mod rights;
mod version;

pub use machine::virtual_machine;
pub use report::{Check, Report, Verdict};
pub use rights::needed;
pub use version::KernelVersion;

use crate::{bpf::Way, session::cost::Rates};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel's file systems are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// The proc file system, `/proc`.
    pub proc: PathBuf,
    /// The sys file system, `/sys`.
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: PathBuf::from("/proc"), sys: PathBuf::from("/sys") }
    }
}

impl Roots {
    fn read_proc(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.proc.join(path))
    }

    fn read_sys(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.sys.join(path))
    }
}

/// How uprobes are attached here; where that cannot be tried, as kernels of this version do.
#[must_use]
pub fn way(roots: &Roots) -> Way {
    Way::here().unwrap_or_else(|_| match kernel_version(roots) {
        Some(version) if version >= KernelVersion::LINKS => Way::Links,
        _ => Way::PerfEvents,
    })
}

/// Checks the machine, which attaches uprobes in a certain [`way`], and this process's rights on it.
#[must_use]
pub fn host(roots: &Roots, way: Way) -> Vec<Check> {
    let capabilities = rights::Capabilities::read(roots);
    let mut checks = vec![
        kernel::version(roots),
        kernel::bpf_syscall(roots),
        kernel::uprobes(roots),
        kernel::uprobe_links(way),
        kernel::lockdown(roots),
        kernel::tracefs(roots, &capabilities),
        kernel::btf(roots),
        rights::user_namespace(roots),
    ];
    checks.extend(rights::capabilities(&capabilities, way));
    checks.extend([
        rights::perf_event_paranoid(roots, &capabilities),
        rights::unprivileged_bpf_disabled(roots),
        rights::memlock(roots),
        rights::run_times(roots, &capabilities),
        rights::pid_namespace(roots),
        machine::hypervisor(roots),
    ]);
    checks
}

/// The version of the running kernel, if it can be read.
#[must_use]
pub fn kernel_version(roots: &Roots) -> Option<KernelVersion> {
    KernelVersion::parse(&roots.read_proc(kernel::OSRELEASE).ok()?)
}

/// Mode of a process under a seccomp filter.
const FILTER: u8 = 2;

/// Why a process must have no return probe, if so: under a seccomp filter kernels 6.11 to 6.13 kill a process at the
/// first one (CVE-2025-21834). `seccomp` is the number after `Seccomp:` in `/proc/PID/status`.
#[must_use]
pub fn no_return_probe(seccomp: u8, kernel: KernelVersion) -> Option<&'static str> {
    let affected = (6, 11) <= (kernel.major, kernel.minor) && (kernel.major, kernel.minor) <= (6, 13);
    (seccomp == FILTER && affected)
        .then_some("it runs under a seccomp filter, and this kernel could kill it at a return probe")
}

/// Checks a target for [`no_return_probe`].
///
/// Never worse than a note, because no return probe is placed on such a target.
#[must_use]
pub fn target_seccomp(pid: u32, comm: &str, seccomp: u8, kernel: KernelVersion) -> Check {
    let mode = match seccomp {
        0 => "no seccomp",
        1 => "strict seccomp",
        FILTER => "a seccomp filter",
        _ => "an unknown seccomp mode",
    };
    let found = format!("{comm} ({pid}) runs under {mode}");
    if no_return_probe(seccomp, kernel).is_some() {
        Check::new(
            "target seccomp",
            Verdict::Note,
            format!(
                "{found}; on kernel {kernel} a return probe could kill it, so that it gets none; `llamaprobe plan` \
                 says whether that hides requests over TLS"
            ),
        )
        .with_remedy(
            "a kernel with CVE-2025-21834 fixed (6.14, or a stable 6.12 or 6.13 since February 2025)",
        )
    } else {
        Check::new("target seccomp", Verdict::Ok, found)
    }
}

/// Checks whether a model that is served has a price, which goes by its name exactly.
#[must_use]
pub fn target_prices(model: &str, rates: &Rates) -> Check {
    let name = "target prices";
    if rates.tokens.contains_key(model) {
        return Check::new(name, Verdict::Ok, format!("{model} is in the price list"));
    }
    if rates.of(model).is_some() {
        let found = format!("{model} is not in the price list: its tokens cost what `default` says");
        return Check::new(name, Verdict::Note, found);
    }
    let listed: Vec<_> = rates.tokens.keys().map(|listed| format!("{listed:?}")).collect();
    let found = format!(
        "{model} is not in the price list, which has no `default` either ({}): its tokens cost nothing",
        if listed.is_empty() { "it is empty".to_owned() } else { listed.join(", ") }
    );
    Check::new(name, Verdict::Degraded, found).with_remedy(format!("a table [{model:?}] in the price list"))
}

/// Says why a file is of no use, in the words of a finding.
fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

#[cfg(test)]
mod tests;
