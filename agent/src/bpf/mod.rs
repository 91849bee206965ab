//! Loads the kernel programs, attaches them to planned sites, reads what they count. In: plans. Out: process events
//! and aggregates.
//!
//! Links are owned here: dropping [`Attacher`] detaches everything, and so does the end of the agent in any way, since
//! the kernel closes the descriptors.

pub mod attach;
pub mod btf;
pub mod calibrate;
pub mod events;
pub mod lines;
pub mod load;
mod raw;
pub mod read;
pub mod run_time;
pub mod sockets;
pub mod switches;
pub mod tracefs;

pub use load::{Attacher, LoadError, Maps, Told};
pub use raw::{bequeath_links, page_cache, waitable};
