//! The identity of each probe: one id a symbol of llama.cpp, or of what it speaks TLS with, that the agent can hook.

crate::named! {
    /// A function that can be hooked. The number is the index into
    /// [`TargetStats::hits`](crate::target::TargetStats::hits), the name is used in labels and in output.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    #[repr(u8)]
    pub enum ProbeId {
        /// `llama_context::decode(llama_batch_ext const&)`, from b11181.
        DecodeExt = "decode_ext",
        /// `llama_context::decode(llama_batch const&)`, from ~b4882.
        DecodeBatch = "decode_batch",
        /// `llama_process`, from b11181.
        LlamaProcess = "llama_process",
        /// `llama_decode`, from ~b1400.
        LlamaDecode = "llama_decode",
        /// `common_sampler_sample`, from ~b3900.
        CommonSample = "common_sampler_sample",
        /// `gpt_sampler_sample`, ~b3681 to ~b3900.
        GptSample = "gpt_sampler_sample",
        /// `llama_sampling_sample`, up to ~b3680.
        SamplingSample = "llama_sampling_sample",
        /// `process_token` of the server's context class.
        ProcessToken = "process_token",
        /// `llama_sampler_sample`, from ~b3681; what bindings call.
        SamplerSample = "llama_sampler_sample",
        /// `llama_get_logits_ith`.
        LogitsIth = "llama_get_logits_ith",
        /// `llama_get_sampled_token_ith`, sampling on the backend, from ~b7769.
        SampledTokenIth = "llama_get_sampled_token_ith",
        /// `llama_sample_token` and its kin, up to ~b3680.
        SampleToken = "llama_sample_token",
        /// `llama_get_logits`.
        Logits = "llama_get_logits",
        /// `common_memory::seq_rm`, from ~b10306.
        CommonSeqRm = "common_memory_seq_rm",
        /// `llama_memory_seq_rm`, from ~b5600.
        MemorySeqRm = "llama_memory_seq_rm",
        /// `llama_kv_self_seq_rm`, ~b4882 to ~b6160.
        KvSelfSeqRm = "llama_kv_self_seq_rm",
        /// `llama_kv_cache_seq_rm`, up to ~b4882.
        KvCacheSeqRm = "llama_kv_cache_seq_rm",
        /// `llama_memory_seq_cp`, from ~b5600.
        MemorySeqCp = "llama_memory_seq_cp",
        /// `llama_set_sampler`, from ~b7769.
        SetSampler = "llama_set_sampler",
        /// `launch_slot_with_task` of the server's context class.
        LaunchSlot = "launch_slot_with_task",
        /// `server_slot::release`.
        ReleaseSlot = "slot_release",
        /// `server_response::add_waiting_task_id`, from ~b8640.
        WaitingTask = "add_waiting_task_id",
        /// `server_response::add_waiting_task_ids`, from ~b8640.
        WaitingTasks = "add_waiting_task_ids",
        /// `llama_free`.
        Free = "llama_free",
        /// `llama_memory_clear`, from ~b5600.
        MemoryClear = "llama_memory_clear",
        /// `llama_kv_self_clear`, ~b4882 to ~b6160.
        KvSelfClear = "llama_kv_self_clear",
        /// `llama_kv_cache_clear`, up to ~b4882.
        KvCacheClear = "llama_kv_cache_clear",
        /// `llama_get_embeddings`.
        Embeddings = "llama_get_embeddings",
        /// `llama_get_embeddings_seq`, from ~b2500.
        EmbeddingsSeq = "llama_get_embeddings_seq",
        /// `common_speculative_accept` with a sequence, from b9310.
        SpeculativeAccept = "common_speculative_accept",
        /// `send_error` of the server's context class, for a slot.
        SlotError = "slot_error",
        /// `send_error` of the server's context class, for a task.
        TaskError = "task_error",
        /// `SSL_read` of OpenSSL and its kin, at its entry and at its return: two hits a call.
        SslRead = "ssl_read",
        /// `SSL_write` of OpenSSL and its kin.
        SslWrite = "ssl_write",
        /// `SSL_accept` of OpenSSL and its kin.
        SslAccept = "ssl_accept",
        /// `llama_state_seq_set_data_ext`, from ~b6400.
        StateSeqSet = "llama_state_seq_set_data_ext",
        /// `llama_state_seq_get_data_ext`, from ~b6400.
        StateSeqGet = "llama_state_seq_get_data_ext",
        /// `llama_state_seq_get_size_ext`, from ~b6400: a copy begins by it.
        StateSeqSize = "llama_state_seq_get_size_ext",
        /// `llama_context::state_seq_get_data`, from ~b6400.
        ContextSeqGet = "state_seq_get_data",
        /// `llama_context::state_seq_set_data`, from ~b6400.
        ContextSeqSet = "state_seq_set_data",
    }
}
