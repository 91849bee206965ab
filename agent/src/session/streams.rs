//! The requests on each connection, as their bytes come. In: pieces of what was read. Out: which request of the connection
//! they belong to, and what they say.
//!
//! The kernel takes what is read after an answer for a new request. Mostly it is. It may also be the rest of a body that
//! the server did not wait for; and what was read for one request may hold others behind it, which begin without a read.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use llamaprobe_common::request::{PieceHead, RequestKey};

use super::payload::{
    head::{HeadOptions, is_first_line},
    message::Message,
};
use crate::bpf::events::Piece;

/// Connections whose bytes are followed; of more those are forgotten on which the last request is oldest.
const MAX_STREAMS: usize = 4096;
/// Requests that may wait on one connection for the server to turn to them.
const MAX_READY: usize = 256;

/// The connections, by process and descriptor.
#[derive(Default)]
pub struct Streams(BTreeMap<(u32, i32), Stream>);

/// What was read on one connection.
#[derive(Default)]
struct Stream {
    /// The request for which bytes were read last, and how far.
    current: Option<(RequestKey, u64)>,
    /// That request has its message, as far as that is there.
    served: bool,
    /// The message that is not whole yet, and whose it is.
    message: Option<(Option<RequestKey>, Message)>,
    /// Whole messages of requests that did not begin so far, with the arrival of the one whose bytes they came in.
    ready: VecDeque<(u64, Message)>,
}

impl Streams {
    /// Takes bytes that were read. `told` gets each request that they say something of. Returns whether their request
    /// may be none: they belong to the body of an earlier one.
    pub fn feed(
        &mut self,
        piece: &Piece,
        options: &HeadOptions,
        mut told: impl FnMut(RequestKey, &Message),
    ) -> bool {
        let key = piece.head.request;
        let at = (key.tgid, key.fd);
        if !self.0.contains_key(&at) {
            self.make_room();
        }
        let stream = self.0.entry(at).or_default();
        if piece.head.flags & PieceHead::FRESH != 0 {
            *stream = Stream::default();
        }
        stream.feed(piece, options, &mut told)
    }

    /// A request begins without bytes of its own: its message came with those before it.
    pub fn claim(&mut self, key: RequestKey) -> Option<Message> {
        let stream = self.0.get_mut(&(key.tgid, key.fd))?;
        if stream.current.is_some_and(|(current, _)| current == key) {
            return None;
        }
        let due = stream.ready.front().is_some_and(|(from, _)| *from < key.arrived_ns);
        due.then(|| stream.ready.pop_front()).flatten().map(|(_, message)| message)
    }

    /// A request begins with bytes of its own: what came before them will not begin any more.
    pub fn begin(&mut self, key: RequestKey) {
        if let Some(stream) = self.0.get_mut(&(key.tgid, key.fd)) {
            stream.ready.retain(|(from, _)| *from >= key.arrived_ns);
        }
    }

    /// A connection is closed after this request.
    pub fn close(&mut self, key: RequestKey) {
        let at = (key.tgid, key.fd);
        let old =
            |stream: &Stream| stream.current.is_none_or(|(current, _)| current.arrived_ns <= key.arrived_ns);
        if self.0.get(&at).is_some_and(old) {
            self.0.remove(&at);
        }
    }

    /// A process has ended.
    pub fn end(&mut self, pid: u32) {
        self.0.retain(|(tgid, _), _| *tgid != pid);
    }

    fn make_room(&mut self) {
        if self.0.len() < MAX_STREAMS {
            return;
        }
        self.0.retain(|_, stream| stream.message.is_some() || !stream.ready.is_empty());
        while self.0.len() >= MAX_STREAMS {
            let arrived = |stream: &Stream| stream.current.map_or(0, |(key, _)| key.arrived_ns);
            let oldest = self.0.iter().min_by_key(|(_, stream)| arrived(stream)).map(|(at, _)| *at);
            let Some(oldest) = oldest else { return };
            self.0.remove(&oldest);
        }
    }
}

impl Stream {
    fn feed(
        &mut self,
        piece: &Piece,
        options: &HeadOptions,
        told: &mut impl FnMut(RequestKey, &Message),
    ) -> bool {
        let key = piece.head.request;
        if self.current.is_none_or(|(current, _)| current != key) {
            self.current = Some((key, 0));
            self.served = false;
            match &mut self.message {
                // Its begin came with the bytes of the request before it.
                Some((owner @ None, message)) if !message.is_blank() => {
                    *owner = Some(key);
                    self.served = true;
                }
                // What the server did not wait for, unless it clearly begins anew.
                Some((Some(_), message)) if message.is_in_body() && !is_first_line(&piece.data) => {}
                message => *message = None,
            }
        }
        let next = self.current.map_or(0, |(_, next)| next);
        let offset = piece.head.offset;
        if offset > next {
            let (owner, message) = self.message(key);
            message.skip(offset - next, options);
            if let Some(owner) = owner {
                told(*owner, message);
            }
        }
        let known = usize::try_from(next.saturating_sub(offset)).unwrap_or(usize::MAX);
        let data = piece.data.get(known..).unwrap_or_default();
        self.current = Some((key, next.max(offset) + data.len() as u64));
        let mut at = 0;
        while at < data.len() {
            let (owner, message) = self.message(key);
            at += message.feed(&data[at..], options);
            if let Some(owner) = owner {
                told(*owner, message);
            }
            if message.is_over()
                && let Some((None, message)) = self.message.take()
                && self.ready.len() < MAX_READY
            {
                self.ready.push_back((key.arrived_ns, message));
            }
        }
        !self.served
    }

    /// The message that is not whole yet; a new one is that of `key` if it has none.
    fn message(&mut self, key: RequestKey) -> &mut (Option<RequestKey>, Message) {
        self.message.get_or_insert_with(|| {
            let own = !std::mem::replace(&mut self.served, true);
            (own.then_some(key), Message::default())
        })
    }
}
