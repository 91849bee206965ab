//! Loads the kernel programs, attaches them to planned sites, reads what they count. In: plans. Out: process events
//! and aggregates.
//!
//! Two processes use it: the keeper loads and attaches, the agent reads. Links are owned here: dropping [`Attacher`] detaches
//! everything, and so does the end of the keeper in any way, since the kernel closes the descriptors.

pub mod attach;
pub mod btf;
pub mod calibrate;
mod entries;
pub mod events;
pub mod lines;
pub mod load;
mod multi;
mod raw;
pub mod read;
pub mod run_time;
pub mod sockets;
pub mod switches;
pub mod tracefs;
pub mod uprobes;

pub use load::{Attacher, Handle, LoadError, Maps, Told};
pub use raw::{give_memory_back, ignore_ends, page_cache, processor_time, waitable};
pub use uprobes::Way;
