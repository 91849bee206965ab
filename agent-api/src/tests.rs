use serde_json::{Value, json};

use super::*;

/// A document as an agent writes it: a test of the agent's compares it with what it makes.
const GOLDEN: &str = include_str!("golden.json");

fn golden() -> Value {
    serde_json::from_str(GOLDEN).unwrap()
}

#[test]
fn every_field_comes_back() {
    let document: Document = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(serde_json::to_value(&document).unwrap(), golden(), "none is left out");
    assert_eq!((document.schema, document.is_newer()), (SCHEMA, false));
    let server = &document.servers[0];
    assert_eq!(server.tokens, Tokens { prompt: 12, cached: 0, generated: 3 });
    assert_eq!(server.live.as_ref().unwrap().model.as_ref().unwrap().quantisation, "Q4_K_M");
    assert_eq!(server.inter_token.unwrap().p95_ms_at_most, None, "beyond the last bound");
    assert_eq!(document.servers[1].live, None);
}

#[test]
fn a_newer_document_is_read_as_far_as_it_is_known() {
    let mut newer = golden();
    newer["schema"] = json!(SCHEMA + 1);
    newer["weather"] = json!("fine");
    newer["servers"][0]["live"]["colour"] = json!(["green"]);
    newer["servers"][0]["phases"]["sampling"] = json!({ "count": 1 });
    newer["servers"][0]["joins"]["guessed"] = json!(7);
    let document: Document = serde_json::from_value(newer).unwrap();
    assert!(document.is_newer());
    assert_eq!(document.servers[0].joins["guessed"], 7);
}

#[test]
fn an_agent_without_a_number_is_older() {
    let mut older = golden();
    let fields = older.as_object_mut().unwrap();
    fields.retain(|name, _| !["schema", "taken_at"].contains(&name.as_str()));
    older["agent"].as_object_mut().unwrap().remove("started_at");
    let document: Document = serde_json::from_value(older).unwrap();
    assert_eq!((document.schema, document.is_newer(), document.taken_at), (0, false, 0.0));
}

#[test]
fn what_is_absent_is_null() {
    let document = serde_json::to_value(Document { servers: vec![Server::default()], ..Document::default() });
    let document = document.unwrap();
    for place in
        ["/host", "/agent/prices", "/servers/0/live", "/servers/0/phases/queue", "/servers/0/refusals"]
    {
        assert_eq!(document.pointer(place), Some(&Value::Null), "{place}");
    }
}

#[test]
fn a_history_comes_back() {
    let step = ServerPoint {
        server: "127.0.0.1:8080".into(),
        model: "tiny".into(),
        tokens: Tokens { prompt: 1, cached: 2, generated: 3 },
        token_seconds: vec![0.5, 0.0],
        inter_token: vec![0, 2],
        ..ServerPoint::default()
    };
    let point = Point { until: 1.5, seconds: 5.0, servers: vec![step], left_out: 1, ..Point::default() };
    let history = History { schema: SCHEMA, points: vec![point.into()], ..History::default() };
    let mut text = serde_json::to_value(&history).unwrap();
    assert_eq!(text["points"][0]["servers"][0]["inter_token"], json!([0, 2]));
    text["points"][0]["weather"] = json!("fine");
    assert_eq!(serde_json::from_value::<History>(text).unwrap(), history);
}
