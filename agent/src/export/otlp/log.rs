//! A finished request as a log record: the fields of its JSON line are the attributes. Pure.

use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use serde_json::Value;

use super::attribute::{Attributes, any};
use crate::{export::log::Line, kubernetes::attribute, session::Record};

/// Fields that a record has places of its own for; what is of a pod is in the resource.
const PLACED: [&str; 4] = ["timestamp", "level", "event", "trace_id"];

/// The record of a request; `epoch_ns` is the kernel's time 0 since the Unix epoch.
pub(super) fn record(record: &Record, epoch_ns: u64, observed_ns: u64) -> LogRecord {
    let to_wall = |ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(epoch_ns) + Duration::from_nanos(ns);
    // A line is made of texts and numbers; there is nothing in it that cannot be serialised.
    let line = serde_json::to_value(Line::new(record, to_wall)).unwrap_or_default();
    let field = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default();
    let severity = if field("level") == "info" { SeverityNumber::Info } else { SeverityNumber::Warn };
    let mut attributes = Attributes::default();
    for (key, value) in line.as_object().into_iter().flatten() {
        match value {
            _ if PLACED.contains(&key.as_str()) || attribute(key).is_some() => {}
            Value::String(text) => attributes.put(key, text.as_str()),
            Value::Bool(truth) => attributes.put(key, *truth),
            Value::Number(number) => match number.as_u64() {
                Some(number) => attributes.put(key, number),
                None => attributes.put_some(key, number.as_f64()),
            },
            other => attributes.put(key, other.to_string()),
        }
    }
    let kept = record.trace.filter(|trace| trace.kept);
    LogRecord {
        time_unix_nano: epoch_ns + record.request.answered_ns,
        observed_time_unix_nano: observed_ns,
        severity_number: severity as i32,
        severity_text: field("level").to_uppercase(),
        event_name: field("event").to_owned(),
        body: Some(any(field("event"))),
        attributes: attributes.0,
        flags: record.trace.map_or(0, |trace| trace.flags.into()),
        trace_id: record.trace_id().map_or(Vec::new(), |id| id.to_vec()),
        span_id: kept.map_or(Vec::new(), |trace| trace.span_id.to_vec()),
        ..LogRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{
        Labels,
        finished::{Finished, Outcome},
        staged::{MARKER, chat_events, finished, key},
        tracer::{Rules, Slow, Tracer},
    };

    fn of(outcome: Outcome, ratio: f64) -> LogRecord {
        let request = Finished { outcome, ..finished(key(1_000), &chat_events(key(1_000))) };
        let trace = Tracer::new(Rules { ratio, slow: Slow::default() }, [7; 16]).trace(&request);
        let labels = Labels { server: "127.0.0.1:8080".to_owned(), model: "tiny".to_owned() };
        let request =
            Record { request, labels, model: None, cost: [None; 2], trace, workload: None, recording: None };
        record(&request, 5, 9)
    }

    #[test]
    fn the_fields_of_the_line_are_its_attributes() {
        let record = of(Outcome::Length, 1.0);
        let keys: Vec<_> = record.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        for key in ["server", "model", "prompt_tokens", "ttft_ms", "slot", "join", "cached"] {
            assert!(keys.contains(&key), "{key} is not in {keys:?}");
        }
        assert!(PLACED.iter().all(|key| !keys.contains(key)), "{keys:?}");
        assert_eq!((record.severity_number, record.severity_text.as_str()), (9, "INFO"));
        assert_eq!(record.event_name, "inference_complete");
        assert_eq!(record.time_unix_nano, 1_060_000_005);
        assert_eq!((record.trace_id.len(), record.span_id.len()), (16, 8));
        assert!(!format!("{record:?}").contains(MARKER), "no text");
    }

    #[test]
    fn failures_are_warnings() {
        assert_eq!(of(Outcome::Cancelled, 1.0).severity_number, 13);
    }

    #[test]
    fn a_record_names_no_trace_that_nobody_can_find() {
        let record = of(Outcome::Stop, 0.0);
        assert!(record.trace_id.is_empty() && record.span_id.is_empty());
        assert_eq!(record.flags & 1, 0);
    }
}
