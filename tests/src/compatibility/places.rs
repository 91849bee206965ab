//! Where a server may run, and what may become of its files and of itself meanwhile.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Outcome, by_answers, compared, two_calls};
use crate::agent::Agent;
use crate::assets::{Assets, Build};
use crate::comparison::Moment;
use crate::launch::Launch;
use crate::scratch::{Installation, Scratch};
use crate::server::{LlamaServer, free_address};

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
/// How often one server is killed and started again.
const RESTARTS: usize = 10;

/// A place.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// What is special about it.
    pub name: &'static str,
    trial: fn(&Assets, &Scratch) -> Result<Outcome>,
}

/// The places.
pub const PLACES: &[Place] = &[
    Place { name: "deleted files", trial: deleted },
    Place { name: "replaced files", trial: replaced },
    Place { name: "moved files", trial: moved },
    Place { name: "a renamed executable", trial: renamed },
    Place { name: "another mount namespace", trial: mounted },
    Place { name: "another root directory", trial: rooted },
    Place { name: "another process namespace", trial: numbered },
    Place { name: "another network namespace", trial: networked },
    Place { name: "restarted ten times on one port", trial: restarted },
];

impl Place {
    /// The case of it.
    pub(super) fn case(&'static self, assets: &Assets) -> Case {
        Case {
            table: "places",
            name: self.name.to_owned(),
            needs: vec![assets.llama_server(Build::Process)],
            trial: Box::new(|assets| (self.trial)(assets, &Scratch::new()?)),
        }
    }
}

fn install(assets: &Assets, directory: &Path) -> Result<Installation> {
    Installation::copy(Build::Process, &assets.tiny(), directory)
}

fn launch(installation: &Installation) -> Result<Launch> {
    let launch = Launch::new(Build::Process, &installation.model, &SERVER)?;
    Ok(launch.executable(installation.executable.clone()))
}

/// Why these namespaces are not to be had, if so.
fn without(flags: &[&str]) -> Option<Outcome> {
    let can = Command::new("unshare").args(flags).arg("true").status().is_ok_and(|status| status.success());
    (!can).then(|| Outcome::NotRun(format!("unshare {} is refused", flags.join(" "))))
}

/// What both sides count of two requests; the agent has to know the model by its name.
fn counted(agent: &Agent, server: &LlamaServer) -> Result<Outcome> {
    let before = Moment::now(agent, server)?;
    two_calls("/completion", server)?;
    let counts = compared(&before, agent, server)?;
    let labels = [("server", &*server.label()), ("model", &*server.model())];
    ensure!(agent.scrape()?.sum("llm_model_info", &labels) == 1.0, "no model {labels:?}");
    Ok(Outcome::Counted(counts))
}

/// The same with an agent that comes later than the server.
fn observed(server: &LlamaServer) -> Result<Outcome> {
    let agent = Agent::observing(server)?;
    let outcome = counted(&agent, server)?;
    agent.stop()?;
    Ok(outcome)
}

fn deleted(assets: &Assets, scratch: &Scratch) -> Result<Outcome> {
    let directory = scratch.path().join("server");
    let server = launch(&install(assets, &directory)?)?.start()?;
    fs::remove_dir_all(&directory)?;
    observed(&server)
}

/// An upgrade under a running server: other files have the names of those that it maps.
fn replaced(assets: &Assets, scratch: &Scratch) -> Result<Outcome> {
    let directory = scratch.path().join("server");
    let old = launch(&install(assets, &directory)?)?.start()?;
    fs::remove_dir_all(&directory)?;
    let upgraded = Installation::copy(Build::Decode, &assets.tiny(), &directory)?;
    let agent = Agent::observing(&old)?;
    let first = counted(&agent, &old)?;
    let new = launch(&upgraded)?.saying(Build::Decode.says()).start()?;
    agent.wait_observed(&new)?;
    let second = counted(&agent, &new)?;
    agent.stop()?;
    Ok(first.and(second))
}

fn moved(assets: &Assets, scratch: &Scratch) -> Result<Outcome> {
    let directory = |name| scratch.path().join(name);
    let server = launch(&install(assets, &directory("old"))?)?.start()?;
    fs::rename(directory("old"), directory("new"))?;
    let agent = Agent::observing(&server)?;
    let first = counted(&agent, &server)?;
    fs::rename(directory("new"), directory("newest"))?;
    let second = counted(&agent, &server)?;
    agent.stop()?;
    Ok(first.and(second))
}

