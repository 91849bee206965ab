//! Wiring: one task owns all state; events, ticks and questions come to it.
//!
//! Order of shutdown: the endpoint first (no half-read answers), then the targets are forgotten (programs that still
//! fire find no target), then the links are dropped (the kernel detaches), then maps and programs go.

mod own;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapData, RingBuf};
use llamaprobe_common::target::TargetConfig;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

use self::own::{Clock, cpu_time, monotonic_ns, resident_bytes, secret};
use crate::{
    bpf::{
        self, Kernel,
        calibrate::Prices,
        events::{self, RequestEvent},
    },
    cli::{Options, billing::BillingOptions},
    discovery::Scanner,
    doctor::{self, KernelVersion, NEEDED, Roots},
    export::{
        compat::Dialect,
        http::{self, Format, Question},
        log::RequestLog,
        openmetrics,
        otlp::{Otlp, Signal},
        prometheus, snapshot,
    },
    plan::catalog::WANTED,
    session::{Billing, Record, Session, Snapshot, payload::head::HeadOptions, tracer::Tracer},
};

/// Housekeeping, and a look at processes that have not shown yet where they listen.
const TICK: Duration = Duration::from_secs(1);
/// How often it is booked who has used what.
const STOCKTAKING: Duration = Duration::from_secs(5);
/// The safety net: all processes are looked at anew.
const RESCAN: Duration = Duration::from_secs(30);
/// How long the request log may take at the end.
const LOG_FLUSH: Duration = Duration::from_secs(2);
/// How long the export may take at the end.
const EXPORT_FLUSH: Duration = Duration::from_secs(2);
/// Events of requests that are taken before the bytes that belong to them.
const BATCH: usize = 1024;
/// Such batches without a look at anything else.
const BATCHES: usize = 16;
/// How much later than an event bytes that came before it may stand in their ring, nanoseconds: a program that writes one
/// may be held up.
const SLACK_NS: u64 = 50_000_000;
/// How often bytes are waited for that must be there, in one go: not for long, since requests must not wait for one.
const WAITS: u32 = 20;
/// How long each time.
const WAIT: Duration = Duration::from_micros(250);
/// Questions that may wait.
const QUESTIONS: usize = 16;

/// The state and everything it works with.
struct Agent {
    scanner: Scanner,
    kernel: Kernel,
    session: Session,
    /// Bytes of a request that came before the events before them.
    held: Option<RequestEvent>,
    only: Vec<u32>,
    /// Row of the counters, start time and attached probes of each observed process.
    seats: BTreeMap<u32, Seat>,
    /// Processes to look at, and when.
    due: BTreeSet<(Instant, u32)>,
    /// Processes that are llama.cpp and cannot be observed, with the reason that was logged.
    unobservable: BTreeMap<u32, String>,
    prices: Option<Prices>,
    log: RequestLog,
    billing: BillingOptions,
    /// What is charged live is charged every second when the host's time costs, since idle time costs too.
    stocktaking: Duration,
    stock_taken: Instant,
    otlp: Otlp,
    clock: Clock,
    /// Whether payload is looked at.
    payload: bool,
    /// Whether each decode call that checks guesses is told.
    trace_drafts: bool,
    /// Under whose names metrics are published, too.
    compat: Vec<Dialect>,
    attach_failures: u64,
    reload_failures: u64,
    /// Release of the running kernel.
    release: Option<KernelVersion>,
    /// The sockets could not be followed, which was said.
    deaf: bool,
    started: SystemTime,
    ready: bool,
}

/// The place of an observed process.
struct Seat {
    start_time: u64,
    config: TargetConfig,
}

