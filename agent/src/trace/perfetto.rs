//! A timeline as a trace that Perfetto (ui.perfetto.dev) shows. The messages are those of its `perfetto_trace.proto`, as far as they are needed.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use prost::Message;
use serde_json::Value;

use super::timeline::{Lane, Timeline};

/// `perfetto.protos.Trace`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Trace {
    #[prost(message, repeated, tag = "1")]
    pub(super) packet: Vec<TracePacket>,
}

/// `TracePacket`
#[derive(Clone, PartialEq, Message)]
pub(super) struct TracePacket {
    #[prost(uint64, optional, tag = "8")]
    pub(super) timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "10")]
    trusted_packet_sequence_id: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    sequence_flags: Option<u32>,
    #[prost(message, optional, tag = "6")]
    clock_snapshot: Option<ClockSnapshot>,
    #[prost(message, optional, tag = "11")]
    pub(super) track_event: Option<TrackEvent>,
    #[prost(message, optional, tag = "60")]
    track_descriptor: Option<TrackDescriptor>,
}

/// `ClockSnapshot`
#[derive(Clone, PartialEq, Message)]
struct ClockSnapshot {
    #[prost(message, repeated, tag = "1")]
    clocks: Vec<Clock>,
    #[prost(int32, optional, tag = "2")]
    primary_trace_clock: Option<i32>,
}

/// `ClockSnapshot.Clock`
#[derive(Clone, PartialEq, Message)]
struct Clock {
    #[prost(uint32, optional, tag = "1")]
    clock_id: Option<u32>,
    #[prost(uint64, optional, tag = "2")]
    timestamp: Option<u64>,
}

/// `TrackDescriptor`
#[derive(Clone, PartialEq, Message)]
struct TrackDescriptor {
    #[prost(uint64, optional, tag = "1")]
    uuid: Option<u64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(message, optional, tag = "3")]
    process: Option<ProcessDescriptor>,
    #[prost(uint64, optional, tag = "5")]
    parent_uuid: Option<u64>,
    #[prost(message, optional, tag = "8")]
    counter: Option<CounterDescriptor>,
}

/// `ProcessDescriptor`
#[derive(Clone, PartialEq, Message)]
struct ProcessDescriptor {
    #[prost(int32, optional, tag = "1")]
    pid: Option<i32>,
    #[prost(string, optional, tag = "6")]
    process_name: Option<String>,
}

/// `CounterDescriptor`
#[derive(Clone, PartialEq, Message)]
struct CounterDescriptor {}

/// `TrackEvent`
#[derive(Clone, PartialEq, Message)]
pub(super) struct TrackEvent {
    #[prost(int32, optional, tag = "9")]
    pub(super) r#type: Option<i32>,
    #[prost(uint64, optional, tag = "11")]
    pub(super) track_uuid: Option<u64>,
    #[prost(string, optional, tag = "23")]
    name: Option<String>,
    #[prost(string, repeated, tag = "22")]
    categories: Vec<String>,
    #[prost(int64, optional, tag = "30")]
    counter_value: Option<i64>,
    #[prost(message, repeated, tag = "4")]
    debug_annotations: Vec<DebugAnnotation>,
    #[prost(fixed64, repeated, packed = "false", tag = "47")]
    flow_ids: Vec<u64>,
    #[prost(fixed64, repeated, packed = "false", tag = "48")]
    terminating_flow_ids: Vec<u64>,
}

/// `DebugAnnotation`
#[derive(Clone, PartialEq, Message)]
struct DebugAnnotation {
    #[prost(string, optional, tag = "10")]
    name: Option<String>,
    #[prost(double, optional, tag = "5")]
    double_value: Option<f64>,
    #[prost(int64, optional, tag = "4")]
    int_value: Option<i64>,
    #[prost(bool, optional, tag = "2")]
    bool_value: Option<bool>,
    #[prost(string, optional, tag = "6")]
    string_value: Option<String>,
}

/// `TrackEvent.Type`
pub(super) const SLICE_BEGIN: i32 = 1;
pub(super) const SLICE_END: i32 = 2;
const COUNTER: i32 = 4;
/// `BuiltinClock`
const REALTIME: u32 = 1;
const BOOTTIME: u32 = 6;
/// `TracePacket.SequenceFlags.SEQ_INCREMENTAL_STATE_CLEARED`
const CLEARED: u32 = 1;
/// All packets are of one writer.
const SEQUENCE: u32 = 1;

fn annotation((name, value): (&String, &Value)) -> DebugAnnotation {
    let mut it = DebugAnnotation { name: Some(name.clone()), ..DebugAnnotation::default() };
    match value {
        Value::Bool(value) => it.bool_value = Some(*value),
        Value::Number(value) => match value.as_i64() {
            Some(value) => it.int_value = Some(value),
            None => it.double_value = value.as_f64(),
        },
        Value::String(value) => it.string_value = Some(value.clone()),
        other => it.string_value = Some(other.to_string()),
    }
    it
}

