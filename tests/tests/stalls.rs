//! What held decode steps back: it is injected, one thing at a time, and the agent has to say what it was.
//!
//! What was lost is what the server says that its tokens took longer than before. The server goes before everybody else on
//! the machine, so that nobody but the test holds it back; what is left of others is measured before, and allowed for.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_api::{Document, Live, Server};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::{Assets, Build, workspace_root};
use llamaprobe_tests::client::{Answer, Call};
use llamaprobe_tests::control_group::ControlGroup;
use llamaprobe_tests::http;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::request_log::{Line, RequestLog};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::{privileged, skip};
use llamaprobe_tests::wait_for;
use rustix::process::Signal;
use serde_json::json;

/// Tokens of a request: some seconds.
const TOKENS: u32 = 150;

/// How much of what was lost must be charged to its cause.
const RIGHT: f64 = 0.9;
/// How much of it may be charged to another.
const WRONG: f64 = 0.02;
/// What may be charged to another in any case, seconds.
const FLOOR: f64 = 0.01;

/// How often something is injected until the figures hold: what others on the machine, or those who share its processors
/// with other machines, take from a run cannot be told from what was injected into it.
const ATTEMPTS: u32 = 4;

/// A server that goes before everybody, and an agent that watches it.
struct Bench {
    agent: Agent,
    log: RequestLog,
    server: LlamaServer,
    group: ControlGroup,
    /// What holds it back must not wait until the server is done.
    others: ControlGroup,
    assets: Assets,
    scratch: Scratch,
}

/// A run of `hold_back.py`.
struct Holder {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Holder {
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Begins.
    fn begin(&mut self) -> Result<()> {
        writeln!(self.input).context("hold_back.py has ended")
    }

    /// Begins and waits for the end. Returns what it says.
    fn finish(mut self) -> Result<String> {
        self.begin()?;
        let said = self.line()?;
        let status = wait_for("the end of hold_back.py", Duration::from_secs(30), || self.process.ended())?;
        ensure!(status.success(), "hold_back.py ended with {status}");
        Ok(said)
    }
}

/// A request and what is known of the time that it took.
#[derive(Debug)]
struct Run {
    /// From the first token to the last, as the server says, seconds.
    decode: f64,
    /// Time of decode calls, as the agent says.
    engine: f64,
    /// Charged by cause.
    charged: BTreeMap<String, f64>,
    /// Of single threads, not told.
    untold: f64,
    /// What all threads together waited for a processor, as /proc/PID/task/*/schedstat says.
    waited: f64,
    line: Line,
}

impl Run {
    fn of(&self, cause: &str) -> f64 {
        self.charged.get(cause).copied().unwrap_or(0.0)
    }
}

impl Bench {
    fn start(name: &str) -> Result<Option<Self>> {
        Self::start_within(name, |_| Ok(Vec::new()))
    }

    /// The same with a server that another program starts, which is given a directory for files.
    fn start_within(
        name: &str,
        wrapper: impl FnOnce(&Scratch) -> Result<Vec<OsString>>,
    ) -> Result<Option<Self>> {
        let Some(assets) = privileged() else { return Ok(None) };
        let groups =
            (ControlGroup::first_of_all(name)?, ControlGroup::first_of_all(&format!("{name}-others"))?);
        let (Some(group), Some(others)) = groups else {
            skip("no control group for processors can be made here");
            return Ok(None);
        };
        // Of its own, so that nobody else has its pages mapped.
        let scratch = Scratch::new()?;
        let model = scratch.copy(&assets.gemma(), "gemma.gguf")?;
        // What is not on disk yet does not leave memory.
        std::fs::File::open(&model)?.sync_all()?;
        let launch = Launch::new(Build::Process, &model, &["-np", "2", "-c", "2048", "-t", "2"])?;
        let wrapper = group.command().into_iter().chain(wrapper(&scratch)?);
        let server = launch.through(wrapper).start()?;
        let log = RequestLog::new()?;
        let pid = server.pid().to_string();
        let agent = Agent::start(&[&log.arguments()?[..], &["--pid", &pid]].concat())?;
        agent.wait_observed(&server)?;
        let bench = Self { agent, log, server, group, others, assets, scratch };
        bench.run(|| Ok(()))?;
        Ok(Some(bench))
    }

