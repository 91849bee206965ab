//! The scouts that the agent has asked for: children of the keeper, since they need rights that the agent has not.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, process::Child};

use crate::scout;

/// Scouts at a time, those that were given up and have not ended among them.
const MOST: usize = 20;

/// Those that have not ended, each with its parser, by process id.
#[derive(Default)]
pub(super) struct Scouts(BTreeMap<u32, [Child; 2]>);

impl Scouts {
    /// Starts one. Returns its process id, that of its parser, and the socket by which it is asked.
    ///
    /// # Errors
    ///
    /// When there are too many, or there is no room for two more processes.
    pub(super) fn start(&mut self) -> io::Result<([u32; 2], OwnedFd)> {
        self.reap();
        if self.0.len() >= MOST {
            return Err(io::Error::other("too many that were given up have not ended"));
        }
        let (children, socket) = scout::spawn()?;
        let pids = children.each_ref().map(Child::id);
        self.0.insert(pids[0], children);
        Ok((pids, socket))
    }

    /// Ends one, as soon as what it waits for lets it. Another process than a scout is none of ours.
    pub(super) fn end(&mut self, pid: u32) {
        for child in self.0.get_mut(&pid).into_iter().flatten() {
            // It has ended already, where it cannot be killed.
            let _ = child.kill();
        }
        self.reap();
    }

    /// The process ids of all of them, and of their parsers.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.0.values().flatten().map(Child::id)
    }

    fn reap(&mut self) {
        let lives = |child: &mut Child| child.try_wait().is_ok_and(|ended| ended.is_none());
        // Both are asked: who has ended and is not asked stays in the table of processes.
        self.0.retain(|_, children| {
            children.iter_mut().filter_map(|child| lives(child).then_some(())).count() > 0
        });
    }
}
