//! What `/proc` says of one process: the files it maps, who it is, and where it listens.
//!
//! In: the root of procfs (tests give a fake one) and a pid. Out: values. A process may go at any moment;
//! every function then fails with [`io::ErrorKind::NotFound`]. All errors name the file.

mod listener;
mod mapping;
mod place;
mod thread;
mod user;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs::{File, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, BufRead, BufReader, Read},
    net::SocketAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
    param::clock_ticks_per_second,
    time::{ClockId, clock_gettime},
};

pub use self::{
    listener::Listener,
    mapping::Mapping,
    place::{Place, container},
    thread::Thread,
};
use self::{
    listener::{Parse, Socket, State, tcp, unix},
    mapping::{DELETED, file_of, mapping},
    user::User,
};
use super::budget::Budget;

/// Files of one process that are looked at.
const MAX_FILES: usize = 16_384;
/// How much dearer a byte of `maps` is than one of a file: the kernel makes it on the spot, under a lock of the process.
const MAPS_PRICE: u64 = 64;
/// More than the kernel lets a process have as arguments or environment, less than what would hurt the agent.
const MAX_TEXT: u64 = 8 << 20;

/// Opens a regular file. A process may map a device or have a pipe where a library was: opening those would wait, or act
/// on hardware. So the descriptor comes first, without opening; then the look at what it is.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    regular(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens for reading what a descriptor stands for, if that is a regular file.
fn regular(what: OwnedFd) -> io::Result<File> {
    if !File::from(what.try_clone()?).metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(descriptor(&what))
}

/// Opens a regular file by a path in a root, which links do not leave.
fn within(root: &OwnedFd, path: &Path) -> io::Result<File> {
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    regular(openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within)?)
}

/// A path that leads to the very thing that a descriptor of this process stands for.
pub fn descriptor(of: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", of.as_raw_fd()))
}

/// The process that an id stands for: that of a thread stands for its process.
///
/// # Errors
///
/// When there is no such process.
pub fn process_of(pid: u32) -> io::Result<u32> {
    ProcessRoot::new(Path::new("/proc"), pid).thread_group()
}

/// A process for ever: ids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: u32,
    /// When it started, clock ticks since boot.
    pub start_time: u64,
}

/// The environment of a process.
#[derive(Clone, Debug, Default)]
pub struct Environment(Vec<u8>);

impl Environment {
    /// The value of a variable.
    pub fn get(&self, key: &str) -> Option<String> {
        let mut entries = self.0.split(|byte| *byte == 0);
        entries.find_map(|entry| entry.strip_prefix(key.as_bytes())?.strip_prefix(b"=")).map(lossy)
    }
}

/// The directory of one process. It is held: whatever is read through it is of this process, and nothing can be read when
/// it has ended, whoever has its id by then.
#[derive(Debug)]
pub struct ProcessRoot {
    directory: PathBuf,
    /// What it is called in errors.
    named: PathBuf,
    held: Option<OwnedFd>,
}

impl ProcessRoot {
    /// `root` is where procfs is mounted, `pid` a process in the pid namespace of that mount.
    pub fn new(root: &Path, pid: u32) -> Self {
        let named = root.join(pid.to_string());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = openat(CWD, &named, flags, Mode::empty()).ok();
        // Reading through a name that does not exist says so, with the name.
        let directory = held.as_ref().map_or_else(|| named.clone(), descriptor);
        Self { directory, named, held }
    }

    /// Whether there is, or was when it was opened, such a process.
    pub const fn exists(&self) -> bool {
        self.held.is_some()
    }

    /// Whether it is the process that is meant, and lives.
    pub fn is(&self, id: ProcessId) -> bool {
        self.start_time().is_ok_and(|now| now == id.start_time) && !self.is_zombie().unwrap_or(true)
    }

    /// The user it belongs to.
    pub fn owner(&self) -> io::Result<u32> {
        Ok(std::fs::metadata(&self.directory)?.uid())
    }

    /// The process that a thread belongs to; its own id for a process.
    pub fn thread_group(&self) -> io::Result<u32> {
        self.status("Tgid:")?.and_then(|id| id.parse().ok()).ok_or_else(|| self.invalid("status"))
    }

