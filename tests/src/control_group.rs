//! Control groups that share out the processors and the disk, of version 1 and 2.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Where the groups are.
const PLACES: [(&str, Version); 2] = [("/sys/fs/cgroup/cpu", Version::One), ("/sys/fs/cgroup", Version::Two)];

/// Where groups for disks are, in version 1.
const DISKS: &str = "/sys/fs/cgroup/blkio";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A group without processes, which goes with this value; what is in it then moves up.
#[derive(Debug)]
pub struct ControlGroup {
    parent: &'static Path,
    path: PathBuf,
    version: Version,
    /// The group for the disk, where that is another.
    disk: Option<PathBuf>,
}

impl ControlGroup {
    /// A group that goes before everybody else on the machine. `None` where groups cannot be made.
    pub fn first_of_all(name: &str) -> Result<Option<Self>> {
        for (parent, version) in PLACES {
            let parent = Path::new(parent);
            let path = parent.join(format!("llamaprobe-{name}-{}", std::process::id()));
            if version == Version::Two {
                // On, or not to be had: then the file is not there.
                let _ = fs::write(parent.join("cgroup.subtree_control"), "+cpu +io");
            }
            let marker = if version == Version::One { "cpu.shares" } else { "cpu.weight" };
            if version == Version::Two && !parent.join("cgroup.controllers").is_file()
                || fs::create_dir(&path).is_err()
            {
                continue;
            }
            let group = Self { parent, path, version, disk: None };
            if group.path.join(marker).is_file() {
                group.write(marker, if version == Version::One { "262144" } else { "10000" })?;
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
    }

    /// What starts a command within the group.
    pub fn command(&self) -> [OsString; 4] {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.path.display());
        ["sh".into(), "-c".into(), script.into(), "sh".into()]
    }

    /// Lets the group run for so many microseconds of every 100,000; without end if that is `None`.
    pub fn limit(&self, quota_us: Option<u32>) -> Result<()> {
        match (self.version, quota_us) {
            (Version::One, Some(quota)) => self.write("cpu.cfs_quota_us", &quota.to_string()),
            (Version::One, None) => self.write("cpu.cfs_quota_us", "-1"),
            (Version::Two, Some(quota)) => self.write("cpu.max", &format!("{quota} 100000")),
            (Version::Two, None) => self.write("cpu.max", "max 100000"),
        }
    }

    /// Lets a process of the group read so many bytes a second from the disk that a file is on.
    pub fn limit_reads(&mut self, pid: u32, file: &Path, bytes: u64) -> Result<()> {
        let device = fs::metadata(file)?.dev();
        let disk = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        if self.version == Version::Two {
            return self.write("io.max", &format!("{disk} rbps={bytes}"));
        }
        let path = Path::new(DISKS).join(self.path.file_name().unwrap_or_default());
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let path = self.disk.insert(path);
        fs::write(path.join("blkio.throttle.read_bps_device"), format!("{disk} {bytes}"))?;
        fs::write(path.join("cgroup.procs"), pid.to_string())?;
        Ok(())
    }

    /// How long its processors were withheld so far, seconds, each one counted; as the kernel says.
    pub fn throttled(&self) -> Result<f64> {
        let text = fs::read_to_string(self.path.join("cpu.stat"))?;
        let (name, unit) = match self.version {
            Version::One => ("throttled_time ", 1e9),
            Version::Two => ("throttled_usec ", 1e6),
        };
        let value =
            text.lines().find_map(|line| line.strip_prefix(name)).context("no such line in cpu.stat")?;
        Ok(value.trim().parse::<f64>()? / unit)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let disk = self.disk.as_deref().map(|disk| (Path::new(DISKS), disk));
        for (parent, path) in [(self.parent, self.path.as_path())].into_iter().chain(disk) {
            let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines() {
                // It may have ended.
                let _ = fs::write(parent.join("cgroup.procs"), pid);
            }
            let _ = fs::remove_dir(path);
        }
    }
}

/// A group whose processes have so much memory together, and none of the swap; it goes with this value.
#[derive(Debug)]
pub struct MemoryLimit {
    path: PathBuf,
    version: Version,
}

impl MemoryLimit {
    /// A new group with this limit, bytes. `None` where groups cannot be made.
    pub fn new(bytes: u64) -> Result<Option<Self>> {
        for (parent, version) in [("/sys/fs/cgroup/memory", Version::One), ("/sys/fs/cgroup", Version::Two)] {
            let path = Path::new(parent).join(format!("llamaprobe-memory-{}", std::process::id()));
            if version == Version::Two {
                // On, or not to be had: then the file is not there.
                let _ = fs::write(Path::new(parent).join("cgroup.subtree_control"), "+memory");
            }
            if !Path::new(parent).is_dir() || fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self { path, version };
            let limit = if version == Version::One { "memory.limit_in_bytes" } else { "memory.max" };
            if fs::write(group.path.join(limit), bytes.to_string()).is_ok() {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    /// What starts a program in it.
    pub fn entrance(&self) -> Vec<String> {
        let processes = self.path.join("cgroup.procs");
        let script = format!("echo $$ > {} && exec \"$@\"", processes.display());
        ["sh", "-c", &script, "sh"].map(str::to_owned).into()
    }

    /// How much it had at most, bytes.
    pub fn peak(&self) -> Result<u64> {
        let file = if self.version == Version::One { "memory.max_usage_in_bytes" } else { "memory.peak" };
        let text = fs::read_to_string(self.path.join(file)).with_context(|| format!("no {file}"))?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Who was in it has ended.
        let _ = fs::remove_dir(&self.path);
    }
}

/// A group like that of a container of a pod, without limits; it goes with this value.
#[derive(Debug)]
pub struct PodGroup {
    parent: PathBuf,
    /// Its folders, the outermost first.
    folders: Vec<PathBuf>,
}

impl PodGroup {
    /// Makes the group at this path below the root of a hierarchy. `None` where groups cannot be made.
    pub fn new(path: &str) -> Result<Option<Self>> {
        for parent in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(PathBuf::from) {
            let mut group = Self { parent: parent.clone(), folders: Vec::new() };
            let made = path.split('/').try_fold(parent, |folder, name| {
                let folder = folder.join(name);
                fs::create_dir(&folder)?;
                group.folders.push(folder.clone());
                Ok::<_, std::io::Error>(folder)
            });
            if made.is_ok_and(|innermost| innermost.join("cgroup.procs").is_file()) {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    /// What starts a command within the group.
    pub fn command(&self) -> [OsString; 4] {
        let innermost = self.folders.last().unwrap_or(&self.parent);
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", innermost.display());
        ["sh".into(), "-c".into(), script.into(), "sh".into()]
    }
}

impl Drop for PodGroup {
    fn drop(&mut self) {
        for folder in self.folders.iter().rev() {
            for pid in fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
                // It may have ended.
                let _ = fs::write(self.parent.join("cgroup.procs"), pid);
            }
            let _ = fs::remove_dir(folder);
        }
    }
}
