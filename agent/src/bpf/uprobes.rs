//! The programs of uprobes, loaded for one of the two ways in which Linux attaches them: by links of type `uprobe_multi` where
//! it has them, else by perf events. One decision for all: programs that go on with one another by tail calls have to
//! be of one kind.

use std::{
    env, io,
    num::NonZeroU32,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf,
    programs::{
        UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};

use super::{LoadError, multi};

/// Set to `perf-events`, it makes the agent attach as on a kernel without links: for tests.
pub const VARIABLE: &str = "LLAMAPROBE_ATTACH_BY";

/// How uprobes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By links, for which CAP_BPF and CAP_PERFMON suffice.
    Links,
    /// By perf events, for which kernels want CAP_SYS_ADMIN.
    PerfEvents,
}

impl Way {
    /// The one of this kernel, found out by trying.
    ///
    /// # Errors
    ///
    /// When it cannot be tried, for want of rights.
    pub fn here() -> io::Result<Self> {
        let told = env::var_os(VARIABLE).is_some_and(|way| way == "perf-events");
        Ok(if !told && multi::has_links()? { Self::Links } else { Self::PerfEvents })
    }
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// Offset in the file, bytes.
    pub(super) offset: u64,
    /// What the program is told of it.
    pub(super) cookie: u64,
    /// For this process alone, all its threads.
    pub(super) only: Option<NonZeroU32>,
}

/// One attached program; it is detached when this is dropped, for which the kernel takes its time.
#[derive(Debug)]
pub enum Link {
    /// By a link.
    Multi {
        /// What holds it.
        _link: OwnedFd,
    },
    /// By a perf event.
    PerfEvent {
        /// What holds it.
        _link: UProbeLink,
    },
}

/// The programs.
pub(super) enum Uprobes {
    /// Those for links.
    Links(multi::Programs),
    /// aya has them.
    PerfEvents,
}

impl Uprobes {
    pub(super) fn new(way: Way, object: &[u8], ebpf: &Ebpf) -> Result<Self, LoadError> {
        Ok(match way {
            Way::Links => Self::Links(multi::Programs::read(object, ebpf)?),
            Way::PerfEvents => Self::PerfEvents,
        })
    }

    /// Loads a program, unless that has been done.
    pub(super) fn load(&mut self, ebpf: &mut Ebpf, name: &str) -> Result<(), LoadError> {
        match self {
            Self::Links(programs) => programs.load(name),
            Self::PerfEvents => {
                let program = uprobe(ebpf, name)?;
                if program.fd().is_ok() {
                    return Ok(());
                }
                program.load().map_err(|source| LoadError::program("load", name, source))
            }
        }
    }

    /// The descriptor of a loaded program.
    pub(super) fn descriptor<'a>(&'a self, ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, LoadError> {
        match self {
            Self::Links(programs) => programs.get(name),
            Self::PerfEvents => {
                let program =
                    ebpf.program(name).ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
                let program = program.fd().map_err(|source| LoadError::program("open", name, source))?;
                Ok(program.as_fd())
            }
        }
    }

    /// The programs that are not among those of aya, by name.
    pub(super) fn own(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        let programs = match self {
            Self::Links(programs) => Some(programs),
            Self::PerfEvents => None,
        };
        programs.into_iter().flat_map(multi::Programs::all)
    }

    /// All that is needed is loaded: what was read of the object goes.
    pub(super) fn settle(&mut self) {
        if let Self::Links(programs) = self {
            programs.settle();
        }
    }

    /// Attaches a loaded program to an instruction of a file.
    pub(super) fn attach(
        &self,
        ebpf: &mut Ebpf,
        name: &str,
        path: &Path,
        site: &Site,
    ) -> Result<Link, LoadError> {
        match self {
            Self::Links(programs) => Ok(Link::Multi { _link: programs.attach(name, path, site)? }),
            Self::PerfEvents => {
                let program = uprobe(ebpf, name)?;
                let location = UProbeAttachLocation::AbsoluteOffset(site.offset);
                let point = UProbeAttachPoint { location, cookie: Some(site.cookie) };
                let scope = site.only.map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
                let link = program.attach(point, path, scope).and_then(|id| program.take_link(id));
                let link = link.map_err(|source| LoadError::program("attach", name, source))?;
                Ok(Link::PerfEvent { _link: link })
            }
        }
    }
}

fn uprobe<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, LoadError> {
    let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
    program.try_into().map_err(|source| LoadError::program("open", name, source))
}
