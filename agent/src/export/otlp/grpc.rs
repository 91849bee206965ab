//! gRPC as far as one unary call needs it: a frame of five bytes before the message, and a status in the trailers.

use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE},
};

use super::transport::{Answer, taken};

const MAX_ANSWER: usize = 64 * 1024;
/// A detail by which a collector says that a call may be tried again, in `grpc-status-details-bin`: "google.rpc.RetryI"
/// in Base64, at each of the three alignments without the characters that its neighbours share.
const RETRY: [&str; 3] = ["Z29vZ2xlLnJwYy5SZXRyeUlu", "dvb2dsZS5ycGMuUmV0cnlJ", "nb29nbGUucnBjLlJldHJ5"];

/// A message as the body of a call.
pub(super) fn framed(message: &[u8], zipped: bool) -> Bytes {
    let mut frame = Vec::with_capacity(message.len() + 5);
    frame.push(u8::from(zipped));
    // No batch comes near 4 GiB.
    frame.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(message);
    frame.into()
}

/// What a call says of itself.
pub(super) fn add_headers(headers: &mut HeaderMap, zipped: bool) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    if zipped {
        headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
    }
}

/// Reads the answer to a call.
pub(super) async fn read(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        let why = format!("the collector answers {}", head.status);
        return match head.status.as_u16() {
            429 | 502..=504 => Answer::Later { why, after: None },
            _ => Answer::Refused { why },
        };
    }
    // Without a message the status stands in the head.
    let body = match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => body,
        Err(error) => return Answer::Later { why: format!("the answer is cut: {error}"), after: None },
    };
    let trailers = body.trailers().cloned().unwrap_or(head.headers);
    let message = body.to_bytes();
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Ok(status) = text("grpc-status").parse::<u32>() else {
        return Answer::Nonsense { why: "the answer is not one of gRPC: is the endpoint right?".to_owned() };
    };
    let why = format!("the collector answers with gRPC status {status}: {}", text("grpc-message"));
    match status {
        0 => taken(message.get(5..).unwrap_or_default()),
        // Cancelled, deadline exceeded, aborted, out of range, unavailable, data loss.
        1 | 4 | 10 | 11 | 14 | 15 => Answer::Later { why, after: None },
        // Resources are exhausted: for good, unless it says when to come again.
        8 if RETRY.iter().any(|part| text("grpc-status-details-bin").contains(part)) => {
            Answer::Later { why, after: Some(Duration::from_secs(5)) }
        }
        _ => Answer::Refused { why },
    }
}