    fn ask(&self) -> Result<Answer> {
        let body = json!({ "prompt": "Once upon a time", "n_predict": TOKENS, "ignore_eos": true, "cache_prompt": false });
        Call::post("/completion", &body).send(self.server.endpoint(), &mut None)
    }

    /// One request, with something that happens as soon as it is under way.
    fn run(&self, disturb: impl FnOnce() -> Result<()>) -> Result<Run> {
        let figures = || {
            let metrics = self.agent.scrape()?;
            let stalls = metrics.select("llm_stall_seconds_total", &[]);
            let charged: BTreeMap<_, _> = stalls.map(|it| (it.labels["cause"].clone(), it.value)).collect();
            let engine = metrics.sum("llm_engine_seconds_total", &[]);
            Ok::<_, anyhow::Error>((
                charged,
                engine,
                metrics.sum("llamaprobe_untold_stall_seconds_total", &[]),
            ))
        };
        let (before, waited) = (figures()?, run_delay(self.server.pid())?);
        let answer = thread::scope(|scope| {
            let asked = scope.spawn(|| self.ask());
            thread::sleep(Duration::from_millis(200));
            disturb()?;
            asked.join().map_err(|_panic| anyhow::anyhow!("the client panicked"))?
        })?;
        let lines = self.log.wait(&[answer.call.trace])?;
        let line = lines.into_values().flatten().next().context("no line in the log")?;
        let (after, waited) = (figures()?, run_delay(self.server.pid())? - waited);
        let rise =
            |(cause, value): (&String, &f64)| (cause.clone(), value - before.0.get(cause).unwrap_or(&0.0));
        let timings = answer.timings.context("no timings")?;
        Ok(Run {
            decode: timings.predicted_ms / 1e3,
            engine: after.1 - before.1,
            charged: after.0.iter().map(rise).collect(),
            untold: after.2 - before.2,
            waited,
            line,
        })
    }

    /// Checks that what was lost is charged to its cause, and to no other. `prepare` makes ready what disturbs.
    fn check<D: FnOnce() -> Result<()>>(
        &self,
        name: &str,
        cause: &str,
        second: impl Fn() -> Result<String>,
        prepare: impl Fn() -> Result<D>,
    ) -> Result<()> {
        for _ in 1..ATTEMPTS {
            match self.check_once(name, cause, &second, prepare()?) {
                Ok(()) => return Ok(()),
                Err(error) => println!("  once more: {error:#}"),
            }
        }
        self.check_once(name, cause, &second, prepare()?)
    }

    fn check_once(
        &self,
        name: &str,
        cause: &str,
        second: impl Fn() -> Result<String>,
        disturb: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let quiet = [self.run(|| Ok(()))?, self.run(|| Ok(()))?];
        let run = self.run(disturb)?;
        let usual = quiet.iter().map(|run| run.decode).sum::<f64>() / 2.0;
        let lost = run.decode - usual;
        // What others take from the server while nothing is injected.
        let ambient = quiet.iter().map(|run| run.of("runnable") / run.decode).fold(0.0, f64::max);
        println!("{name}: {:.3} s, {usual:.3} s without: {lost:.3} s lost", run.decode);
        run.charged.iter().filter(|(_, charged)| **charged > 0.0).for_each(|(cause, charged)| {
            println!("  {cause:12} {charged:.3} s  {:5.1} % of what was lost", charged / lost * 100.0);
        });
        println!("  untold {:.4} s; decode calls {:.3} s; {}", run.untold, run.engine, second()?);
        println!("  run delay of all threads {:.3} s; without {:.3} s", run.waited, quiet[1].waited);
        println!(
            "  the request: {:?}, longest gap {:?} ms: {:?}",
            run.line.stall_ms, run.line.worst_gap_ms, run.line.worst_gap_cause
        );
        ensure!(lost > 0.5, "too little was lost to judge by");
        ensure!(run.of(cause) >= RIGHT * lost, "{cause} has {:.3} s of {lost:.3} s", run.of(cause));
        for (other, charged) in run.charged.iter().filter(|(other, _)| *other != cause) {
            let own = if other == "runnable" { 2.0 * ambient * run.decode } else { 0.0 };
            let allowed = FLOOR + WRONG * lost + own;
            ensure!(*charged <= allowed, "{other} has {charged:.3} s of {lost:.3} s, {allowed:.3} s at most");
        }
        let all: f64 = run.charged.values().sum();
        let took = [run.line.prefill_ms, run.line.decode_ms].into_iter().flatten().sum::<f64>() / 1e3;
        ensure!(all <= took, "{all:.3} s charged, of {took:.3} s that the request took");
        let told: f64 = run.line.stall_ms.values().sum::<f64>() / 1e3;
        ensure!((told - all).abs() < 0.01, "the only request is told {told:.3} s of {all:.3} s");
        ensure!(run.line.worst_gap_cause.as_deref() == Some(cause), "{:?}", run.line);
        Ok(())
    }

