//! The HTTP endpoint: a page for people at `/`, `/metrics`, `/load`, `/snapshot`, `/history`, `/record`, `/healthz` and `/readyz`, and the
//! names of the last two in the Prometheus family. On a thread of its own: whoever connects, and whatever he does then, takes
//! no time of the measurement.

mod accept;
mod documents;
mod loads;
mod page;
mod past;
mod record;
mod seats;
mod view;
pub mod web;

use std::{
    convert::Infallible,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{
        ACCEPT, ACCEPT_ENCODING, ALLOW, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue,
        RETRY_AFTER, VARY, WWW_AUTHENTICATE,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{spawn_blocking, yield_now},
    time::{interval, sleep},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use self::{
    accept::Accept,
    documents::{Documents, Form},
    loads::{Loads, Shown},
    page::Page,
    past::Past,
    seats::{Progress, Seats, Stage, Watched},
    view::Views,
    web::{Verdict, Web},
};
use super::{compat::Dialect, history::History, openmetrics, prometheus, protobuf};
use crate::{
    recorder::Asked,
    session::{Snapshot, load::Load},
};

/// Connections served at the same time; for one more somebody goes.
const MAX_CONNECTIONS: usize = 128;
/// Of those that had to go so many may still be on their way out; then no more are accepted for the moment.
const LEAVING: usize = 64;
/// Connections that may wait to be accepted, as far as the kernel allows (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// What one connection may keep of heads and of answers that are not taken, bytes each.
const BUFFER: usize = 16 * 1024;
/// What the kernel may keep of answers that are not taken, bytes each (it takes twice of it). Without a bound it is
/// megabytes, and copying them takes the time of others.
const SEND_BUFFER: u32 = 64 * 1024;
/// How often it is looked for connections that are over their time.
const REVIEW: Duration = Duration::from_millis(500);
/// How often it is looked whether the web configuration file has changed.
const FOLLOW: Duration = Duration::from_secs(1);
/// How long the task that measures may be away until it counts as hung: it turns every second.
const HUNG: Duration = Duration::from_secs(30);

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The older one, which everything reads.
    Prometheus,
    /// With exemplars.
    OpenMetrics,
    /// With native histograms, too.
    Protobuf,
}

impl Format {
    /// The one that a request asks for.
    fn wanted<T>(request: &Request<T>) -> Self {
        let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let accept: Vec<_> = accept.collect();
        let accept = Accept::parse(&accept.join(","));
        if accept.protobuf > 0.0 && accept.protobuf >= accept.openmetrics.max(accept.text) {
            Self::Protobuf
        } else if accept.openmetrics > 0.0 && accept.openmetrics >= accept.text {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus::CONTENT_TYPE,
            Self::OpenMetrics => openmetrics::CONTENT_TYPE,
            Self::Protobuf => protobuf::CONTENT_TYPE,
        }
    }
}

/// A question to the task that owns the state: what it knows now.
pub type Question = oneshot::Sender<Snapshot>;

/// The same for how much servers have to do at this moment.
pub type LoadQuestion = oneshot::Sender<Vec<Load>>;

/// Where it takes the questions that it cannot answer itself.
pub struct Questions {
    /// What is known.
    pub snapshots: mpsc::Sender<Question>,
    /// How much servers have to do; none where nothing is observed.
    pub loads: Option<mpsc::Sender<LoadQuestion>>,
    /// To make a recording; none where none can be made.
    pub recordings: Option<mpsc::Sender<Asked>>,
}

impl From<mpsc::Sender<Question>> for Questions {
    fn from(snapshots: mpsc::Sender<Question>) -> Self {
        Self { snapshots, loads: None, recordings: None }
    }
}

/// How the task that measures is: known without asking it.
#[derive(Debug)]
pub struct Health {
    start: Instant,
    ready: AtomicBool,
    /// Milliseconds after `start`.
    turned: AtomicU64,
}

impl Default for Health {
    fn default() -> Self {
        Self { start: Instant::now(), ready: AtomicBool::new(false), turned: AtomicU64::new(0) }
    }
}

impl Health {
    /// The first scan is done.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Whether the first scan is done.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// It is at work. To be called about every second.
    pub fn turn(&self) {
        let at = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned.store(at, Ordering::Relaxed);
    }

    fn is_hung(&self, now: Instant) -> bool {
        let turned = self.start + Duration::from_millis(self.turned.load(Ordering::Relaxed));
        now.saturating_duration_since(turned) >= HUNG
    }
}

/// The endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {cause}; choose another address with --listen")]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub cause: io::Error,
}

/// Opens the endpoint: an address in use is the commonest mistake, and known before anything is loaded.
///
/// # Errors
///
/// When the address is in use or not this machine's.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Connections of the agent before that are still being closed hold nobody up.
        socket.set_reuseaddr(true)?;
        // Connections have it from their listener.
        socket.set_send_buffer_size(SEND_BUFFER)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?.into_std()
    };
    open().map_err(|cause| ListenError { address, cause })
}

