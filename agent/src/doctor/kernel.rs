//! What the running kernel offers and forbids.

use llamaprobe_common::stall::Cause;

use crate::bpf::{Way, btf, switches};

use super::{Check, KernelVersion, Roots, Verdict, kernel_version, rights, unreadable};
use rights::Capabilities;
use std::{fs, io};

/// The release of the kernel, below the root of proc.
pub(super) const OSRELEASE: &str = "sys/kernel/osrelease";

const UPROBE_TYPE: &str = "bus/event_source/devices/uprobe/type";
const LOCKDOWN: &str = "kernel/security/lockdown";
const BTF: &str = "kernel/btf/vmlinux";

pub(super) fn version(roots: &Roots) -> Check {
    const NAME: &str = "kernel";
    match roots.read_proc(OSRELEASE) {
        Err(error) => Check::new(NAME, Verdict::Note, unreadable(&roots.proc.join(OSRELEASE), &error))
            .with_remedy(format!("make sure by `uname -r` that it is {} or newer", KernelVersion::FLOOR)),
        Ok(release) => match kernel_version(roots) {
            None => Check::new(NAME, Verdict::Note, format!("unknown release `{}`", release.trim())),
            Some(version) if version < KernelVersion::FLOOR => Check::new(
                NAME,
                Verdict::Fatal,
                format!(
                    "{}; probes that know which target they are on need {}",
                    release.trim(),
                    KernelVersion::FLOOR
                ),
            )
            .with_remedy("a newer kernel"),
            Some(_) => Check::new(NAME, Verdict::Ok, release.trim()),
        },
    }
}

/// The sysctl exists exactly when the kernel has the bpf system call; calling it would need rights to ask.
pub(super) fn bpf_syscall(roots: &Roots) -> Check {
    const NAME: &str = "bpf syscall";
    let sysctls = roots.proc.join("sys/kernel");
    let sysctl = roots.proc.join(rights::UNPRIVILEGED_BPF);
    match (fs::metadata(&sysctl), sysctls.is_dir()) {
        (Ok(_), _) => Check::new(NAME, Verdict::Ok, "present"),
        (Err(error), true) if error.kind() == io::ErrorKind::NotFound => {
            Check::new(NAME, Verdict::Fatal, "the kernel is built without CONFIG_BPF_SYSCALL")
                .with_remedy("a kernel with CONFIG_BPF_SYSCALL=y")
        }
        (Err(error), _) => {
            Check::new(NAME, Verdict::Note, format!("cannot tell: {}", unreadable(&sysctl, &error)))
        }
    }
}

