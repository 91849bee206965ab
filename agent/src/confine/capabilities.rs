//! Capabilities: all are given up but those without which the agent could not do what it is told, which is tried.

use std::path::Path;

use aya::maps::{MapData, MapError};
use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    io::{Errno, Result},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities,
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
pub(super) fn of_scout() -> Result<()> {
    let held = capabilities(None)?.permitted;
    let keep = CapabilitySet::SYS_PTRACE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::CHECKPOINT_RESTORE;
    // Where the last is not had, this one stands for it.
    let instead = if held.contains(CapabilitySet::CHECKPOINT_RESTORE) {
        CapabilitySet::empty()
    } else {
        CapabilitySet::SYS_ADMIN
    };
    keep_only((keep | instead) & held)
}

pub(super) fn keep_only(keep: CapabilitySet) -> Result<()> {
    for capability in CapabilitySet::all().iter().filter(|it| !keep.contains(*it)) {
        // It takes CAP_SETPCAP. Without it nothing is gained: no program can be started any more.
        let _ = remove_capability_from_bounding_set(capability);
    }
    clear_ambient_capability_set()?;
    let last = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    set_capabilities(None, last)
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