    /// A way of `hold_back.py`, ready to begin: to start takes processors, too.
    fn hold_back(&self, arguments: &[&str]) -> Result<Holder> {
        let [program, within @ ..] = self.others.command();
        let mut command = tied(program);
        command.args(within).arg(self.assets.python());
        command.arg(workspace_root().join("tests/assets/hold_back.py")).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start("hold_back.py", &mut command)?;
        let child = process.child();
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = BufReader::new(output.context("no standard output")?);
        let mut holder = Holder { process, input: input.context("no standard input")?, output };
        ensure!(holder.line()? == "READY", "hold_back.py is not ready");
        Ok(holder)
    }

    /// The thread that computes beside the one that decodes: who ran longest meanwhile.
    fn worker(&self) -> Result<String> {
        let ran = || {
            let files = std::fs::read_dir(format!("/proc/{}/task", self.server.pid()))?;
            let threads = files.flatten().filter_map(|entry| {
                let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
                let ran: u64 = text.split(' ').next()?.parse().ok()?;
                Some((entry.file_name().to_string_lossy().into_owned(), ran))
            });
            Ok::<BTreeMap<_, _>, std::io::Error>(threads.collect())
        };
        let before = ran()?;
        self.ask()?;
        let decoder = self.server.pid().to_string();
        let rise = |(thread, ran): (String, u64)| (ran - before.get(&thread).unwrap_or(&0), thread);
        let workers = ran()?.into_iter().filter(|(thread, _)| *thread != decoder).map(rise);
        workers.max().map(|(_, thread)| thread).context("no thread")
    }
}

/// What all threads of a process have waited for a processor, seconds.
fn run_delay(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let text = std::fs::read_to_string(entry.path().join("schedstat")).unwrap_or_default();
        sum += text.split(' ').nth(1).and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0) / 1e9;
    }
    Ok(sum)
}

#[test]
fn a_quota_of_the_control_group() -> Result<()> {
    let Some(bench) = Bench::start("quota")? else { return Ok(()) };
    let before = bench.group.throttled()?;
    let second = || {
        Ok(format!("cpu.stat: throttled {:.3} s, processor by processor", bench.group.throttled()? - before))
    };
    bench.check("CPU quota of one processor for two threads", "throttled", second, || {
        Ok(|| {
            bench.group.limit(Some(100_000))?;
            thread::sleep(Duration::from_secs(2));
            bench.group.limit(None)
        })
    })?;
    bench.agent.stop()
}

#[test]
fn neighbours_that_spin_on_the_same_processors() -> Result<()> {
    let Some(bench) = Bench::start("neighbours")? else { return Ok(()) };
    bench.check(
        "two neighbours that spin",
        "runnable",
        || Ok(String::new()),
        || {
            let mut spin = bench.hold_back(&["spin", "0", "1"])?;
            Ok(move || {
                spin.begin()?;
                thread::sleep(Duration::from_secs(2));
                spin.process.stop().map(drop)
            })
        },
    )?;
    bench.agent.stop()
}

