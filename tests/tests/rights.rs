//! With how little the agent does with: four capabilities where the kernel attaches uprobes by links, and by perf events where it
//! has none. Both ways count the same and leave nothing behind.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{Agent, run_json};
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::client::Call;
use llamaprobe_tests::comparison::assert_counted;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::{privileged, skip};
use llamaprobe_tests::text;
use llamaprobe_tests::tls::Identity;
use serde_json::json;

/// CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_PERFMON and CAP_BPF of linux/capability.h.
const FOUR: u64 = 1 << 2 | 1 << 19 | 1 << 38 | 1 << 39;

/// What becomes the agent with [`FOUR`] alone. tracefs is mounted before, as systemd does: that takes more.
const WITH_FOUR: &str = "mount -t tracefs tracefs /sys/kernel/tracing && \
    caps=-all,+dac_read_search,+sys_ptrace,+perfmon,+bpf && \
    exec setpriv --no-new-privs --bounding-set=$caps --inh-caps=-all \"$@\"";

fn with_four(arguments: &[&str]) -> Result<Agent> {
    Agent::start_through(&["unshare", "--mount", "sh", "-c", WITH_FOUR, "sh"].map(str::to_owned), arguments)
}

fn by_perf_events(arguments: &[&str]) -> Result<Agent> {
    Agent::start_with(arguments, &[("LLAMAPROBE_ATTACH_BY", "perf-events")])
}

/// The sets of capabilities that a process has or could get.
fn capabilities(pid: u32) -> Result<Vec<u64>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let sets: Vec<_> = status.lines().filter(|line| line.starts_with("Cap")).collect();
    println!("{}", sets.join("\n"));
    let number = |line: &&str| u64::from_str_radix(line.split_whitespace().last()?, 16).ok();
    sets.iter().map(number).collect::<Option<_>>().context("a set is no number")
}

/// How many links of type `uprobe_multi` a process holds.
fn links(pid: u32) -> Result<usize> {
    let mut links = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        links += usize::from(info.lines().any(|line| line == "link_type:\tuprobe_multi"));
    }
    Ok(links)
}

/// Whether this kernel attaches uprobes by links; skips the running test if not.
fn has_links() -> Result<bool> {
    let doctor = run_json(&["doctor", "--json"])?;
    let checks = doctor["checks"].as_array().context("no checks")?;
    let check = checks.iter().find(|check| check["name"] == "uprobe links").context("no such check")?;
    let has = check["verdict"] == "ok";
    if !has {
        skip(&format!("without CAP_SYS_ADMIN nothing can be attached here: {}", check["found"]));
    }
    Ok(has)
}

fn over_tls(assets: &Assets) -> Result<LlamaServer> {
    let launch = Launch::new(Build::Monolith, &assets.tiny(), &["-np", "2", "-c", "4096", "-t", "1"])?;
    launch.over_tls(&Identity::new()?).start()
}

/// One server that speaks HTTP and one that speaks TLS, whose library gets the only return probe.
fn observes(assets: &Assets, start: impl Fn(&[&str]) -> Result<Agent>) -> Result<(Vec<u64>, usize)> {
    let plain = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "2", "-c", "4096", "-t", "1"])?;
    let tls = over_tls(assets)?;
    let log = RequestLog::new()?;
    // What other servers of the host lose is not its own loss.
    let pids = [plain.pid(), tls.pid()].map(|pid| pid.to_string());
    let only = ["--pid", &pids[0], "--pid", &pids[1]];
    let agent = start(&[&log.arguments()?[..], &only].concat())?;
    agent.wait_observed(&plain)?;
    agent.wait_observed(&tls)?;
    let keeper = agent.keeper()?;
    let found = (capabilities(keeper)?, links(keeper)?);

    assert_counted(&agent, &plain)?;
    let body = |stream| json!({"prompt": "a b c", "n_predict": 7, "ignore_eos": true, "stream": stream});
    let calls = [false, true].map(|stream| Call::post("/completion", &body(stream)));
    for call in &calls {
        ensure!(call.send(tls.endpoint(), &mut None)?.status() == Some(200), "not answered");
    }
    let lines = log.wait(&calls.each_ref().map(|call| call.trace))?;
    for lines in lines.values() {
        let told: Vec<_> = lines.iter().map(|line| (line.join.as_str(), line.completion_tokens)).collect();
        assert_eq!(told, [("exact", 7)], "{lines:?}");
    }
    let metrics = agent.scrape()?;
    assert_eq!(metrics.sum("llamaprobe_lost_total", &[]), 0.0);
    // It maps the same library, or calls functions of the same names: what is attached for one process is not another's.
    let hits = |server: &LlamaServer| {
        metrics.sum("llamaprobe_probe_hits_total", &[("server", &server.label()), ("probe", "ssl_read")])
    };
    assert!(hits(&tls) > 0.0 && hits(&plain) == 0.0, "{} {}", hits(&tls), hits(&plain));

    agent.stop()?;
    for server in [&plain, &tls] {
        text::wait_restored(server.pid()).context("nothing stays")?;
    }
    Ok(found)
}

#[test]
fn four_capabilities_suffice() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    if Command::new("setpriv").arg("--version").output().is_err() {
        skip("setpriv is missing");
        return Ok(());
    }
    if !has_links()? {
        return Ok(());
    }
    let (capabilities, links) = observes(&assets, with_four)?;
    // Inheritable, permitted, effective, bounding, ambient.
    assert_eq!(capabilities, [0, FOUR, FOUR, FOUR, 0]);
    assert!(links > 20, "{links} links");
    Ok(())
}

#[test]
fn perf_events_count_the_same() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let (_, links) = observes(&assets, by_perf_events)?;
    assert_eq!(links, 0);
    Ok(())
}
