//! Hand-made request events for tests, cut as the kernel cuts them.

use std::net::{Ipv6Addr, SocketAddr};

use bytes::Bytes;
use llamaprobe_common::{
    cookie::Cookie,
    part::{Part, Parts},
    probe::ProbeId,
    request::{
        BeginEvent, EndEvent, EndReason, Peer, PieceHead, RequestEventKind, RequestKey, SlotEndEvent,
        SlotStartEvent, TaskEvent, WriteEvent,
    },
    target::TargetConfig,
};

use super::{
    finished::Finished,
    identity::{Naming, Source},
    observed::{Hook, Observed},
    payload::{head::HeadOptions, text::Phrases},
    reader::Reader,
    requests::Requests,
};
use crate::{
    bpf::events::{Piece, RequestEvent},
    discovery::{
        Target, Told,
        process::{Listener, Place},
        resources::Resources,
    },
    plan::{Joining, catalog::Role, site::Stepping},
};

/// A millisecond.
pub(crate) const MS: u64 = 1_000_000;
/// The process of [`key`].
pub(crate) const PID: u32 = 7;
/// Stands in prompts, answers, queries and keys: nothing that leaves may hold it.
pub(crate) const MARKER: &str = "xyzzy";

/// The request that arrived at `ms` milliseconds.
pub(crate) fn key(ms: u64) -> RequestKey {
    RequestKey { arrived_ns: ms * MS, tgid: PID, fd: 5 }
}

/// A process that is called like a server, and of which nothing else is known.
pub(crate) fn process(pid: u32) -> Target {
    Target {
        pid,
        start_time: 1,
        comm: "llama-server".to_owned(),
        images: vec![],
        listeners: vec![],
        model: None,
        told: Told::default(),
        place: Place::default(),
        seccomp: 0,
        owner: 0,
        router: None,
        resources: Resources::default(),
    }
}

/// The process of [`key`]: a server that listens and whose requests are followed.
pub(crate) fn observed() -> Observed {
    let target = Target {
        listeners: vec![Listener::Tcp(SocketAddr::from(([127, 0, 0, 1], 8080)))],
        told: Told { name: Some("m".to_owned()), ..Told::default() },
        ..process(PID)
    };
    let flags = TargetConfig::SLOTS | TargetConfig::HTTP;
    let hook = Hook {
        role: Role::Task,
        probe: 0,
        cookie: Cookie::plain(ProbeId::ALL[0]),
        stepping: Stepping::Emulated,
        program: 0,
    };
    Observed { target, hooks: vec![hook], missing: vec![], flags, joining: Joining::Exact }
}

/// Options with a header for users.
pub(crate) fn options() -> HeadOptions {
    HeadOptions { user_header: Some("X-User".to_owned()), key: [7; 32] }
}

/// Names of users as they are made unless told otherwise, without aliases.
pub(crate) fn naming() -> Naming {
    Naming { order: vec![Source::Header, Source::Body, Source::Key], ..Naming::default() }
}

/// A POST with a body; `fields` are header lines.
pub(crate) fn post(path: &str, fields: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

/// A GET.
pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes()
}

/// A chat with the marker as prompt and key.
pub(crate) fn chat() -> Vec<u8> {
    let fields = format!("Authorization: Bearer {MARKER}\r\n");
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{MARKER}"}}],"model":"m","user":"u"}}"#);
    post(&format!("/v1/chat/completions?q={MARKER}"), &fields, &body)
}

