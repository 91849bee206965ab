//! What crosses the ring buffer: facts about processes, never about tokens.

use crate::{layout::BODY, plain};

/// Entries of the map that names the processes which are meant: 0, which says that there are such, and they.
pub const MAX_ONLY: u32 = 1 + 1024;

crate::numbered! {
    /// Why a process deserves a look.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    pub enum ProcessEventKind {
        /// It replaced its program.
        Exec = 1,
        /// It mapped a file with execute permission.
        Map = 2,
        /// A watched process ended.
        Exit = 3,
        /// It ran a probed function and is not watched (a fork, or a start that was missed).
        Stranger = 4,
        /// A watched process listens on a socket from now on.
        Listen = 5,
    }
}

/// One process event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessEvent {
    /// A [`ProcessEventKind`].
    pub kind: u32,
    /// The process (thread group) id in the initial PID namespace.
    pub tgid: u32,
    /// Its user, in the initial user namespace.
    pub owner: u32,
    /// Name of the thread; after an exec that of the program. Ended by 0.
    pub comm: [u8; 16],
}

plain!(ProcessEvent = 28);

/// The memory of a decode call that could not be read, without what it holds: of one of the vectors in the batch only
/// what its words can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ShownEvent {
    /// [`ShownEvent::KIND`].
    pub kind: u32,
    /// The process.
    pub tgid: u32,
    /// The file; see [`LayoutKey`](crate::layout::LayoutKey).
    pub image: u32,
    /// Of which word of the batch the memory behind is in `body`.
    pub vector: u32,
    /// Where that vector begins, ends, and its room ends.
    pub bounds: [u64; 3],
    /// What its words can be, as [`Word`](crate::layout::Word).
    pub body: [u8; BODY],
}

impl ShownEvent {
    /// Its kind, beside those of [`ProcessEventKind`].
    pub const KIND: u32 = 5;
}

plain!(ShownEvent = 40 + BODY);