/// Observes until SIGTERM or SIGINT.
///
/// # Errors
///
/// When the endpoint cannot be opened, a named process does not exist, or the kernel refuses the programs.
pub async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    for pid in &options.only {
        if !Path::new("/proc").join(pid.to_string()).exists() {
            bail!("there is no process {pid}: --pid takes the id of a running process");
        }
    }
    // Before anything is loaded: an address in use is the commonest mistake.
    let listener = http::listen(options.listen).await?;
    let address = listener.local_addr().context("the endpoint has no address")?;
    let log = RequestLog::open(options.requests.clone())
        .with_context(|| format!("cannot open the request log {:?}", options.requests.file))?;
    let billing = options.billing.load()?;
    let clock = Clock::now();
    let otlp = Otlp::start(&options.otlp, clock.epoch())?;
    let (kernel, rings) = Kernel::load().map_err(explain)?;
    let mut agent = Agent::new(kernel, log, otlp, clock, billing, &options);
    agent.calibrate();

    let (sender, mut questions) = mpsc::channel(QUESTIONS);
    let endpoint = tokio::spawn(http::serve(listener, sender));
    announce(address);

    let mut processes = bpf::waitable(rings.processes).context("cannot wait for the ring buffer")?;
    let mut requests = bpf::waitable(rings.requests).context("cannot wait for the ring buffer")?;
    let mut payload = bpf::waitable(rings.payload).context("cannot wait for the ring buffer")?;
    let (mut tick, mut rescan) = (ticks(TICK), ticks(RESCAN));
    loop {
        let next = agent.due.first().map(|(when, _)| *when);
        tokio::select! {
            biased;
            _ = terminate.recv() => break info!("SIGTERM"),
            _ = interrupt.recv() => break info!("SIGINT"),
            Some(question) = questions.recv() => {
                agent.take_stock(requests.get_mut(), payload.get_mut());
                agent.answer(question);
            }
            _ = hangup.recv() => agent.reload(),
            ready = requests.readable_mut() => {
                let mut ready = ready.context("the ring buffer failed")?;
                if agent.drain_requests(ready.get_inner_mut(), payload.get_mut()) {
                    ready.clear_ready();
                }
            }
            ready = payload.readable_mut() => {
                let mut ready = ready.context("the ring buffer failed")?;
                agent.drain_requests(requests.get_mut(), ready.get_inner_mut());
                ready.clear_ready();
            }
            ready = processes.readable_mut() => {
                let mut ready = ready.context("the ring buffer failed")?;
                drain(ready.get_inner_mut(), |entry| agent.process_event(entry));
                ready.clear_ready();
                // Events come in bursts: whoever starts one process starts many.
                tokio::time::sleep(watch::SETTLE / 4).await;
            }
            () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => agent.look_due(),
            _ = rescan.tick() => agent.rescan(),
            _ = tick.tick() => {
                let exports = agent.otlp.wants_metrics(Instant::now());
                if exports || agent.stock_taken.elapsed() >= agent.stocktaking {
                    agent.take_stock(requests.get_mut(), payload.get_mut());
                }
                if exports {
                    agent.collect();
                }
                agent.tick();
            }
        }
    }
    endpoint.abort();
    agent.collect();
    agent.detach_all();
    // What has ended meanwhile is still told.
    while !agent.drain_requests(requests.get_mut(), payload.get_mut()) {}
    agent.otlp.close(EXPORT_FLUSH);
    agent.log.close(LOG_FLUSH);
    info!("detached");
    Ok(())
}

