//! What is special to one engine, in one folder each: how it is recognised, what is hooked of it, where it keeps what is
//! read, how it serves, and which of its builds are tested.
//!
//! Everything here is data. The stages read it: discovery whom to look at, the plan what to hook, the session what a path
//! means, the exporters what the engine is called. A new engine is a folder and a line in [`ENGINES`].

pub mod backend;
pub mod build;
pub mod catalog;
pub mod layout;
pub mod libllama;
pub mod llama_server;
pub mod route;
pub mod serving;

mod tls;

#[cfg(test)]
mod tests;

pub use build::Build;
pub use route::Route;
pub use serving::Serving;

use catalog::{Role, Row};
use layout::{Batch, Member};

/// Something that runs models.
#[derive(Debug)]
pub struct Engine {
    /// What it is called here.
    pub name: &'static str,
    /// OpenTelemetry's `gen_ai.provider.name`.
    pub provider: &'static str,
    /// Names of processes that say "this is the engine" where symbols do not.
    pub processes: &'static [&'static str],
    /// How names of programs begin that may answer soon: they are looked at more often when they start.
    pub programs: &'static [&'static str],
    /// What is in the string table of a file that has a symbol of it.
    pub marks: &'static [&'static [u8]],
    /// What is hooked of it.
    pub rows: &'static [Row],
    /// Where its objects hold what is read.
    pub members: &'static [Member],
    /// How its batches lie in memory.
    pub batches: &'static [Batch],
    /// Symbols of builds that are recognised only to be refused, and why they are.
    pub refused: &'static [(&'static str, &'static str)],
    /// How it serves, where it does.
    pub serving: Option<Serving>,
    /// Its builds that are tested.
    pub builds: &'static [Build],
}

/// Every engine, those before that stand on others: where both have a way to something, theirs counts.
pub static ENGINES: &[&Engine] = &[&llama_server::ENGINE, &libllama::ENGINE];

/// Every row of the catalog, each with its rank: of several alternatives of a role those of the lowest are used.
pub fn rows() -> impl Iterator<Item = ((usize, u8), &'static Row)> {
    let all = ENGINES.iter().map(|engine| engine.rows).chain([tls::ROWS]);
    all.enumerate().flat_map(|(order, rows)| rows.iter().map(move |row| ((order, row.group), row)))
}

/// The provider of all that is measured: no engine here has another than the rest.
pub const PROVIDER: &str = llama_server::ENGINE.provider;

/// Whether discovery should keep a symbol.
pub fn is_wanted(symbol: &str) -> bool {
    rows().any(|(_, row)| row.matches(symbol)) || ENGINES.iter().any(|engine| engine.reads(symbol))
}

/// Whether a symbol is of a TLS library: such a library alone is nothing to observe.
pub fn is_tls(symbol: &str) -> bool {
    tls::ROWS.iter().any(|row| row.role() == Role::Tls && row.matches(symbol))
}

/// Whether a string table can hold a wanted symbol at all: tells a library apart without walking its symbols.
pub fn is_marked(strings: &[u8]) -> bool {
    let marks = ENGINES.iter().flat_map(|engine| engine.marks).copied().chain([tls::MARK]);
    marks.into_iter().any(|mark| memchr::memmem::find(strings, mark).is_some())
}

/// The engine whose process is called so.
pub fn of_process(name: &str) -> Option<&'static Engine> {
    ENGINES.iter().copied().find(|engine| engine.processes.contains(&name))
}

/// Whether a program that is called so may be an engine that answers soon.
pub fn may_serve(program: &[u8]) -> bool {
    let mut names = ENGINES.iter().flat_map(|engine| engine.programs);
    names.any(|name| program.starts_with(name.as_bytes()))
}

impl Engine {
    /// Whether a symbol of it is not hooked but says something.
    fn reads(&self, symbol: &str) -> bool {
        self.members.iter().any(|member| member.getters.contains(&symbol))
            || self.batches.iter().any(|batch| batch.symbol == Some(symbol))
            || self.refused.iter().any(|(refused, _)| *refused == symbol)
    }
}
