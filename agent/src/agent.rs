//! Wiring: one task owns all state; events, ticks and questions come to it, and so does what was seen and done on the
//! threads that look at processes, and by the keeper, which attaches probes. Whatever can take its time is theirs; no branch of
//! the loop waits, and none goes before another.
//!
//! Order of shutdown: the endpoint first (no half-read answers, and its address is free), then the counts are read, then
//! the targets are forgotten (programs that still fire find no target), then what is known is told, then the keeper lets
//! nothing be under way, and detaches when it notices the agent's end.

mod collect;
mod door;
mod ending;
mod looks;
mod own;
pub(crate) mod process;
mod recording;
mod seating;
mod seats;
mod service;
mod signals;
mod stalls;
mod steps;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapData, RingBuf};
use llamaprobe_common::{event::MAX_ONLY, request::WAKE_NS};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

pub use self::signals::Signals;
use self::{
    looks::Looks,
    own::{Clock, cpu_time, monotonic_ns, secret},
    process::Process,
    service::Service,
    signals::Order,
    stalls::Stalls,
    steps::Steps,
};
use crate::{
    bpf::{self, Maps, calibrate::Prices, events::RequestEvent, run_time::Sample},
    cli::{Options, billing::BillingOptions},
    confine::{self, Uses},
    discovery::process::{ProcessId, ProcessRoot, process_of},
    doctor::{self, Roots},
    export::{
        history::{self, History},
        http::{self, Endpoint, Health, Questions, web::Web},
        otlp::Signal,
        sink::Sinks,
    },
    journal::{Header, JournalWriter, Reading},
    keeper::{Done, Keeper, Room},
    kubernetes::Workloads,
    output::{self, Messages},
    recorder::{Recorder, Store},
    session::{
        Billing, Input, Session, Snapshot, load::Load, payload::head::HeadOptions, reader::Reader,
        tracer::Tracer,
    },
};

/// Housekeeping, and a look at processes that have not shown yet where they listen.
const TICK: Duration = Duration::from_secs(1);
/// How often it is booked who has used what.
const COLLECTING: Duration = Duration::from_secs(5);
/// The safety net: all processes are looked at anew.
const RESCAN: Duration = Duration::from_secs(30);
/// Entries of a ring buffer that are taken at a time, before it is the others' turn.
const MOST_EVENTS: usize = 1024;
/// How long process events gather: whoever starts one process starts many.
const GATHER: Duration = Duration::from_millis(5);
/// When it is looked once more for what happens to requests, after the kernel has woken the agent: it does not wake it anew
/// before.
const ONCE_MORE: Duration = Duration::from_nanos(WAKE_NS + 2_000_000);
/// Questions that may wait.
const QUESTIONS: usize = 16;

/// Whether the switches of threads are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switches {
    /// Nobody is observed.
    Left,
    /// They are.
    Followed,
    /// They cannot be, which was said.
    Unavailable,
}

