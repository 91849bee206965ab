//! libllama, whoever uses it: bindings, programs that embed it, and the server that stands on it.

mod builds;
mod layouts;
mod rows;

use super::Engine;

/// The engine.
pub static ENGINE: Engine = Engine {
    name: "libllama",
    provider: "llama.cpp",
    processes: &["ollama"],
    programs: &["ollama"],
    marks: &[b"llama_", b"common_memory", b"common_speculative"],
    rows: rows::ROWS,
    members: layouts::MEMBERS,
    batches: layouts::BATCHES,
    refused: &[(
        "llama_eval",
        "it decodes with llama_eval, as llama.cpp did up to August 2023; llama_decode is needed",
    )],
    serving: None,
    builds: builds::BUILDS,
};
