//! Why something that was measured was not delivered.

crate::named! {
    /// A reason for a loss. The number is the index into
    /// [`TargetStats::losses`](crate::target::TargetStats::losses), the name the value of the `reason` label.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum Loss {
        /// Memory of the target could not be read (paged out, or not where the layout says).
        Unreadable = "unreadable",
        /// What was read cannot be what the layout says: the build's layout is not known.
        Implausible = "implausible",
        /// A decode call whose batch lies in memory in no way that is known: its tokens are not counted.
        LayoutUnknown = "layout_unknown",
        /// No room for one more sequence.
        SequencesFull = "sequences_full",
        /// No room for one more context.
        ContextsFull = "contexts_full",
        /// A batch with more runs of sequences than are followed; its remaining tokens are not attributed.
        BatchTooComplex = "batch_too_complex",
        /// A token of which the sequence is not known.
        TokenUnmatched = "token_unmatched",
        /// No room in the ring buffer of requests for an event: counts the requests whose events were lost.
        RingFull = "ring_full",
        /// No room for one more connection.
        ConnectionsFull = "connections_full",
        /// No room for one more thread that serves a connection.
        ThreadsFull = "threads_full",
        /// No room for one more task, or more tasks of one request than are followed.
        TasksFull = "tasks_full",
        /// No room for bytes that were read or written: counts the requests of which some were lost.
        PayloadFull = "payload_full",
        /// Tokens of slots whose end was lost for want of room: they are counted, and charged to nobody.
        TokensUntold = "tokens_untold",
        /// No room in the ring buffer of processes for an event.
        ProcessRingFull = "process_ring_full",
        /// No room in the ring buffer of decode calls for one that is over: counts them.
        StepRingFull = "step_ring_full",
    }
}
