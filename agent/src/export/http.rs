//! The HTTP endpoint: `/metrics`, `/snapshot`, `/healthz` and `/readyz`, and the names of the last two in the Prometheus family.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot},
};
use tracing::{debug, warn};

use super::{openmetrics, prometheus};

/// Connections served at the same time; more wait in the accept queue.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The older one, which everything reads.
    Prometheus,
    /// With exemplars.
    OpenMetrics,
}

impl Format {
    /// The one that a request asks for.
    fn wanted<T>(request: &Request<T>) -> Self {
        let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let accept: Vec<_> = accept.collect();
        if openmetrics::is_preferred(&accept.join(",")) { Self::OpenMetrics } else { Self::Prometheus }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus::CONTENT_TYPE,
            Self::OpenMetrics => openmetrics::CONTENT_TYPE,
        }
    }
}

/// A question to the task that owns the state.
#[derive(Debug)]
pub enum Question {
    /// The rendered metrics.
    Metrics(Format, oneshot::Sender<Vec<u8>>),
    /// The whole state as a JSON document.
    Snapshot(oneshot::Sender<Vec<u8>>),
    /// Whether the first scan is done.
    Ready(oneshot::Sender<bool>),
}

/// The endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {cause}; choose another address with --listen")]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub cause: std::io::Error,
}

/// Opens the endpoint.
///
/// # Errors
///
/// When the address is in use or not this machine's.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|cause| ListenError { address, cause })
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, questions: mpsc::Sender<Question>) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: others must end first.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let questions = questions.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(request, questions.clone()));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
            if let Err(error) = served {
                debug!(%error, "connection ended");
            }
            drop(seat);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    questions: mpsc::Sender<Question>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    Ok(match request.uri().path() {
        "/metrics" => {
            let format = Format::wanted(&request);
            match ask(&questions, |reply| Question::Metrics(format, reply)).await {
                Some(body) => respond(StatusCode::OK, format.content_type(), body.into()),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
            }
        }
        "/snapshot" => match ask(&questions, Question::Snapshot).await {
            Some(body) => respond(StatusCode::OK, "application/json", body.into()),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
        },
        "/healthz" | "/-/healthy" => text(StatusCode::OK, "ok\n"),
        "/readyz" | "/-/ready" => match ask(&questions, Question::Ready).await {
            Some(true) => text(StatusCode::OK, "ready\n"),
            _ => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: the first scan is under way\n"),
        },
        "/" => text(StatusCode::OK, "llamaprobe: see /metrics, /snapshot, /healthz, /readyz\n"),
        _ => text(StatusCode::NOT_FOUND, "not found: see /metrics, /snapshot, /healthz, /readyz\n"),
    })
}

async fn ask<T>(
    questions: &mpsc::Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    questions.send(question(sender)).await.ok()?;
    receiver.await.ok()
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}
