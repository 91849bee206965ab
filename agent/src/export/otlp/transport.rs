//! One request to a collector, and what its answer means. Neither redirects nor proxies are followed.

use std::{
    io::Write as _,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use rustls::{ClientConfig, RootCertStore};

#[cfg(feature = "otlp-grpc")]
use super::grpc;
use super::options::{Destination, Protocol, Tls};
use crate::export::tls;

/// Of an answer no more is read: a collector says a sentence.
const MAX_ANSWER: usize = 64 * 1024;
/// Characters of what a collector says that are said again.
const MAX_WORDS: usize = 200;
/// How long a connection is kept that nothing is sent over.
const IDLE: Duration = Duration::from_secs(90);

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The collector has it, but for so many items.
    Taken {
        /// Items it did not take.
        rejected: u64,
        /// What it says.
        why: String,
    },
    /// It is not to be sent again.
    Refused {
        /// What was said.
        why: String,
    },
    /// It was accepted by something that is no collector.
    Nonsense {
        /// What was said.
        why: String,
    },
    /// It may be sent again.
    Later {
        /// What went wrong.
        why: String,
        /// How long to wait, if it was said.
        after: Option<Duration>,
    },
}

/// A client of one destination.
pub(super) struct Client {
    inner: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    destination: Destination,
}

impl Client {
    /// Reads the files for TLS; connects at the first request.
    pub(super) fn new(destination: Destination) -> Result<Self> {
        let secure = destination.uri.scheme_str() == Some("https");
        let config = tls(&destination.tls, secure)
            .with_context(|| format!("TLS for the {} over OTLP", destination.signal.name()))?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        #[cfg(feature = "otlp-grpc")]
        let connector = match destination.protocol {
            Protocol::Grpc => connector.enable_http2().build(),
            Protocol::Http => connector.enable_http1().build(),
        };
        #[cfg(not(feature = "otlp-grpc"))]
        let connector = connector.enable_http1().build();
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE).pool_max_idle_per_host(1).pool_timer(TokioTimer::new());
        #[cfg(feature = "otlp-grpc")]
        builder.http2_only(destination.protocol == Protocol::Grpc);
        Ok(Self { inner: builder.build(connector), destination })
    }

    /// The body of a request for a message.
    pub(super) fn body(&self, message: &[u8]) -> Bytes {
        let message = if self.destination.gzip { zipped(message) } else { message.to_vec() };
        match self.destination.protocol {
            Protocol::Http => message.into(),
            #[cfg(feature = "otlp-grpc")]
            Protocol::Grpc => grpc::framed(&message, self.destination.gzip),
            #[cfg(not(feature = "otlp-grpc"))]
            Protocol::Grpc => Bytes::new(),
        }
    }

    /// Sends a body.
    pub(super) async fn post(&self, body: Bytes) -> Answer {
        let request = match self.request(body) {
            Ok(request) => request,
            Err(error) => return Answer::Refused { why: error.to_string() },
        };
        let response = match self.inner.request(request).await {
            Ok(response) => response,
            Err(error) => {
                return Answer::Later { why: format!("{:#}", anyhow::Error::new(error)), after: None };
            }
        };
        match self.destination.protocol {
            Protocol::Http => read(response).await,
            #[cfg(feature = "otlp-grpc")]
            Protocol::Grpc => grpc::read(response).await,
            #[cfg(not(feature = "otlp-grpc"))]
            Protocol::Grpc => Answer::Refused { why: "built without gRPC".to_owned() },
        }
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let mut request = Request::post(self.destination.uri.clone());
        if let Some(headers) = request.headers_mut() {
            headers.insert(
                USER_AGENT,
                HeaderValue::from_static(concat!("llamaprobe/", env!("CARGO_PKG_VERSION"))),
            );
            match self.destination.protocol {
                Protocol::Http => {
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                    if self.destination.gzip {
                        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                    }
                }
                #[cfg(feature = "otlp-grpc")]
                Protocol::Grpc => grpc::add_headers(headers, self.destination.gzip),
                #[cfg(not(feature = "otlp-grpc"))]
                Protocol::Grpc => {}
            }
            headers.extend(self.destination.headers.iter().cloned());
        }
        request.body(Full::new(body))
    }
}

/// Reads an answer over HTTP.
async fn read(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let status = head.status;
    // Too long, or cut: what the status says holds all the same.
    let body = Limited::new(body, MAX_ANSWER).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if status.is_success() {
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        return accepted(status, kind, &body);
    }
    let why = format!("the collector answers {status}");
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Answer::Later { why, after: retry_after(&head.headers) },
        _ => Answer::Refused { why },
    }
}

