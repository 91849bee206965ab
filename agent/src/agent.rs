//! Wiring: one task owns all state; events, ticks and questions come to it, and so does what was seen and done on the
//! threads that look at processes and attach probes. Whatever can take its time is theirs; no branch of the loop waits,
//! and none goes before another.
//!
//! Order of shutdown: the endpoint first (no half-read answers), then the targets are forgotten (programs that still
//! fire find no target), then a scout is given the links, which drops them when this process has ended (the kernel
//! detaches, and takes seconds for it), then maps and programs go.

mod looks;
mod own;
mod room;
mod seats;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Write as _, stderr},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapData, RingBuf};
use llamaprobe_common::{event::MAX_ONLY, target::TargetConfig};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

use self::{
    looks::{Looks, Rank},
    own::{Clock, cpu_time, monotonic_ns, resident_bytes, secret},
    room::Room,
    seats::Seats,
};
use crate::{
    bpf::{self, Attacher, Kernel, calibrate::Prices, events},
    cli::{Options, billing::BillingOptions},
    discovery::{Target, image::ImageId, process::process_of},
    doctor::{self, NEEDED, Roots},
    export::{
        compat::Dialect,
        http::{self, Format, Question},
        log::RequestLog,
        openmetrics,
        otlp::{Otlp, Signal},
        prometheus, snapshot,
    },
    plan::Plan,
    scout::{self, NoAnswer, Scout},
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
/// Entries of a ring buffer that are taken at a time, before it is the others' turn.
const MOST_EVENTS: usize = 1024;
/// How long process events gather: whoever starts one process starts many.
const GATHER: Duration = Duration::from_millis(5);
/// Questions that may wait.
const QUESTIONS: usize = 16;

/// The state and everything it works with.
struct Agent {
    looks: Looks,
    room: Room,
    kernel: Kernel,
    session: Session,
    only: Vec<u32>,
    /// The processes that map llama.cpp, and who of them has a row of counters.
    processes: BTreeMap<u32, Process>,
    seats: Seats,
    /// Processes that ran a probed function without a seat.
    strangers: BTreeSet<u32>,
    /// How often something was to be attached.
    orders: u64,
    /// Processes that were there at the start and have not been looked at; `None` before it is known who was there.
    first: Option<BTreeSet<u32>>,
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
    /// What the engine room was told last of what else to follow.
    follows_sockets: bool,
    follows_sessions: bool,
    /// The sockets could not be followed, which was said.
    deaf: bool,
    started: SystemTime,
    ready: bool,
}

/// A process that maps llama.cpp.
struct Process {
    start_time: u64,
    /// What the programs know of it, when it is observed.
    live: Option<TargetConfig>,
    /// What it will be when its probes are attached.
    attaching: Option<Box<Attaching>>,
    /// The orders by which its probes were attached, and the sites of the last one.
    orders: Vec<u64>,
    sites: BTreeSet<(ImageId, u64)>,
    /// The sites that could not be attached, and when they were tried.
    failed: BTreeSet<(ImageId, u64)>,
    tried: Instant,
}

struct Attaching {
    number: u64,
    target: Target,
    plan: Plan,
}

impl Process {
    fn new(target: &Target) -> Self {
        Self {
            start_time: target.start_time,
            live: None,
            attaching: None,
            orders: Vec::new(),
            sites: BTreeSet::new(),
            failed: BTreeSet::new(),
            tried: Instant::now(),
        }
    }
}

/// Observes until SIGTERM or SIGINT.
///
/// # Errors
///
/// When the endpoint cannot be opened, a named process does not exist, or the kernel refuses the programs.
pub async fn run(mut options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    options.only = named(&options.only)?;
    // Before anything is loaded: an address in use is the commonest mistake.
    let listener = http::listen(options.listen).await?;
    let address = listener.local_addr().context("the endpoint has no address")?;
    let log = RequestLog::open(options.requests.clone())
        .with_context(|| format!("cannot open the request log {:?}", options.requests.file))?;
    let billing = options.billing.load()?;
    let clock = Clock::now();
    let otlp = Otlp::start(&options.otlp, clock.epoch())?;
    scout::raise_files();
    let (kernel, mut attacher, rings) = Kernel::load(&options.only).map_err(explain)?;
    let prices = calibrate(&mut attacher);
    let (telling, mut looked) = mpsc::unbounded_channel();
    let looks = Looks::start(&telling, rings.told, doctor::kernel_version(&Roots::default()))
        .context("cannot start a thread")?;
    let (telling, mut done) = mpsc::unbounded_channel();
    let room = Room::open(attacher, telling).context("cannot start a thread")?;
    let mut agent = Agent::new(looks, room, kernel, log, otlp, clock, billing, &options);
    agent.prices = prices;

    let (sender, mut questions) = mpsc::channel(QUESTIONS);
    let endpoint = tokio::spawn(http::serve(listener, sender));
    announce(address);

    let mut processes = bpf::waitable(rings.processes).context("cannot wait for the ring buffer")?;
    let mut requests = bpf::waitable(rings.requests).context("cannot wait for the ring buffer")?;
    let (mut tick, mut rescan) = (ticks(TICK), ticks(RESCAN));
    let mut gathering: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => break info!("SIGTERM"),
            _ = interrupt.recv() => break info!("SIGINT"),
            Some(question) = questions.recv() => {
                if !matches!(question, Question::Ready(_)) {
                    agent.take_stock(requests.get_mut());
                }
                agent.answer(question);
            }
            _ = hangup.recv() => agent.reload(),
            ready = requests.readable_mut() => {
                let mut ready = ready.context("the ring buffer failed")?;
                if drain(ready.get_inner_mut(), |entry| agent.request_event(entry)) {
                    ready.clear_ready();
                }
            }
            ready = processes.readable_mut(), if gathering.is_none() => {
                let mut ready = ready.context("the ring buffer failed")?;
                if drain(ready.get_inner_mut(), |entry| agent.process_event(entry)) {
                    ready.clear_ready();
                    gathering = Some(Instant::now() + GATHER);
                }
            }
            () = sleep_until(gathering.unwrap_or_else(Instant::now).into()), if gathering.is_some() => {
                gathering = None;
            }
            Some(looked) = looked.recv() => agent.looked(looked),
            Some(done) = done.recv() => agent.done(done),
            _ = rescan.tick() => agent.rescan(),
            _ = tick.tick() => {
                let exports = agent.otlp.wants_metrics(Instant::now());
                if exports || agent.stock_taken.elapsed() >= agent.stocktaking {
                    agent.take_stock(requests.get_mut());
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
    while !drain(requests.get_mut(), |entry| agent.request_event(entry)) {}
    agent.otlp.close(EXPORT_FLUSH);
    agent.log.close(LOG_FLUSH);
    leave();
    Ok(())
}

/// The probes go when this process has ended, in a process of its own: the kernel takes seconds for them.
fn leave() {
    match Scout::start().map_err(NoAnswer::Ended).and_then(Scout::bequeath) {
        Ok(probes) => info!(probes, "detached"),
        Err(error) => info!(?error, "the kernel detaches, and this process ends when it has"),
    }
}

fn calibrate(attacher: &mut Attacher) -> Option<Prices> {
    match attacher.calibrate() {
        Ok(Some(prices)) => {
            info!(
                emulated_ns = prices.emulated_ns,
                single_stepped_ns = prices.single_stepped_ns,
                "price of a probe hit here"
            );
            return Some(prices);
        }
        Ok(None) => warn!("the price of a probe hit could not be measured"),
        Err(error) => warn!(%error, "the price of a probe hit could not be measured"),
    }
    None
}

/// The processes that were named; a thread stands for its process.
///
/// # Errors
///
/// When there is no such process, or there are too many.
pub fn named(pids: &[u32]) -> Result<Vec<u32>> {
    let mut processes = Vec::new();
    for pid in pids {
        let Ok(process) = process_of(*pid) else {
            bail!("there is no process {pid}: --pid takes the id of a running process");
        };
        if process != *pid {
            let _ = writeln!(
                stderr(),
                "llamaprobe: {pid} is a thread of the process {process}, which is taken for it"
            );
        }
        processes.push(process);
    }
    ensure!(processes.len() < MAX_ONLY as usize, "--pid takes up to {} processes", MAX_ONLY - 1);
    processes.sort_unstable();
    processes.dedup();
    Ok(processes)
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

/// Takes what is in a ring buffer, up to a number of entries; returns whether that was all.
fn drain(ring: &mut RingBuf<MapData>, mut each: impl FnMut(&[u8])) -> bool {
    for _ in 0..MOST_EVENTS {
        let Some(item) = ring.next() else { return true };
        each(&item);
    }
    false
}

impl Agent {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part that is made before, and owned from here on"
    )]
    fn new(
        looks: Looks,
        room: Room,
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
            looks,
            room,
            kernel,
            session,
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
            processes: BTreeMap::new(),
            seats: Seats::default(),
            strangers: BTreeSet::new(),
            orders: 0,
            first: None,
            unobservable: BTreeMap::new(),
            prices: None,
            attach_failures: 0,
            reload_failures: 0,
            follows_sockets: false,
            follows_sessions: false,
            deaf: false,
            started: SystemTime::now(),
            ready: false,
        }
    }

    fn request_event(&mut self, entry: &[u8]) {
        let Some(event) = events::request(entry) else {
            return warn!(len = entry.len(), "unknown request event");
        };
        let records = self.session.on(Instant::now(), &event);
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
        self.session.unsettled(now).into_iter().for_each(|pid| self.look(pid, 0, Rank::Likely, &[now]));
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
        self.follow_sockets();
        self.follow_sessions();
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
    fn take_stock(&mut self, requests: &mut RingBuf<MapData>) {
        let now = Instant::now();
        let live = self.processes.iter().filter_map(|(pid, process)| Some((*pid, process.live?.index)));
        let rows: Vec<_> = live.collect();
        let readings = self.kernel.readings(&rows);
        while !drain(requests, |entry| self.request_event(entry)) {}
        let unread = self.kernel.unread();
        for (pid, reading) in readings {
            match reading {
                Ok(reading) => {
                    self.seats.hits(now, pid, reading.stats.hits.iter().sum());
                    self.session.read(now, pid, &reading, self.prices);
                }
                Err(error) => error!(pid, %error, "cannot read the counts"),
            }
            self.session.unread(pid, unread.get(&pid).copied().unwrap_or(0));
        }
        self.session.share_host(now, monotonic_ns());
        self.stock_taken = now;
    }

    /// What is known now.
    fn snapshot(&self) -> Snapshot {
        let (looks, scouts) = self.looks.counts();
        Snapshot {
            servers: self.session.servers(Instant::now()),
            host: self.session.host(),
            users: self.session.users(),
            own: self.kernel.own_stats().unwrap_or_default(),
            prices: self.prices,
            targets: self.seats.len(),
            unobservable: self.unobservable.len(),
            waiting: self.processes.values().filter(|it| it.live.is_none() && it.attaching.is_none()).count(),
            looks_abandoned: looks.abandoned,
            looks_cut: looks.costly,
            looks_waiting: looks.waiting,
            occupancy: self.kernel.occupancy().to_vec(),
            given_up: self.session.given_up(),
            log_lost: self.log.lost(),
            attach_failures: self.attach_failures,
            reload_failures: self.reload_failures,
            cpu: cpu_time() + looks.cpu,
            resident_bytes: resident_bytes("self")
                + scouts.iter().map(|pid| resident_bytes(&pid.to_string())).sum::<u64>(),
            started: self.started.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()),
            epoch: self.clock.epoch(),
            otlp: self.otlp.counts(),
        }
    }

    fn detach_all(&mut self) {
        for (pid, _) in self.seats.rows() {
            self.kernel.forget(pid);
        }
    }
}