/// The numbers and descriptions of tracks.
#[derive(Default)]
struct Tracks {
    uuids: BTreeMap<(u32, Option<Lane>, &'static str), u64>,
    packets: Vec<TracePacket>,
}

impl Tracks {
    fn describe(&mut self, key: (u32, Option<Lane>, &'static str), descriptor: TrackDescriptor) -> u64 {
        let uuid = self.uuids.len() as u64 + 1;
        self.uuids.insert(key, uuid);
        let track_descriptor = Some(TrackDescriptor { uuid: Some(uuid), ..descriptor });
        self.packets.push(TracePacket {
            trusted_packet_sequence_id: Some(SEQUENCE),
            track_descriptor,
            ..TracePacket::default()
        });
        uuid
    }

    fn process(&mut self, pid: u32, timeline: &Timeline) -> u64 {
        let key = (pid, None, "");
        if let Some(uuid) = self.uuids.get(&key) {
            return *uuid;
        }
        let name = timeline.servers.get(&pid).cloned().unwrap_or_else(|| format!("process {pid}"));
        let process = ProcessDescriptor { pid: i32::try_from(pid).ok(), process_name: Some(name) };
        self.describe(key, TrackDescriptor { process: Some(process), ..TrackDescriptor::default() })
    }

    fn lane(&mut self, pid: u32, lane: Lane, timeline: &Timeline) -> u64 {
        let key = (pid, Some(lane), "");
        if let Some(uuid) = self.uuids.get(&key) {
            return *uuid;
        }
        let name = match lane {
            Lane::Requests(number) => format!("requests {}", number + 1),
            Lane::Slot(slot) => format!("slot {slot}"),
            Lane::Engine => "engine".to_owned(),
            Lane::Thread(tid) => format!("stalls of thread {tid}"),
        };
        let parent_uuid = Some(self.process(pid, timeline));
        self.describe(key, TrackDescriptor { name: Some(name), parent_uuid, ..TrackDescriptor::default() })
    }

    fn counter(&mut self, pid: u32, name: &'static str, timeline: &Timeline) -> u64 {
        let key = (pid, None, name);
        if let Some(uuid) = self.uuids.get(&key) {
            return *uuid;
        }
        let parent_uuid = Some(self.process(pid, timeline));
        let (name, counter) = (Some(name.to_owned()), Some(CounterDescriptor {}));
        self.describe(key, TrackDescriptor { name, parent_uuid, counter, ..TrackDescriptor::default() })
    }
}

/// Writes a timeline; `epoch` is the kernel's time 0 since the Unix epoch.
///
/// # Errors
///
/// When it cannot be written.
pub(super) fn write(timeline: &Timeline, epoch: Duration, to: &mut dyn Write) -> io::Result<()> {
    let mut tracks = Tracks::default();
    // Nothing is open longer than what it stands in: what ends at a moment stands before what begins then.
    let mut events: Vec<(u64, TrackEvent)> = Vec::new();
    let mut open: Vec<(u64, u64)> = Vec::new();
    let close = |events: &mut Vec<(u64, TrackEvent)>, open: &mut Vec<(u64, u64)>, track: u64, from: u64| {
        while let Some((uuid, to)) = open.pop_if(|(uuid, to)| *uuid != track || *to <= from) {
            let end = TrackEvent { r#type: Some(SLICE_END), track_uuid: Some(uuid), ..TrackEvent::default() };
            events.push((to, end));
        }
    };
    for slice in &timeline.slices {
        let track = tracks.lane(slice.pid, slice.lane, timeline);
        close(&mut events, &mut open, track, slice.from_ns);
        let flow: Vec<u64> = slice.request.into_iter().collect();
        let ends = slice.name == "answer";
        let begin = TrackEvent {
            r#type: Some(SLICE_BEGIN),
            track_uuid: Some(track),
            name: Some(slice.name.clone()),
            categories: vec!["llama.cpp".to_owned()],
            debug_annotations: slice.arguments.iter().map(annotation).collect(),
            flow_ids: if ends { Vec::new() } else { flow.clone() },
            terminating_flow_ids: if ends { flow } else { Vec::new() },
            ..TrackEvent::default()
        };
        events.push((slice.from_ns, begin));
        open.push((track, slice.to_ns));
    }
    close(&mut events, &mut open, 0, u64::MAX);
    for count in &timeline.counts {
        let counter = TrackEvent {
            r#type: Some(COUNTER),
            track_uuid: Some(tracks.counter(count.pid, count.name, timeline)),
            counter_value: Some(i64::try_from(count.value).unwrap_or(i64::MAX)),
            ..TrackEvent::default()
        };
        events.push((count.at_ns, counter));
    }
    // The order of equal times is that of nesting.
    events.sort_by_key(|(at, _)| *at);
    let first = events.first().map_or(0, |(at, _)| *at);
    let wall = u64::try_from(epoch.as_nanos()).unwrap_or(0).saturating_add(first);
    let clock = |id, at| Clock { clock_id: Some(id), timestamp: Some(at) };
    let clocks = ClockSnapshot {
        clocks: vec![clock(BOOTTIME, first), clock(REALTIME, wall)],
        primary_trace_clock: Some(BOOTTIME as i32),
    };
    let head = TracePacket {
        timestamp: Some(first),
        trusted_packet_sequence_id: Some(SEQUENCE),
        sequence_flags: Some(CLEARED),
        clock_snapshot: Some(clocks),
        ..TracePacket::default()
    };
    let event = |(at, event)| TracePacket {
        timestamp: Some(at),
        trusted_packet_sequence_id: Some(SEQUENCE),
        track_event: Some(event),
        ..TracePacket::default()
    };
    for packet in [head].into_iter().chain(tracks.packets).chain(events.into_iter().map(event)) {
        // Traces one behind the other are one.
        to.write_all(&Trace { packet: vec![packet] }.encode_to_vec())?;
    }
    to.flush()
}
