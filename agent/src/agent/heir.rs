//! Who detaches when the agent has ended. The kernel takes its time for each probe that goes, one after the other: 80 ms
//! for one in a program, 1 to 3 s in all. Whoever ends the agent, or starts the next, need not wait for that: a child
//! inherits the links and ends a moment later than the agent, and all goes with it.

use std::{
    io,
    process::{Command, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use rustix::process::getppid;
use tracing::debug;

use crate::bpf::{bequeath_links, inherited_links};

/// The command that the heir runs.
pub const COMMAND: &str = "outlive";
/// How long the heir waits for the end of the agent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts the heir. From here on nothing must be attached any more.
///
/// # Errors
///
/// When it cannot be started: then the agent has to detach itself.
pub(super) fn appoint() -> io::Result<()> {
    let links = bequeath_links()?;
    let parent = std::process::id().to_string();
    let silent = Stdio::null;
    // This very file, also where another has taken its place.
    let heir = Command::new("/proc/self/exe")
        .args([COMMAND, &parent])
        .stdin(silent())
        .stdout(silent())
        .stderr(silent())
        .current_dir("/")
        .spawn()?;
    debug!(links, heir = heir.id(), "detaching is left to a child");
    Ok(())
}

/// What the heir does: it holds what it inherited until `parent` has ended.
pub fn outlive(parent: u32) {
    let start = Instant::now();
    let lives = || getppid().is_some_and(|id| id.as_raw_nonzero().get().unsigned_abs() == parent);
    while lives() && start.elapsed() < PATIENCE {
        sleep(Duration::from_millis(2));
    }
    // The kernel waits a while for each; at once they wait for the same.
    let closing = inherited_links().unwrap_or_default().into_iter().map(|link| thread::spawn(|| drop(link)));
    closing.collect::<Vec<_>>().into_iter().for_each(|closing| drop(closing.join()));
}