/// What a good status means. Collectors answer in Protobuf, in JSON, with a word or not at all, and have taken what they
/// were sent; a page for people, or what only calls itself Protobuf, is no collector's.
fn accepted(status: StatusCode, kind: Option<&str>, body: &[u8]) -> Answer {
    let essence =
        kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim().to_ascii_lowercase();
    let is_page = ["text/html", "application/xhtml+xml"].contains(&essence.as_str());
    match essence.as_str() {
        _ if is_page && !body.is_empty() => nonsense(status),
        "application/x-protobuf" | "application/protobuf" => taken(body),
        "application/json" => {
            serde_json::from_slice(body).map_or_else(|_| all_taken(), |it| taken_in_json(&it))
        }
        // Without a type it may still be what it should be.
        "" => match taken(body) {
            Answer::Nonsense { .. } => all_taken(),
            answer => answer,
        },
        _ => all_taken(),
    }
}

fn all_taken() -> Answer {
    Answer::Taken { rejected: 0, why: String::new() }
}

fn nonsense(status: StatusCode) -> Answer {
    Answer::Nonsense { why: format!("{status}, but not as a collector answers: is the endpoint right?") }
}

/// What a collector says in its answer. The answers for metrics and logs are laid out as that for traces.
pub(super) fn taken(message: &[u8]) -> Answer {
    let Ok(answer) = ExportTraceServiceResponse::decode(message) else { return nonsense(StatusCode::OK) };
    let partial = answer.partial_success.unwrap_or_default();
    Answer::Taken {
        rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
        why: partial.error_message.chars().take(MAX_WORDS).collect(),
    }
}

/// The same in JSON, where 64-bit numbers are texts.
fn taken_in_json(answer: &serde_json::Value) -> Answer {
    let partial = &answer["partialSuccess"];
    let rejected = ["rejectedSpans", "rejectedDataPoints", "rejectedLogRecords"].map(|name| {
        let number = &partial[name];
        number.as_u64().or_else(|| number.as_str()?.parse().ok()).unwrap_or(0)
    });
    let why = partial["errorMessage"].as_str().unwrap_or_default();
    Answer::Taken { rejected: rejected.into_iter().sum(), why: why.chars().take(MAX_WORDS).collect() }
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

fn zipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to a vector does not fail.
    encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default()
}

fn tls(files: &Tls, secure: bool) -> Result<ClientConfig> {
    if !secure {
        return tls::trusting(RootCertStore::empty(), None);
    }
    let own = files.client_certificate.as_deref().zip(files.client_key.as_deref());
    let roots = tls::roots(files.certificate.as_deref(), "OTEL_EXPORTER_OTLP_CERTIFICATE")?;
    tls::trusting(roots, own)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    use super::*;

    fn of(status: u16, kind: Option<&str>, body: &[u8]) -> Answer {
        accepted(StatusCode::from_u16(status).unwrap(), kind, body)
    }

    #[test]
    fn a_good_status_is_believed() {
        for (status, kind, body) in [
            (200, Some("application/json"), &b"{}"[..]),
            (200, Some("application/json; charset=utf-8"), b"{\"partialSuccess\":{}}"),
            (200, Some("application/json"), b"ok"),
            (200, Some("Application/X-Protobuf"), b""),
            (200, None, b""),
            (200, None, b"OK"),
            (202, Some("text/plain; charset=utf-8"), b"accepted"),
            (200, Some("text/html"), b""),
            (204, Some("text/plain"), b""),
            (201, Some("application/octet-stream"), &[255, 254]),
        ] {
            assert_eq!(of(status, kind, body), all_taken(), "{status} {kind:?} {body:?}");
        }
    }

    #[test]
    fn pages_and_broken_messages_are_not() {
        for (kind, body) in
            [("text/html; charset=utf-8", &b"<html>"[..]), ("application/x-protobuf", &[255, 254, 253])]
        {
            assert!(matches!(of(200, Some(kind), body), Answer::Nonsense { .. }), "{kind}");
        }
    }

    #[test]
    fn what_was_rejected_is_read_in_either_language() {
        let partial = ExportTracePartialSuccess { rejected_spans: 3, error_message: "no".to_owned() };
        let message = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        let expected = Answer::Taken { rejected: 3, why: "no".to_owned() };
        assert_eq!(of(200, Some("application/x-protobuf"), &message), expected);
        assert_eq!(of(200, None, &message), expected);
        for body in [
            r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"no"}}"#,
            r#"{"partialSuccess":{"rejectedDataPoints":3,"errorMessage":"no"}}"#,
            r#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"no"}}"#,
        ] {
            assert_eq!(of(200, Some("application/json"), body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn anything_goes_in() {
        let seeds: [&[u8]; 4] = [
            b"\x0a\x07\x08\x03\x12\x03why",
            br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"why"}}"#,
            b"\x08\x08\x12\x04busy",
            b"",
        ];
        crate::fuzz::fuzz("answers of collectors", &seeds, |bytes| {
            for kind in [None, Some("application/x-protobuf"), Some("application/json"), Some("text/html")] {
                let _ = accepted(StatusCode::OK, kind, bytes);
            }
        });
    }
}
