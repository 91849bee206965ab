use std::time::Duration;

use super::*;
use crate::session::{
    Labels as Owner, Server,
    exemplar::Findable,
    staged::{chat_events, finished, key},
    tally::Tally,
};

/// A server with one request of 60 ms, whose trace can be found.
fn snapshot() -> Snapshot {
    let request = finished(key(1_000), &chat_events(key(1_000)));
    let mut tally = Tally::default();
    tally.book(&request);
    tally.book_operation(&request, Some(Findable { trace_id: [0xab; 16], span_id: Some([1; 8]) }));
    let labels = Owner { server: "127.0.0.1:8080".to_owned(), model: "a \"tiny\"\none".to_owned() };
    let server = Server { labels, tally, ..Server::default() };
    Snapshot { servers: vec![server], epoch: Duration::from_secs(1_700_000_000), ..Snapshot::default() }
}

#[test]
fn an_exemplar_stands_at_its_bucket_alone() {
    let text = render(&snapshot(), &[]);
    let name = "llm_request_duration_seconds_bucket";
    let buckets: Vec<_> = text.lines().filter(|line| line.starts_with(name)).collect();
    let labels = r#"server="127.0.0.1:8080",model="a \"tiny\"\none""#;
    let trace = format!("trace_id=\"{}\",span_id=\"{}\"", "ab".repeat(16), "01".repeat(8));
    let expected = format!("{name}{{{labels},le=\"0.08\"}} 1 # {{{trace}}} 0.06 1700000001.060");
    let found: Vec<_> = buckets.iter().filter(|line| line.contains('#')).collect();
    assert_eq!(found, [&expected]);
    assert!(buckets.last().unwrap().ends_with("le=\"+Inf\"} 1"), "{buckets:?}");
    assert!(buckets.iter().any(|line| line.contains("le=\"655.36\"")), "the bounds are the same");
    let per_token = text.lines().find(|line| line.starts_with("llm_time_per_output") && line.contains(" # "));
    assert!(per_token.unwrap().contains("le=\"0.005\""), "{per_token:?}");
}

#[test]
fn it_has_units_and_an_end_and_counters_without_total() {
    let text = render(&snapshot(), &[]);
    assert!(text.ends_with("\n# EOF\n"));
    for line in [
        "# TYPE llm_requests counter",
        "# TYPE llm_request_duration_seconds histogram",
        "# UNIT llm_request_duration_seconds seconds",
        "# UNIT process_cpu_seconds seconds",
        "# TYPE llamaprobe_targets gauge",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
    assert!(text.contains("\nllm_requests_total{"));
    assert!(text.contains("le=\"1.0\"} 0\n"), "bounds that are whole numbers have a point");
}
