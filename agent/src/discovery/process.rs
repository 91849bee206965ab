//! What `/proc` says of one process: the files it maps, who it is, and where it listens.
//!
//! In: the root of procfs (tests give a fake one) and a pid. Out: values. A process may go at any moment;
//! every function then fails with [`io::ErrorKind::NotFound`]. All errors name the file.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fmt,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, io::Errno};

/// More than the kernel lets a process have as arguments or environment, less than what would hurt the agent.
const MAX_TEXT: u64 = 8 << 20;
const DELETED: &[u8] = b" (deleted)";

/// One range of addresses that a file backs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// The process may execute it.
    pub executable: bool,
    /// Path as the process's mount namespace spells it, without ` (deleted)`; a memfd is `/memfd:name`.
    pub path: PathBuf,
    /// The file has no name any more (or is a memfd, which never had one).
    pub deleted: bool,
}

/// A socket that accepts connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Listener {
    /// TCP over IPv4 or IPv6, in the process's network namespace.
    Tcp(SocketAddr),
    /// Unix stream socket; an abstract name begins with `@`.
    Unix(PathBuf),
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

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

    /// The process has ended and waits for its parent, or its main thread has ended: it maps nothing then.
    pub fn is_zombie(&self) -> io::Result<bool> {
        Ok(matches!(self.stat(0)?.as_str(), "Z" | "X" | "x"))
    }

    /// Value of an environment variable as it was at exec.
    pub fn environment(&self, key: &str) -> Option<String> {
        let text = self.text("environ").ok()?;
        text.split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(key.as_bytes())?.strip_prefix(b"="))
            .map(lossy)
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
        let sockets = self.sockets()?;
        let mut listeners = Vec::new();
        if sockets.is_empty() {
            return Ok(listeners);
        }
        let parsers: [(_, Parse); 3] = [("net/tcp", tcp), ("net/tcp6", tcp), ("net/unix", unix)];
        for (name, parse) in parsers {
            let read = self.lines(name, |line| {
                listeners.extend(parse(line).filter(|(inode, _)| sockets.contains(inode)).map(|(_, at)| at));
            });
            match read {
                // A kernel without IPv6 has no tcp6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        listeners.sort_unstable();
        listeners.dedup();
        Ok(listeners)
    }

    fn sockets(&self) -> io::Result<HashSet<u64>> {
        let directory = self.directory.join("fd");
        let mut sockets = HashSet::new();
        for entry in std::fs::read_dir(&directory).map_err(named(&directory))? {
            // A descriptor that is closed meanwhile is nobody's loss.
            let link = std::fs::read_link(entry.map_err(named(&directory))?.path()).unwrap_or_default();
            let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
            sockets.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
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

/// Inode and address of the listening socket that a line describes, if it does.
type Parse = fn(&[u8]) -> Option<(u64, Listener)>;

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

/// `55d0c000-55d0d000 r-xp 00001000 fe:00 1234      /path`, where only a newline of the path is escaped.
fn mapping(line: &[u8]) -> Option<Mapping> {
    let (range, rest) = word(line);
    let (flags, rest) = word(rest);
    let (offset, rest) = word(rest);
    let (_device, rest) = word(rest);
    let (inode, rest) = word(rest);
    let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
    let path = rest.trim_ascii_start();
    // What is not a path is the kernel's own: anon_inode:..., socket:[...].
    if inode == b"0" || !path.starts_with(b"/") {
        return None;
    }
    let (path, deleted) = path.strip_suffix(DELETED).map_or((path, false), |path| (path, true));
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset: u64::from_str_radix(std::str::from_utf8(offset).ok()?, 16).ok()?,
        executable: flags.get(2) == Some(&b'x'),
        path: PathBuf::from(unescaped(path)),
        deleted,
    })
}

fn unescaped(path: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(path.len());
    let mut from = 0;
    for at in memchr::memmem::find_iter(path, br"\012") {
        plain.extend_from_slice(&path[from..at]);
        plain.push(b'\n');
        from = at + 4;
    }
    plain.extend_from_slice(&path[from..]);
    OsString::from_vec(plain)
}

/// A line of `net/tcp` or `net/tcp6`: slot, local, remote, state (0A is LISTEN), five more, inode.
fn tcp(line: &[u8]) -> Option<(u64, Listener)> {
    let mut fields = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    if fields.nth(1)? != "0A" {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    // Words of four bytes, each printed as a number of the host's byte order.
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let address = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some((inode, Listener::Tcp(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))))
}

/// A line of `net/unix`: address, references, protocol, flags, type, state, inode, path.
fn unix(line: &[u8]) -> Option<(u64, Listener)> {
    const ACCEPTS: u32 = 1 << 16;
    let (_address, rest) = word(line);
    let (_references, rest) = word(rest);
    let (_protocol, rest) = word(rest);
    let (flags, rest) = word(rest);
    let (_type, rest) = word(rest);
    let (_state, rest) = word(rest);
    let (inode, path) = word(rest);
    let flags = u32::from_str_radix(std::str::from_utf8(flags).ok()?, 16).ok()?;
    let path = path.strip_prefix(b" ").filter(|path| !path.is_empty())?;
    let inode = std::str::from_utf8(inode).ok()?.parse().ok()?;
    (flags & ACCEPTS != 0).then(|| (inode, Listener::Unix(PathBuf::from(OsStr::from_bytes(path)))))
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::unix::{fs::symlink, net::UnixListener},
    };

    use super::*;

    /// A procfs with one process, 7.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(files: &[(&str, &str)]) -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            for (name, text) in files {
                let path = fake.path(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            fake
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join("7").join(name)
        }

        fn process(&self) -> ProcessRoot {
            ProcessRoot::new(self.0.path(), 7)
        }
    }

    #[test]
    fn maps_are_those_of_files() {
        let fake = Fake::new(&[(
            "maps",
            "00400000-00401000 r-xp 00000000 fe:00 12                                 /srv/a b@1/lib.so\n\
             7f01000-7f02000 r--p 00001000 fe:00 13 /models/new\\012line.gguf (deleted)\n\
             7f02000-7f03000 rw-s 00000000 00:01 14                         /memfd:jit (deleted)\n\
             7f03000-7f04000 rw-p 00000000 00:00 0\n\
             7f04000-7f05000 rw-s 00000000 00:0e 15 anon_inode:i915.gem\n\
             7f05000-7f06000 r-xp 00000000 00:00 0                          [vdso]\n\
             nonsense\n",
        )]);
        let mappings = fake.process().mappings().unwrap();
        let seen: Vec<_> =
            mappings.iter().map(|m| (m.path.to_str().unwrap(), m.executable, m.deleted)).collect();
        let line = "/models/new\nline.gguf";
        assert_eq!(
            seen,
            [("/srv/a b@1/lib.so", true, false), (line, false, true), ("/memfd:jit", false, true)]
        );
        assert_eq!((mappings[0].start, mappings[0].end), (0x40_0000, 0x40_1000));
    }

    #[test]
    fn the_mapped_file_is_found_or_nothing() {
        let fake = Fake::new(&[("root/lib/a.so", "a"), ("real", "r"), ("map_files/x", "")]);
        let mut mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            executable: true,
            path: "/lib/a.so".into(),
            deleted: false,
        };
        assert_eq!(fake.process().file(&mapping), fake.path("root/lib/a.so"));
        mapping.deleted = true;
        let exact = fake.path("map_files/1000-2000");
        assert_eq!(fake.process().file(&mapping), exact, "not the file that took the name");
        assert!(!exact.exists());
        symlink("/lib/a.so (deleted)", fake.path("exe")).unwrap();
        assert_eq!(fake.process().file(&mapping), fake.path("exe"));
        symlink(fake.path("real"), &exact).unwrap();
        assert_eq!(fake.process().file(&mapping), exact);
    }

    #[test]
    fn identity() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 100 200";
        let fake = Fake::new(&[
            ("stat", stat),
            ("comm", "llama-server\n"),
            ("cmdline", "llama-server\0-m\0\0"),
            ("environ", "PATHS=/x\0PATH=/bin\0EMPTY=\0"),
            ("status", "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"),
        ]);
        let process = fake.process();
        assert_eq!((process.start_time().unwrap(), process.is_zombie().unwrap()), (4242, false));
        assert_eq!(process.comm().unwrap(), "llama-server");
        assert_eq!(process.command_line().unwrap(), ["llama-server", "-m", ""]);
        assert_eq!(process.environment("PATH").as_deref(), Some("/bin"));
        assert_eq!(process.environment("EMPTY").as_deref(), Some(""));
        assert_eq!(process.environment("PAT"), None);
        assert_eq!(process.seccomp().unwrap(), 2);
        std::fs::write(fake.path("stat"), stat.replace(" S ", " Z ")).unwrap();
        assert!(process.is_zombie().unwrap());
        std::fs::write(fake.path("stat"), "7 (a").unwrap();
        assert_eq!(process.start_time().unwrap_err().kind(), io::ErrorKind::InvalidData);
        let gone = ProcessRoot::new(fake.0.path(), 8).mappings().unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert!(gone.to_string().contains("8/maps"), "{gone}");
    }

    #[test]
    fn only_own_listeners_count() {
        let fake = Fake::new(&[
            (
                "net/tcp",
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                 0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 11 1 0\n\
                 1: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 99 1 0\n\
                 2: 0100007F:1F90 0100007F:C000 01 00000000:00000000 00:00000000 00000000  0  0 12 1 0\n",
            ),
            (
                "net/unix",
                "Num       RefCount Protocol Flags    Type St Inode Path\n\
                 0: 00000002 00000000 00010000 0001 01 13 /run/a b.sock\n\
                 0: 00000002 00000000 00000000 0001 03 14 /run/a b.sock\n\
                 0: 00000002 00000000 00010000 0001 01 15 @abstract\n",
            ),
            ("fd/0", ""),
        ]);
        assert_eq!(fake.process().listeners().unwrap(), []);
        for inode in 11..=15 {
            symlink(format!("socket:[{inode}]"), fake.path(&format!("fd/{inode}"))).unwrap();
        }
        let listeners = fake.process().listeners().unwrap();
        let shown: Vec<_> = listeners.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1:8080", "unix:/run/a b.sock", "unix:@abstract"]);
    }

    #[test]
    fn this_process() {
        let process = ProcessRoot::new(Path::new("/proc"), std::process::id());
        let executable = std::env::current_exe().unwrap();
        let mappings = process.mappings().unwrap();
        let own = mappings.iter().find(|mapping| mapping.path == executable && mapping.executable).unwrap();
        let id = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        assert_eq!(id(&process.file(own)), id(&executable));
        assert!(process.start_time().unwrap() > 0 && !process.is_zombie().unwrap());
        assert_eq!(process.command_line().unwrap(), std::env::args().collect::<Vec<_>>());
        process.comm().unwrap();
        process.seccomp().unwrap();

        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("a socket");
        let _unix = UnixListener::bind(&socket).unwrap();
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut expected = vec![Listener::Tcp(v4.local_addr().unwrap()), Listener::Unix(socket)];
        let v6 = TcpListener::bind("[::1]:0");
        match &v6 {
            Ok(v6) => expected.push(Listener::Tcp(v6.local_addr().unwrap())),
            Err(error) => eprintln!("SKIPPED: no IPv6 listener on this host: {error}"),
        }
        let listeners = process.listeners().unwrap();
        for listener in expected {
            assert!(listeners.contains(&listener), "{listener} is not among {listeners:?}");
        }
    }
}