/// The state and everything it works with.
struct Agent {
    looks: Looks,
    room: Room,
    maps: Maps,
    /// Reads what servers read and write.
    reader: Reader,
    session: Session,
    /// What the session is told is written down.
    journal: Option<JournalWriter>,
    /// The last minutes of the same are held, to be written when something is too slow.
    recorder: Option<Recorder>,
    /// One moment by both clocks: when the session was made.
    origin: (Instant, u64),
    /// Finished requests so far.
    told: u64,
    /// Bytes of a request that came before the events before them.
    held: Option<RequestEvent>,
    only: Vec<u32>,
    /// Of which pods they are.
    workloads: Workloads,
    /// Only servers in this network namespace are observed, where it is given.
    network: Option<u64>,
    /// The processes that map llama.cpp.
    processes: BTreeMap<u32, Process>,
    /// Processes that ran a probed function without a seat.
    strangers: BTreeSet<u32>,
    /// How often something was to be attached.
    orders: u64,
    /// Processes that were there at the start and have not been looked at; `None` before it is known who was there.
    first: Option<BTreeSet<u32>>,
    /// Processes that are llama.cpp and cannot be observed, with the reason that was logged.
    unobservable: BTreeMap<u32, String>,
    /// Files that processes map and that cannot be read, with the reason that was logged.
    faults: BTreeMap<PathBuf, String>,
    prices: Option<Prices>,
    /// What the programs cost, as the keeper measures.
    programs: Sample,
    /// What the agent's processes hold in memory, bytes, as the keeper measures: it costs too much for every question.
    memory: u64,
    /// Libraries loaded late announce themselves.
    late_loads: bool,
    /// What attaching takes, for people.
    needed: String,
    /// Where requests and figures go beside the endpoint.
    sinks: Sinks,
    billing: BillingOptions,
    /// What is charged live is charged every second when the host's time costs, since idle time costs too.
    collecting: Duration,
    collected: Instant,
    /// What happened in the last quarter of an hour, and when it was added to.
    history: Arc<History>,
    remembered: Option<Instant>,
    clock: Clock,
    /// Whether payload is looked at.
    payload: bool,
    /// Whether each decode call that checks guesses is told.
    trace_drafts: bool,
    attach_failures: u64,
    reload_failures: u64,
    /// What the engine room was told last of what else to follow.
    follows_sockets: bool,
    follows_sessions: bool,
    follows_offspring: bool,
    /// Whether the switches of threads are followed.
    switches: Switches,
    /// What held decode steps back, in the kernel and of what is later than what happened to requests so far.
    stalls: Stalls,
    steps: Steps,
    /// Whether each decode call is told.
    wants_steps: bool,
    /// The sockets could not be followed, which was said.
    sockets_unavailable: bool,
    /// When the agent started, by the kernel's clock.
    started: Duration,
    health: Arc<Health>,
}

/// What is opened before anything is loaded: a mistake in it is a mistake of whoever starts the agent.
struct Opened {
    billing: Billing,
    /// The file of the journal, where one is written.
    journal: Option<File>,
    /// Where recordings go, where such are made.
    store: Option<Store>,
}