/// Missed ticks are not made up for: a machine that slept has nothing to catch up with.
fn ticks(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[expect(clippy::print_stdout, reason = "the address is the program's output: port 0 takes a free one")]
fn announce(address: SocketAddr) {
    println!("listening on http://{address}");
}

/// Adds what to do to the kernel's refusals.
fn explain(error: bpf::LoadError) -> anyhow::Error {
    let denied = error.is_permission();
    let error = anyhow::Error::new(error);
    if denied {
        error.context(format!("the kernel refuses: {NEEDED}; `llamaprobe doctor` says what is missing"))
    } else {
        error.context("`llamaprobe doctor` says what this host lacks")
    }
}

fn drain(ring: &mut RingBuf<MapData>, mut each: impl FnMut(&[u8])) {
    while let Some(item) = ring.next() {
        each(&item);
    }
}

impl Agent {
    fn new(
        kernel: Kernel,
        log: RequestLog,
        otlp: Otlp,
        clock: Clock,
        billing: Billing,
        options: &Options,
    ) -> Self {
        let key = options.secret.unwrap_or_else(secret);
        let head = HeadOptions { user_header: options.user_header.clone(), key };
        let now = Instant::now();
        let timed = billing.rates.host_per_hour.is_some();
        let mut session = Session::new(now, head, billing);
        if options.otlp.of(Signal::Traces).is_some() {
            session = session.traced_by(Tracer::new(options.otlp.rules, secret()));
        }
        Self {
            scanner: Scanner::new(Path::new("/proc"), WANTED),
            kernel,
            session,
            held: None,
            billing: options.billing.clone(),
            stocktaking: if timed { TICK } else { STOCKTAKING },
            stock_taken: now,
            only: options.only.clone(),
            log,
            otlp,
            clock,
            payload: options.payload,
            trace_drafts: options.trace_drafts && options.otlp.of(Signal::Traces).is_some(),
            compat: options.compat.clone(),
            seats: BTreeMap::new(),
            due: BTreeSet::new(),
            unobservable: BTreeMap::new(),
            prices: None,
            attach_failures: 0,
            reload_failures: 0,
            release: doctor::kernel_version(&Roots::default()),
            deaf: false,
            started: SystemTime::now(),
            ready: false,
        }
    }

    fn calibrate(&mut self) {
        match self.kernel.calibrate() {
            Ok(Some(prices)) => {
                info!(
                    emulated_ns = prices.emulated_ns,
                    single_stepped_ns = prices.single_stepped_ns,
                    "price of a probe hit here"
                );
                self.prices = Some(prices);
            }
            Ok(None) => warn!("the price of a probe hit could not be measured"),
            Err(error) => warn!(%error, "the price of a probe hit could not be measured"),
        }
    }

    /// Takes what happened to requests, bounded. Returns whether that was all.
    ///
    /// Events and bytes come by rings of their own. Events first, then the bytes, then the events are applied: each finds
    /// the bytes that came before it. Where there are many, of the bytes only those are taken that are due.
    fn drain_requests(&mut self, events: &mut RingBuf<MapData>, payload: &mut RingBuf<MapData>) -> bool {
        let mut waits = WAITS;
        for _ in 0..BATCHES {
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Some(entry) = events.next()
            {
                match events::request(&entry) {
                    Some(event) => batch.push(event),
                    None => warn!(len = entry.len(), "unknown request event"),
                }
            }
            let all = batch.len() < BATCH;
            let latest = batch.iter().map(RequestEvent::at_ns).max().unwrap_or(0);
            let until = if all { u64::MAX } else { latest.saturating_add(SLACK_NS) };
            self.drain_payload(payload, until);
            for event in &batch {
                // A program that another CPU is held up in keeps those closed that came after it.
                while waits > 0 && self.session.lacks(event) {
                    waits -= 1;
                    std::thread::sleep(WAIT);
                    self.drain_payload(payload, until);
                }
                self.request_event(event);
            }
            if all {
                return true;
            }
        }
        false
    }

    /// Takes bytes of requests and answers up to a time; the first that is later is held back.
    fn drain_payload(&mut self, payload: &mut RingBuf<MapData>, until_ns: u64) {
        if self.held.as_ref().is_some_and(|held| held.at_ns() > until_ns) {
            return;
        }
        if let Some(held) = self.held.take() {
            self.request_event(&held);
        }
        while let Some(entry) = payload.next() {
            let Some(piece) = events::piece(&entry) else {
                warn!(len = entry.len(), "unknown bytes of a request");
                continue;
            };
            if piece.at_ns() > until_ns {
                self.held = Some(piece);
                return;
            }
            self.request_event(&piece);
        }
    }

    fn request_event(&mut self, event: &RequestEvent) {
        let records = self.session.on(Instant::now(), event);
        self.tell(&records);
    }

    /// Hands finished requests on.
    fn tell(&mut self, records: &[Record]) {
        for record in records {
            self.log.record(record, |ns| self.clock.wall(ns));
            self.otlp.tell(record);
            for task in &record.request.stale_tasks {
                self.kernel.forget_task(record.request.key.tgid, *task);
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.session.unsettled(now).into_iter().for_each(|pid| self.look(pid));
        for request in self.session.half_answered() {
            let answer = self.kernel.answer_so_far(request);
            let records = answer.map(|answer| self.session.answered(now, answer)).unwrap_or_default();
            self.tell(&records);
        }
        for request in self.session.unended() {
            if !self.kernel.is_under_way(request) {
                let lost = self.session.vanished(now, monotonic_ns(), request);
                self.tell(&lost);
            }
        }
        let overdue = self.session.expire(now, monotonic_ns());
        self.tell(&overdue);
        self.session.forget_ended(now);
        self.kernel.detach_idle();
        self.follow_sockets();
        self.follow_sessions();
        for (path, fault) in self.scanner.take_faults() {
            warn!(path = %path.display(), fault, "a file that processes map cannot be read");
        }
    }

    /// SIGHUP: the log was rotated, or names and prices have changed. A bad file changes nothing.
    fn reload(&mut self) {
        self.log.reopen();
        match self.billing.load() {
            Ok(billing) => self.session.rebill(billing),
            Err(error) => {
                self.reload_failures += 1;
                error!("names, prices and phrases stay as they were: {error:#}");
            }
        }
    }

    fn answer(&mut self, question: Question) {
        // Whoever asked may have gone meanwhile.
        match question {
            Question::Ready(reply) => drop(reply.send(self.ready)),
            Question::Snapshot(reply) => {
                let document = snapshot::document(&self.snapshot());
                drop(reply.send(document.to_string().into_bytes()));
            }
            Question::Metrics(Format::OpenMetrics, reply) => {
                drop(reply.send(openmetrics::render(&self.snapshot(), &self.compat).into_bytes()));
            }
            Question::Metrics(Format::Prometheus, reply) => {
                match prometheus::render(&self.snapshot(), &self.compat) {
                    Ok(text) => drop(reply.send(text)),
                    Err(error) => error!(%error, "the metrics cannot be rendered"),
                }
            }
        }
    }

    /// Hands the metrics of now to OTLP.
    fn collect(&mut self) {
        let snapshot = self.snapshot();
        self.otlp.collect(&snapshot);
    }

    /// Reads the maps and books who has used what.
    ///
    /// Counters first, then what happened to requests: a task that ended in between is known to have ended, and what it
    /// used is never charged to nobody.
    fn take_stock(&mut self, requests: &mut RingBuf<MapData>, payload: &mut RingBuf<MapData>) {
        let now = Instant::now();
        let mut readings = Vec::new();
        for (&pid, seat) in &self.seats {
            match self.kernel.reading(pid, seat.config.index) {
                Ok(reading) => readings.push((pid, reading)),
                Err(error) => error!(pid, %error, "cannot read the counts"),
            }
        }
        while !self.drain_requests(requests, payload) {}
        let unread = self.kernel.unread();
        for (pid, reading) in &readings {
            self.session.read(now, *pid, reading, self.prices);
            self.session.unread(*pid, unread.get(pid).copied().unwrap_or(0));
        }
        self.session.share_host(now, monotonic_ns());
        self.stock_taken = now;
    }

    /// What is known now.
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            servers: self.session.servers(Instant::now()),
            host: self.session.host(),
            users: self.session.users(),
            own: self.kernel.own_stats().unwrap_or_default(),
            prices: self.prices,
            targets: self.seats.len(),
            unobservable: self.unobservable.len(),
            occupancy: self.kernel.occupancy().to_vec(),
            given_up: self.session.given_up(),
            log_lost: self.log.lost(),
            attach_failures: self.attach_failures,
            reload_failures: self.reload_failures,
            cpu: cpu_time(),
            resident_bytes: resident_bytes(),
            started: self.started.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()),
            epoch: self.clock.epoch(),
            otlp: self.otlp.counts(),
        }
    }

    fn detach_all(&mut self) {
        let pids: Vec<u32> = self.seats.keys().copied().collect();
        for pid in pids {
            self.kernel.forget(pid);
        }
    }
}
