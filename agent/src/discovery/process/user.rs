//! Doing something with the rights of another user, for a moment, on this thread alone.
//!
//! Only the effective ids change: the real and the saved ones stay, so that the other user gains no right over this
//! process, and the way back is open.

use std::io;

use rustix::{
    process::{Gid, Uid, getegid, geteuid, getgroups},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// With whose rights files are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// Runs `what` with the rights of a user. Those of the agent's own need no change.
///
/// # Errors
///
/// When the agent may not become that user: it needs CAP_SETUID and CAP_SETGID.
pub(super) fn with_rights_of<T>(user: &User, what: impl FnOnce() -> T) -> io::Result<T> {
    let (uid, gid, groups) = (geteuid(), getegid(), getgroups()?);
    if user.uid == uid.as_raw() {
        return Ok(what());
    }
    let wanted: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&wanted)?;
    let became = set_thread_res_gid(None, Gid::from_raw(user.gid), None)
        .and_then(|()| set_thread_res_uid(None, Uid::from_raw(user.uid), None));
    let done = became.map(|()| what());
    // The user first: another one may not set groups.
    set_thread_res_uid(None, uid, None)?;
    set_thread_res_gid(None, gid, None)?;
    set_thread_groups(&groups)?;
    Ok(done?)
}
