//! Processes that are none of the agent's business and make work for it: fakes, storms, a file system that hangs.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::assets::Assets;
use crate::process::{Process, tied};
use crate::scratch::Scratch;

/// Maps the file that is named first for execution, in as many processes as the second argument says.
const FAKES: &str = r"
import ctypes, mmap, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
for _ in range(int(sys.argv[2]) - 1):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        break
else:
    print('ready', flush=True)
signal.pause()
";

/// Maps a file for execution, and fails to map it at an address that is none, again and again.
const MAPS: &str = r"
import ctypes, os
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
fd = os.open('/bin/true', os.O_RDONLY)
print('ready', flush=True)
while True:
    libc.mmap(None, 0, 5, 2, fd, 0)
    at = libc.mmap(None, 4096, 5, 2, fd, 0)
    libc.munmap(ctypes.c_void_p(at), 4096)
";

/// A FUSE file system with one file, the contents of the second argument, that answers nothing more after SIGUSR1: it takes
/// the question, so that whoever asked waits for ever, and cannot be killed.
const SILENT: &str = r"
import ctypes, os, signal, struct, sys
at, source = sys.argv[1:3]
data = open(source, 'rb').read()
fuse = os.open('/dev/fuse', os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other'.encode()
if libc.mount(b'silent', at.encode(), b'fuse.silent', 6, options):
    sys.exit(f'cannot mount: {os.strerror(ctypes.get_errno())}')
silent = False
def quiet(*_):
    global silent
    silent = True
signal.signal(signal.SIGUSR1, quiet)
print('ready', flush=True)
def attributes(inode, mode, size):
    return struct.pack('<QQQQQQIIIIIIIIII', inode, size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
root, leaf = attributes(1, 0o40755, 0), attributes(2, 0o100755, len(data))
while True:
    question = os.read(fuse, 1 << 18)
    if silent:
        continue
    size, operation, unique, node = struct.unpack('<IIQQ', question[:24])
    body, error, answer = question[40:size], 0, b''
    if operation == 26:
        answer = struct.pack('<IIIIHHIIHHI', 7, 31, 65536, 0, 12, 10, 65536, 1, 0, 0, 0) + bytes(28)
    elif operation == 1 and body.rstrip(b'\0') == b'lib.so':
        answer = struct.pack('<QQQQII', 2, 0, 0, 0, 0, 0) + leaf
    elif operation == 1:
        error = -2
    elif operation == 3:
        answer = struct.pack('<QII', 0, 0, 0) + (root if node == 1 else leaf)
    elif operation in (14, 27):
        answer = struct.pack('<QII', 1, 0, 0)
    elif operation == 15:
        _, offset, length = struct.unpack('<QQI', body[:20])
        answer = data[offset:offset + length]
    elif operation in (2, 42):
        continue
    elif operation not in (18, 29, 25):
        error = -38
    os.write(fuse, struct.pack('<IiQ', 16 + len(answer), error, unique) + answer)
";

/// Runs a script; returns when it says that it is ready.
fn script(assets: &Assets, name: &'static str, text: &str, arguments: &[&str]) -> Result<Process> {
    let mut command = tied(assets.python());
    command.args(["-c", text]).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::start(name, &mut command)?;
    let stdout = process.child().stdout.take().context("no standard output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "{name} says {line:?}");
    Ok(process)
}

/// Processes that map a library and do nothing with it; they end with the value.
#[derive(Debug)]
pub struct Fakes(Process);

impl Fakes {
    /// So many.
    pub fn start(assets: &Assets, library: &Path, count: usize) -> Result<Self> {
        let library = library.to_str().context("a path without a name")?;
        script(assets, "fakes", FAKES, &[library, &count.to_string()]).map(Self)
    }

    /// The one that started the others.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }
}

/// Programs that start all the time, and one that maps files all the time; they end with the value.
#[derive(Debug)]
pub struct Storm {
    over: Arc<AtomicBool>,
    starts: Arc<AtomicUsize>,
    begun: Instant,
    threads: Vec<JoinHandle<()>>,
    _maps: Process,
}

impl Storm {
    /// As many starts as this machine manages, up to 1,000 a second.
    pub fn start(assets: &Assets) -> Result<Self> {
        let (over, starts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let begun = Instant::now();
        let maps = script(assets, "maps", MAPS, &[])?;
        let starter = || {
            let (over, starts) = (over.clone(), starts.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    if Command::new("/bin/true").status().is_ok() {
                        starts.fetch_add(1, Ordering::Relaxed);
                    }
                    let due = begun + Duration::from_millis(starts.load(Ordering::Relaxed) as u64);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            })
        };
        let threads = (0..2).map(|_| starter()).collect();
        Ok(Self { over, starts, begun, threads, _maps: maps })
    }

    /// Starts a second so far.
    pub fn rate(&self) -> f64 {
        self.starts.load(Ordering::Relaxed) as f64 / self.begun.elapsed().as_secs_f64()
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A process that maps a file of a file system which does not answer. With the value both end.
#[derive(Debug)]
pub struct Hung {
    /// Goes first: whoever waits for it wakes up then.
    _daemon: Process,
    mapper: Process,
    mount: Scratch,
}

impl Hung {
    /// `None` where there is no FUSE.
    pub fn start(assets: &Assets, library: &Path) -> Result<Option<Self>> {
        if !Path::new("/dev/fuse").exists() {
            return Ok(None);
        }
        let mount = Scratch::new()?;
        let at = mount.path().to_str().context("a path without a name")?;
        let library = library.to_str().context("a path without a name")?;
        let daemon = script(assets, "file system", SILENT, &[at, library])?;
        let mapper = script(assets, "mapper", FAKES, &[&format!("{at}/lib.so"), "1"])?;
        daemon.signal(Signal::USR1)?;
        Ok(Some(Self { _daemon: daemon, mapper, mount }))
    }

    /// The process that maps the file.
    pub fn pid(&self) -> u32 {
        self.mapper.pid()
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.mount.path()).status();
    }
}
