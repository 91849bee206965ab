//! A child process that does not outlive its owner.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait_for;

/// How long a process has for ending after SIGTERM.
const GRACE: Duration = Duration::from_secs(30);

/// A running child process, which is ended when this value goes.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    /// Starts a command made by [`tied`].
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { child, name })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("not a process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {} ({})", self.name, self.pid()))
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        wait_for(&format!("the end of {} after SIGTERM", self.name), GRACE, || self.ended())
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .with_context(|| format!("cannot kill {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() && self.stop().is_err() {
            let _ = self.kill();
        }
    }
}

/// A command for `program`. Where `setpriv` exists, the process is also ended when the thread that starts it
/// dies, be it by a signal; `setpriv` becomes the program, so the process id is the program's.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.is_file() {
        return Command::new(program);
    }
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// The children of a process, by their names.
pub fn children(pid: u32) -> Result<BTreeMap<u32, String>> {
    let mut children = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let child = entry.file_name().to_str().and_then(|name| name.parse().ok());
        // One may have ended meanwhile.
        let stat = fs::read_to_string(entry.path().join("stat")).ok();
        let Some((child, stat)) = child.zip(stat) else { continue };
        let Some((head, fields)) = stat.rsplit_once(") ") else { continue };
        let parent = fields.split(' ').nth(1).and_then(|parent| parent.parse().ok());
        if parent == Some(pid) {
            children.insert(child, head.split_once('(').map_or("", |(_, name)| name).to_owned());
        }
    }
    Ok(children)
}

/// Memory that a process and its descendants hold beside what they map of files, bytes: the file of a debug build is many
/// times that of a release. The least of several looks: a helper that comes and goes is not what it holds.
pub fn own_memory(pid: u32) -> Result<u64> {
    let mut least = held(pid)?;
    for _ in 1..LOOKS {
        std::thread::sleep(BETWEEN_LOOKS);
        least = least.min(held(pid)?);
    }
    Ok(least)
}

/// Looks at what a process holds.
const LOOKS: u32 = 8;
/// From one to the next.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

fn held(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = text.lines().find_map(|line| line.strip_prefix("Anonymous:")?.trim().strip_suffix(" kB"));
    let own = field.context("no line Anonymous in smaps_rollup")?.trim().parse::<u64>()? * 1024;
    // One that has ended meanwhile holds nothing.
    let others = children(pid)?.into_keys().map(|child| held(child).unwrap_or(0));
    Ok(own + others.sum::<u64>())
}

/// A log file of a child: removed in the end, but kept when a test fails.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// A new file name in the directory for temporary files.
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = format!("llamaprobe-{name}-{}-{number}.log", std::process::id());
        Self { path: std::env::temp_dir().join(file) }
    }

    /// The file, for writing.
    pub fn create(&self) -> Result<fs::File> {
        fs::File::create(&self.path).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// The whole log.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// The last lines of the log.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log is {}", self.path.display());
        } else {
            let _ = fs::remove_file(&self.path);
        }
    }
}
