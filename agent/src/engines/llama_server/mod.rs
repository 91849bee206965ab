//! llama-server: slots, tasks and HTTP, on top of the library.

mod builds;
mod routes;
mod rows;
mod serving;

use super::Engine;

/// The engine.
pub static ENGINE: Engine = Engine {
    name: "llama-server",
    provider: "llama.cpp",
    processes: &["llama-server"],
    programs: &["llama"],
    marks: &[b"server_slot", b"server_response", b"server_context"],
    rows: rows::ROWS,
    members: &[],
    batches: &[],
    refused: &[],
    serving: Some(serving::SERVING),
    builds: builds::BUILDS,
};
