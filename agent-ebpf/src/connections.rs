//! The maps of connections, of what is kept of their bytes, and of who is at their ends.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use llamaprobe_common::request::{Connection, ConnectionKey, Peer, Talk};
use llamaprobe_core::links::{Connections, Ends, Links, Talks};

use crate::{
    machine::Helpers,
    maps::{BLANK_TALK, CALLS, CONNECTIONS, PEERS, TALKS, THREADS},
};

// States are looked up with a copy of the key: where one on the stack serves all look-ups the verifier takes a quarter
// more steps through `lp_sent`.

/// All that is kept of connections.
pub const LINKS: Links<ConnectionMap, TalkMap, EndMap, Helpers> =
    Links { connections: ConnectionMap, talks: TalkMap, ends: EndMap, output: Helpers };

/// [`CONNECTIONS`].
pub struct ConnectionMap;

/// The state of a connection, if it is one of the server's.
#[inline(always)]
pub fn find(key: &ConnectionKey) -> Option<&'static mut Connection> {
    // SAFETY: one thread owns a connection while it lives; what others write (`lp_gone`, `take_slot`) are fields of their
    // own, and a reference does not outlive the program.
    CONNECTIONS.get_ptr_mut(*key).map(|state| unsafe { &mut *state })
}

impl Connections for ConnectionMap {
    #[inline(always)]
    fn find(&mut self, key: &ConnectionKey) -> Option<&mut Connection> {
        find(key)
    }

    #[inline(always)]
    fn insert(&mut self, key: &ConnectionKey, state: Connection) -> bool {
        CONNECTIONS.insert(key, state, 0).is_ok()
    }

    #[inline(always)]
    fn remove(&mut self, key: &ConnectionKey) {
        let _ = CONNECTIONS.remove(key);
    }
}

/// [`TALKS`].
pub struct TalkMap;

impl Talks for TalkMap {
    #[inline(always)]
    fn find(&mut self, key: &ConnectionKey) -> Option<&mut Talk> {
        // SAFETY: one thread owns a connection while it lives.
        TALKS.get_ptr_mut(*key).map(|talk| unsafe { &mut *talk })
    }

    #[inline(always)]
    fn begin(&mut self, key: &ConnectionKey) -> bool {
        BLANK_TALK.get(0).is_some_and(|blank| TALKS.insert(key, blank, 0).is_ok())
    }

    #[inline(always)]
    fn remove(&mut self, key: &ConnectionKey) {
        let _ = TALKS.remove(key);
    }
}

/// [`PEERS`] at the one end, [`THREADS`] at the other.
pub struct EndMap;

impl Ends for EndMap {
    #[inline(always)]
    fn insert(&mut self, peer: Peer, key: ConnectionKey) -> bool {
        PEERS.insert(peer, key, 0).is_ok()
    }

    #[inline(always)]
    fn remove(&mut self, peer: &Peer, key: &ConnectionKey) {
        // SAFETY: only whose it is matters.
        if unsafe { PEERS.get(*peer) } == Some(key) {
            let _ = PEERS.remove(*peer);
        }
    }

    #[inline(always)]
    fn serve(&mut self, key: &ConnectionKey) -> bool {
        THREADS.insert(bpf_get_current_pid_tgid(), key, 0).is_ok()
    }

    #[inline(always)]
    fn served(&self) -> Option<&ConnectionKey> {
        // SAFETY: a torn read is not possible, the entry is written by this thread only.
        unsafe { THREADS.get(bpf_get_current_pid_tgid()) }
    }

    #[inline(always)]
    fn leave(&mut self) {
        let thread = bpf_get_current_pid_tgid();
        let _ = THREADS.remove(thread);
        let _ = CALLS.remove(thread);
    }
}
