//! Entries of the ring buffers as values.

use bytes::Bytes;
use llamaprobe_common::{
    event::{ProcessEvent, ShownEvent},
    request::{
        BeginEvent, CopyEvent, DraftEvent, EndEvent, PieceHead, PrefillEvent, PromptEvent, RequestEventKind,
        RequestKey, SlotEndEvent, SlotStartEvent, TaskEvent, WorkEvent, WriteEvent,
    },
    stall::StallEvent,
    step::StepEvent,
};

use serde::{Deserialize, Serialize};

use super::raw::value;

/// What happened to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RequestEvent {
    /// It begins.
    Begin(BeginEvent),
    /// Bytes of it, or of its answer. They come by a ring buffer of their own: before every event that is later.
    Piece(Piece),
    /// Bytes of its answer were written.
    Write(WriteEvent),
    /// It is over on its socket.
    End(EndEvent),
    /// It was given a task.
    Task(TaskEvent),
    /// A task took a slot.
    SlotStart(SlotStartEvent),
    /// A task left its slot.
    SlotEnd(SlotEndEvent),
    /// A decode call that checked guesses for it is over.
    Draft(DraftEvent),
    /// Its prompt goes into a decode call of an engine that works for others, too.
    Prompt(PromptEvent),
    /// A decode call with prompts is over, of an engine that works for several. It is about no request, but a process.
    Prefill(PrefillEvent),
    /// The cache of a slot was saved or restored. It is about no request, but a process.
    Copy(CopyEvent),
    /// An engine that works for several has worked for it alone.
    Work(WorkEvent),
}

/// Bytes of a request or an answer. Not `Debug`: they may be of a prompt.
#[derive(Clone, Serialize, Deserialize)]
pub struct Piece {
    /// Where they stand.
    pub head: PieceHead,
    /// They: shared, so that whoever writes an event down beside reading it copies nothing.
    pub data: Bytes,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.head.fmt(f)
    }
}

impl Piece {
    /// Whether they are of the answer.
    pub const fn is_answer(&self) -> bool {
        self.head.flags & PieceHead::ANSWER != 0
    }
}

impl RequestEvent {
    /// The request it is about.
    pub fn request(&self) -> RequestKey {
        match self {
            Self::Begin(event) => event.request,
            Self::Piece(piece) => piece.head.request,
            Self::Write(event) => event.request,
            Self::End(event) => event.request,
            Self::Task(event) => event.request,
            Self::SlotStart(event) => event.request,
            Self::SlotEnd(event) => event.request,
            Self::Draft(event) => event.request,
            Self::Prompt(event) => event.request,
            Self::Prefill(event) => event.request,
            Self::Copy(event) => event.request,
            Self::Work(event) => event.request,
        }
    }

    /// When it happened, `CLOCK_MONOTONIC` nanoseconds.
    pub fn at_ns(&self) -> u64 {
        match self {
            Self::Begin(event) => event.at_ns,
            Self::Piece(piece) => piece.head.at_ns,
            Self::Write(event) => event.at_ns,
            Self::End(event) => event.at_ns,
            Self::Task(event) => event.at_ns,
            Self::SlotStart(event) => event.at_ns,
            Self::SlotEnd(event) => event.at_ns,
            Self::Draft(event) => event.at_ns,
            Self::Prompt(event) => event.at_ns,
            Self::Prefill(event) => event.at_ns,
            Self::Copy(event) => event.at_ns,
            Self::Work(event) => event.at_ns,
        }
    }
}

/// The request event of an entry; `None` for what this build does not know.
pub fn request(entry: &[u8]) -> Option<RequestEvent> {
    const BEGIN: u32 = RequestEventKind::Begin as u32;
    const WRITE: u32 = RequestEventKind::Write as u32;
    const END: u32 = RequestEventKind::End as u32;
    const TASK: u32 = RequestEventKind::Task as u32;
    const SLOT_START: u32 = RequestEventKind::SlotStart as u32;
    const SLOT_END: u32 = RequestEventKind::SlotEnd as u32;
    const DRAFT: u32 = RequestEventKind::Draft as u32;
    const PROMPT: u32 = RequestEventKind::Prompt as u32;
    const PREFILL: u32 = RequestEventKind::Prefill as u32;
    const COPY: u32 = RequestEventKind::Copy as u32;
    const WORK: u32 = RequestEventKind::Work as u32;
    Some(match u32::from_ne_bytes(entry.get(..4)?.try_into().ok()?) {
        BEGIN => RequestEvent::Begin(value(entry)?),
        WRITE => RequestEvent::Write(value(entry)?),
        END => RequestEvent::End(value(entry)?),
        TASK => RequestEvent::Task(value(entry)?),
        SLOT_START => RequestEvent::SlotStart(value(entry)?),
        SLOT_END => RequestEvent::SlotEnd(value(entry)?),
        DRAFT => RequestEvent::Draft(value(entry)?),
        PROMPT => RequestEvent::Prompt(value(entry)?),
        PREFILL => RequestEvent::Prefill(value(entry)?),
        COPY => RequestEvent::Copy(value(entry)?),
        WORK => RequestEvent::Work(value(entry)?),
        _ => return None,
    })
}

/// The piece of an entry of the ring buffer of bytes.
pub fn piece(entry: &[u8]) -> Option<RequestEvent> {
    let (head, data) = entry.split_at_checked(size_of::<PieceHead>())?;
    let head: PieceHead = value(head)?;
    let data = Bytes::copy_from_slice(data.get(..head.len as usize)?);
    Some(RequestEvent::Piece(Piece { head, data }))
}

/// The process event of an entry.
pub fn process(entry: &[u8]) -> Option<ProcessEvent> {
    value(entry)
}

/// The stall of an entry.
pub fn stall(entry: &[u8]) -> Option<StallEvent> {
    value(entry)
}

/// The decode call of an entry.
pub fn step(entry: &[u8]) -> Option<StepEvent> {
    value(entry)
}

/// The memory that an entry shows, if it is one that does.
pub fn shown(entry: &[u8]) -> Option<ShownEvent> {
    value(entry).filter(|event: &ShownEvent| event.kind == ShownEvent::KIND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_wrong_size_or_kind_are_none() {
        let task = |kind: u32, len: usize| {
            let mut entry = vec![0; len];
            entry[..4].copy_from_slice(&kind.to_ne_bytes());
            request(&entry).is_some()
        };
        assert!(task(4, 40) && !task(4, 39) && !task(4, 41) && !task(11, 40));
        assert!(request(&[]).is_none() && process(&[0; 8]).is_none() && process(&[0; 28]).is_some());
    }

    #[test]
    fn a_piece_has_as_many_bytes_as_it_says() {
        let mut entry = vec![0; 40 + 128];
        entry[4] = 3;
        entry[40..43].copy_from_slice(b"abc");
        let Some(RequestEvent::Piece(taken)) = piece(&entry) else { panic!("no piece") };
        assert_eq!((&*taken.data, taken.is_answer()), (&b"abc"[..], false));
        entry[4] = 129;
        assert!(piece(&entry).is_none() && piece(&entry[..39]).is_none());
    }
}
