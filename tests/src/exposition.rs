//! Reads the text format of Prometheus.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// One line of an exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name of the metric.
    pub name: String,
    /// The labels by name.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// A histogram, summed over all series that were asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper bound and cumulative count of each bucket, ascending; the last bound is infinite.
    pub buckets: Vec<(f64, f64)>,
    /// The sum of all observations.
    pub sum: f64,
    /// The number of observations.
    pub count: f64,
}

/// What one scrape gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition {
    samples: Vec<Sample>,
}

impl Exposition {
    /// Parses the text format; comments are ignored.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).with_context(|| format!("bad line: {line}")));
        Ok(Self { samples: samples.collect::<Result<_>>()? })
    }

    /// The samples of a metric that have all of `labels`.
    pub fn select(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        let matches = move |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|&(key, value)| sample.labels.get(key).is_some_and(|it| it == value))
        };
        self.samples.iter().filter(matches)
    }

    /// The sum of the samples of a metric that have all of `labels`; 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // The sum of nothing would be a negative zero.
        self.select(name, labels).map(|sample| sample.value).fold(0.0, std::ops::Add::add)
    }

    /// The value of a metric without regard to labels, if it is there.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.select(name, &[]).next().map(|sample| sample.value)
    }

    /// All samples, in their order.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// What may only rise: counters and what histograms are made of, by name and labels.
    pub fn rising(&self) -> BTreeMap<(String, BTreeMap<String, String>), f64> {
        let rises = |sample: &&Sample| {
            ["_total", "_bucket", "_sum", "_count"].iter().any(|suffix| sample.name.ends_with(suffix))
        };
        let samples = self.samples.iter().filter(rises);
        samples.map(|sample| ((sample.name.clone(), sample.labels.clone()), sample.value)).collect()
    }

    /// Whether any series has this label.
    pub fn mentions(&self, label: &str, value: &str) -> bool {
        self.samples.iter().any(|sample| sample.labels.get(label).is_some_and(|it| it == value))
    }

    /// A histogram, summed over the series that have all of `labels`.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in self.select(&format!("{name}_bucket"), labels) {
            let Some(bound) = sample.labels.get("le").and_then(|it| number(it).ok()) else { continue };
            match buckets.iter_mut().find(|bucket| bucket.0 == bound) {
                Some(bucket) => bucket.1 += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Histogram {
            buckets,
            sum: self.sum(&format!("{name}_sum"), labels),
            count: self.sum(&format!("{name}_count"), labels),
        }
    }
}

impl Histogram {
    /// What was observed since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |bound: f64| before.buckets.iter().find(|it| it.0 == bound).map_or(0.0, |it| it.1);
        Self {
            buckets: self.buckets.iter().map(|&(bound, count)| (bound, count - earlier(bound))).collect(),
            sum: self.sum - before.sum,
            count: self.count - before.count,
        }
    }

    /// The mean of the observations.
    pub fn mean(&self) -> f64 {
        self.sum / self.count
    }

    /// An estimate of a quantile, linear within its bucket, as PromQL's `histogram_quantile` makes it.
    pub fn quantile(&self, q: f64) -> f64 {
        let (rank, mut lower) = (q * self.count, (0.0, 0.0));
        for &(bound, count) in &self.buckets {
            if count >= rank && count > lower.1 {
                if bound.is_infinite() {
                    return lower.0;
                }
                return lower.0 + (bound - lower.0) * (rank - lower.1) / (count - lower.1);
            }
            lower = (bound, count);
        }
        f64::NAN
    }
}

fn sample(line: &str) -> Result<Sample> {
    let name_end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, quoted) = rest.split_once("=\"").context("a label without a value")?;
            let (value, after) = unquote(quoted)?;
            labels.insert(key.trim().to_owned(), value);
            rest = after;
        }
    }
    let value = rest.split_whitespace().next().context("no value")?;
    Ok(Sample { name: name.to_owned(), labels, value: number(value)? })
}

/// Splits `text` at its first quote that is not escaped, and resolves the escapes before it.
fn unquote(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped)) => value.push(escaped),
                None => break,
            },
            _ => value.push(character),
        }
    }
    bail!("a label value without an end")
}

fn number(text: &str) -> Result<f64> {
    // `f64` reads `inf`, `NaN` and a sign, in any case of letters.
    text.parse().with_context(|| format!("not a number: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# HELP tokens Tokens.
# TYPE tokens counter
tokens{server="a:1",type="prompt"} 3
tokens{server="a:1",type="generated",} 5 1700000000
tokens{ server="b:2", type="prompt" } 7e0
odd{path="C:\\x\"}\n"} NaN
llamacpp:n_decode_total 12
step_bucket{le="0.1",server="a"} 1
step_bucket{le="0.2",server="a"} 3
step_bucket{le="+Inf",server="a"} 4
step_bucket{le="0.1",server="b"} 0
step_bucket{le="0.2",server="b"} 4
step_bucket{le="+Inf",server="b"} 4
step_sum{server="a"} 0.9
step_count{server="a"} 4
step_sum{server="b"} 0.6
step_count{server="b"} 4
"#;

    #[test]
    fn sums_select_by_labels() {
        let exposition = Exposition::parse(TEXT).unwrap();
        assert_eq!(exposition.sum("tokens", &[("type", "prompt")]), 10.0);
        assert_eq!(exposition.sum("tokens", &[("type", "prompt"), ("server", "a:1")]), 3.0);
        assert_eq!(exposition.sum("tokens", &[("no", "such")]), 0.0);
        assert_eq!(exposition.value("llamacpp:n_decode_total"), Some(12.0));
        assert_eq!(exposition.value("absent"), None);
        let odd = exposition.select("odd", &[]).next().unwrap();
        assert_eq!(odd.labels["path"], "C:\\x\"}\n");
        assert!(odd.value.is_nan());
    }

    #[test]
    fn histograms_add_up() {
        let exposition = Exposition::parse(TEXT).unwrap();
        let both = exposition.histogram("step", &[]);
        assert_eq!(both.buckets, [(0.1, 1.0), (0.2, 7.0), (f64::INFINITY, 8.0)]);
        assert_eq!((both.sum, both.count), (1.5, 8.0));
        let rest = both.since(&exposition.histogram("step", &[("server", "b")]));
        assert_eq!(rest.count, 4.0);
        assert!((rest.mean() - 0.225).abs() < 1e-9);
        assert!((rest.quantile(0.5) - 0.15).abs() < 1e-9);
        assert_eq!(rest.quantile(0.99), 0.2);
    }

    #[test]
    fn bad_lines_are_errors() {
        for text in ["name", "name{a=\"b} 1", "name{a} 1", "name x", "name{a=\"b\"}"] {
            assert!(Exposition::parse(text).is_err(), "{text}");
        }
    }
}
