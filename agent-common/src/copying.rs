//! Copies of a sequence's cache that a server makes between decode calls, while all of its slots wait.

crate::named! {
    /// What a copy is for. The name is the value of the `operation` label.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    #[repr(u32)]
    pub enum Operation {
        /// What a slot holds goes into the prompt cache in memory, before another request takes the slot.
        Save = "save",
        /// It comes back from there.
        Restore = "restore",
        /// Of the layers that cannot be cut a copy is kept, to begin from if the next prompt differs.
        Checkpoint = "checkpoint",
        /// Such a copy is put back.
        Rewind = "rewind",
    }
}

impl Operation {
    /// `LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY`: only layers with a window, or a recurrent memory. Other flags say where the copy
    /// is to be.
    pub const PARTIAL_ONLY: u32 = 1;

    /// That of a call that reads a sequence's state, by its flags.
    #[inline(always)]
    pub const fn of_get(flags: u32) -> Self {
        if flags & Self::PARTIAL_ONLY != 0 { Self::Checkpoint } else { Self::Save }
    }

    /// That of a call that writes it.
    #[inline(always)]
    pub const fn of_set(flags: u32) -> Self {
        if flags & Self::PARTIAL_ONLY != 0 { Self::Rewind } else { Self::Restore }
    }
}

/// A copy under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Copying {
    /// When it began, `CLOCK_MONOTONIC` nanoseconds.
    pub entered_ns: u64,
    /// Bytes that it takes; 0 as long as only their number was asked for.
    pub bytes: u64,
    /// The sequence.
    pub sequence: i32,
    /// An [`Operation`].
    pub operation: u32,
}

impl Copying {
    /// None.
    pub const NONE: Self = Self { entered_ns: 0, bytes: 0, sequence: -1, operation: 0 };
}
