//! Which process of the agent has which rights, while a server is measured; and that a server which starts when they have been
//! given up is measured like any other.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::process::children;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{finishing, run_checked};
use llamaprobe_tests::wait_for;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);
const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];

/// Numbers of capabilities in linux/capability.h.
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;
/// What a scout may have: to read with the rights of its server's user, to look into processes and at files of others.
const OF_SCOUTS: u64 = 1 << 2 | 1 << 6 | 1 << 7 | 1 << 19 | 1 << 40;

/// What `/proc/PID/status` says of a thread.
#[derive(Debug)]
struct Rights {
    permitted: u64,
    effective: u64,
    inheritable: u64,
    ambient: u64,
    no_new_privileges: bool,
    seccomp: u64,
}

impl Rights {
    fn of(status: &str) -> Result<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).with_context(|| format!("no {name} in {status:?}"))
        };
        let set = |name| Ok::<_, anyhow::Error>(u64::from_str_radix(field(name)?, 16)?);
        Ok(Self {
            permitted: set("CapPrm")?,
            effective: set("CapEff")?,
            inheritable: set("CapInh")?,
            ambient: set("CapAmb")?,
            no_new_privileges: field("NoNewPrivs")? == "1",
            seccomp: field("Seccomp")?.parse()?,
        })
    }

    fn has_only(&self, allowed: u64) -> bool {
        let held = self.permitted | self.effective | self.inheritable | self.ambient;
        held & !allowed == 0
    }

    fn is_confined(&self) -> bool {
        self.no_new_privileges && self.seccomp == 2
    }
}

/// The rights of each thread of a process.
fn rights(pid: u32) -> Result<Vec<Rights>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    // A thread may have ended meanwhile.
    let status = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    status.map(|status| Rights::of(&status)).collect()
}

#[test]
fn only_the_keeper_has_rights() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::observing(&server)?;
    let keeper = agent.keeper()?;
    let address = server.address();
    let before = Moment::now(&agent, &server)?;
    let clients = thread::spawn(move || run_checked(address, &finishing(48), 8));

    for thread in rights(agent.pid())? {
        println!("agent {thread:x?}");
        assert!(
            thread.has_only(if maps_are_open() { 0 } else { BPF | SYS_ADMIN }) && thread.is_confined(),
            "{thread:x?}"
        );
    }
    for thread in rights(keeper)? {
        println!("keeper {thread:x?}");
        assert!(thread.effective & (BPF | SYS_ADMIN) != 0, "{thread:x?}");
        assert!(thread.has_only(OF_SCOUTS | BPF | PERFMON | SYS_ADMIN), "{thread:x?}");
        assert!(thread.is_confined(), "{thread:x?}");
    }
    // They come and go as there is something to look at.
    let helpers = wait_for("a scout with its parser", PATIENCE, || {
        let helpers = children(keeper).ok()?;
        let is_there = |called: &str| helpers.values().any(|name| name == called);
        (is_there("scout") && is_there("parser")).then_some(helpers)
    })?;
    for (pid, name) in helpers.iter().filter(|(_, name)| *name == "scout" || *name == "parser") {
        let allowed = if name == "scout" { OF_SCOUTS } else { 0 };
        for thread in rights(*pid)? {
            println!("{name} {thread:x?}");
            assert!(thread.has_only(allowed) && thread.is_confined(), "{name}: {thread:x?}");
        }
    }
    clients.join().expect("the clients do not panic")?;
    let comparison = before.compare(&agent, &server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}");

    let late = LlamaServer::start(Build::Decode, &assets.tiny(), &SERVER)?;
    agent.wait_observed(&late)?;
    let before = Moment::now(&agent, &late)?;
    run_checked(late.address(), &finishing(24), 8)?;
    let comparison = before.compare(&agent, &late)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    assert!(comparison.agent("generated tokens") > 0.0, "\n{comparison}");
    agent.stop()?;
    wait_for("the keeper's end", PATIENCE, || (!fs::exists(format!("/proc/{keeper}")).ok()?).then_some(()))
}

/// Since Linux 5.19 whoever holds the descriptor of a map may use it.
fn maps_are_open() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(19))
}

#[test]
fn without_its_keeper_the_agent_ends() -> Result<()> {
    if privileged().is_none() {
        return Ok(());
    }
    let mut agent = Agent::start(&[])?;
    let keeper = i32::try_from(agent.keeper()?)?;
    let keeper = Pid::from_raw(keeper).context("a process id")?;
    // Whoever ends the agent's processes in any order does not make it leave probes behind.
    kill_process(keeper, Signal::TERM)?;
    kill_process(keeper, Signal::INT)?;
    agent.scrape()?;
    kill_process(keeper, Signal::KILL)?;
    let status = wait_for("the agent's end", PATIENCE, || agent.ended())?;
    assert_eq!(status.code(), Some(2), "{status}");
    assert!(agent.log().contains("keeper"), "{}", agent.log());
    Ok(())
}
