//! Entries of the ring buffers as values.

use llamaprobe_common::{
    event::ProcessEvent,
    request::{
        DraftEvent, EndEvent, ReadEvent, RequestEventKind, RequestKey, SlotEndEvent, SlotStartEvent,
        TaskEvent, WriteEvent,
    },
};

use super::raw::value;

/// What happened to a request.
#[derive(Debug)]
pub enum RequestEvent {
    /// Bytes of it were read.
    Read(Box<ReadEvent>),
    /// Its end, of which not all is told.
    ReadTail(Box<ReadEvent>),
    /// Bytes of its answer were written.
    Write(Box<WriteEvent>),
    /// It is over on its socket.
    End(Box<EndEvent>),
    /// It was given a task.
    Task(TaskEvent),
    /// A task took a slot.
    SlotStart(SlotStartEvent),
    /// A task left its slot.
    SlotEnd(SlotEndEvent),
    /// A decode call that checked guesses for it is over.
    Draft(DraftEvent),
}

impl RequestEvent {
    /// The request it is about.
    pub fn request(&self) -> RequestKey {
        match self {
            Self::Read(event) | Self::ReadTail(event) => event.request,
            Self::Write(event) => event.request,
            Self::End(event) => event.request,
            Self::Task(event) => event.request,
            Self::SlotStart(event) => event.request,
            Self::SlotEnd(event) => event.request,
            Self::Draft(event) => event.request,
        }
    }

    /// When it happened, `CLOCK_MONOTONIC` nanoseconds.
    pub fn at_ns(&self) -> u64 {
        match self {
            Self::Read(event) | Self::ReadTail(event) => event.at_ns,
            Self::Write(event) => event.at_ns,
            Self::End(event) => event.at_ns,
            Self::Task(event) => event.at_ns,
            Self::SlotStart(event) => event.at_ns,
            Self::SlotEnd(event) => event.at_ns,
            Self::Draft(event) => event.at_ns,
        }
    }
}

/// The request event of an entry; `None` for what this build does not know.
pub fn request(entry: &[u8]) -> Option<RequestEvent> {
    const READ: u32 = RequestEventKind::Read as u32;
    const WRITE: u32 = RequestEventKind::Write as u32;
    const END: u32 = RequestEventKind::End as u32;
    const TASK: u32 = RequestEventKind::Task as u32;
    const SLOT_START: u32 = RequestEventKind::SlotStart as u32;
    const SLOT_END: u32 = RequestEventKind::SlotEnd as u32;
    const READ_TAIL: u32 = RequestEventKind::ReadTail as u32;
    const DRAFT: u32 = RequestEventKind::Draft as u32;
    Some(match u32::from_ne_bytes(entry.get(..4)?.try_into().ok()?) {
        READ => RequestEvent::Read(Box::new(value(entry)?)),
        WRITE => RequestEvent::Write(Box::new(value(entry)?)),
        END => RequestEvent::End(Box::new(value(entry)?)),
        TASK => RequestEvent::Task(value(entry)?),
        SLOT_START => RequestEvent::SlotStart(value(entry)?),
        SLOT_END => RequestEvent::SlotEnd(value(entry)?),
        DRAFT => RequestEvent::Draft(value(entry)?),
        READ_TAIL => RequestEvent::ReadTail(Box::new(value(entry)?)),
        _ => return None,
    })
}

/// The process event of an entry.
pub fn process(entry: &[u8]) -> Option<ProcessEvent> {
    value(entry)
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
        assert!(task(4, 32) && !task(4, 31) && !task(4, 33) && !task(9, 32));
        assert!(request(&[]).is_none() && process(&[0; 8]).is_none() && process(&[0; 28]).is_some());
    }
}
