use std::{collections::BTreeMap, io::Cursor};

use llamaprobe_common::{
    copying::Operation,
    request::{CopyEvent, RequestEventKind, RequestKey},
    step::{Model, StepEvent},
};
use prost::Message as _;

use super::{timeline::Lane, *};
use crate::{
    bpf::events::RequestEvent,
    journal::{Entry, Header, MARK, Stamped, frame},
    session::{
        Billing,
        fact::Fact,
        payload::text::Phrases,
        reader::Reader,
        staged::{MS, chat_events, key, naming, observed, options, told},
    },
};

/// A journal of three chats, of which two overlap.
fn journal() -> Vec<u8> {
    let billing = Billing { naming: naming(), users: 9, ..Billing::default() };
    let mut bytes = MARK.to_vec();
    bytes.extend(frame(&Header::new(0, billing, false, None)).unwrap());
    let mut inputs = vec![(MS, Input::Begin(Box::new(observed())))];
    let mut reader = Reader::new(options(), Phrases::default());
    let step = |at_ms, model: Model, prompt| StepEvent {
        start_ns: at_ms * MS,
        duration_ns: 4 * MS,
        tgid: key(1).tgid,
        tokens: prompt + 1,
        prompt,
        generated: 1,
        sequences: 2,
        model: model as u32,
        ..StepEvent::NONE
    };
    let steps = vec![step(3_012, Model::Main, 5), step(3_020, Model::Draft, 0), step(3_024, Model::Main, 0)];
    inputs.push((3_030 * MS, Input::Steps(steps)));
    let copy = CopyEvent {
        kind: RequestEventKind::Copy as u32,
        operation: Operation::Save as u32,
        request: RequestKey { arrived_ns: 0, ..key(0) },
        at_ns: 3_012 * MS,
        entered_ns: 3_002 * MS,
        bytes: 4_096,
        slot: 1,
        reserved: 0,
    };
    inputs.push((3_012 * MS, Input::Fact(Fact::Event(RequestEvent::Copy(copy)))));
    for arrived_ms in [1_000, 1_030, 3_000] {
        for event in chat_events(key(arrived_ms)) {
            for event in [Some(event.clone()), told(&event)].into_iter().flatten() {
                let ns = event.at_ns();
                inputs.extend(reader.read(event).into_iter().map(|fact| (ns, Input::Fact(fact))));
            }
        }
    }
    inputs.push((4_000 * MS, Input::Tick));
    inputs.sort_by_key(|(ns, _)| *ns);
    for (ns, what) in inputs {
        let entry = Entry::Input(Box::new(Stamped { ns, epoch: Duration::from_secs(1_700_000_000), what }));
        bytes.extend(frame(&entry).unwrap());
    }
    bytes
}

fn made() -> (Timeline, Duration) {
    let (timeline, epoch, played) = timeline(JournalReader::open(Cursor::new(journal())).unwrap());
    assert!(played.error.is_none());
    (timeline, epoch)
}

#[test]
fn requests_are_in_lanes_and_their_phases_in_them() {
    let (timeline, _) = made();
    let of = |lane: Lane| {
        let own = timeline.slices.iter().filter(move |it| it.lane == lane);
        own.map(|it| (it.name.as_str(), it.from_ns / MS, it.to_ns / MS)).collect::<Vec<_>>()
    };
    let chat = |at| {
        [
            ("/v1/chat/completions u", at, at + 60),
            ("queue", at, at + 12),
            ("prefill", at + 12, at + 32),
            ("decode", at + 32, at + 52),
            ("answer", at + 52, at + 60),
        ]
    };
    assert_eq!(of(Lane::Requests(0)), [chat(1_000), chat(3_000)].concat());
    assert_eq!(of(Lane::Requests(1)), chat(1_030));
    assert_eq!(of(Lane::Slot(1)).iter().filter(|(name, ..)| *name == "task 40").count(), 3);
    let engine = [
        ("copy of a cache", 3_002, 3_012),
        ("decode call with prompts", 3_012, 3_016),
        ("draft decode call", 3_020, 3_024),
        ("decode call", 3_024, 3_028),
    ];
    assert_eq!(of(Lane::Engine), engine);
    assert!(timeline.counts.iter().any(|count| count.name == "requests in flight"));
}

#[test]
fn slices_of_a_track_are_within_each_other() {
    let (timeline, epoch) = made();
    let mut bytes = Vec::new();
    perfetto::write(&timeline, epoch, &mut bytes).unwrap();
    let trace = perfetto::Trace::decode(bytes.as_slice()).unwrap();
    let mut depths: BTreeMap<u64, i32> = BTreeMap::new();
    let mut last = 0;
    for packet in &trace.packet {
        let Some(event) = &packet.track_event else { continue };
        assert!(packet.timestamp.unwrap() >= last);
        last = packet.timestamp.unwrap();
        let depth = depths.entry(event.track_uuid.unwrap()).or_default();
        *depth += match event.r#type {
            Some(perfetto::SLICE_BEGIN) => 1,
            Some(perfetto::SLICE_END) => -1,
            _ => 0,
        };
        assert!(*depth >= 0, "{event:?}");
    }
    assert!(depths.values().all(|depth| *depth == 0));
}

#[test]
fn lines_are_as_the_schema_says() {
    let (timeline, epoch) = made();
    let mut bytes = Vec::new();
    ndjson::write(&timeline, epoch, &mut bytes).unwrap();
    let schema: serde_json::Value = serde_json::from_str(ndjson::SCHEMA).unwrap();
    let kinds = schema["oneOf"].as_array().unwrap();
    let lines = String::from_utf8(bytes).unwrap();
    assert!(lines.lines().count() > 20);
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let kind = kinds.iter().find(|kind| kind["properties"]["kind"]["const"] == line["kind"]).unwrap();
        let object = line.as_object().unwrap();
        let required = kind["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        required.for_each(|name| assert!(object.contains_key(name), "{name}: {line}"));
        for name in object.keys() {
            assert!(kind["properties"].get(name).is_some(), "{name}: {line}");
        }
    }
}