/// The endpoint as it serves.
pub struct Endpoint {
    closing: oneshot::Sender<()>,
    web: Arc<Web>,
    thread: JoinHandle<()>,
}

impl Endpoint {
    /// Serves from now on, on a thread of its own.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn start(
        listener: TcpListener,
        questions: impl Into<Questions>,
        health: Arc<Health>,
        history: Arc<History>,
        dialects: Vec<Dialect>,
        web: Web,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _within = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let Questions { snapshots, loads, recordings } = questions.into();
        let loads = loads.map(|questions| Arc::new(Loads::new(questions)));
        let views = Arc::new(Views::new(snapshots, dialects));
        let web = Arc::new(web);
        let documents = Arc::new(Documents::new(views.clone()));
        let (past, page) = (Arc::new(Past::new(history)), Arc::new(Page::new()));
        let service = Service { documents, loads, past, page, views, recordings, health, web: web.clone() };
        let (closing, closed) = oneshot::channel::<()>();
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = follow(service.web.clone()) => {}
                    () = serve(listener, service) => {}
                    _ = closed => {}
                }
            });
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("endpoint".to_owned()).spawn(run)?;
        Ok(Self { closing, web, thread })
    }

    /// What reads the web configuration file again.
    pub fn web(&self) -> Arc<Web> {
        self.web.clone()
    }

    /// Ends it, with all connections; the address is free when this returns.
    pub fn close(self) {
        let _ = self.closing.send(());
        // It waits for nothing but the network's readiness.
        let _ = self.thread.join();
    }
}

/// What answers.
#[derive(Clone)]
struct Service {
    views: Arc<Views>,
    documents: Arc<Documents>,
    loads: Option<Arc<Loads>>,
    past: Arc<Past>,
    page: Arc<Page>,
    recordings: Option<mpsc::Sender<Asked>>,
    health: Arc<Health>,
    web: Arc<Web>,
}

/// Reads the web configuration file again whenever it changes, until dropped. A file system that hangs keeps one thread.
async fn follow(web: Arc<Web>) {
    loop {
        sleep(FOLLOW).await;
        let web = web.clone();
        // A panic in it is no reason to serve no more.
        let _ = spawn_blocking(move || web.follow()).await;
    }
}

