//! What is published, and how. In: a [`Snapshot`](crate::session::Snapshot). Out: exposition over HTTP.

pub mod client;
pub mod compat;
pub mod history;
pub mod http;
pub mod lines;
pub mod load;
pub mod log;
pub mod metrics;
pub mod openmetrics;
pub mod otlp;
pub mod prometheus;
pub mod protobuf;
pub mod records;
pub mod sink;
pub mod snapshot;
pub(crate) mod tls;

#[cfg(test)]
mod tests;