    /// The mappings that a file backs, in the order of addresses, as far as the budget goes; anonymous memory, `[vdso]`
    /// and the like are left out, and so are further mappings of a file, told apart by whether they are executable.
    pub fn mappings(&self, budget: &Budget) -> io::Result<Vec<Mapping>> {
        let (mut mappings, mut seen) = (Vec::new(), HashSet::new());
        self.lines("maps", |line| {
            let mut hasher = DefaultHasher::new();
            file_of(line).hash(&mut hasher);
            if file_of(line).is_some() && seen.insert(hasher.finish()) {
                mappings.extend(mapping(line));
            }
            let many = seen.len() > MAX_FILES && budget.spend(u64::MAX).is_err();
            budget.spend(line.len() as u64 * MAPS_PRICE).is_ok() && !many
        })?;
        Ok(mappings)
    }

    /// The executable mapping of this process that an address lies in.
    pub fn mapping_at(&self, address: u64) -> io::Result<Option<Mapping>> {
        let mut found = None;
        self.lines("maps", |line| {
            found = mapping(line).filter(|m| m.executable && (m.start..m.end).contains(&address));
            found.is_none()
        })?;
        Ok(found)
    }

    /// Opens the very file that is mapped, in whatever container and under whatever name.
    ///
    /// `map_files` needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, and the range as it still is; without it a
    /// file is looked for as the executable, and under its name in the process's root, and is taken if it has the number
    /// of the mapped one: not what has taken its name since, nor what a link leads to.
    ///
    /// # Errors
    ///
    /// When it cannot be found, or is no regular file.
    pub fn file(&self, mapping: &Mapping) -> io::Result<File> {
        let exact = self.directory.join(format!("map_files/{:x}-{:x}", mapping.start, mapping.end));
        let failed = match open_regular(&exact) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        let is_it = |file: &File| file.metadata().is_ok_and(|stat| stat.ino() == mapping.inode);
        let mut deleted = mapping.path.clone().into_os_string();
        deleted.push(OsStr::from_bytes(DELETED));
        // The second is what the kernel shows for a living file whose name ends so.
        let root = self.root()?;
        let names = [mapping.path.as_path(), Path::new(&deleted)];
        let inside = names.into_iter().filter_map(|name| within(&root, name).ok());
        let executable = open_regular(&self.directory.join("exe")).ok();
        executable.into_iter().chain(inside).find(is_it).ok_or(failed)
    }

