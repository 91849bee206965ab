//! The scouts that the agent has asked for: children of the keeper, since they need rights that the agent has not.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    process::Child,
};

use crate::scout;

/// Scouts at a time, those that were given up and have not ended among them.
const MOST: usize = 20;

/// Those that have not ended.
#[derive(Default)]
pub(super) struct Scouts(BTreeMap<u32, Child>);

impl Scouts {
    /// Starts one. Returns its process id and the socket by which it is asked.
    ///
    /// # Errors
    ///
    /// When there are too many, or there is no room for one more process.
    pub(super) fn start(&mut self) -> io::Result<(u32, OwnedFd)> {
        self.reap();
        if self.0.len() >= MOST {
            return Err(io::Error::other("too many that were given up have not ended"));
        }
        let (child, socket) = scout::spawn()?;
        let pid = child.id();
        self.0.insert(pid, child);
        Ok((pid, socket))
    }

    /// Ends one, as soon as what it waits for lets it. Another process than a scout is none of ours.
    pub(super) fn end(&mut self, pid: u32) {
        if let Some(child) = self.0.get_mut(&pid) {
            // It has ended already.
            let _ = child.kill();
        }
        self.reap();
    }

    fn reap(&mut self) {
        self.0.retain(|_, child| child.try_wait().is_ok_and(|ended| ended.is_none()));
    }
}
