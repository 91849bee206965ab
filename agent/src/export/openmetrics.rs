//! The OpenMetrics text format of a snapshot: as the Prometheus format, with units and exemplars, which have no place in that
//! one.

#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};

use super::{
    compat::{Dialect, views},
    metrics::{Kind, METRICS, Sample},
    text::{Style, escape},
};
use crate::session::{
    Snapshot,
    exemplar::{Exemplar, Exemplars},
};

/// The content type of [`render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Units that stand at the end of names.
const UNITS: [&str; 4] = ["seconds", "bytes", "ratio", "tokens"];

/// Renders all metrics that have samples.
#[must_use]
pub fn render(snapshot: &Snapshot, dialects: &[Dialect]) -> String {
    let mut text = String::with_capacity(64 * 1024);
    // Writing to a string does not fail.
    for metric in METRICS {
        let samples = (metric.collect)(snapshot);
        for (view, samples) in views(dialects, metric, &samples) {
            let _ = family(&mut text, snapshot, (view.name, view.help, view.kind), &samples);
        }
        let _ = family(&mut text, snapshot, (metric.name, metric.help, metric.kind), &samples);
    }
    text.push_str("# EOF\n");
    text
}

fn family(
    text: &mut String,
    snapshot: &Snapshot,
    (name, help, kind): (&str, &str, Kind),
    samples: &[Sample],
) -> fmt::Result {
    if samples.is_empty() {
        return Ok(());
    }
    let (name, suffix) = match kind {
        Kind::Counter => (name.strip_suffix("_total").unwrap_or(name), "_total"),
        Kind::Gauge | Kind::Histogram => (name, ""),
    };
    writeln!(text, "# TYPE {name} {}", kind.name())?;
    if let Some(unit) =
        UNITS.iter().find(|unit| name.strip_suffix(**unit).is_some_and(|it| it.ends_with('_')))
    {
        writeln!(text, "# UNIT {name} {unit}")?;
    }
    write!(text, "# HELP {name} ")?;
    escape(text, help, &['\\', '"', '\n']);
    text.push('\n');
    let behind = |text: &mut String, exemplars: &Exemplars, bucket, per_unit| match exemplars.of(bucket) {
        Some(exemplar) => write_exemplar(text, exemplar, per_unit, snapshot),
        None => Ok(()),
    };
    Style { name, suffix, bound: canonical, behind: &behind }.write(text, samples)
}

fn write_exemplar(text: &mut String, it: &Exemplar, per_unit: f64, snapshot: &Snapshot) -> fmt::Result {
    write!(text, " # {{trace_id=\"{:032x}\"", u128::from_be_bytes(it.trace.trace_id))?;
    if let Some(span) = it.trace.span_id {
        write!(text, ",span_id=\"{:016x}\"", u64::from_be_bytes(span))?;
    }
    let at = snapshot.epoch.as_secs_f64() + it.at_ns as f64 / 1e9;
    write!(text, "}} {} {at:.3}", it.value as f64 / per_unit)
}

/// Bounds are compared as text: the format asks for `1.0`.
fn canonical(bound: f64) -> String {
    if bound.fract() == 0.0 { format!("{bound:.1}") } else { bound.to_string() }
}