/// An answer with a length, head and body in one.
pub(crate) fn answer(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nServer: llama.cpp\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The answer to a chat, with the marker as text.
pub(crate) fn chat_answer() -> Vec<u8> {
    let body = format!(
        r#"{{"choices":[{{"finish_reason":"length","index":0,"message":{{"role":"assistant","content":"{MARKER}"}}}}],"object":"chat.completion","usage":{{"completion_tokens":5,"prompt_tokens":21}}}}"#
    );
    answer("200 OK", &body)
}

/// The head of a stream.
pub(crate) const STREAM: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A chunk of a stream that holds an object.
pub(crate) fn chunk(object: &str) -> Vec<u8> {
    let event = format!("data: {object}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

/// A chunk with the marker as text.
pub(crate) fn text_chunk() -> Vec<u8> {
    chunk(&format!(
        r#"{{"choices":[{{"finish_reason":null,"index":0,"delta":{{"content":"{MARKER}"}}}}],"object":"chat.completion.chunk"}}"#
    ))
}

/// The chunk that ends a stream.
pub(crate) fn last_chunk(finish: &str) -> Vec<u8> {
    chunk(&format!(
        r#"{{"choices":[{{"finish_reason":"{finish}","index":0,"delta":{{}}}}],"object":"chat.completion.chunk","timings":{{"cache_n":20,"prompt_n":1,"predicted_n":5}}}}"#
    ))
}

/// Bytes that were read of a request, from `offset` on.
pub(crate) fn read(request: RequestKey, offset: u64, at_ns: u64, bytes: &[u8]) -> RequestEvent {
    piece(request, 0, offset, at_ns, bytes)
}

/// Bytes that were written of an answer, from `offset` on.
pub(crate) fn write(request: RequestKey, offset: u64, at_ns: u64, bytes: &[u8]) -> RequestEvent {
    piece(request, PieceHead::ANSWER, offset, at_ns, bytes)
}

/// Bytes of a request or an answer.
pub(crate) fn piece(request: RequestKey, flags: u32, offset: u64, at_ns: u64, bytes: &[u8]) -> RequestEvent {
    let head = PieceHead { flags, len: bytes.len() as u32, request, at_ns, offset };
    RequestEvent::Piece(Piece { head, data: Bytes::copy_from_slice(bytes) })
}

/// A request begins, on a connection that waited for a thread.
pub(crate) fn begin(request: RequestKey, flags: u32, unread_ns: u64) -> RequestEvent {
    let peer = Peer { address: Ipv6Addr::from_bits(0xffff_0a00_0007).octets(), port: 4711 };
    let kind = RequestEventKind::Begin as u32;
    let at_ns = request.arrived_ns;
    RequestEvent::Begin(BeginEvent { kind, flags, request, at_ns, unread_ns, peer, reserved: 0 })
}

/// The event by which the kernel tells that there are bytes; none of those that it kept until the end.
pub(crate) fn told(event: &RequestEvent) -> Option<RequestEvent> {
    let RequestEvent::Piece(piece) = event else { return None };
    let PieceHead { request, at_ns, offset, .. } = piece.head;
    if !piece.is_answer() {
        return (offset == 0).then(|| begin(request, BeginEvent::READ, 0));
    }
    let code = piece.data.get(9..12).filter(|_| offset == 0);
    let code = code.and_then(|code| str::from_utf8(code).ok()?.parse().ok()).unwrap_or(0);
    Some(RequestEvent::Write(WriteEvent {
        kind: RequestEventKind::Write as u32,
        index: u32::from(offset > 0),
        request,
        at_ns,
        bytes_in: 0,
        bytes_out: offset + piece.data.len() as u64,
        code,
        gaps: 0,
    }))
}

/// Books an event, and of bytes the one that tells of them. Returns the request that is over by it.
pub(crate) fn on(requests: &mut Staged, event: &RequestEvent) -> Option<Finished> {
    let over = requests.on(event);
    assert!(over.is_none() || !matches!(event, RequestEvent::Piece(_)), "bytes alone end nothing");
    over.or_else(|| told(event).and_then(|event| requests.on(&event)))
}

/// The end of a request whose answer has `bytes_out` bytes, the last of them written at `last_write_ns`.
pub(crate) fn end(
    request: RequestKey,
    reason: EndReason,
    at_ns: u64,
    last_write_ns: u64,
    bytes_out: u64,
) -> EndEvent {
    EndEvent {
        kind: RequestEventKind::End as u32,
        reason: reason as u32,
        request,
        at_ns,
        last_write_ns,
        gone_ns: 0,
        bytes_in: 0,
        bytes_out,
        writes: u32::from(bytes_out > 0),
        code: 0,
        gaps: 0,
        reserved: 0,
    }
}

/// A request is given a task.
pub(crate) fn task(request: RequestKey, task: i32, at_ns: u64) -> RequestEvent {
    RequestEvent::Task(TaskEvent { kind: RequestEventKind::Task as u32, task, request, at_ns, freed_ns: 0 })
}

/// A task takes a slot.
pub(crate) fn slot_start(request: RequestKey, task: i32, slot: i32, at_ns: u64) -> RequestEvent {
    let kind = RequestEventKind::SlotStart as u32;
    RequestEvent::SlotStart(SlotStartEvent { kind, task, request, at_ns, slot, origin: -1 })
}

/// Parts, milliseconds.
fn parts(ms: &[(Part, u64)]) -> Parts {
    let mut parts = Parts::default();
    ms.iter().for_each(|(part, ms)| parts[*part as usize] = ms * MS);
    parts
}

/// A task that launched 10 ms after its request arrived leaves slot 1 at 70 ms: prefill from 12 to 32 ms, 5 tokens
/// until 52 ms.
pub(crate) fn worked(request: RequestKey, task: i32) -> SlotEndEvent {
    let at = |ms: u64| request.arrived_ns + ms * MS;
    SlotEndEvent {
        kind: RequestEventKind::SlotEnd as u32,
        task,
        request,
        at_ns: at(70),
        launched_ns: at(10),
        prefill_ns: at(12),
        first_token_ns: at(32),
        last_token_ns: at(52),
        worst_gap_ns: 8 * MS,
        slot: 1,
        prompt_tokens: 1,
        cached_tokens: 20,
        generated_tokens: 5,
        n_past: 25,
        n_ctx: 4096,
        engine_ns: 30 * MS,
        wasted_tokens: 0,
        drafted_tokens: 0,
        accepted_tokens: 0,
        unread: 0,
        incomplete: 0,
        worst_part: Part::Decode as u32,
        restored_ns: 0,
        held_tokens: 20,
        fate: 0,
        parts: parts(&[(Part::Host, 2), (Part::OwnPrefill, 20), (Part::Decode, 18), (Part::Sampling, 2)]),
    }
}

/// Events of a chat that is answered at 60 ms and whose slot is left at 70 ms, by task 40.
pub(crate) fn chat_events(request: RequestKey) -> Vec<RequestEvent> {
    let at = |ms: u64| request.arrived_ns + ms * MS;
    vec![
        read(request, 0, at(0), &chat()),
        task(request, 40, at(1)),
        slot_start(request, 40, 1, at(10)),
        write(request, 0, at(60), &chat_answer()),
        RequestEvent::SlotEnd(worked(request, 40)),
    ]
}

/// Requests of which nothing is known.
pub(crate) fn requests() -> Staged {
    Staged { reader: Reader::new(options(), Phrases::default()), requests: Requests::new(naming()) }
}

/// Requests, and who reads their bytes.
pub(crate) struct Staged {
    reader: Reader,
    requests: Requests,
}

impl Staged {
    /// Books what an event says.
    pub(crate) fn on(&mut self, event: &RequestEvent) -> Option<Finished> {
        let facts = self.reader.read(event.clone());
        let over: Vec<_> = facts.iter().filter_map(|fact| self.requests.on(fact)).collect();
        assert!(over.len() < 2, "one event ends one request");
        over.into_iter().next()
    }
}

impl std::ops::Deref for Staged {
    type Target = Requests;

    fn deref(&self) -> &Requests {
        &self.requests
    }
}

impl std::ops::DerefMut for Staged {
    fn deref_mut(&mut self) -> &mut Requests {
        &mut self.requests
    }
}

/// A request that is over by these events, the last of which makes it so.
pub(crate) fn finished(key: RequestKey, events: &[RequestEvent]) -> Finished {
    let mut requests = requests();
    let (last, before) = events.split_last().expect("there are events");
    for event in before {
        assert!(on(&mut requests, event).is_none(), "over too early");
    }
    let over = on(&mut requests, last).expect("it is over");
    assert_eq!(over.key, key);
    over
}
