//! A program in a terminal of its own: keys go in, and what it writes comes out.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::process::Process;
use crate::wait_for;

/// How long something may take to be shown.
const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal with a program in it.
#[derive(Debug)]
pub struct Terminal {
    process: Process,
    master: File,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a command, made by [`tied`](crate::process::tied), in a terminal of this size.
    pub fn start(name: &'static str, command: &mut Command, columns: u16, rows: u16) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("no terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        tcsetwinsize(&master, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 })?;
        let path = ptsname(&master, Vec::new())?;
        let slave: OwnedFd = rustix::fs::open(path.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
        command.env("TERM", "xterm-256color");
        command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?));
        let process = Process::start(name, command.stderr(Stdio::from(slave)))?;
        // No end of it may stay here: what it wrote ends with the program.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let master = File::from(master);
        let written = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, shared) = (master.try_clone()?, written.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(&buffer[..read]);
            }
        });
        Ok(Self { process, master, written })
    }

    /// All that it has written so far, as text.
    pub fn text(&self) -> String {
        let written = self.written.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        String::from_utf8_lossy(&written).into_owned()
    }

    /// Presses keys, and waits until it has written `shown` since.
    pub fn press(&mut self, keys: &str, shown: &str) -> Result<()> {
        let before = self.text().len();
        self.master.write_all(keys.as_bytes())?;
        let what = format!("{shown:?} after the keys {keys:?}");
        wait_for(&what, PATIENCE, || self.text().get(before..).filter(|text| text.contains(shown)).map(drop))
            .with_context(|| self.text().escape_debug().to_string())
    }

    /// Waits for the program's end.
    pub fn end(&mut self) -> Result<ExitStatus> {
        wait_for("the program's end", PATIENCE, || self.process.ended())
    }
}
