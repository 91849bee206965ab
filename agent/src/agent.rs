//! Wiring: one task owns all state; events, ticks and questions come to it.
//!
//! Order of shutdown: the endpoint first (no half-read answers), then the targets are forgotten (programs that still
//! fire find no target), then the links are dropped (the kernel detaches), then maps and programs go.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapData, RingBuf};
use llamaprobe_common::{
    event::{ProcessEvent, ProcessEventKind},
    target::MAX_TARGETS,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

use crate::{
    bpf::{self, Kernel, calibrate::Prices, read::Reading},
    cli::Options,
    discovery::{Look, Scanner, Target},
    export::{
        http::{self, Question},
        prometheus,
    },
    plan::{self, Plan, Verdict},
    session::{Session, Snapshot},
};

/// How long after an event a process is looked at: a starting program maps a dozen files within this time.
const SETTLE: Duration = Duration::from_millis(20);
/// Further looks at a program that has just started: for libraries whose mapping was not told.
const LATER: [Duration; 3] = [Duration::from_millis(200), Duration::from_millis(700), Duration::from_secs(4)];
/// Housekeeping, and a look at processes that have not shown yet where they listen.
const TICK: Duration = Duration::from_secs(1);
/// The safety net: all processes are looked at anew.
const RESCAN: Duration = Duration::from_secs(30);
/// Questions that may wait.
const QUESTIONS: usize = 16;

/// The state and everything it works with.
struct Agent {
    scanner: Scanner,
    kernel: Kernel,
    session: Session,
    only: Vec<u32>,
    /// Row of the counters, start time and attached probes of each observed process.
    seats: BTreeMap<u32, Seat>,
    /// Processes to look at, and when.
    due: BTreeSet<(Instant, u32)>,
    /// Processes that are llama.cpp and cannot be observed, with the reason that was logged.
    unobservable: BTreeMap<u32, String>,
    prices: Option<Prices>,
    attach_failures: u64,
    started: SystemTime,
    ready: bool,
}

/// The place of an observed process.
struct Seat {
    index: u32,
    start_time: u64,
}

/// Observes until SIGTERM or SIGINT.
///
/// # Errors
///
/// When the endpoint cannot be opened, a named process does not exist, or the kernel refuses the programs.
pub async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    for pid in &options.only {
        if !Path::new("/proc").join(pid.to_string()).exists() {
            bail!("there is no process {pid}: --pid takes the id of a running process");
        }
    }
    // Before anything is loaded: an address in use is the commonest mistake.
    let listener = http::listen(options.listen).await?;
    let address = listener.local_addr().context("the endpoint has no address")?;
    let (kernel, ring) = Kernel::load().map_err(explain)?;
    let mut agent = Agent::new(kernel, options.only);
    agent.calibrate();

    let (sender, mut questions) = mpsc::channel(QUESTIONS);
    let endpoint = tokio::spawn(http::serve(listener, sender));
    announce(address);

    let mut ring = bpf::waitable(ring).context("cannot wait for the ring buffer")?;
    let (mut tick, mut rescan) = (ticks(TICK), ticks(RESCAN));
    loop {
        let next = agent.due.first().map(|(when, _)| *when);
        tokio::select! {
            biased;
            _ = terminate.recv() => break info!("SIGTERM"),
            _ = interrupt.recv() => break info!("SIGINT"),
            Some(question) = questions.recv() => agent.answer(question),
            ready = ring.readable_mut() => {
                let mut ready = ready.context("the ring buffer failed")?;
                drain(ready.get_inner_mut(), |event| agent.event(event));
                ready.clear_ready();
                // Events come in bursts: whoever starts one process starts many.
                tokio::time::sleep(SETTLE / 4).await;
            }
            () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => agent.look_due(),
            _ = rescan.tick() => agent.rescan(),
            _ = tick.tick() => agent.tick(),
        }
    }
    endpoint.abort();
    agent.detach_all();
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
        error.context(
            "the kernel refuses: run as root (sudo llamaprobe) or with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and \
             CAP_SYS_ADMIN; `llamaprobe doctor` says what is missing",
        )
    } else {
        error.context("`llamaprobe doctor` says what this host lacks")
    }
}

