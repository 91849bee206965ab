//! The session's inputs as a file: written while the agent runs, played again by `llamaprobe replay`.
//!
//! A file is its mark and frames. A frame is the length of its body, a checksum (CRC-32) of it, both `u32` of little endian,
//! and the body: [`Entry`] by postcard. The first entry is a [`Header`]. No entry holds bytes of requests or answers: only
//! what was found in them by name.

pub mod play;
mod read;
mod write;

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::{
    read::{JournalError, JournalReader},
    write::{JournalOptions, JournalWriter},
};
use crate::session::{Billing, Input, tracer::Tracer};

/// How a file begins.
const MARK: &[u8; 8] = b"lpjourn\n";
/// The version of what entries hold. Whatever changes them changes it: entries do not describe themselves.
const VERSION: u32 = 1;
/// Bytes of a frame before its body.
const FRAME: usize = 8;
/// The longest body; more is damage.
const MOST: usize = 16 << 20;

/// By what the session was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`] of who wrote it. First in the file, so that every version can say what it is not.
    version: u32,
    /// The version of the agent, for people.
    pub agent: String,
    /// When the session was made, `CLOCK_MONOTONIC`, nanoseconds.
    pub began_ns: u64,
    /// Names and prices.
    pub billing: Billing,
    /// Only some processes are observed.
    pub only_some: bool,
    /// How requests get their trace ids, where they are traced.
    pub tracer: Option<Tracer>,
}

impl Header {
    /// The header of a session of this agent.
    pub fn new(began_ns: u64, billing: Billing, only_some: bool, tracer: Option<Tracer>) -> Self {
        let agent = env!("CARGO_PKG_VERSION").to_owned();
        Self { version: VERSION, agent, began_ns, billing, only_some, tracer }
    }
}

/// What happened, and when.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stamped {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub ns: u64,
    /// The kernel's time 0 since the Unix epoch, as the clock was set.
    pub epoch: Duration,
    /// What.
    pub input: Input,
}

/// What a frame holds.
#[derive(Debug, Serialize, Deserialize)]
pub enum Entry {
    /// An input.
    Input(Box<Stamped>),
    /// So many inputs could not be written here.
    Lost(u64),
}