fn renamed(assets: &Assets, scratch: &Scratch) -> Result<Outcome> {
    let mut installation = install(assets, &scratch.path().join("server"))?;
    let executable = installation.executable.with_file_name("inference");
    fs::rename(&installation.executable, &executable)?;
    installation.executable = executable;
    observed(&launch(&installation)?.start()?)
}

fn mounted(assets: &Assets, scratch: &Scratch) -> Result<Outcome> {
    if let Some(why) = without(&["--mount"]) {
        return Ok(why);
    }
    let (source, mounted) = (scratch.path().join("source"), scratch.path().join("mounted"));
    let installation = install(assets, &source)?;
    fs::create_dir(&mounted)?;
    // `unshare` makes all mounts private, so this one is seen by nobody else.
    let script = r#"mount -t tmpfs tmpfs "$1" && cp -a "$0/." "$1" && shift && exec "$@""#;
    let [from, to] = [&source, &mounted].map(|path| path.as_os_str().to_owned());
    let wrapper = ["unshare", "--mount", "sh", "-c", script].map(Into::into).into_iter().chain([from, to]);
    let inside = seen(&installation, &source, &mounted)?;
    let server = launch(&inside)?.through(wrapper).start()?;
    ensure!(!inside.executable.exists() && !inside.model.exists(), "the mount is not private");
    observed(&server)
}

fn rooted(assets: &Assets, scratch: &Scratch) -> Result<Outcome> {
    if let Some(why) = without(&["--mount"]) {
        return Ok(why);
    }
    let root = scratch.path();
    let installation = install(assets, &root.join("llamaprobe-srv"))?;
    installation.copy_system_libraries(root)?;
    let inside = seen(&installation, root, Path::new("/"))?;
    ensure!(!inside.executable.exists(), "the directory is there outside, too");
    // The server finds its libraries by its own path, for which it asks /proc.
    fs::create_dir(root.join("proc"))?;
    let mut changed = OsString::from("--root=");
    changed.push(root);
    let wrapper = ["unshare", "--mount", "--mount-proc=/proc"].map(Into::into).into_iter();
    observed(&launch(&inside)?.through(wrapper.chain([changed])).start()?)
}

/// An installation as it is seen from where `from` is called `to`.
fn seen(installation: &Installation, from: &Path, to: &Path) -> Result<Installation> {
    let seen = |path: &PathBuf| path.strip_prefix(from).map(|path| to.join(path));
    Ok(Installation { executable: seen(&installation.executable)?, model: seen(&installation.model)? })
}

fn numbered(assets: &Assets, _: &Scratch) -> Result<Outcome> {
    let flags = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    if let Some(why) = without(&flags) {
        return Ok(why);
    }
    let start = |model: &Path| {
        let launch = Launch::new(Build::Process, model, &SERVER)?;
        launch.through(["unshare"].into_iter().chain(flags)).start()
    };
    let early = start(&assets.tiny())?;
    let agent = Agent::observing(&early)?;
    let first = counted(&agent, &early)?;
    early.kill()?;
    let late = start(&assets.fast())?;
    agent.wait_observed(&late)?;
    let second = counted(&agent, &late)?;
    late.kill()?;
    agent.stop()?;
    Ok(first.and(second))
}

fn networked(assets: &Assets, scratch: &Scratch) -> Result<Outcome> {
    if let Some(why) = without(&["--net"]) {
        return Ok(why);
    }
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, free_address()?.port()));
    let launch = Launch::new(Build::Process, &assets.tiny(), &SERVER)?;
    let launch = launch.over_unix(scratch.path().join("llama.sock")).also_at(address);
    observed(&launch.through(["unshare", "--net"]).start()?)
}

/// Its series go on, and what was counted stays.
fn restarted(assets: &Assets, _: &Scratch) -> Result<Outcome> {
    let mut server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::observing(&server)?;
    let mut said = Vec::new();
    for round in 0..=RESTARTS {
        if round > 0 {
            server.restart()?;
            let pid = server.pid();
            let observed = || agent.log().contains(&format!("observing pid={pid}")).then_some(());
            agent.wait_metrics("the restarted server", |_| observed()).context(round)?;
        }
        said.extend(two_calls("/completion", &server)?);
        // What a server did in the last moment before it is killed need not be known.
        let counts = Outcome::Counted(by_answers(&agent, &[server.label()], &said)?);
        ensure!(counts.is_right(), "after {round} restarts: {counts}");
    }
    let counts = by_answers(&agent, &[server.label()], &said)?;
    agent.stop()?;
    Ok(Outcome::Counted(counts))
}
