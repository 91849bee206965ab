//! What the text formats of metrics have in common: lines of samples.

use std::fmt::{self, Write as _};

use llamaprobe_common::histogram::Bounds;

use super::metrics::{Sample, Value};
use crate::session::exemplar::Exemplars;

/// How a format writes the samples of a metric.
pub(super) struct Style<'a> {
    /// The metric.
    pub(super) name: &'a str,
    /// What stands behind its name where a sample is a number.
    pub(super) suffix: &'static str,
    /// A bound of a bucket, in the metric's unit.
    pub(super) bound: fn(f64) -> String,
    /// What stands behind the bucket of this number, by the exemplars and what one is in the metric's unit.
    pub(super) behind: &'a dyn Fn(&mut String, &Exemplars, usize, f64) -> fmt::Result,
}

impl Style<'_> {
    /// Writes samples.
    pub(super) fn write(&self, text: &mut String, samples: &[Sample]) -> fmt::Result {
        let name = self.name;
        // The same for all samples of a metric, and dearer to write than the rest.
        let mut known: Option<(&Bounds, Vec<String>)> = None;
        for Sample { labels, value } in samples {
            let labels = labelled(labels);
            match value {
                Value::Number(value) => writeln!(text, "{name}{}{labels} {value}", self.suffix)?,
                Value::Histogram { histogram, bounds, per_unit, exemplars } => {
                    let known = match &mut known {
                        Some((of, known)) if std::ptr::eq(*of, *bounds) => known,
                        known => &mut known.insert((bounds, self.bounds(bounds, *per_unit))).1,
                    };
                    let before = match labels.strip_suffix('}') {
                        Some(open) => format!("{name}_bucket{open},le=\""),
                        None => format!("{name}_bucket{{le=\""),
                    };
                    let counts = histogram.up_to(bounds).map(|(_, count)| count);
                    for (at, (bound, count)) in
                        known.iter().zip(counts.chain([histogram.count()])).enumerate()
                    {
                        text.push_str(&before);
                        text.push_str(bound);
                        write!(text, "\"}} {count}")?;
                        (self.behind)(text, exemplars, at, *per_unit)?;
                        text.push('\n');
                    }
                    let sum = histogram.sum as f64 / per_unit;
                    writeln!(text, "{name}_sum{labels} {sum}")?;
                    writeln!(text, "{name}_count{labels} {}", histogram.count())?;
                }
            }
        }
        Ok(())
    }

    fn bounds(&self, bounds: &Bounds, per_unit: f64) -> Vec<String> {
        let classic = bounds.classic().iter().map(|bound| (self.bound)(*bound as f64 / per_unit));
        classic.chain(["+Inf".to_owned()]).collect()
    }
}

/// Labels in braces; nothing where there are none.
pub(super) fn labelled(labels: &[(&'static str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(name);
        text.push_str("=\"");
        escape(&mut text, value, &['\\', '"', '\n']);
        text.push('"');
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

/// Writes what holds some of these characters, escaped.
pub(super) fn escape(text: &mut String, mut plain: &str, special: &[char]) {
    while let Some(at) = plain.find(special) {
        let (before, rest) = plain.split_at(at);
        text.push_str(before);
        text.push('\\');
        let (one, rest) = rest.split_at(1);
        text.push_str(if one == "\n" { "n" } else { one });
        plain = rest;
    }
    text.push_str(plain);
}