#[test]
fn a_process_that_is_stopped() -> Result<()> {
    let Some(bench) = Bench::start("stopped")? else { return Ok(()) };
    bench.check(
        "SIGSTOP three times for 0.6 s",
        "stopped",
        || Ok("1.800 s stopped".into()),
        || {
            Ok(|| {
                for _ in 0..3 {
                    bench.server.signal(Signal::STOP)?;
                    thread::sleep(Duration::from_millis(600));
                    bench.server.signal(Signal::CONT)?;
                    thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            })
        },
    )?;
    bench.agent.stop()
}

#[test]
fn one_thread_that_is_stopped_while_the_others_spin() -> Result<()> {
    let Some(bench) = Bench::start("thread")? else { return Ok(()) };
    let worker = bench.worker()?;
    bench.check(
        "one of two threads stopped three times for 0.6 s",
        "stopped",
        || Ok(String::new()),
        || {
            let stopper = bench.hold_back(&["stop-thread", &worker, "3", "0.6"])?;
            Ok(move || {
                println!("stopped for {} s", stopper.finish()?);
                Ok(())
            })
        },
    )?;
    bench.agent.stop()
}

#[test]
fn weights_that_are_not_in_memory() -> Result<()> {
    let Some(mut bench) = Bench::start("weights")? else { return Ok(()) };
    let pid = bench.server.pid().to_string();
    let model = bench.scratch.path().join("gemma.gguf");
    bench.group.limit_reads(bench.server.pid(), &model, 40_000_000)?;
    let bench = bench;
    let read = || -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("read_bytes: ")).context("no read_bytes")?;
        Ok(line.parse::<f64>()? / 1e6)
    };
    let path = model.to_str().context("a path without a name")?;
    let before = read()?;
    let second = || Ok(format!("read from disk: {:.0} MB", read()? - before));
    bench.check("weights taken out of memory, on a disk of 40 MB/s", "page_fault", second, || {
        let out = bench.hold_back(&["page-out", &pid, path])?;
        Ok(move || out.finish().map(drop))
    })?;
    bench.agent.stop()
}

/// Has a server started with a library of the tests before all others.
fn preloading(scratch: &Scratch, name: &str, variable: &str) -> Result<Vec<OsString>> {
    let library = scratch.path().join(format!("{name}.so"));
    let source = workspace_root().join(format!("tests/assets/{name}.c"));
    let built =
        Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status()?;
    ensure!(built.success(), "{} does not build", source.display());
    Ok(vec!["env".into(), format!("LD_PRELOAD={}", library.display()).into(), variable.into()])
}

/// The same so that a lock that it needs can be held three times for a while, by a file `hold`.
fn lockable(scratch: &Scratch, ms: u32) -> Result<Vec<OsString>> {
    let file = scratch.path().join("hold");
    let command = preloading(scratch, "hold_lock", &format!("HOLD_LOCK={}", file.display()))?;
    Ok(command.into_iter().chain([format!("HOLD_LOCK_MS={ms}").into()]).collect())
}

#[test]
fn a_lock_that_another_thread_holds() -> Result<()> {
    let Some(bench) = Bench::start_within("lock", |scratch| lockable(scratch, 600))? else { return Ok(()) };
    bench.check(
        "a lock held three times for 0.6 s",
        "lock",
        || Ok("1.800 s held".into()),
        || Ok(|| bench.scratch.write("hold", b"").map(drop)),
    )?;
    bench.agent.stop()
}

/// What is told of the only server.
fn told(agent: &Agent) -> Option<Server> {
    let reply = http::get(agent.address(), "/snapshot").ok()?;
    serde_json::from_str::<Document>(&reply.body).ok()?.servers.into_iter().next()
}

