//! The Prometheus text format of a snapshot.

#[cfg(test)]
mod tests;

use std::fmt;

use super::{
    compat::{self, Dialect},
    metrics::{Kind, METRICS, Sample},
    text::{Style, escape},
};
use crate::session::Snapshot;

/// The content type of [`render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// Renders all metrics that have samples, and behind them the same under the names of `dialects`.
#[must_use]
pub fn render(snapshot: &Snapshot, dialects: &[Dialect]) -> String {
    let (mut text, mut more) = (String::with_capacity(64 * 1024), String::new());
    // Writing to a string does not fail.
    for metric in METRICS {
        let samples = (metric.collect)(snapshot);
        for (view, samples) in compat::views(dialects, metric, &samples) {
            let _ = family(&mut more, (view.name, view.help, view.kind), &samples);
        }
        let _ = family(&mut text, (metric.name, metric.help, metric.kind), &samples);
    }
    text + &more
}

fn family(text: &mut String, (name, help, kind): (&str, &str, Kind), samples: &[Sample]) -> fmt::Result {
    if samples.is_empty() {
        return Ok(());
    }
    for part in ["# HELP ", name, " "] {
        text.push_str(part);
    }
    escape(text, help, &['\\', '\n']);
    for part in ["\n# TYPE ", name, " ", kind.name(), "\n"] {
        text.push_str(part);
    }
    let style = Style { name, suffix: "", bound: |bound| bound.to_string(), behind: &|_, _, _, _| Ok(()) };
    style.write(text, samples)
}
