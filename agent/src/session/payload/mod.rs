//! What is worth knowing in the bytes that a server read and wrote.
//!
//! In: bounded pieces of HTTP messages, as the kernel cut them. Out: named fields ([`head`], [`body`],
//! [`answer`]) and the [`route`]. Owns no probe. Prompts and answers are stepped over and never copied; an API
//! key leaves only as a keyed hash. Every parser is total: any bytes in, a value out, in time linear in the bytes.

pub mod answer;
pub mod body;
pub mod head;
pub mod route;
pub mod text;

mod closing;
mod json;
mod key;
mod lines;
mod trace;

#[cfg(test)]
mod noise;
