//! Links of type `uprobe_multi`, which Linux has from 6.6 on: they want CAP_BPF and CAP_PERFMON, where a perf event of a uprobe
//! wants CAP_SYS_ADMIN. aya 0.14 makes none, and loads no program for them.
//!
//! In: the object, and the maps that aya made of it. Out: its programs, loaded for such links.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
    programs::ProgramError,
    sys::SyscallError,
};
use aya_obj::{Object, ProgramSection, VerifierLog, copy_instructions};

use super::{
    LoadError,
    raw::{self, LinkSite, Loadable},
    uprobes::Site,
};

/// Bytes of what the verifier may say of a program that it refuses; the end of it is what counts, which it keeps.
const LOG_BYTES: usize = 1 << 20;

/// Errors of linux/errno.h.
const EBADF: i32 = 9;
const EINVAL: i32 = 22;

/// The programs of uprobes, by name.
pub(super) struct Programs {
    /// What they are loaded of, until all are.
    object: Option<Box<Object>>,
    loaded: BTreeMap<String, Loaded>,
}

struct Loaded {
    program: OwnedFd,
    /// It runs where a function returns, not where it begins.
    at_return: bool,
}

impl Programs {
    /// Reads an object once more, for the maps that aya made of it; nothing is loaded yet.
    pub(super) fn read(object: &[u8], ebpf: &Ebpf) -> Result<Self, LoadError> {
        let mut object = Object::parse(object).map_err(LoadError::object)?;
        let maps: HashMap<&str, RawFd> =
            ebpf.maps().filter_map(|(name, map)| Some((name, data(map)?.fd().as_fd().as_raw_fd()))).collect();
        let known = std::mem::take(&mut object.maps);
        let known =
            known.iter().filter_map(|(name, map)| Some((name.as_str(), *maps.get(name.as_str())?, map)));
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(known, &text).map_err(LoadError::object)?;
        object.relocate_calls(&text).map_err(LoadError::object)?;
        Ok(Self { object: Some(Box::new(object)), loaded: BTreeMap::new() })
    }

    /// Loads a program, unless that has been done.
    pub(super) fn load(&mut self, name: &str) -> Result<(), LoadError> {
        if self.loaded.contains_key(name) {
            return Ok(());
        }
        let absent = || LoadError::Absent(format!("program {name}"));
        let object = self.object.as_ref().ok_or_else(absent)?;
        let program = object.programs.get(name).ok_or_else(absent)?;
        let at_return = matches!(program.section, ProgramSection::URetProbe { .. });
        let function = object.functions.get(&program.function_key()).ok_or_else(absent)?;
        let program = Loadable { name, license: &program.license, instructions: &function.instructions };
        let program = raw::load(&program, &mut []).map_err(|io_error| {
            let verifier_log = VerifierLog::new(refusal(&program));
            LoadError::program("load", name, ProgramError::LoadError { io_error, verifier_log })
        })?;
        self.loaded.insert(name.to_owned(), Loaded { program, at_return });
        Ok(())
    }

    fn loaded(&self, name: &str) -> Result<&Loaded, LoadError> {
        self.loaded.get(name).ok_or_else(|| LoadError::program("open", name, ProgramError::NotLoaded))
    }

    /// A loaded program.
    pub(super) fn get(&self, name: &str) -> Result<BorrowedFd<'_>, LoadError> {
        Ok(self.loaded(name)?.program.as_fd())
    }

    /// All that are loaded.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.loaded.iter().map(|(name, loaded)| (name.as_str(), loaded.program.as_fd()))
    }

    /// All are loaded: the object goes.
    pub(super) fn settle(&mut self) {
        self.object = None;
    }

    /// Attaches a program to an instruction of a file, for all processes or one.
    pub(super) fn attach(&self, name: &str, path: &Path, site: &Site) -> Result<OwnedFd, LoadError> {
        let failed = |io_error| {
            let error = SyscallError { call: "bpf_link_create", io_error };
            LoadError::program("attach", name, error.into())
        };
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
        let pid = site.only.map_or(0, |pid| pid.get().cast_signed());
        let Loaded { program, at_return } = self.loaded(name)?;
        let (offset, cookie, at_return) = (site.offset, site.cookie, *at_return);
        let site = LinkSite { path: &path, offset, cookie, pid, at_return };
        raw::link(program.as_fd(), &site).map_err(failed)
    }
}

/// What the verifier says against a program.
fn refusal(program: &Loadable<'_>) -> String {
    let mut log = vec![0; LOG_BYTES];
    if raw::load(program, &mut log).is_ok() {
        return String::new();
    }
    CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What is beneath each of the kinds of maps that the object has.
pub(super) fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// Whether this kernel attaches by such links, also for one process alone: found out by trying. The first kernels that had
/// them took a process for its first thread.
///
/// # Errors
///
/// When it cannot be tried, for want of rights.
pub(super) fn has_links() -> io::Result<bool> {
    let instructions = copy_instructions(&RETURNS_0).expect("two whole instructions");
    let program =
        raw::load(&Loadable { name: "lp_links", license: c"GPL", instructions: &instructions }, &mut [])?;
    let site = LinkSite { path: c"/", offset: 0, cookie: 0, pid: 0, at_return: false };
    let answer =
        |site: &LinkSite<'_>| raw::link(program.as_fd(), site).err().and_then(|error| error.raw_os_error());
    // A directory has no instructions, and there is no such process: which of both is found first tells the kernels apart.
    Ok(answer(&site) == Some(EBADF) && answer(&LinkSite { pid: -1, ..site }) == Some(EINVAL))
}

/// `r0 = 0; exit`, as linux/bpf.h has it.
const RETURNS_0: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
