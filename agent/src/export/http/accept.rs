//! What a scraper asks for in `Accept`.

/// How much each format is wanted, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Accept {
    /// The older text format, or whatever there is.
    pub(super) text: f32,
    /// OpenMetrics, in a version that is spoken here.
    pub(super) openmetrics: f32,
    /// Protobuf, one message after the other.
    pub(super) protobuf: f32,
}

impl Accept {
    pub(super) fn parse(header: &str) -> Self {
        let mut accept = Self::default();
        for range in header.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            // A parameter that says something else than what is made here.
            let (mut quality, mut other) = (1.0_f32, false);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                let value = value.trim().trim_matches('"');
                match (kind.as_str(), name.trim()) {
                    (_, "q") => quality = value.parse().unwrap_or(0.0),
                    ("application/openmetrics-text", "version") => {
                        other |= !matches!(value, "1.0.0" | "0.0.1")
                    }
                    ("application/vnd.google.protobuf", "proto") => {
                        other |= value != "io.prometheus.client.MetricFamily";
                    }
                    ("application/vnd.google.protobuf", "encoding") => other |= value != "delimited",
                    _ => {}
                }
            }
            let wanted = match kind.as_str() {
                _ if other => continue,
                "application/openmetrics-text" => &mut accept.openmetrics,
                "application/vnd.google.protobuf" => &mut accept.protobuf,
                "text/plain" | "text/*" | "*/*" => &mut accept.text,
                _ => continue,
            };
            *wanted = wanted.max(quality);
        }
        accept
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;

    fn format(accept: &str) -> Format {
        let request = hyper::Request::builder().header("accept", accept);
        Format::wanted(&request.body(()).unwrap())
    }

    #[test]
    fn who_asks_for_more_than_text_gets_it() {
        for (accept, expected) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format::OpenMetrics),
            ("APPLICATION/OpenMetrics-Text;version=\"1.0.0\"", Format::OpenMetrics),
            ("application/openmetrics-text;version=2.0.0", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("application/openmetrics-text;q=0.1,text/plain;q=0.5", Format::Prometheus),
            // What Prometheus sends.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            // And with native histograms.
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::Protobuf,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
                Format::Prometheus,
            ),
            ("application/vnd.google.protobuf;proto=other;encoding=delimited,*/*;q=0.1", Format::Prometheus),
            (
                "application/vnd.google.protobuf;encoding=delimited;q=0.2,application/openmetrics-text",
                Format::OpenMetrics,
            ),
            (";;q=,application/openmetrics-text;q=x", Format::Prometheus),
        ] {
            assert_eq!(format(accept), expected, "{accept}");
        }
    }
}
