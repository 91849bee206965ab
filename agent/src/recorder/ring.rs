//! The last inputs of the session, in memory, as the frames of a journal; what falls out is kept as far as it is needed to
//! play the rest. Pure.

use std::{collections::VecDeque, sync::Arc};

use llamaprobe_common::request::RequestKey;

use super::base::Base;
use crate::session::{Input, fact::Fact};

/// Bytes that are taken and given up at a time.
const BLOCK: usize = 128 * 1024;
/// The part of the memory that requests under way may take which began before what is held.
const BASE_PART: usize = 4;

/// What an input means to those that come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A process begins.
    Begin(u32),
    /// It is described anew.
    Refresh(u32),
    /// It was read.
    Reading(u32),
    /// It ends.
    End(u32),
    /// The prices of probes.
    Prices,
    /// Names and prices.
    Billing,
    /// Something about a request.
    Fact(RequestKey),
    /// A request is over: no input, but what followed from one.
    Over(RequestKey),
    /// Nothing, once it has happened.
    Passing,
}

impl What {
    /// What an input means.
    pub(super) fn of(input: &Input) -> Self {
        use crate::bpf::events::RequestEvent::{Draft, Prefill, Prompt, Work};
        match input {
            Input::Begin(observed) => Self::Begin(observed.target.pid),
            Input::Refresh(observed) => Self::Refresh(observed.target.pid),
            Input::End { pid, .. } => Self::End(*pid),
            Input::Reading { pid, .. } => Self::Reading(*pid),
            Input::Prices(_) => Self::Prices,
            Input::Rebill(_) => Self::Billing,
            // As many as there are decode calls, and of a request that began before, nothing is told that they say.
            Input::Fact(Fact::Event(Draft(_) | Prefill(_) | Prompt(_) | Work(_))) => Self::Passing,
            Input::Fact(fact) if fact.request().arrived_ns != 0 => Self::Fact(fact.request()),
            Input::Fact(_)
            | Input::Stalled(_)
            | Input::AllRead
            | Input::Gone(_)
            | Input::SoFar(_)
            | Input::Tick
            | Input::Settle
            | Input::Interrupt
            | Input::Asked(_)
            | Input::Since
            | Input::Thread { .. }
            | Input::Steps(_) => Self::Passing,
        }
    }
}

/// Where something stands in its block.
#[derive(Clone, Copy, Debug)]
struct Mark {
    from: u32,
    to: u32,
    what: What,
}

/// Some frames that follow each other.
#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// When the last of them was.
    last_ns: u64,
}

impl Block {
    fn size(&self) -> usize {
        self.bytes.len() + self.marks.len() * size_of::<Mark>()
    }
}

/// The last inputs.
#[derive(Debug)]
pub(super) struct Ring {
    full: VecDeque<Arc<Block>>,
    open: Block,
    base: Base,
    /// Bytes of the blocks that are full.
    held: usize,
    most: usize,
    /// When the last input was that fell out; none where none did.
    since_ns: Option<u64>,
}

/// What a ring held at a moment.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// What was before: frames, and when that ended; none where nothing was.
    pub(super) before: Option<(Vec<u8>, u64)>,
    full: Vec<Arc<Block>>,
    open: Vec<u8>,
}

impl Held {
    /// What it held itself, piece by piece.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.full.iter().map(|block| block.bytes.as_slice()).chain([self.open.as_slice()])
    }
}

impl Ring {
    /// An empty one that takes up to `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        let base = Base::new(most / BASE_PART);
        Self { full: VecDeque::new(), open: Block::default(), base, held: 0, most, since_ns: None }
    }

    /// Takes an input: what it means, its frame, when it was, and the requests that are over by it.
    pub(super) fn take(&mut self, what: What, frame: &[u8], at_ns: u64, over: &[RequestKey]) {
        if self.open.size() + frame.len() > BLOCK && !self.open.bytes.is_empty() {
            self.turn();
        }
        let open = &mut self.open;
        if open.bytes.capacity() == 0 {
            open.bytes.reserve_exact(BLOCK.max(frame.len()));
        }
        let from = open.bytes.len() as u32;
        open.bytes.extend_from_slice(frame);
        let to = open.bytes.len() as u32;
        if what != What::Passing {
            open.marks.push(Mark { from, to, what });
        }
        open.marks.extend(over.iter().map(|key| Mark { from: to, to, what: What::Over(*key) }));
        open.last_ns = at_ns;
    }

    /// What it holds now.
    pub(super) fn held(&self) -> Held {
        Held {
            before: self.since_ns.map(|ns| (self.base.frames(), ns)),
            full: self.full.iter().cloned().collect(),
            open: self.open.bytes.clone(),
        }
    }

    /// Memory that it takes, bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.held + self.open.size() + self.base.bytes()
    }

    /// The block is full: another one, and room for it.
    fn turn(&mut self) {
        let block = std::mem::take(&mut self.open);
        self.held += block.size();
        self.full.push_back(Arc::new(block));
        while self.held + self.base.bytes() + BLOCK > self.most
            && let Some(oldest) = self.full.pop_front()
        {
            self.held -= oldest.size();
            self.since_ns = Some(oldest.last_ns);
            for mark in &oldest.marks {
                self.base.absorb(mark.what, &oldest.bytes[mark.from as usize..mark.to as usize]);
            }
        }
    }
}
