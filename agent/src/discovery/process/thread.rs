//! Where a thread waits, as the kernel says.

use serde::{Deserialize, Serialize};

use super::{ProcessRoot, lossy};

/// A thread at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Its id.
    pub tid: u32,
    /// Its state, as in `stat`: `R` runs or is ready to, `S` and `D` sleep, `T` is stopped, `t` is traced, and so on.
    pub state: char,
    /// The number of the system call that it waits in; `None` where it is in none, or the kernel does not say.
    pub call: Option<u32>,
    /// The kernel's function in which it waits; `None` where it does not wait, or the kernel does not say.
    pub channel: Option<String>,
}

impl ProcessRoot {
    /// Where a thread of this process is; `None` when there is no such thread.
    pub fn thread(&self, tid: u32) -> Option<Thread> {
        let text = |name: &str| Some(lossy(&self.text(&format!("task/{tid}/{name}")).ok()?));
        let stat = text("stat")?;
        let (_, fields) = stat.rsplit_once(") ")?;
        Some(Thread {
            tid,
            state: fields.chars().next()?,
            call: text("syscall").and_then(|text| call(&text)),
            channel: text("wchan").filter(|channel| !matches!(channel.trim(), "" | "0")),
        })
    }
}

/// The number of the call in a text of `syscall`: what follows are its arguments, addresses among them. There is none in
/// `running`, nor in what begins with `-1`: who waits there does so in no call.
fn call(text: &str) -> Option<u32> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn a_thread_is_told_by_three_files() {
        let root = tempfile::tempdir().unwrap();
        let thread = |tid: u32, [stat, call, channel]: [&str; 3]| {
            let directory = root.path().join(format!("7/task/{tid}"));
            fs::create_dir_all(&directory).unwrap();
            for (name, text) in [("stat", stat), ("syscall", call), ("wchan", channel)] {
                fs::write(directory.join(name), text).unwrap();
            }
            ProcessRoot::new(root.path(), 7).thread(tid).unwrap()
        };
        let waits =
            thread(7, ["7 (a) R (b) S 1 7", "202 0x7f00 0x80 0x0 0x0 0x0 0x0 0x7ffd 0x7f", "futex_do_wait"]);
        let channel = Some("futex_do_wait".to_owned());
        assert_eq!(waits, Thread { tid: 7, state: 'S', call: Some(202), channel });
        let runs = thread(8, ["8 (llama-server) R 1 7", "running\n", "0"]);
        assert_eq!(runs, Thread { tid: 8, state: 'R', call: None, channel: None });
        let faults = thread(9, ["9 (llama-server) D 1 7", "-1 0x7ffd 0x7f\n", "folio_wait_bit_common"]);
        assert_eq!((faults.state, faults.call), ('D', None));
        assert_eq!(ProcessRoot::new(root.path(), 7).thread(10), None);
    }

    #[test]
    fn this_thread_runs() {
        let own = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let thread = ProcessRoot::new(Path::new("/proc"), std::process::id()).thread(own).unwrap();
        assert_eq!((thread.tid, thread.state, thread.channel), (own, 'R', None));
    }
}
