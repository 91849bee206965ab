//! The same samples under the names that dashboards for vLLM and for llama.cpp's own metrics ask for.
//!
//! In: what the rows of [`METRICS`](super::metrics::METRICS) have collected. Out: samples under other names and labels;
//! nothing is collected twice, and what is not measured is not made up.

mod names;
#[cfg(test)]
mod tests;

use clap::ValueEnum;
use serde::Deserialize;

use self::names::VIEWS;
use super::metrics::{Kind, Metric, Sample, Value};

/// Whose names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Those of vLLM: `vllm:`.
    Vllm,
    /// Those of llama-server's own metrics: `llamacpp:`.
    Llamacpp,
}

/// What of a sample becomes the value.
#[derive(Clone, Copy, Debug)]
enum Take {
    /// The value as it is.
    Whole,
    /// The sum of a histogram.
    Sum,
    /// The number of its observations.
    Count,
    /// The value becomes this label, and 1 the value.
    AsLabel(&'static str),
}

/// A metric under another name.
pub struct View {
    dialect: Dialect,
    /// Its name.
    pub name: &'static str,
    /// What it says, and where it is not what the other server means by it.
    pub help: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The metric it comes from.
    pub base: &'static str,
    /// The samples it comes from: a label of theirs, and its values. All when empty.
    only: (&'static str, &'static [&'static str]),
    take: Take,
}

/// Another name of the label `finish_reason`, and of its values.
const FINISHED_REASON: &str = "finished_reason";
const REASONS: &[(&str, &str)] =
    &[("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), ("cancelled", "abort")];

/// The views of `metric` in these dialects, each with its samples.
pub fn views<'a>(
    dialects: &'a [Dialect],
    metric: &'a Metric,
    samples: &'a [Sample],
) -> impl Iterator<Item = (&'static View, Vec<Sample>)> + 'a {
    let rows = VIEWS.iter().filter(|view| view.base == metric.name && dialects.contains(&view.dialect));
    rows.map(|view| (view, view.of(samples)))
}

impl View {
    /// Adds up what differs only in labels that this view does not have.
    fn of(&self, samples: &[Sample]) -> Vec<Sample> {
        let mut own: Vec<Sample> = Vec::new();
        for sample in samples.iter().filter(|sample| self.takes(sample)) {
            let Some(value) = self.value(&sample.value) else { continue };
            let labels = self.labels(sample);
            match own.iter_mut().find(|known| known.labels == labels) {
                Some(known) => add(&mut known.value, &value),
                None => own.push(Sample { labels, value }),
            }
        }
        own
    }

    fn takes(&self, sample: &Sample) -> bool {
        let (label, values) = self.only;
        values.is_empty() || label_of(sample, label).is_some_and(|value| values.contains(&value))
    }

    fn value(&self, value: &Value) -> Option<Value> {
        Some(match (self.take, value) {
            (Take::Whole, value) => value.clone(),
            (Take::Sum, Value::Histogram { histogram, per_unit, .. }) => {
                Value::Number(histogram.sum as f64 / per_unit)
            }
            (Take::Count, Value::Histogram { histogram, .. }) => Value::Number(histogram.count() as f64),
            (Take::AsLabel(_), Value::Number(_)) => Value::Number(1.0),
            (Take::Sum | Take::Count, Value::Number(_)) | (Take::AsLabel(_), Value::Histogram { .. }) => {
                return None;
            }
        })
    }

    fn labels(&self, sample: &Sample) -> Vec<(&'static str, String)> {
        let model = match self.dialect {
            Dialect::Vllm => "model_name",
            Dialect::Llamacpp => "model",
        };
        let of = |label| label_of(sample, label).unwrap_or_default().to_owned();
        let mut labels = vec![("server", of("server")), (model, of("model"))];
        let names = sample.labels.iter().filter(|(name, _)| ["namespace", "pod", "container"].contains(name));
        labels.extend(names.cloned());
        if let (Take::AsLabel(name), Value::Number(value)) = (self.take, &sample.value) {
            labels.extend([("block_size", "1".to_owned()), (name, value.to_string())]);
        }
        if self.only.0 == "finish_reason" {
            let reason = REASONS.iter().find(|(own, _)| label_of(sample, self.only.0) == Some(own));
            labels.extend(reason.map(|(_, theirs)| (FINISHED_REASON, (*theirs).to_owned())));
        }
        labels
    }
}

fn label_of<'a>(sample: &'a Sample, label: &str) -> Option<&'a str> {
    sample.labels.iter().find(|(name, _)| *name == label).map(|(_, value)| value.as_str())
}

fn add(sum: &mut Value, value: &Value) {
    match (sum, value) {
        (Value::Number(sum), Value::Number(value)) => *sum += value,
        (Value::Histogram { histogram: sum, .. }, Value::Histogram { histogram: value, .. }) => {
            sum.add(value);
        }
        // Samples of one metric are of one kind.
        (Value::Number(_), Value::Histogram { .. }) | (Value::Histogram { .. }, Value::Number(_)) => {}
    }
}