    /// The process's root directory.
    fn root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(CWD, self.directory.join("root"), flags, Mode::empty())?)
    }

    /// Opens the file which the process calls `name`, in its own root and from its own directory, with the rights of its
    /// user: who may not open it does not make the agent read it.
    ///
    /// # Errors
    ///
    /// When there is none, it is no regular file, its user may not open it, or the agent may not become that user.
    pub fn named_file(&self, name: &Path) -> io::Result<File> {
        let path = if name.is_absolute() {
            name.to_owned()
        } else {
            let root = std::fs::read_link(self.directory.join("root"))?;
            let cwd = std::fs::read_link(self.directory.join("cwd"))?;
            Path::new("/").join(cwd.strip_prefix(&root).map_err(io::Error::other)?).join(name)
        };
        let (user, root) = (self.user()?, self.root()?);
        user::with_rights_of(&user, || within(&root, &path))?
    }

    /// With whose rights it opens files.
    fn user(&self) -> io::Result<User> {
        // Real, effective, saved, and that of file systems.
        let id = |field: &str| -> io::Result<u32> {
            let ids = self.status(field)?.unwrap_or_default();
            let id = ids.split_ascii_whitespace().nth(3).and_then(|id| id.parse().ok());
            id.ok_or_else(|| self.invalid("status"))
        };
        let groups = self.status("Groups:")?.unwrap_or_default();
        let groups = groups.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect();
        Ok(User { uid: id("Uid:")?, gid: id("Gid:")?, groups })
    }

    /// Name of the main thread, at most 15 bytes.
    pub fn comm(&self) -> io::Result<String> {
        Ok(lossy(self.text("comm")?.trim_ascii_end()))
    }

    /// The arguments, the program's name first; none for a kernel thread.
    pub fn command_line(&self) -> io::Result<Vec<String>> {
        let text = self.text("cmdline")?;
        if text.is_empty() {
            return Ok(Vec::new());
        }
        Ok(text.strip_suffix(b"\0").unwrap_or(&text).split(|byte| *byte == 0).map(lossy).collect())
    }

    /// When the process started, in clock ticks since boot; with the pid it identifies a process.
    pub fn start_time(&self) -> io::Result<u64> {
        // Field 22 of the file, where the state is field 3.
        self.stat(22 - 3)?.parse().map_err(|_| self.invalid("stat"))
    }

    /// The processor time of all its threads, those included that have ended.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let ticks = |field| self.stat(field)?.parse::<u64>().map_err(|_| self.invalid("stat"));
        // Fields 14 and 15: in its own code, and in the kernel.
        Ok(of_ticks(ticks(14 - 3)? + ticks(15 - 3)?))
    }

    /// Bytes that it has had read from disk, page faults included.
    pub fn read_bytes(&self) -> io::Result<u64> {
        let text = lossy(&self.text("io")?);
        let bytes = text.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.trim().parse().ok());
        bytes.ok_or_else(|| self.invalid("io"))
    }

    /// When the process started, `CLOCK_MONOTONIC` nanoseconds, to a tick; off by the time that the machine slept since.
    pub fn started_ns(&self) -> io::Result<u64> {
        let now = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        let age = now(ClockId::Boottime).saturating_sub(of_ticks(self.start_time()?));
        let started = now(ClockId::Monotonic).saturating_sub(age);
        Ok(u64::try_from(started.as_nanos()).unwrap_or(u64::MAX))
    }

    /// The process that started this one, or has taken its place.
    pub fn parent(&self) -> io::Result<u32> {
        self.stat(4 - 3)?.parse().map_err(|_| self.invalid("stat"))
    }

    /// The process has ended and waits for its parent, or its main thread has ended: it maps nothing then.
    pub fn is_zombie(&self) -> io::Result<bool> {
        Ok(matches!(self.stat(0)?.as_str(), "Z" | "X" | "x"))
    }

    /// The environment as it was at exec; empty where it cannot be read.
    pub fn environment(&self) -> Environment {
        Environment(self.text("environ").unwrap_or_default())
    }

    /// Where the process runs.
    pub fn place(&self) -> Place {
        Place::read(&self.directory)
    }

    /// Seccomp mode of the main thread: 0 none, 1 strict, 2 filter; 0 where the kernel has no seccomp.
    pub fn seccomp(&self) -> io::Result<u8> {
        match self.status("Seccomp:")? {
            Some(mode) => mode.parse().map_err(|_| self.invalid("status")),
            None => Ok(0),
        }
    }

    /// The value of a line of `status`.
    fn status(&self, field: &str) -> io::Result<Option<String>> {
        let text = self.text("status")?;
        let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(field.as_bytes()));
        Ok(line.map(|value| lossy(value.trim_ascii())))
    }

    /// The listening sockets that the process has open, sorted.
    pub fn listeners(&self) -> io::Result<Vec<Listener>> {
        let mut listeners: Vec<Listener> =
            self.open_sockets(State::Listening)?.into_iter().map(|(_, socket)| socket.local).collect();
        listeners.sort_unstable();
        listeners.dedup();
        Ok(listeners)
    }

    /// The connections that the process has accepted on `listeners`: descriptor and, over TCP, the client's address.
    pub fn connections(&self, listeners: &[Listener]) -> io::Result<Vec<(i32, Option<SocketAddr>)>> {
        let accepted = |local: &Listener| {
            listeners.iter().any(|listener| match (listener, local) {
                // A wildcard listener accepts on any address.
                (Listener::Tcp(listener), Listener::Tcp(local)) => listener.port() == local.port(),
                (Listener::Unix(listener), Listener::Unix(local)) => listener == local,
                _ => false,
            })
        };
        let sockets = self.open_sockets(State::Connected)?;
        let own = sockets.into_iter().filter(|(_, socket)| accepted(&socket.local));
        Ok(own.map(|(fd, socket)| (fd, socket.remote)).collect())
    }

    /// The open sockets in a state, with their descriptors.
    fn open_sockets(&self, state: State) -> io::Result<Vec<(i32, Socket)>> {
        let sockets = self.sockets()?;
        let mut found = Vec::new();
        if sockets.is_empty() {
            return Ok(found);
        }
        let parsers: [(_, Parse); 3] = [("net/tcp", tcp), ("net/tcp6", tcp), ("net/unix", unix)];
        for (name, parse) in parsers {
            let read = self.lines(name, |line| {
                found.extend(
                    parse(line, state).and_then(|socket| Some((*sockets.get(&socket.inode)?, socket))),
                );
                true
            });
            match read {
                // A kernel without IPv6 has no tcp6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(found)
    }

    /// The open sockets: inode and descriptor.
    fn sockets(&self) -> io::Result<HashMap<u64, i32>> {
        let mut sockets = HashMap::new();
        self.descriptors(|fd, link| {
            let inode = link.strip_prefix("socket:[").and_then(|link| link.strip_suffix(']'));
            sockets.extend(inode.and_then(|inode| inode.parse::<u64>().ok()).zip(fd));
        })?;
        Ok(sockets)
    }

    /// The device files that the process has open, each once.
    pub fn devices(&self) -> io::Result<Vec<String>> {
        let mut devices = BTreeSet::new();
        self.descriptors(|_, link| {
            if link.starts_with("/dev/") {
                devices.insert(link.to_owned());
            }
        })?;
        Ok(devices.into_iter().collect())
    }

    /// Descriptor by descriptor, with what it leads to.
    fn descriptors(&self, mut each: impl FnMut(Option<i32>, &str)) -> io::Result<()> {
        for entry in std::fs::read_dir(self.directory.join("fd")).map_err(self.failed("fd"))? {
            // A descriptor that is closed meanwhile is nobody's loss.
            let entry = entry.map_err(self.failed("fd"))?;
            let fd = entry.file_name().to_str().and_then(|fd| fd.parse().ok());
            each(fd, std::fs::read_link(entry.path()).unwrap_or_default().to_str().unwrap_or_default());
        }
        Ok(())
    }

    /// A field of `stat`, counted from the state. The name before it may hold spaces and parentheses.
    fn stat(&self, field: usize) -> io::Result<String> {
        let text = self.text("stat")?;
        let after = memchr::memrchr(b')', &text).map(|at| lossy(&text[at + 1..]));
        let field = after.as_ref().and_then(|after| after.split_ascii_whitespace().nth(field));
        field.map(str::to_owned).ok_or_else(|| self.invalid("stat"))
    }

    fn text(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let read =
            File::open(self.directory.join(name)).and_then(|file| file.take(MAX_TEXT).read_to_end(&mut text));
        read.map_err(self.failed(name))?;
        Ok(text)
    }

    /// Line by line, because these files grow with the process and the host; until one says that it is enough.
    fn lines(&self, name: &str, mut each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        let file = File::open(self.directory.join(name)).map_err(self.failed(name))?;
        let mut reader = BufReader::with_capacity(64 << 10, file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(self.failed(name))? > 0 {
            if !each(line.strip_suffix(b"\n").unwrap_or(&line)) {
                break;
            }
            line.clear();
        }
        Ok(())
    }

    fn invalid(&self, name: &str) -> io::Error {
        let path = self.named.join(name);
        io::Error::new(io::ErrorKind::InvalidData, format!("unexpected text in {}", path.display()))
    }

    fn failed(&self, name: &str) -> impl Fn(io::Error) -> io::Error {
        let path = self.named.join(name);
        move |error| {
            // Reading an open file of a process that has gone fails so.
            let gone = error.raw_os_error() == Some(Errno::SRCH.raw_os_error());
            let kind = if gone { io::ErrorKind::NotFound } else { error.kind() };
            io::Error::new(kind, format!("cannot read {}: {error}", path.display()))
        }
    }
}

/// Clock ticks as time.
fn of_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The next word and what follows it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    let end = memchr::memchr(b' ', text).unwrap_or(text.len());
    text.split_at(end)
}
