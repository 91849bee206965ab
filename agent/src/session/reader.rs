//! What servers read and write, as far as it says something. In: request events, bytes among them. Out: [`Fact`]s. The
//! bytes are dropped here: nothing behind this door has seen a prompt.

use std::collections::BTreeMap;

use llamaprobe_common::request::{BeginEvent, EndReason, PieceHead, RequestKey};

use super::{
    fact::{Answered, Asked, Fact, Read},
    payload::{answer::Answer, head::HeadOptions, message::Message, text::Phrases},
    streams::Streams,
};
use crate::bpf::events::{Piece, RequestEvent};

/// Answers that are read at once; of more the oldest is given up.
const MAX_ANSWERS: usize = 4096;

/// Reads requests and answers.
pub struct Reader {
    options: HeadOptions,
    /// What is looked for in answers.
    phrases: Phrases,
    /// What was read on connections.
    streams: Streams,
    answers: BTreeMap<RequestKey, Answer>,
}

impl Reader {
    /// Nothing was read yet.
    pub fn new(options: HeadOptions, phrases: Phrases) -> Self {
        Self { options, phrases, streams: Streams::default(), answers: BTreeMap::new() }
    }

    /// Other phrases are looked for from now on.
    pub fn look_for(&mut self, phrases: Phrases) {
        self.phrases = phrases;
    }

    /// What an event says, in the order in which it is to be booked.
    pub fn read(&mut self, event: RequestEvent) -> Vec<Fact> {
        let mut facts = Vec::new();
        match &event {
            RequestEvent::Piece(piece) if piece.is_answer() => {
                facts.push(Fact::Answered(Box::new(self.answer(piece))));
                return facts;
            }
            RequestEvent::Piece(piece) => {
                self.request(piece, &mut facts);
                return facts;
            }
            RequestEvent::Begin(begin) if begin.flags & BeginEvent::READ != 0 => {
                self.streams.begin(begin.request);
            }
            RequestEvent::Begin(begin) => {
                let message = self.streams.claim(begin.request);
                facts.extend(message.map(|message| asked(begin.request, &message)));
            }
            RequestEvent::End(end) => {
                self.answers.remove(&end.request);
                if end.reason == EndReason::Closed as u32 {
                    self.streams.close(end.request);
                }
            }
            _ => {}
        }
        // First that it begins, then what it says.
        facts.insert(0, Fact::Event(event));
        facts
    }

    /// A process has ended.
    pub fn end(&mut self, pid: u32) {
        self.streams.end(pid);
        self.answers.retain(|key, _| key.tgid != pid);
    }

    fn request(&mut self, piece: &Piece, facts: &mut Vec<Fact>) {
        let doubtful =
            self.streams.feed(piece, &self.options, |key, message| facts.push(asked(key, message)));
        let PieceHead { request, at_ns, offset: from, len, .. } = piece.head;
        let to = from + u64::from(len);
        facts.insert(0, Fact::Read(Read { request, at_ns, from, to, doubtful }));
    }

    fn answer(&mut self, piece: &Piece) -> Answered {
        let PieceHead { request, at_ns, offset, flags, .. } = piece.head;
        if !self.answers.contains_key(&request) && self.answers.len() >= MAX_ANSWERS {
            // Keys sort by arrival.
            self.answers.pop_first();
        }
        let answer = self.answers.entry(request).or_default();
        if !self.phrases.is_empty() {
            answer.keep_opening();
        }
        answer.feed(offset, flags & PieceHead::CUT != 0, &piece.data, at_ns);
        Answered {
            request,
            from: offset,
            to: answer.read_to(),
            status: answer.status().copied(),
            token_ns: answer.token_ns(),
            so_far: answer.closing().clone(),
            at_end: answer.at_end(),
            refused: answer.opening().map(|text| text.holds(&self.phrases)),
        }
    }
}

fn asked(request: RequestKey, message: &Message) -> Fact {
    Fact::Asked(Box::new(Asked { request, head: message.head().cloned(), body: message.body() }))
}
