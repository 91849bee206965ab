//! How the agent gives its rights up: what reads strangers' bytes and answers strangers keeps no capability, cannot gain one,
//! reaches no file but its own, and makes no system call that it has no use for. Each of the four stands alone: where a kernel
//! lacks one, the others hold.
//!
//! Capabilities belong to threads, and so does Landlock: all is done while there is but one thread.

mod calls;
mod capabilities;
mod paths;

use std::{
    fs,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    process::geteuid,
    thread::{CapabilitySet, set_no_new_privs},
};
use tracing::{debug, info, warn};

use self::paths::Reach;

/// How long a thread that is at its end may take.
const ALONE: Duration = Duration::from_secs(2);

/// What the agent uses after its start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uses {
    /// Files that are read, or read anew.
    pub(crate) read: Vec<PathBuf>,
    /// Files that are written, or opened anew.
    pub(crate) written: Vec<PathBuf>,
    /// Directories in which files are made and removed.
    pub(crate) filled: Vec<PathBuf>,
    /// Whether it connects to others.
    pub(crate) connects: bool,
}

/// Gives up what is not used. To be called by the only thread, when all that takes rights is open.
///
/// # Errors
///
/// When there are other threads, or the kernel takes nothing back: the agent had better not run then.
pub(crate) fn confine(uses: &Uses) -> Result<()> {
    let start = Instant::now();
    while threads()? > 1 {
        ensure!(start.elapsed() < ALONE, "rights cannot be given up: there are other threads");
        sleep(Duration::from_millis(1));
    }
    let kept = capabilities::give_up(uses).context("capabilities cannot be given up")?;
    set_no_new_privs(true).context("no_new_privs cannot be set")?;
    let reach = paths::restrict(uses).context("Landlock refuses its rules")?;
    if let Err(error) = calls::of_agent() {
        warn!(%error, "this kernel, or who started the agent, refuses seccomp: system calls are not restricted");
    }
    for (capability, why) in kept {
        warn!(capability, why, "one capability is kept");
    }
    if reach == Reach::All {
        warn!("no Landlock here: what the agent may read and write is bounded by the owners of files alone");
    }
    info!(landlock = ?reach, "rights are given up");
    Ok(())
}

/// Gives up what the keeper and its scouts do not use. To be called by its only thread.
///
/// # Errors
///
/// When the kernel takes nothing back.
pub(crate) fn confine_keeper() -> Result<()> {
    let inherited = capabilities::of_keeper().context("capabilities cannot be given up")?;
    // Rights that stand in the file of the program would not come to the scouts then.
    if inherited || geteuid().is_root() {
        set_no_new_privs(true).context("no_new_privs cannot be set")?;
    }
    if let Err(error) = calls::of_keeper() {
        debug!(%error, "the system calls of the keeper are not restricted");
    }
    Ok(())
}

/// Gives up what a scout does not use. To be called by its only thread.
///
/// # Errors
///
/// When the kernel takes nothing back.
pub(crate) fn confine_scout() -> Result<()> {
    capabilities::of_scout().context("capabilities cannot be given up")?;
    set_no_new_privs(true).context("no_new_privs cannot be set")?;
    // No Landlock: it would close the processes of others. Where there is no seccomp the agent has said so.
    let _ = calls::of_scout();
    Ok(())
}

/// Gives up everything. To be called by the only thread of a parser.
///
/// # Errors
///
/// When the kernel takes nothing back.
pub(crate) fn confine_parser() -> Result<()> {
    capabilities::keep_only(CapabilitySet::empty()).context("capabilities cannot be given up")?;
    set_no_new_privs(true).context("no_new_privs cannot be set")?;
    paths::restrict_all().context("Landlock refuses its rules")?;
    let _ = calls::of_parser();
    Ok(())
}

fn threads() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/task").context("cannot count threads")?.count())
}
