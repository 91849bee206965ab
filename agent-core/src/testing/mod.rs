//! What the tests run the code on: values of the host in the place of a process and of the kernel's maps.

pub mod batch;
pub mod host;
pub mod links;
pub mod maps;
pub mod process;
pub mod requests;
pub mod world;
