//! Hand-made request events for tests, cut as the kernel cuts them.

use std::net::Ipv6Addr;

use llamaprobe_common::request::{
    EndEvent, EndReason, Peer, READ_BYTES, ReadEvent, RequestEventKind, RequestKey, SUBSTANTIAL,
    SlotEndEvent, SlotStartEvent, TAIL_BYTES, TaskEvent, WRITE_BYTES, WriteEvent,
};

use super::{
    finished::Finished,
    identity::{Naming, Source},
    payload::{head::HeadOptions, text::Phrases},
    request::Request,
};
use crate::bpf::events::RequestEvent;

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

/// At most `N - 1` bytes, and how many.
fn cut<const N: usize>(bytes: &[u8]) -> ([u8; N], u32) {
    let len = bytes.len().min(N - 1);
    let mut data = [0; N];
    data[..len].copy_from_slice(&bytes[..len]);
    (data, len as u32)
}

fn tail(bytes: &[u8]) -> ([u8; TAIL_BYTES], u32) {
    cut(&bytes[bytes.len().saturating_sub(TAIL_BYTES - 1)..])
}

/// The read number `index` of a request.
pub(crate) fn read(request: RequestKey, index: u32, at_ns: u64, bytes: &[u8]) -> RequestEvent {
    unread_read(request, index, at_ns, bytes, 0)
}

/// The same, of a connection that waited for a thread.
pub(crate) fn unread_read(
    request: RequestKey,
    index: u32,
    at_ns: u64,
    bytes: &[u8],
    unread_ns: u64,
) -> RequestEvent {
    let (data, copied) = cut::<READ_BYTES>(bytes);
    let kind = RequestEventKind::Read as u32;
    let len = bytes.len() as u32;
    let peer = Peer { address: Ipv6Addr::from_bits(0xffff_0a00_0007).octets(), port: 4711 };
    let event = ReadEvent { kind, index, request, at_ns, unread_ns, len, copied, peer, tls: 0, data };
    RequestEvent::Read(Box::new(event))
}

/// The end of what was read.
pub(crate) fn read_tail(request: RequestKey, at_ns: u64, bytes: &[u8]) -> RequestEvent {
    let RequestEvent::Read(mut event) = read(request, 0, at_ns, bytes) else { unreachable!("it is a read") };
    event.kind = RequestEventKind::ReadTail as u32;
    RequestEvent::ReadTail(event)
}

/// The write number `index` of an answer.
pub(crate) fn write(request: RequestKey, index: u32, at_ns: u64, bytes: &[u8]) -> RequestEvent {
    let (data, copied) = cut::<WRITE_BYTES>(bytes);
    let (tail, tail_len) = tail(bytes);
    RequestEvent::Write(Box::new(WriteEvent {
        kind: RequestEventKind::Write as u32,
        index,
        request,
        at_ns,
        len: bytes.len() as u32,
        copied,
        data,
        tail_len,
        reserved: 0,
        tail,
    }))
}

/// The end of a request after these writes, the last of them at `last_write_ns`.
pub(crate) fn end(
    request: RequestKey,
    reason: EndReason,
    at_ns: u64,
    last_write_ns: u64,
    writes: &[&[u8]],
) -> RequestEvent {
    let mut event = EndEvent {
        kind: RequestEventKind::End as u32,
        reason: reason as u32,
        request,
        at_ns,
        last_write_ns,
        bytes_out: writes.iter().map(|write| write.len() as u64).sum(),
        writes: writes.len() as u32,
        tail: 0,
        tail_len: [0; 2],
        tails: [[0; TAIL_BYTES]; 2],
    };
    for write in writes.iter().filter(|write| write.len() as u64 >= SUBSTANTIAL) {
        event.tail ^= 1;
        let at = event.tail as usize;
        (event.tails[at], event.tail_len[at]) = tail(write);
    }
    RequestEvent::End(Box::new(event))
}

/// A request is given a task.
pub(crate) fn task(request: RequestKey, task: i32, at_ns: u64) -> RequestEvent {
    RequestEvent::Task(TaskEvent { kind: RequestEventKind::Task as u32, task, request, at_ns })
}

/// A task takes a slot.
pub(crate) fn slot_start(request: RequestKey, task: i32, slot: i32, at_ns: u64) -> RequestEvent {
    let kind = RequestEventKind::SlotStart as u32;
    RequestEvent::SlotStart(SlotStartEvent { kind, task, request, at_ns, slot, origin: -1 })
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
        incomplete: 0,
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

/// A request after these events.
pub(crate) fn request(key: RequestKey, events: &[RequestEvent]) -> Request {
    let mut request = Request::new(key);
    for event in events {
        match event {
            RequestEvent::Read(event) => request.read(event, &options()),
            RequestEvent::ReadTail(event) => request.read_tail(event),
            RequestEvent::Write(event) => drop(request.write(event, &Phrases::default())),
            RequestEvent::End(event) => request.end(event),
            RequestEvent::Task(event) => request.task(event),
            RequestEvent::SlotStart(event) => request.slot_start(event),
            RequestEvent::SlotEnd(event) => request.slot_end(event),
            RequestEvent::Draft(event) => request.draft(event),
        }
    }
    request
}

/// A request that is over by these events, the last of which makes it so.
pub(crate) fn finished(key: RequestKey, events: &[RequestEvent]) -> Finished {
    let before = request(key, &events[..events.len() - 1]);
    assert!(!before.is_over(), "over too early");
    let request = request(key, events);
    assert!(request.is_over(), "not over");
    request.finish(u64::MAX, &naming(), &Phrases::default())
}