fn drain(ring: &mut RingBuf<MapData>, mut each: impl FnMut(ProcessEvent)) {
    while let Some(item) = ring.next() {
        let word = |at: usize| item.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        if let (Some(kind), Some(tgid)) = (word(0), word(4)) {
            each(ProcessEvent { kind, tgid });
        }
    }
}

impl Agent {
    fn new(kernel: Kernel, only: Vec<u32>) -> Self {
        Self {
            scanner: Scanner::new(Path::new("/proc")),
            kernel,
            session: Session::default(),
            only,
            seats: BTreeMap::new(),
            due: BTreeSet::new(),
            unobservable: BTreeMap::new(),
            prices: None,
            attach_failures: 0,
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

    fn event(&mut self, event: ProcessEvent) {
        let Some(kind) = ProcessEventKind::from_wire(event.kind) else {
            warn!(kind = event.kind, "unknown process event");
            return;
        };
        let now = Instant::now();
        self.due.insert((now + SETTLE, event.tgid));
        if matches!(kind, ProcessEventKind::Exec) {
            // Another program in the same process: what was counted before is not its.
            self.end(event.tgid);
            self.due.extend(LATER.map(|later| (now + later, event.tgid)));
        }
    }

    fn look_due(&mut self) {
        let now = Instant::now();
        let mut pids = BTreeSet::new();
        while let Some(&(when, pid)) = self.due.first()
            && when <= now
        {
            self.due.pop_first();
            pids.insert(pid);
        }
        pids.into_iter().for_each(|pid| self.look(pid));
    }

    fn rescan(&mut self) {
        let pids = match self.scanner.processes() {
            Ok(pids) => pids,
            Err(error) => return error!(%error, "cannot list processes"),
        };
        let gone: Vec<u32> = self.seats.keys().copied().filter(|pid| !pids.contains(pid)).collect();
        gone.into_iter().for_each(|pid| self.end(pid));
        self.unobservable.retain(|pid, _| pids.contains(pid));
        pids.into_iter().for_each(|pid| self.look(pid));
        self.scanner.forget_except(self.session.targets());
        if !self.ready {
            self.ready = true;
            info!(targets = self.seats.len(), late_loads = self.kernel.sees_late_loads(), "ready");
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.session.unsettled(now).into_iter().for_each(|pid| self.look(pid));
        self.session.forget_ended(now);
        self.kernel.detach_idle();
        for (path, fault) in self.scanner.take_faults() {
            warn!(path = %path.display(), fault, "a file that processes map cannot be read");
        }
    }

    /// Looks at one process and brings what is attached in line with what it is now.
    fn look(&mut self, pid: u32) {
        if !self.only.is_empty() && !self.only.contains(&pid) {
            return;
        }
        if let Some(seat) = self.seats.get(&pid)
            && !self.scanner.is_alive(pid, seat.start_time)
        {
            self.end(pid);
        }
        match self.scanner.look(pid) {
            Look::Found(target) => match plan::plan(&target.plain_images()) {
                Verdict::Observable(plan) => self.watch(*target, plan),
                Verdict::Unsupported(why) => self.refuse(pid, &target.comm, why),
                Verdict::Foreign => self.end(pid),
            },
            Look::Opaque { comm } => self.refuse(pid, &comm, "no file it maps shows a symbol of llama.cpp"),
            Look::Nothing => self.end(pid),
        }
    }

    fn refuse(&mut self, pid: u32, comm: &str, why: &str) {
        self.end(pid);
        if self.unobservable.insert(pid, why.to_owned()).as_deref() != Some(why) {
            warn!(pid, comm, why, "cannot be observed; `llamaprobe plan` tells more");
        }
    }

    fn watch(&mut self, target: Target, plan: Plan) {
        let now = Instant::now();
        let pid = target.pid;
        let known = self.session.plan(pid).map(sites);
        if known.as_ref().is_some_and(|known| *known == sites(&plan)) {
            self.session.refresh(now, target, plan);
            return;
        }
        // First who, then where: what fires in between is counted, not reported as a stranger's.
        let index = match self.seats.get(&pid) {
            Some(seat) => seat.index,
            None => match self.free_index() {
                Some(index) => index,
                None => {
                    return self.refuse(
                        pid,
                        &target.comm,
                        "as many processes as possible are observed already",
                    );
                }
            },
        };
        let seated = if self.seats.contains_key(&pid) {
            self.kernel.update(pid, index, plan.flags)
        } else {
            self.kernel.observe(pid, index, plan.flags)
        };
        if let Err(error) = seated {
            return error!(pid, %error, "cannot observe");
        }
        self.seats.insert(pid, Seat { index, start_time: target.start_time });
        let file =
            |id| target.images.iter().find(|mapped| mapped.image.id == id).map(|mapped| mapped.file.clone());
        for failure in self.kernel.attach(pid, &plan.probes, file) {
            self.attach_failures += 1;
            error!(pid, %failure, "a probe cannot be attached");
        }
        self.unobservable.remove(&pid);
        info!(
            pid,
            comm = target.comm,
            probes = plan.probes.len(),
            missing = ?plan.missing.iter().map(|missing| missing.role.name()).collect::<Vec<_>>(),
            "observing"
        );
        if known.is_some() {
            self.session.refresh(now, target, plan);
        } else {
            self.session.begin(now, target, plan);
        }
    }

    fn free_index(&self) -> Option<u32> {
        (0..MAX_TARGETS).find(|index| self.seats.values().all(|seat| seat.index != *index))
    }

    /// A process ended or is llama.cpp no longer. Nothing happens when it was not observed.
    fn end(&mut self, pid: u32) {
        self.unobservable.remove(&pid);
        let Some(seat) = self.seats.remove(&pid) else { return };
        let last = self.kernel.reading(pid, seat.index).unwrap_or_else(|error| {
            error!(pid, %error, "the last counts are lost");
            Reading::default()
        });
        self.session.end(Instant::now(), pid, &last, self.prices);
        self.kernel.forget(pid);
        self.kernel.release(pid);
        info!(pid, "ended");
    }

    fn answer(&mut self, question: Question) {
        // Whoever asked may have gone meanwhile.
        match question {
            Question::Ready(reply) => drop(reply.send(self.ready)),
            Question::Metrics(reply) => match prometheus::render(&self.snapshot()) {
                Ok(text) => drop(reply.send(text)),
                Err(error) => error!(%error, "the metrics cannot be rendered"),
            },
        }
    }

    /// Reads the maps and says what is known now.
    fn snapshot(&mut self) -> Snapshot {
        let now = Instant::now();
        for (&pid, seat) in &self.seats {
            match self.kernel.reading(pid, seat.index) {
                Ok(reading) => self.session.read(now, pid, &reading, self.prices),
                Err(error) => error!(pid, %error, "cannot read the counts"),
            }
        }
        Snapshot {
            servers: self.session.servers(),
            own: self.kernel.own_stats().unwrap_or_default(),
            prices: self.prices,
            targets: self.seats.len(),
            unobservable: self.unobservable.len(),
            attach_failures: self.attach_failures,
            cpu: cpu_time(),
            resident_bytes: resident_bytes(),
            started: self.started.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()),
        }
    }

    fn detach_all(&mut self) {
        let pids: Vec<u32> = self.seats.keys().copied().collect();
        for pid in pids {
            self.kernel.forget(pid);
        }
    }
}

/// What a plan attaches: two plans with the same sites need no change.
fn sites(plan: &Plan) -> (u32, BTreeSet<(crate::discovery::image::ImageId, u64)>) {
    (plan.flags, plan.probes.iter().map(|probe| (probe.image.id, probe.offset())).collect())
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
