//! What the kernel programs decide, apart from the kernel: which tokens of a batch are whose, what is counted of contexts
//! and sequences, when a request begins and ends and what of its bytes is told. In: calls of the observed process, its
//! memory and time, and the states kept from calls before. Out: changed states, counts, events and pieces. What the kernel
//! is to it stands in the traits of [`machine`], [`process`], [`maps`], [`links`] and [`events`].
//!
//! All of it is generic and inlined, so that in a kernel program nothing of a trait is left; the tests here run the very
//! same code on values of the host. What a verifier wants to see beyond a plain program is asked of the
//! [`Machine`](machine::Machine), which knows whether there is one.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod arguments;
pub mod batch;
pub mod connections;
pub mod contexts;
pub mod copies;
pub mod cuts;
pub mod events;
pub mod exchange;
pub mod failures;
pub mod layout;
pub mod links;
pub mod machine;
pub mod maps;
pub mod parts;
pub mod pick;
pub mod process;
pub mod sequences;
pub mod slots;
pub mod source;
pub mod stall;
pub mod steps;
pub mod talk;
pub mod tokens;
pub mod traffic;
pub mod walk;

#[cfg(test)]
mod testing;