/// Where uprobes are attached by perf events they have a source of their own; no kprobe is needed.
pub(super) fn uprobes(roots: &Roots) -> Check {
    const NAME: &str = "uprobes";
    let path = roots.sys.join(UPROBE_TYPE);
    match roots.read_sys(UPROBE_TYPE) {
        Ok(text) if text.trim().parse::<u32>().is_ok() => {
            Check::new(NAME, Verdict::Ok, format!("perf event source of type {}", text.trim()))
        }
        Ok(text) => Check::new(
            NAME,
            Verdict::Degraded,
            format!("{} holds no number: `{}`", path.display(), text.trim()),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !roots.sys.join("kernel").is_dir() => {
            Check::new(NAME, Verdict::Fatal, format!("sysfs is not mounted on {}", roots.sys.display()))
                .with_remedy(format!("mount -t sysfs sysfs {}", roots.sys.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::new(NAME, Verdict::Fatal, "the kernel is built without CONFIG_UPROBE_EVENTS").with_remedy(
                "a kernel with CONFIG_UPROBES=y, CONFIG_UPROBE_EVENTS=y and CONFIG_PERF_EVENTS=y",
            )
        }
        Err(error) => Check::new(NAME, Verdict::Degraded, unreadable(&path, &error)),
    }
}

/// How uprobes are attached, and what that means.
pub(super) fn uprobe_links(way: Way) -> Check {
    const NAME: &str = "uprobe links";
    match way {
        Way::Links => Check::new(NAME, Verdict::Ok, "probes are attached by links of type uprobe_multi"),
        Way::PerfEvents => Check::new(
            NAME,
            Verdict::Note,
            "this kernel has none that serve: probes are attached by perf events, for which kernels want CAP_SYS_ADMIN",
        )
        .with_remedy("Linux 6.6 or newer"),
    }
}

pub(super) fn lockdown(roots: &Roots) -> Check {
    const NAME: &str = "lockdown";
    match roots.read_sys(LOCKDOWN) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::new(NAME, Verdict::Note, "not reported: a kernel without it, or securityfs is not mounted")
        }
        Err(error) => Check::new(NAME, Verdict::Note, unreadable(&roots.sys.join(LOCKDOWN), &error)),
        Ok(text) => match lockdown_mode(&text) {
            Some(mode @ ("none" | "integrity")) => Check::new(NAME, Verdict::Ok, mode),
            Some("confidentiality") => Check::new(
                NAME,
                Verdict::Fatal,
                "confidentiality: the kernel lets no BPF program read kernel memory, and closes tracefs",
            )
            .with_remedy("boot with lockdown=integrity, or without lockdown=confidentiality"),
            _ => Check::new(NAME, Verdict::Note, format!("unknown mode in `{}`", text.trim())),
        },
    }
}

/// The mode in force is the one in brackets: `none [integrity] confidentiality`.
fn lockdown_mode(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'))
}

/// Tracepoints are found by number in tracefs; without them no request is seen, and a library loaded late is noticed late.
pub(super) fn tracefs(roots: &Roots, capabilities: &Capabilities) -> Check {
    const NAME: &str = "tracefs";
    let mut denied = None;
    for place in ["kernel/tracing", "kernel/debug/tracing"] {
        let path = roots.sys.join(place);
        match fs::metadata(path.join("events")) {
            Ok(events) if events.is_dir() => {
                return Check::new(NAME, Verdict::Ok, format!("mounted on {}", path.display()));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                denied.get_or_insert_with(|| unreadable(&path, &error));
            }
            Ok(_) | Err(_) => {}
        }
    }
    let found = denied.unwrap_or_else(|| "not mounted".to_owned());
    if capabilities.has(rights::SYS_ADMIN) {
        Check::new(NAME, Verdict::Note, format!("{found}; the agent mounts it for itself alone"))
    } else {
        Check::new(
            NAME,
            Verdict::Degraded,
            format!(
                "{found}; no HTTP request can be followed, and libraries loaded after the start of a server are found only by the slow rescan"
            ),
        )
        .with_remedy(format!("mount -t tracefs nodev {}", roots.sys.join("kernel/tracing").display()))
    }
}

pub(super) fn btf(roots: &Roots) -> Check {
    const NAME: &str = "btf";
    match fs::read(roots.sys.join(BTF)) {
        Ok(bytes) => match btf::layout(&bytes).map(|layout| switches::not_told(&layout)) {
            Some(causes) if causes.is_empty() => {
                Check::new(NAME, Verdict::Ok, "says all that is needed to tell what holds decode steps back")
            }
            Some(causes) => {
                let causes: Vec<&str> = causes.into_iter().map(Cause::name).collect();
                Check::new(
                    NAME,
                    Verdict::Note,
                    format!("stalls by these causes are not told apart: {}", causes.join(", ")),
                )
            }
            None => Check::new(
                NAME,
                Verdict::Degraded,
                "is not understood; what holds decode steps back is not seen",
            ),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Check::new(
            NAME,
            Verdict::Degraded,
            "absent; what holds decode steps back is not seen (llm_stall_seconds_total), all else is",
        )
        .with_remedy("a kernel with CONFIG_DEBUG_INFO_BTF=y"),
        Err(error) => Check::new(NAME, Verdict::Note, unreadable(&roots.sys.join(BTF), &error)),
    }
}
