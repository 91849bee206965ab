//! What is learned of a request by one event. It holds no bytes of requests or answers: of those only what was found in
//! them, by name.

use llamaprobe_common::request::RequestKey;
use serde::{Deserialize, Serialize};

use super::payload::{
    answer::{Closing, StatusLine},
    body::Body,
    head::Head,
};
use crate::bpf::events::RequestEvent;

/// What is learned of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Fact {
    /// An event of its own. Never [`RequestEvent::Piece`]: what stands in bytes comes as the other facts.
    Event(RequestEvent),
    /// Bytes of it were read.
    Read(Read),
    /// What its bytes say so far.
    Asked(Box<Asked>),
    /// What its answer says so far.
    Answered(Box<Answered>),
}

/// Bytes of a request were read.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Read {
    /// The request.
    pub request: RequestKey,
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// Where they stand in it, bytes.
    pub from: u64,
    /// Where they end.
    pub to: u64,
    /// They may belong to the body of an earlier request.
    pub doubtful: bool,
}

/// What a request says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// The request.
    pub request: RequestKey,
    /// Its head, once that is whole.
    pub head: Option<Head>,
    /// The fields of its body, as far as it is there.
    pub body: Body,
}

/// What an answer says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answered {
    /// The request.
    pub request: RequestKey,
    /// Where the bytes stand by which that is known, bytes.
    pub from: u64,
    /// How far it was read, bytes.
    pub to: u64,
    /// What its head says, once that is whole.
    pub status: Option<StatusLine>,
    /// When the first token was written into a stream, `CLOCK_MONOTONIC` nanoseconds; 0 when none was seen.
    pub token_ns: u64,
    /// What it says of itself so far.
    pub so_far: Closing,
    /// The same if no more of it comes.
    pub at_end: Closing,
    /// Whether it begins with a phrase of a refusal, where such are looked for.
    pub refused: Option<bool>,
}

impl Fact {
    /// The request it is about.
    pub fn request(&self) -> RequestKey {
        match self {
            Self::Event(event) => event.request(),
            Self::Read(read) => read.request,
            Self::Asked(asked) => asked.request,
            Self::Answered(answered) => answered.request,
        }
    }
}
