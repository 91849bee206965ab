//! The OpenMetrics text format of a snapshot: as the Prometheus format, with units and exemplars.
//!
//! Exemplars have no place in the older format. The crate that renders that one does not know this one.

#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};

use super::{
    compat::{Dialect, views},
    metrics::{Kind, METRICS, Sample, Value},
};
use crate::session::{Snapshot, exemplar::Exemplar};

/// The content type of [`render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Units that stand at the end of names.
const UNITS: [&str; 4] = ["seconds", "bytes", "ratio", "tokens"];

/// Renders all metrics that have samples.
#[must_use]
pub fn render(snapshot: &Snapshot, dialects: &[Dialect]) -> String {
    let mut text = String::with_capacity(32 * 1024);
    // Writing to a string does not fail.
    for metric in METRICS {
        let samples = (metric.collect)(snapshot);
        for (view, samples) in views(dialects, metric, &samples) {
            let _ = family(&mut text, snapshot, (view.name, view.help, view.kind), samples);
        }
        let _ = family(&mut text, snapshot, (metric.name, metric.help, metric.kind), samples);
    }
    text.push_str("# EOF\n");
    text
}

fn family(
    text: &mut String,
    snapshot: &Snapshot,
    (name, help, kind_of): (&'static str, &'static str, Kind),
    samples: Vec<Sample>,
) -> fmt::Result {
    if samples.is_empty() {
        return Ok(());
    }
    let kind = kind_of.name();
    let name = match kind_of {
        Kind::Counter => name.strip_suffix("_total").unwrap_or(name),
        Kind::Gauge | Kind::Histogram => name,
    };
    writeln!(text, "# TYPE {name} {kind}")?;
    if let Some(unit) =
        UNITS.iter().find(|unit| name.strip_suffix(**unit).is_some_and(|it| it.ends_with('_')))
    {
        writeln!(text, "# UNIT {name} {unit}")?;
    }
    writeln!(text, "# HELP {name} {}", escaped(help))?;
    for Sample { labels, value } in samples {
        match value {
            Value::Number(value) => {
                let suffix = if kind_of == Kind::Counter { "_total" } else { "" };
                writeln!(text, "{name}{suffix}{} {value}", Labels(&labels, None))?;
            }
            Value::Histogram { histogram, bounds, per_unit, exemplars } => {
                let named = histogram.up_to(bounds);
                let named = named.map(|(bound, count)| (canonical(bound as f64 / per_unit), count));
                for (at, (bound, total)) in named.chain([("+Inf".to_owned(), histogram.count())]).enumerate()
                {
                    write!(text, "{name}_bucket{} {total}", Labels(&labels, Some(&bound)))?;
                    if let Some(exemplar) = exemplars.of(at) {
                        write_exemplar(text, exemplar, per_unit, snapshot)?;
                    }
                    text.push('\n');
                }
                let sum = histogram.sum as f64 / per_unit;
                writeln!(text, "{name}_sum{} {sum}", Labels(&labels, None))?;
                writeln!(text, "{name}_count{} {}", Labels(&labels, None), histogram.count())?;
            }
        }
    }
    Ok(())
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

/// Labels, with the bound of a bucket.
pub(super) struct Labels<'a>(pub(super) &'a [(&'static str, String)], pub(super) Option<&'a str>);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(labels, bound) = self;
        let named = labels.iter().map(|(name, value)| (*name, value.as_str()));
        let all = named.chain(bound.map(|bound| ("le", bound)));
        let mut before = '{';
        for (name, value) in all {
            write!(f, "{before}{name}=\"{}\"", escaped(value))?;
            before = ',';
        }
        if before == ',' { f.write_str("}") } else { Ok(()) }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
