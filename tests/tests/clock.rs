//! The wall's clock is set while the agent runs: a step of NTP, a machine that slept.

use std::fs::File;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::Call;
use llamaprobe_tests::otlp::Taken;
use llamaprobe_tests::otlp::calls::FAST;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::{privileged, skip};
use serde_json::json;

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
/// By what the clock is set, seconds; nothing else is off by that much.
const STEP: i64 = 3600;
const NEAR: i64 = 60;

/// Adds what the file says to the wall's clock of a process, as setting it would, but not for everybody. The file is mapped
/// at the start: later the agent may open none.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static const char *step;
__attribute__((constructor)) static void map_step(void) {
  int file = open(getenv("STEP_FILE"), O_RDONLY);
  if (file < 0) return;
  void *mapped = mmap(NULL, 32, PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) step = mapped;
}
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(id, t);
  if (id == CLOCK_REALTIME && step) t->tv_sec += strtol(step, NULL, 10);
  return result;
}
"#;

/// Seconds as the file has them, whose length stays.
fn padded(seconds: i64) -> String {
    format!("{seconds:<31}\n")
}

fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?)
}

#[test]
fn the_clock_is_followed_and_durations_hold() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    let (source, shim) = (scratch.write("shim.c", SHIM.as_bytes())?, scratch.path().join("shim.so"));
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(&source).arg("-ldl").status();
    if !compiled.is_ok_and(|status| status.success()) {
        skip("there is no C compiler to make a clock that can be set");
        return Ok(());
    }
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let (taken, pid) = (Taken::new()?, server.pid().to_string());
    let receiver = taken.receiver(&assets, 0, &[])?;
    let file = scratch.write("step", padded(0).as_bytes())?;
    let (shim, step) = (shim.display().to_string(), file.display().to_string());
    let variables = [&FAST[..], &[("LD_PRELOAD", &shim), ("STEP_FILE", &step)]].concat();
    let agent = Agent::start_with(&["--otlp-endpoint", &receiver.endpoint(), "--pid", &pid], &variables)?;
    agent.wait_observed(&server)?;
    let started =
        |agent: &Agent| anyhow::Ok(agent.scrape()?.value("process_start_time_seconds").unwrap_or(0.0) as i64);
    let begin = started(&agent)?;
    for set in [0, STEP, 0, -STEP] {
        File::options().write(true).open(&file)?.write_all(padded(set).as_bytes())?;
        let call = Call::post("/completion", &json!({"prompt": "a", "n_predict": 20, "ignore_eos": true}));
        let before = now()?;
        call.send(server.address(), &mut None)?;
        let id = call.trace.to_string();
        let span = taken.wait("the span", |taken| {
            taken.spans().ok()?.into_iter().find(|span| span.trace_id == id && span.span_kind == 2)
        })?;
        let off = |ns: u64| i64::try_from(ns / 1_000_000_000).unwrap_or(0) - (before + set);
        println!(
            "set by {set} s: the span begins {} s and ends {} s from then",
            off(span.start_ns),
            off(span.end_ns)
        );
        assert!(off(span.start_ns).abs() < NEAR && off(span.end_ns).abs() < NEAR, "set by {set} s: {span:?}");
        let length = Duration::from_nanos(span.end_ns.saturating_sub(span.start_ns));
        assert!(length > Duration::ZERO && length < Duration::from_secs(30), "{length:?}");
        assert!(
            span.events.iter().all(|event| (span.start_ns..=span.end_ns).contains(&event.at_ns)),
            "{span:?}"
        );
        ensure!(
            (started(&agent)? - begin - set).abs() < NEAR,
            "the begin of the agent is told by the same clock"
        );
    }
    agent.stop()
}
