//! What is published, and how. In: a [`Snapshot`](crate::session::Snapshot). Out: exposition over HTTP.

pub mod http;
pub mod metrics;
pub mod prometheus;

#[cfg(test)]
mod tests;
