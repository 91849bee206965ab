//! What is worth knowing in the bytes that a server read and wrote.
//!
//! In: pieces of HTTP messages, as they were read and written. Out: named fields ([`head`], [`body`], [`answer`]) and the
//! [`route`]. Owns no probe. Prompts and answers are stepped over as they come and dropped; an API key leaves only as a
//! keyed hash. Every parser is total: any bytes in, cut anywhere, a value out, in time linear in the bytes, and what it
//! keeps meanwhile is bounded.

pub mod answer;
pub mod body;
pub mod head;
pub mod message;
pub mod route;
pub mod text;

mod closing;
mod framing;
mod json;
mod key;
mod lines;
mod scan;
mod trace;