/// Observes until SIGTERM or SIGINT.
///
/// # Errors
///
/// When the endpoint cannot be opened, a named process does not exist, or the kernel refuses the programs.
pub async fn run(mut options: Options, mut signals: Signals, messages: &Messages) -> Result<()> {
    options.only = named(&options.only)?;
    // Before anything is loaded: an address in use is the commonest mistake.
    let listener = http::listen(options.listen).await?;
    let address = listener.local_addr().context("the endpoint has no address")?;
    let (billing, journal, recorder) =
        (options.billing.clone(), options.journal.clone(), options.recorder.clone());
    let web = options.web.clone();
    let files = move || {
        let (journal, store) = (journal.create()?, recorder.open()?);
        let web = Web::open(&web, address)?;
        Ok((web, Opened { billing: billing.load()?, journal, store }))
    };
    let Some((web, opened)) = signals.or_end(files).await? else { return Ok(()) };
    let keeper = Keeper::start().context("the keeper cannot be started")?;
    confine::confine(&uses(&options, &web))?;
    messages.start().context("no thread for messages")?;
    let (sinks, kubernetes) = (options.sinks.clone(), options.kubernetes.clone());
    let outward = move || Ok((Sinks::open(&sinks)?, Workloads::start(&kubernetes)?));
    let Some(outward) = signals.or_end(outward).await? else { return Ok(()) };
    let (only, log, messages) = (options.only.clone(), options.log.clone(), messages.clone());
    let steps = options.wants_steps();
    let load = move || {
        let (mut loaded, room, done) = keeper.load(&only, steps, &log, output::is_coloured(), messages)?;
        let (maps, rings) = Maps::of(std::mem::take(&mut loaded.maps))?;
        Ok((maps, rings, room, done, loaded))
    };
    let Some((maps, rings, room, mut done, first)) = signals.or_end(load).await? else { return Ok(()) };
    let (telling, mut looked) = mpsc::unbounded_channel();
    let looks = Looks::start(&telling, rings.told, doctor::kernel_version(&Roots::default()), &room)
        .context("cannot start a thread")?;
    let kernel = (maps, Stalls::new(rings.stalls), Steps::new(rings.steps));
    let mut agent = Agent::new(looks, room, kernel, outward, opened, &options)?;
    (agent.prices, agent.late_loads, agent.needed) = (first.prices, first.late_loads, first.needed);

    let (sender, mut questions) = mpsc::channel(QUESTIONS);
    let (loads, mut asked_loads) = mpsc::channel(QUESTIONS);
    let (recordings, mut asked) = mpsc::channel(QUESTIONS);
    let scheme = web.scheme();
    let doors = Questions { snapshots: sender, loads: Some(loads), recordings: Some(recordings) };
    let (health, history) = (agent.health.clone(), agent.history.clone());
    let endpoint = Endpoint::start(listener, doors, health, history, options.compat.clone(), web)
        .context("no thread for the endpoint")?;
    announce(scheme, address);
    let mut service = Service::start().context("cannot start a thread")?;

    let mut processes = bpf::waitable(rings.processes).context("cannot wait for the ring buffer")?;
    let mut requests = bpf::waitable(rings.requests).context("cannot wait for the ring buffer")?;
    let mut payload = bpf::waitable(rings.payload).context("cannot wait for the ring buffer")?;
    let (mut tick, mut rescan) = (ticks(TICK), ticks(RESCAN));
    let mut gathering: Option<Instant> = None;
    let mut once_more: Option<Instant> = None;
    let mut reloading: Option<JoinHandle<Result<Billing>>> = None;
    let mut failed: Option<String> = None;
    loop {
        tokio::select! {
            order = signals.next() => match order {
                Order::End(signal) => break info!("{signal}"),
                Order::Record => agent.record_signalled(),
                Order::Reload => {
                    service.reloading();
                    agent.sinks.reopen();
                    let web = endpoint.web();
                    spawn_blocking(move || web.reload());
                    let billing = agent.billing.clone();
                    reloading = Some(spawn_blocking(move || billing.load()));
                }
            },
            Some(loaded) = loaded(&mut reloading), if reloading.is_some() => {
                reloading = None;
                agent.reload(loaded);
                service.reloaded();
            }
            Some(question) = questions.recv() => {
                agent.collect(requests.get_mut(), payload.get_mut());
                // Whoever asked may have gone meanwhile.
                let _ = question.send(agent.snapshot());
            }
            Some(question) = asked_loads.recv() => {
                agent.drain_requests(requests.get_mut(), payload.get_mut());
                let _ = question.send(agent.loads());
            }
            Some(asked) = asked.recv() => agent.record_asked(asked),
            ready = requests.readable_mut() => {
                let mut ready = ready.context("the ring buffer failed")?;
                if agent.drain_requests(ready.get_inner_mut(), payload.get_mut()) {
                    ready.clear_ready();
                }
                once_more = Some(Instant::now() + ONCE_MORE);
            }
            ready = payload.readable_mut() => {
                let mut ready = ready.context("the ring buffer failed")?;
                agent.drain_requests(requests.get_mut(), ready.get_inner_mut());
                ready.clear_ready();
                once_more = Some(Instant::now() + ONCE_MORE);
            }
            () = sleep_until(once_more.unwrap_or_else(Instant::now).into()), if once_more.is_some() => {
                let all = agent.drain_requests(requests.get_mut(), payload.get_mut());
                once_more = (!all).then(Instant::now);
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
            Some(looked) = looked.recv() => {
                // A program that had started by then must not be told after what was seen of it.
                drain(processes.get_mut(), |entry| agent.process_event(entry));
                agent.looked(looked);
            }
            Some(done) = done.recv() => match done {
                Done::Ended(how) => break failed = Some(how),
                done => agent.done(done),
            },
            _ = rescan.tick() => agent.rescan(),
            _ = tick.tick() => {
                let now = Instant::now();
                let wanted = agent.sinks.want_metrics(now);
                // Ticks are never exact.
                let due = agent.remembered.is_none_or(|at| now - at + TICK / 2 >= history::STEP);
                if wanted || due || agent.collected.elapsed() >= agent.collecting {
                    agent.collect(requests.get_mut(), payload.get_mut());
                }
                if due {
                    agent.remember(now);
                }
                if wanted {
                    let snapshot = agent.snapshot();
                    agent.sinks.metrics(now, &snapshot);
                }
                agent.tick();
                service.turn(agent.health.is_ready());
            }
        }
    }
    service.stopping();
    endpoint.close();
    agent.end_all(requests.get_mut(), payload.get_mut());
    match failed {
        None => Ok(()),
        Some(how) => {
            bail!("the keeper, which attaches, has ended ({how}): nothing is observed any more; start anew")
        }
    }
}

/// What is used after the start.
fn uses(options: &Options, web: &Web) -> Uses {
    let billing = &options.billing;
    let named = [&billing.aliases, &billing.prices, &billing.refusals];
    let log = options.sinks.log.file.iter().filter(|_| options.sinks.log.is_on());
    let tls = options.sinks.otlp.destinations.iter().flat_map(|destination| destination.tls.files());
    Uses {
        read: named
            .into_iter()
            .flatten()
            .cloned()
            .chain(web.files())
            .chain(tls.cloned())
            .chain(options.kubernetes.files())
            .collect(),
        written: log.chain(&options.sinks.records).cloned().collect(),
        filled: options.recorder.directory.iter().cloned().collect(),
        connects: options.sinks.otlp.is_on() || options.kubernetes.is_on(),
    }
}

/// What a file of names and prices holds by now; never, when none is read.
async fn loaded(reloading: &mut Option<JoinHandle<Result<Billing>>>) -> Option<Result<Billing>> {
    let loaded = reloading.as_mut()?.await;
    Some(loaded.context("reading them panicked").flatten())
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
            output::complain(&format!(
                "llamaprobe: {pid} is a thread of the process {process}, which is taken for it"
            ));
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

/// The address is the program's output: port 0 takes a free one.
fn announce(scheme: &str, address: SocketAddr) {
    if let Err(error) = output::announce(&format!("listening on {scheme}://{address}")) {
        warn!(%error, %address, "listening; standard output does not take the address");
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

/// The network namespace of the agent, which the containers of a pod share.
fn own_network() -> Result<u64> {
    let network = ProcessRoot::new(Path::new("/proc"), std::process::id()).place().network;
    ensure!(network != 0, "--sidecar: /proc/self/ns/net cannot be read; mount /proc");
    Ok(network)
}

/// The processes that are observed.
fn observed(processes: &BTreeMap<u32, Process>) -> impl Iterator<Item = ProcessId> {
    processes.values().filter(|process| process.live.is_some()).map(|process| process.id)
}

impl Agent {
    fn new(
        looks: Looks,
        room: Room,
        (maps, stalls, steps): (Maps, Stalls, Steps),
        (sinks, workloads): (Sinks, Workloads),
        Opened { billing, journal, store }: Opened,
        options: &Options,
    ) -> Result<Self> {
        let key = match &options.secret {
            Some(secret) => secret.key,
            None => secret().context("the kernel has no random numbers")?,
        };
        if let Some(warning) = options.secret.as_ref().and_then(|secret| secret.warning.as_ref()) {
            warn!("{warning}");
        }
        let head = HeadOptions { user_header: options.user_header.clone(), key };
        let now = Instant::now();
        let timed = billing.rates.host_per_hour.is_some();
        let reading = Reading { options: head, phrases: billing.phrases.clone() };
        let reader = Reader::new(reading.options.clone(), reading.phrases.clone());
        let origin = (now, monotonic_ns());
        let mut session = Session::new(now, billing.clone());
        let only_some = !options.only.is_empty() || options.sidecar;
        if only_some {
            session = session.of_some();
        }
        let otlp = &options.sinks.otlp;
        let traced = otlp.of(Signal::Traces).is_some();
        let tracer = traced.then(|| Ok::<_, io::Error>(Tracer::new(otlp.rules, secret()?))).transpose()?;
        if let Some(tracer) = tracer.clone() {
            session = session.traced_by(tracer);
        }
        let mut header = Header::new(origin.1, billing, only_some, tracer);
        // Never with the bytes of requests.
        let recorder = store.map(|store| Recorder::start(&options.recorder, store, &header)).transpose()?;
        if options.journal.payload {
            header = header.with_payload(reading);
        }
        let journal = JournalWriter::start(&options.journal, journal, &header)?;
        Ok(Self {
            looks,
            room,
            maps,
            reader,
            session,
            journal,
            recorder,
            origin,
            told: 0,
            held: None,
            billing: options.billing.clone(),
            collecting: if timed { TICK } else { COLLECTING },
            collected: now,
            only: options.only.clone(),
            sinks,
            history: Arc::default(),
            remembered: None,
            clock: Clock::now(),
            payload: options.payload,
            trace_drafts: options.trace_drafts && traced,
            workloads,
            network: options.sidecar.then(own_network).transpose()?,
            processes: BTreeMap::new(),
            strangers: BTreeSet::new(),
            orders: 0,
            first: None,
            unobservable: BTreeMap::new(),
            faults: BTreeMap::new(),
            prices: None,
            programs: Sample::default(),
            memory: 0,
            late_loads: false,
            needed: String::new(),
            attach_failures: 0,
            reload_failures: 0,
            follows_sockets: false,
            follows_sessions: false,
            follows_offspring: false,
            switches: Switches::Left,
            stalls,
            steps,
            wants_steps: options.wants_steps(),
            sockets_unavailable: false,
            started: Duration::from_nanos(monotonic_ns()),
            health: Arc::default(),
        })
    }

    fn tick(&mut self) {
        self.health.turn();
        self.look_at_new_servers();
        self.apply(Input::Tick);
        self.workloads.learn(observed(&self.processes));
        self.follow_sockets();
        self.follow_sessions();
        // Nothing else may happen that they would be looked at for, and their ring is not large.
        self.stalls.read();
        self.tell_steps();
    }

    /// Names and prices were read again. A bad file changes nothing.
    fn reload(&mut self, loaded: Result<Billing>) {
        match loaded {
            Ok(billing) => {
                self.reader.look_for(billing.phrases.clone());
                self.apply(Input::Rebill(Box::new(billing)));
            }
            Err(error) => {
                self.reload_failures += 1;
                error!("names, prices and phrases stay as they were: {error:#}");
            }
        }
    }

    /// What is known now.
    fn snapshot(&mut self) -> Snapshot {
        let journal = self.journal.as_ref().map(JournalWriter::delivery);
        let recorder = self.recorder.as_ref().map(Recorder::delivery);
        let own = Snapshot {
            own: self.maps.own_stats().unwrap_or_default(),
            programs_cpu: self.programs.cpu_ratio,
            targets: self.seats().len(),
            unobservable: self.unobservable.len(),
            waiting: self.processes.values().filter(|it| it.live.is_none() && it.attaching.is_none()).count(),
            occupancy: self.maps.occupancy().map(|(map, entries)| (map.into(), entries)).to_vec(),
            attach_failures: self.attach_failures,
            reload_failures: self.reload_failures,
            outputs: self.sinks.deliveries().into_iter().chain(journal).chain(recorder).collect(),
            recordings: self.recorder.as_ref().map(Recorder::recordings),
            ..self.own()
        };
        let mut snapshot = self.ask(own);
        self.workloads.learn(observed(&self.processes));
        self.workloads.name(&mut snapshot);
        snapshot
    }

    /// How much servers have to do at this moment: cheap, since it is asked for many times a second.
    fn loads(&self) -> Vec<Load> {
        self.session.loads(&self.maps.slots(), &self.maps.unread())
    }

    /// What the agent knows of itself without asking the kernel's maps.
    fn own(&mut self) -> Snapshot {
        let epoch = self.clock.epoch();
        let looks = self.looks.counts();
        Snapshot {
            cpu: cpu_time() + looks.cpu + bpf::processor_time(self.room.pid).unwrap_or_default(),
            resident_bytes: self.memory,
            started: (epoch + self.started).as_secs_f64(),
            taken: (epoch + Duration::from_nanos(monotonic_ns())).as_secs_f64(),
            epoch,
            looks_abandoned: looks.abandoned,
            looks_cut: looks.costly,
            looks_waiting: looks.waiting,
            ..Snapshot::default()
        }
    }

    /// A step of the history is over.
    fn remember(&mut self, now: Instant) {
        self.remembered = Some(now);
        let own = Snapshot { own: self.maps.own_stats().unwrap_or_default(), ..self.own() };
        self.history.push(&self.known(&own));
    }
}
