//! Capabilities: all are given up but those without which the agent could not do what it is told, which is tried.

use std::path::Path;

use aya::maps::{MapData, MapError};
use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    io::{Errno, Result},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_ambient_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    },
};

use super::Uses;

/// What stays, and why.
type Kept = Vec<(&'static str, String)>;

/// Gives up what is not needed, for this thread and those that it starts. Returns what is.
pub(super) fn give_up(uses: &Uses) -> Result<Kept> {
    let held = capabilities(None)?;
    let without = CapabilitySets { effective: CapabilitySet::empty(), ..held };
    set_capabilities(None, without)?;
    let mut kept = Kept::new();
    let mut keep = CapabilitySet::empty();
    let mut need = |capability: CapabilitySet, name, why: String| {
        if held.permitted.contains(capability) && !keep.contains(capability) {
            keep |= capability;
            kept.push((name, why));
        }
    };
    if maps_are_refused() {
        let why = "before Linux 5.19 maps are closed without it".to_owned();
        // Where the one is not had, the other stands for it.
        match held.permitted.contains(CapabilitySet::BPF) {
            true => need(CapabilitySet::BPF, "CAP_BPF", why),
            false => need(CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN", why),
        }
    }
    for path in uses.written.iter().chain(&uses.filled).filter(|path| !may(path, Access::WRITE_OK)) {
        let why = format!("{} is another user's to write", path.display());
        need(CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE", why);
    }
    for path in uses.read.iter().filter(|path| !may(path, Access::READ_OK)) {
        let why = format!("{} is another user's to read", path.display());
        need(CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", why);
    }
    set_capabilities(None, held)?;
    keep_only(keep)?;
    Ok(kept)
}

/// What a scout needs: to look into processes of others, and at files that only their owner may read, to read what a server
/// only names with the rights of its user, and to reach libraries that were replaced.
const LOOKS: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::CHECKPOINT_RESTORE);
/// What loading and attaching takes; the last on kernels before 6.6, and for the run time of programs.
const ATTACHES: CapabilitySet =
    CapabilitySet::BPF.union(CapabilitySet::PERFMON).union(CapabilitySet::SYS_ADMIN);

/// Leaves a scout what it needs.
pub(super) fn of_scout() -> Result<()> {
    let held = capabilities(None)?.permitted;
    // Where the one is not had that reaches libraries, this one stands for it.
    let has = held.contains(CapabilitySet::CHECKPOINT_RESTORE);
    let instead = if has { CapabilitySet::empty() } else { CapabilitySet::SYS_ADMIN };
    keep_only((LOOKS | instead) & held)
}

/// Leaves the keeper what it and its scouts need. What is inherited stays: those may get their rights by it. Returns whether
/// they get all of them so.
pub(super) fn of_keeper() -> Result<bool> {
    let held = capabilities(None)?;
    let keep = (LOOKS | ATTACHES) & held.permitted;
    unbind_but(keep);
    let last = CapabilitySets { effective: keep, permitted: keep, inheritable: held.inheritable & keep };
    set_capabilities(None, last)?;
    Ok(keep.iter().all(|capability| capability_is_in_ambient_set(capability).unwrap_or(false)))
}

/// Leaves these, and no way to any other.
pub(super) fn keep_only(keep: CapabilitySet) -> Result<()> {
    unbind_but(keep);
    clear_ambient_capability_set()?;
    let last = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    set_capabilities(None, last)
}

/// Lets no program that is started have others than these.
fn unbind_but(keep: CapabilitySet) {
    for capability in CapabilitySet::all().iter().filter(|it| !keep.contains(*it)) {
        // It takes CAP_SETPCAP. Without it no right is gained that is not held.
        let _ = remove_capability_from_bounding_set(capability);
    }
}

/// Whether a file, and its directory where it may be opened anew, can be used with the rights that are in effect.
fn may(path: &Path, how: Access) -> bool {
    let can = |path: &Path, how| accessat(CWD, path, how, AtFlags::EACCESS);
    let refused = |done: Result<()>| matches!(done, Err(Errno::ACCESS | Errno::PERM));
    let directory = path.parent().filter(|_| path.is_file() || !path.exists());
    let beside = directory.map(|it| if it == Path::new("") { Path::new(".") } else { it });
    !refused(can(path, how)) && !beside.is_some_and(|it| refused(can(it, how | Access::EXEC_OK)))
}

/// Whether the kernel lets this thread do nothing with maps whose descriptors it holds.
fn maps_are_refused() -> bool {
    let Ok(none) = std::fs::File::open("/proc/self/status") else { return false };
    // No map: what is said of it is said before it is looked at.
    match MapData::from_fd(none.into()) {
        Err(MapError::SyscallError(error)) => error.io_error.kind() == std::io::ErrorKind::PermissionDenied,
        _ => false,
    }
}
