//! tracefs gives the numbers of the system-call tracepoints, without which no request is seen. Where the host has it not mounted the agent mounts it
//! in a mount namespace of its own: the host does not change.

use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::raw::unshare_mounts;

/// Where tracefs is looked for.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Makes sure that tracefs can be read. To be called before any thread is started.
///
/// # Errors
///
/// When it is not mounted and must not be.
pub fn ensure() -> std::io::Result<()> {
    if PLACES.iter().any(|place| Path::new(place).join("events").is_dir()) {
        return Ok(());
    }
    unshare_mounts()?;
    // What the host mounts later shall still come in, what is mounted here shall not go out.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tracefs", PLACES[0], "tracefs", flags, None)?;
    Ok(())
}