/// Serves until dropped.
async fn serve(listener: tokio::net::TcpListener, service: Service) {
    let seats = Arc::new(Seats::new(MAX_CONNECTIONS));
    let open = Arc::new(Semaphore::new(MAX_CONNECTIONS + LEAVING));
    let accept = async || {
        let permit = open.clone().acquire_owned().await.map_err(io::Error::other)?;
        Ok((permit, listener.accept().await?))
    };
    let mut review = interval(REVIEW);
    loop {
        let accepted: io::Result<_> = tokio::select! {
            accepted = accept() => accepted,
            _ = review.tick() => {
                seats.end_overdue(Instant::now());
                continue;
            }
        };
        match accepted {
            Ok((permit, (stream, peer))) => {
                seat(&seats, permit, stream, peer.ip().to_canonical(), service.clone());
                // However fast others come: who is here is served.
                yield_now().await;
            }
            Err(error) => {
                // Out of descriptors: one connection less, and again.
                warn!(%error, "cannot accept a connection");
                seats.give_up_one();
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn seat(seats: &Arc<Seats>, permit: OwnedSemaphorePermit, stream: TcpStream, peer: IpAddr, service: Service) {
    let (id, progress) = seats.take(peer, Instant::now());
    let (left, watched) = (seats.clone(), Watched::new(stream, progress.clone()));
    let task = tokio::spawn(async move {
        match service.web.tls() {
            None => converse(watched, service, progress).await,
            // Its time is that of a head: it begins with the first bytes.
            Some(config) => match TlsAcceptor::from(config).accept(watched).await {
                Ok(secured) => {
                    progress.enter(Stage::Silent);
                    converse(secured, service, progress).await;
                }
                Err(error) => debug!(%error, "no TLS"),
            },
        }
        left.leave(id);
        drop(permit);
    });
    seats.serve(id, task.abort_handle());
}

/// Answers over a connection until it ends.
async fn converse<C>(connection: C, service: Service, progress: Arc<Progress>)
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let answer = service_fn(move |request| {
        let (service, progress) = (service.clone(), progress.clone());
        async move { Ok::<_, Infallible>(service.answer(&request, &progress).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        // The seats have limits of their own, one for each stage.
        .header_read_timeout(None)
        // Who has no more to ask may still want the answer.
        .half_close(true)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(connection), answer)
        .await;
    if let Err(error) = served {
        debug!(%error, "connection ended");
    }
}

impl Service {
    async fn answer(&self, request: &Request<Incoming>, progress: &Progress) -> Response<Full<Bytes>> {
        let mut response = match self.refused(request, progress).await {
            Some(refusal) => refusal,
            None => {
                progress.enter(Stage::Asked);
                self.response(request).await
            }
        };
        response.headers_mut().extend(self.web.headers());
        progress.enter(Stage::Answered);
        response
    }

    /// The answer to who may not ask, or not now.
    async fn refused(
        &self,
        request: &Request<Incoming>,
        progress: &Progress,
    ) -> Option<Response<Full<Bytes>>> {
        // Whoever asks for these, as a kubelet does, has no credentials, and learns nothing of anybody.
        if matches!(request.uri().path(), "/healthz" | "/readyz" | "/-/healthy" | "/-/ready") {
            return None;
        }
        if self.web.is_too_much() {
            return Some(later("too many requests: see rate_limit in the web configuration file\n"));
        }
        if !self.web.asks() {
            return None;
        }
        progress.enter(Stage::Checked);
        let authorization = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        match self.web.verdict(authorization).await {
            Verdict::Right => None,
            Verdict::Busy => Some(later("too many passwords wait to be checked\n")),
            Verdict::Wrong => {
                let mut response = text(StatusCode::UNAUTHORIZED, "credentials are missing or wrong\n");
                let challenge = HeaderValue::from_static(self.web.challenge());
                response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                Some(response)
            }
        }
    }

    async fn response(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/record" {
            if *request.method() == Method::POST {
                return record::record(request, self.recordings.as_ref()).await;
            }
            return not_allowed("a recording is made by POST\n", "POST");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return not_allowed("only GET is served here\n", "GET, HEAD");
        }
        match request.uri().path() {
            "/metrics" => {
                let format = Format::wanted(request);
                let view = self.views.clone().fresh().await;
                match view.and_then(|view| view.metrics(format)) {
                    Some(body) => respond(StatusCode::OK, format.content_type(), body),
                    None => away(),
                }
            }
            path if path == "/load" || path.starts_with("/load/") => {
                let server = path.strip_prefix("/load/").filter(|server| !server.is_empty());
                self.load(server).await
            }
            "/snapshot" => match Form::wanted(request.uri().query()) {
                Some(form) => match self.documents.current().await {
                    Some(shown) => respond(StatusCode::OK, form.content_type(), shown.text(form)),
                    None => away(),
                },
                None => text(StatusCode::BAD_REQUEST, "format is json or table\n"),
            },
            "/history" => {
                let (body, encoding) = self.past.text(takes_gzip(request.headers()));
                encoded(respond(StatusCode::OK, "application/json", body), encoding)
            }
            "/healthz" | "/-/healthy" if self.health.is_hung(Instant::now()) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "hung: nothing is measured\n")
            }
            "/healthz" | "/-/healthy" => text(StatusCode::OK, "ok\n"),
            "/readyz" | "/-/ready" if self.health.is_ready() => text(StatusCode::OK, "ready\n"),
            "/readyz" | "/-/ready" => {
                text(StatusCode::SERVICE_UNAVAILABLE, "not ready: the first scan is under way\n")
            }
            path => self.page.file(path, request.headers()).unwrap_or_else(|| {
                text(
                    StatusCode::NOT_FOUND,
                    "not found: see /, /metrics, /load, /snapshot, /history, /healthz, /readyz\n",
                )
            }),
        }
    }
}

impl Service {
    /// How much a server has to do, or all of them.
    async fn load(&self, server: Option<&str>) -> Response<Full<Bytes>> {
        let Some(loads) = &self.loads else {
            return text(
                StatusCode::NOT_FOUND,
                "there is no load: nothing is observed, a journal is played\n",
            );
        };
        // As a path has it, where the label holds what a path may not.
        let server = server.map(|server| server.replace("%5B", "[").replace("%5D", "]").replace("%23", "#"));
        match loads.shown(server.as_deref()).await {
            Shown::Series(body) => respond(StatusCode::OK, prometheus::CONTENT_TYPE, body),
            Shown::Unknown => text(
                StatusCode::NOT_FOUND,
                "no such server: /load/SERVER takes the label `server` of one of those that /load shows\n",
            ),
            Shown::Away => away(),
        }
    }
}

fn not_allowed(why: &'static str, methods: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, why);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

/// Whether an answer may be compressed.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Plain,
    Gzip,
}

/// Says how the body is encoded, and that this depends on who asks.
fn encoded(mut response: Response<Full<Bytes>>, encoding: Encoding) -> Response<Full<Bytes>> {
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    if encoding == Encoding::Gzip {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Compressed. Of what is in memory already: it cannot fail.
fn gzip(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default().into()
}

fn later(why: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::TOO_MANY_REQUESTS, why);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn away() -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, "the agent does not answer: it ends, or is busy\n")
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;
