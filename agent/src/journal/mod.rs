//! The session's inputs as a file: written while the agent runs, played again by `llamaprobe replay`.
//!
//! A file is its mark and frames. A frame is the length of its body, a checksum (CRC-32) of it, both `u32` of little endian,
//! and the body: [`Entry`] by postcard. The first is a [`Header`]. Unless it was asked for, none holds bytes of requests or
//! answers: only what was found in them by name.

pub mod play;
mod read;
mod write;

#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

pub(crate) use self::write::{frame, framed};
pub use self::{
    read::{JournalError, JournalReader},
    write::{JournalOptions, JournalWriter},
};
use crate::{
    bpf::events::RequestEvent,
    session::{
        Billing, Input,
        payload::{head::HeadOptions, text::Phrases},
        tracer::Tracer,
    },
};

/// How a file begins.
pub(crate) const MARK: &[u8; 8] = b"lpjourn\n";
/// The version of what entries hold. Whatever changes them changes it: entries do not describe themselves.
const VERSION: u32 = 7;
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
    /// By what requests and answers were read, where their bytes are here. Not `Debug`, and a secret: API keys are hashed with
    /// it, and stand in these bytes.
    pub reading: Option<Reading>,
}

/// By what requests and answers are read.
#[derive(Clone, Serialize, Deserialize)]
pub struct Reading {
    /// What is looked for in heads.
    pub options: HeadOptions,
    /// What is looked for in answers.
    pub phrases: Phrases,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

impl Header {
    /// The header of a session of this agent.
    pub fn new(began_ns: u64, billing: Billing, only_some: bool, tracer: Option<Tracer>) -> Self {
        let agent = env!("CARGO_PKG_VERSION").to_owned();
        Self { version: VERSION, agent, began_ns, billing, only_some, tracer, reading: None }
    }

    /// Bytes of requests and answers are written down, too; they are read so.
    pub fn with_payload(self, reading: Reading) -> Self {
        Self { reading: Some(reading), ..self }
    }
}

/// Something, and when it happened.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stamped<T> {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub ns: u64,
    /// The kernel's time 0 since the Unix epoch, as the clock was set.
    pub epoch: Duration,
    /// What.
    pub what: T,
}

/// What a frame holds.
#[derive(Debug, Serialize, Deserialize)]
pub enum Entry {
    /// An input of the session.
    Input(Box<Stamped<Input>>),
    /// An event with the bytes of a request or an answer, before they were read. Its facts are no entries.
    Event(Box<Stamped<RequestEvent>>),
    /// So many inputs could not be written here.
    Lost(u64),
}
