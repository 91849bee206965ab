//! Reads under way: what is noted where a read begins, for where it ends.

use crate::{plain, request::ConnectionKey};

/// The descriptor of a read through a TLS session of which the connection is not known yet.
pub const UNKNOWN: i32 = -1;

/// The descriptor of a handshake under way, whose begin stands in place of the buffer.
pub const HANDSHAKE: i32 = -2;

/// A read under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Call {
    /// The connection; [`UNKNOWN`] and [`HANDSHAKE`] stand for descriptors.
    pub key: ConnectionKey,
    /// Where the bytes will be, an address in the target.
    pub buffer: u64,
    /// The TLS session; 0 for a system call.
    pub session: u64,
}

plain!(Call = 24);
