//! llamaprobe watches unmodified llama.cpp servers from the kernel.
//!
//! The modules are the pipeline, in its order: who runs llama.cpp ([`discovery`]), what to hook ([`plan`]), loading,
//! attaching and reading ([`bpf`]), what it means ([`session`]), how it is published ([`export`]). [`agent`] wires them;
//! What is special to one engine stands in [`engines`], which all of them read; [`doctor`] and [`survey`] stand beside and
//! say, without loading anything, whether it can work here and what it would do; both decide by [`judge`]. [`journal`] is
//! what the session was told, as a file, [`recorder`] holds the last minutes of it, [`replay`] plays it, and [`trace`] makes a
//! trace of it. [`top`] shows in a terminal what an agent says of itself, [`explain`] why a request was slow. [`output`] is how
//! the program speaks.

pub mod engines;

pub mod discovery;

pub mod plan;

pub mod bpf;

pub mod session;

pub mod export;

pub mod agent;
pub mod cli;
mod confine;
pub mod doctor;
mod duration;
pub mod explain;
pub mod journal;
pub mod judge;
pub mod keeper;
pub mod kubernetes;
mod lock;
pub mod output;
pub mod recorder;
pub mod replay;
pub mod scout;
pub mod survey;
pub mod top;
pub mod trace;
mod wire;

#[cfg(test)]
mod fuzz;