#[test]
fn where_the_engine_waits_of_a_server_that_does_not_go_on() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    // Longer than it takes to be told, and until the server ends.
    let launch = Launch::new(Build::Process, &assets.gemma(), &["-np", "1", "-c", "8192", "-t", "1"])?;
    let server = launch.through(lockable(&scratch, 60_000)?).start()?;
    let agent = Agent::observing(&server)?;
    let body = json!({ "prompt": "Once upon a time", "n_predict": 8000, "ignore_eos": true });
    let (call, endpoint) = (Call::post("/completion", &body), server.endpoint());
    // It gets no whole answer.
    thread::spawn(move || call.send(endpoint, &mut None).map(drop));
    let wait = |what: &str, wanted: &dyn Fn(&Live) -> bool| {
        let seen = || told(&agent)?.live.filter(|live| wanted(live));
        wait_for(what, Duration::from_secs(30), seen).context(agent.log())
    };
    let works =
        |live: &Live| live.slots_busy == Some(1) && live.last_decode_age_seconds.is_some_and(|age| age < 2.0);
    let live = wait("a server at work", &works)?;
    assert_eq!(live.engine_thread, None, "it goes on");

    server.signal(Signal::STOP)?;
    let live = wait("where a stopped server is", &|live| live.engine_thread.is_some())?;
    let thread = live.engine_thread.context("no thread")?;
    println!("stopped: {thread:?}");
    assert_eq!((thread.tid, &*thread.state), (server.pid(), "T"));
    let request = told(&agent).context("no server")?.latest[0].id.clone();
    let listen = agent.address().to_string();
    for command in [&["explain", &request][..], &["snapshot"]] {
        let output = agent::run(&[command, &["--listen", &listen]].concat())?;
        let text = String::from_utf8(output.stdout)?;
        println!("{text}");
        assert!(text.contains(&format!("the engine's thread {} is stopped (T)", server.pid())), "{text}");
    }
    server.signal(Signal::CONT)?;
    wait("a server that goes on", &|live| works(live) && live.engine_thread.is_none())?;

    scratch.write("hold", b"")?;
    let live = wait("where a server waits for a lock", &|live| live.engine_thread.is_some())?;
    let thread = live.engine_thread.context("no thread")?;
    println!("waits for a lock: {thread:?}");
    assert_eq!((&*thread.state, thread.system_call.as_deref()), ("S", Some("futex")));
    // The kernel's own name, which changes from one to the next: futex_wait_queue_me, futex_wait_queue, futex_do_wait.
    assert!(thread.wait_channel.as_ref().is_some_and(|it| it.starts_with("futex")), "{thread:?}");
    server.kill()?;
    agent.stop()
}

#[test]
fn what_missing_weights_cost_is_told_before_anybody_pays() -> Result<()> {
    // A look is due every half minute; a process that begins to listen is looked at at once.
    let within = |scratch: &Scratch| {
        let file = scratch.path().join("look");
        preloading(scratch, "listen_once", &format!("LISTEN_ONCE={}", file.display()))
    };
    let Some(mut bench) = Bench::start_within("forecast", within)? else { return Ok(()) };
    let (pid, model) = (bench.server.pid(), bench.scratch.path().join("gemma.gguf"));
    bench.group.limit_reads(pid, &model, 60_000_000)?;
    let path = model.to_str().context("a path without a name")?;
    let page_out =
        |share: f64| bench.hold_back(&["page-out", &pid.to_string(), path, &share.to_string()])?.finish();
    let first_token = || -> Result<f64> {
        let body = json!({ "prompt": "Once upon a time", "n_predict": 4, "cache_prompt": false });
        let answer = Call::post("/completion", &body).send(bench.server.endpoint(), &mut None)?;
        let line = bench.log.wait(&[answer.call.trace])?.into_values().flatten().next();
        Ok(line.and_then(|line| line.ttft_ms).context("no first token")? / 1e3)
    };
    let look = |what: &str, wanted: &dyn Fn(&Live) -> bool| {
        bench.scratch.write("look", b"")?;
        let seen = || told(&bench.agent)?.live.filter(|live| wanted(live));
        wait_for(what, Duration::from_secs(45), seen).context(bench.agent.log())
    };
    let missing = |live: &Live| {
        live.weights.map_or(0.0, |weights| 1.0 - weights.resident as f64 / weights.mapped as f64)
    };

    let usual = first_token()?;
    page_out(1.0)?;
    let live = look("that the weights are out", &|live| missing(live) > 0.8)?;
    assert_eq!(live.reload_forecast_seconds, None, "nobody has seen how fast this disk is");
    println!("first token after {usual:.3} s, and {:.3} s without weights", first_token()?);
    for share in [0.5, 1.0] {
        let back = |live: &Live| missing(live) < 0.1 && live.reload_forecast_seconds.is_some();
        look("that the weights are back", &back)?;
        page_out(share)?;
        let live = look("that the weights are out", &|live| missing(live) > 0.8 * share)?;
        let forecast = live.reload_forecast_seconds.context("no forecast")?;
        let real = first_token()? - usual;
        let (gone, off) = (missing(&live) * 100.0, (forecast / real - 1.0) * 100.0);
        println!("{gone:.0} % missing: {forecast:.3} s told, {real:.3} s later in truth ({off:+.0} %)");
        // What others on the machine take from either of the two.
        ensure!((0.5..2.0).contains(&(forecast / real)), "{forecast} s told, {real} s in truth");
    }
    bench.agent.stop()
}
