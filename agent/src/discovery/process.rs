//! What `/proc` says of one process: the files it maps, who it is, and where it listens.
//!
//! In: the root of procfs (tests give a fake one) and a pid. Out: values. A process may go at any moment;
//! every function then fails with [`io::ErrorKind::NotFound`]. All errors name the file.

mod listener;
mod mapping;
mod place;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read},
    net::SocketAddr,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, io::Errno};

pub use self::{
    listener::Listener,
    mapping::Mapping,
    place::{Place, container},
};
use self::{
    listener::{Parse, Socket, State, tcp, unix},
    mapping::{DELETED, mapping},
};

/// More than the kernel lets a process have as arguments or environment, less than what would hurt the agent.
const MAX_TEXT: u64 = 8 << 20;

/// Opens a regular file. A process may map a device or have a pipe where a library was: opening those would
/// wait, or act on hardware.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let regular = |is_file| if is_file { Ok(()) } else { Err(io::Error::other("not a regular file")) };
    regular(std::fs::metadata(path)?.is_file())?;
    let wait = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(wait).open(path)?;
    regular(file.metadata()?.is_file())?;
    Ok(file)
}

/// A process for ever: ids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// The directory of one process.
#[derive(Clone, Debug)]
pub struct ProcessRoot {
    directory: PathBuf,
}

impl ProcessRoot {
    /// `root` is where procfs is mounted, `pid` a process in the pid namespace of that mount.
    pub fn new(root: &Path, pid: u32) -> Self {
        Self { directory: root.join(pid.to_string()) }
    }

    /// The mappings that a file backs, in the order of addresses; anonymous memory, `[vdso]` and the like are
    /// left out.
    pub fn mappings(&self) -> io::Result<Vec<Mapping>> {
        let mut mappings = Vec::new();
        self.lines("maps", |line| {
            mappings.extend(mapping(line));
        })?;
        Ok(mappings)
    }

    /// A path that opens the very file that is mapped, in whatever container and under whatever name.
    ///
    /// `map_files` needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, and the range as it still is; without it a
    /// file that has a name is found under the process's root. Where neither works the answer does not open,
    /// rather than open the file that has taken a deleted one's name.
    pub fn file(&self, mapping: &Mapping) -> PathBuf {
        let exact = self.directory.join(format!("map_files/{:x}-{:x}", mapping.start, mapping.end));
        if open_regular(&exact).is_ok() {
            return exact;
        }
        let mut inside = self.directory.join("root").into_os_string();
        inside.push(&mapping.path);
        if mapping.deleted {
            // Also what the kernel shows for a living file whose name ends so.
            inside.push(OsStr::from_bytes(DELETED));
            let executable = self.directory.join("exe");
            let mut name = mapping.path.clone().into_os_string();
            name.push(OsStr::from_bytes(DELETED));
            if std::fs::read_link(&executable).is_ok_and(|link| link == name) {
                return executable;
            }
        }
        let inside = PathBuf::from(inside);
        if open_regular(&inside).is_ok() { inside } else { exact }
    }

    /// A path that opens the file which the process calls `name`, in its own root and from its own directory.
    pub fn named_file(&self, name: &Path) -> PathBuf {
        match name.strip_prefix("/") {
            Ok(inside) => self.directory.join("root").join(inside),
            Err(_) => self.directory.join("cwd").join(name),
        }
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
        let text = self.text("status")?;
        match text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Seccomp:")) {
            Some(mode) => lossy(mode).trim().parse().map_err(|_| self.invalid("status")),
            None => Ok(0),
        }
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
        let directory = self.directory.join("fd");
        let mut sockets = HashMap::new();
        for entry in std::fs::read_dir(&directory).map_err(named(&directory))? {
            // A descriptor that is closed meanwhile is nobody's loss.
            let entry = entry.map_err(named(&directory))?;
            let fd = entry.file_name().to_str().and_then(|fd| fd.parse::<i32>().ok());
            let link = std::fs::read_link(entry.path()).unwrap_or_default();
            let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
            sockets.extend(inode.and_then(|inode| inode.parse::<u64>().ok()).zip(fd));
        }
        Ok(sockets)
    }

    /// A field of `stat`, counted from the state. The name before it may hold spaces and parentheses.
    fn stat(&self, field: usize) -> io::Result<String> {
        let text = self.text("stat")?;
        let after = memchr::memrchr(b')', &text).map(|at| lossy(&text[at + 1..]));
        let field = after.as_ref().and_then(|after| after.split_ascii_whitespace().nth(field));
        field.map(str::to_owned).ok_or_else(|| self.invalid("stat"))
    }

    fn text(&self, name: &str) -> io::Result<Vec<u8>> {
        let path = self.directory.join(name);
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_TEXT).read_to_end(&mut text));
        read.map_err(named(&path))?;
        Ok(text)
    }

    /// Line by line, because these files grow with the process and the host.
    fn lines(&self, name: &str, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let path = self.directory.join(name);
        let mut reader = BufReader::with_capacity(64 << 10, File::open(&path).map_err(named(&path))?);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(named(&path))? > 0 {
            each(line.strip_suffix(b"\n").unwrap_or(&line));
            line.clear();
        }
        Ok(())
    }

    fn invalid(&self, name: &str) -> io::Error {
        let path = self.directory.join(name);
        io::Error::new(io::ErrorKind::InvalidData, format!("unexpected text in {}", path.display()))
    }
}

fn named(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| {
        // Reading an open file of a process that has gone fails so.
        let gone = error.raw_os_error() == Some(Errno::SRCH.raw_os_error());
        let kind = if gone { io::ErrorKind::NotFound } else { error.kind() };
        io::Error::new(kind, format!("cannot read {}: {error}", path.display()))
    }
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
