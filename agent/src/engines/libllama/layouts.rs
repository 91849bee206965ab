//! Where libllama keeps what is read.

use llamaprobe_common::layout::ExtLayout;

use crate::engines::layout::{Batch, Member, What};

/// Members of `llama_context`: the functions of the interface, and the methods that they call from ~b4882 on.
pub(super) const MEMBERS: &[Member] = &[
    Member { what: What::ContextSize, getters: &["llama_n_ctx", "_ZNK13llama_context5n_ctxEv"] },
    // From ~b6900 on.
    Member { what: What::SequenceSize, getters: &["llama_n_ctx_seq", "_ZNK13llama_context9n_ctx_seqEv"] },
    Member { what: What::Memory, getters: &["_ZNK13llama_context10get_memoryEv"] },
];

/// Layouts of `llama_batch_ext`.
pub(super) const BATCHES: &[Batch] = &[
    // b11181 to ~b11434.
    Batch { layout: ExtLayout::KNOWN[0], symbol: None },
    // From ~b11500 on.
    Batch {
        layout: ExtLayout::KNOWN[1],
        symbol: Some("_ZN15llama_batch_ext15set_token_stateEi10llama_embd"),
    },
];
