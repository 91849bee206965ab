//! Loading: the embedded object, its programs, the probes on process life; and the maps, for whoever is handed them.

use std::{
    collections::BTreeMap,
    error::Error,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{ProgramError, RawTracePoint, TracePoint, trace_point::TracePointLink},
    sys::SyscallError,
};
use llamaprobe_common::{
    batch::{Context, ContextKey},
    call::Call,
    layout::{LayoutKey, LayoutState},
    part::Clock,
    request::{Connection, ConnectionKey, Peer, RequestKey, Talk},
    sequence::{Sequence, SequenceKey},
    stall::{KernelLayout, NO_FIELD, Step, Thread},
    target::{Notes, TargetConfig, TargetStats},
    task::TaskKey,
};
use tracing::{debug, warn};

use super::{
    attach::Attachments,
    lines::{self, LineReader, Lines},
    multi, raw,
    sockets::SocketLinks,
    switches::{self, SwitchError, SwitchLink},
    uprobes::{Uprobes, Way},
};
use crate::plan::catalog::Program;

/// Programs that others go on with by a tail call, by their place in the map `FOLLOW`; with each one that does less at
/// once, for a kernel that refuses it.
const FOLLOW: [(&str, Option<&str>); 3] =
    [("lp_walk", Some("lp_walk_few")), ("lp_follow", Some("lp_follow_few")), ("lp_tasks_on", None)];

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/llamaprobe-ebpf"));

/// Why the programs could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The object was refused as a whole.
    #[error("cannot load the kernel programs: {}", chain(cause))]
    Object {
        /// What aya or the kernel said.
        cause: Box<aya::EbpfError>,
    },
    /// One program was refused or could not be attached.
    #[error("cannot {what} the kernel program {name}: {}", chain(cause))]
    Program {
        /// What was tried.
        what: &'static str,
        /// The program.
        name: String,
        /// What aya or the kernel said.
        cause: Box<ProgramError>,
    },
    /// A map could not be used.
    #[error("cannot {what} the map {name}: {}", chain(cause))]
    Map {
        /// What was tried.
        what: &'static str,
        /// The map.
        name: &'static str,
        /// What aya or the kernel said.
        cause: Box<MapError>,
    },
    /// Object and agent do not fit: a defect of the build.
    #[error("the embedded object has no {0}")]
    Absent(String),
}

/// The message of an error and of its sources, each said once: aya keeps the kernel's word at the bottom, and some of
/// its messages repeat their source's.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in sources(error).skip(1) {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
    }
    text
}

fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

impl LoadError {
    pub(super) fn program(what: &'static str, name: &str, source: ProgramError) -> Self {
        Self::Program { what, name: name.to_owned(), cause: Box::new(source) }
    }

    pub(super) fn object(source: impl Into<aya::EbpfError>) -> Self {
        Self::Object { cause: Box::new(source.into()) }
    }

    pub(super) fn map(what: &'static str, name: &'static str, source: MapError) -> Self {
        Self::Map { what, name, cause: Box::new(source) }
    }

    /// Whether the kernel refused for want of rights.
    pub fn is_permission(&self) -> bool {
        let cause: &(dyn Error + 'static) = match self {
            Self::Object { cause } => cause.as_ref(),
            Self::Program { cause, .. } => cause.as_ref(),
            Self::Map { cause, .. } => cause.as_ref(),
            Self::Absent(_) => return false,
        };
        let denied = |error: &(dyn Error + 'static)| {
            let io = error.downcast_ref::<std::io::Error>();
            io.is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied)
        };
        sources(cause).any(denied)
    }
}

/// The ring buffers, and what governs them.
pub struct Rings {
    /// Process events.
    pub processes: RingBuf<MapData>,
    /// Request events.
    pub requests: RingBuf<MapData>,
    /// Bytes of requests and answers.
    pub payload: RingBuf<MapData>,
    /// What held decode steps back.
    pub stalls: RingBuf<MapData>,
    /// Decode calls that are over.
    pub steps: RingBuf<MapData>,
    /// What holds process events back.
    pub told: Told,
}

/// Who was told of and has not been looked at since: nothing more is told of those.
pub struct Told(HashMap<MapData, u32, u32>);

impl Told {
    /// What a process does from now on is told again.
    pub fn forget(&mut self, pid: u32) {
        // It may have ended, or not have been told of.
        let _ = self.0.remove(&pid);
    }
}

/// The maps of the loaded programs, as whoever reads and writes them has them.
pub struct Maps {
    pub(super) targets: HashMap<MapData, u32, TargetConfig>,
    pub(super) places: Array<MapData, u32>,
    pub(super) stats: PerCpuArray<MapData, TargetStats>,
    pub(super) sequences: HashMap<MapData, SequenceKey, Sequence>,
    pub(super) contexts: HashMap<MapData, ContextKey, Context>,
    pub(super) memories: HashMap<MapData, ContextKey, u64>,
    pub(super) notes: Array<MapData, Notes>,
    pub(super) clocks: Array<MapData, Clock>,
    pub(super) connections: HashMap<MapData, ConnectionKey, Connection>,
    pub(super) talks: HashMap<MapData, ConnectionKey, Talk>,
    pub(super) peers: HashMap<MapData, Peer, ConnectionKey>,
    pub(super) threads: HashMap<MapData, u64, ConnectionKey>,
    pub(super) tasks: HashMap<MapData, TaskKey, RequestKey>,
    pub(super) calls: HashMap<MapData, u64, Call>,
    pub(super) layouts: HashMap<MapData, LayoutKey, LayoutState>,
    pub(super) steps: Array<MapData, Step>,
    pub(super) scheduled: HashMap<MapData, u32, Thread>,
}

/// The loaded programs and what is attached with them. Apart from the maps: attaching and detaching take their time and
/// all rights, and whoever does it is not who reads.
pub struct Attacher {
    pub(super) ebpf: Ebpf,
    pub(super) uprobes: Uprobes,
    pub(super) attachments: Attachments,
    pub(super) sockets: SocketLinks,
    pub(super) sessions: Option<TracePointLink>,
    pub(super) offspring: Option<TracePointLink>,
    pub(super) switches: Option<SwitchLink>,
    /// Whether the kernel says where it keeps the arguments of a system call.
    pub(super) described: bool,
    /// Why the switches of threads cannot be followed, until that is said.
    pub(super) undescribed: Option<SwitchError>,
    late_loads: bool,
    /// Keeps the programs of the tail calls alive.
    _follow: Vec<Map>,
}

/// A map of the programs, for whoever reads it.
pub type Handle = (String, OwnedFd);

impl Attacher {
    /// Loads everything and starts to watch process life. Of other processes than `only` nothing is told, unless it is
    /// empty. Decode calls are told only where `steps` are wanted. Returns what says the lines of the programs beside, where
    /// such are wanted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a program or a map: no rights, Linux older than 5.15, lockdown.
    pub fn load(only: &[u32], steps: bool, lines: Lines) -> Result<(Self, Option<LineReader>), LoadError> {
        raw::keep_no_large_memory();
        // Who may not even try that is told so when the rest is refused, too.
        let way = Way::here().unwrap_or(Way::PerfEvents);
        // Maps are bound to the kind of the programs that use them, so all is made anew.
        let (way, loaded) = match Self::load_for(way, only, steps, lines) {
            Err(error) if way == Way::Links => {
                warn!(%error, "this kernel has links for uprobes and refuses what is needed for them");
                (Way::PerfEvents, Self::load_for(Way::PerfEvents, only, steps, lines))
            }
            loaded => (way, loaded),
        };
        debug!(?way, "how uprobes are attached");
        // Of the object and of what the kernel says of its types.
        raw::give_memory_back();
        loaded
    }

    fn load_for(
        way: Way,
        only: &[u32],
        steps: bool,
        lines: Lines,
    ) -> Result<(Self, Option<LineReader>), LoadError> {
        // No program needs relocation against kernel types, so the kernel's BTF (megabytes) is not read.
        let level = lines.level();
        let (kernel, undescribed) = match switches::kernel_layout() {
            Ok(kernel) => (kernel, None),
            Err(error) => (KernelLayout::NONE, Some(error)),
        };
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global(aya_log::LEVEL, &level, true)
            .override_global("KERNEL", &kernel, true);
        // Where nothing will be in it.
        let empty = rustix::param::page_size() as u32;
        if level == 0 {
            loader.map_max_entries(lines::MAP, empty);
        }
        if !steps {
            loader.map_max_entries("STEP_EVENTS", empty);
        }
        let mut ebpf = loader.load(OBJECT).map_err(LoadError::object)?;
        let mut uprobes = Uprobes::new(way, OBJECT, &ebpf)?;
        let at_return = Program::ALL.into_iter().filter_map(Program::at_return);
        let at_end = Program::ALL.into_iter().filter_map(Program::at_end);
        let names = Program::ALL.into_iter().map(Program::name).chain(at_return).chain(at_end);
        for name in names.chain(["lp_show", "lp_calibration"]) {
            uprobes.load(&mut ebpf, name)?;
        }
        let follow = vec![
            fill(&mut ebpf, &mut uprobes, "FOLLOW", &FOLLOW)?,
            fill(&mut ebpf, &mut uprobes, "SHOW", &[("lp_show", None)])?,
        ];
        uprobes.settle();

        // Before anything is told: who is not meant never fills a ring.
        let mut meant: HashMap<_, u32, u8> = borrow(&mut ebpf, "ONLY")?;
        for pid in only.first().map(|_| &0).into_iter().chain(only) {
            meant.insert(pid, 1, 0).map_err(|source| LoadError::map("fill", "ONLY", source))?;
        }
        switches::fill_classes(&mut borrow(&mut ebpf, "CALL_CLASSES")?)?;
        watch(&mut ebpf, "lp_exec", "sched_process_exec")?;
        watch(&mut ebpf, "lp_exit", "sched_process_exit")?;
        let late_loads = watch_calls(&mut ebpf)?;
        let lines = if level > 0 { Some(lines.reader(&mut ebpf)?) } else { None };
        let mut attacher = Self {
            attachments: Attachments::default(),
            sockets: SocketLinks::new(),
            sessions: None,
            offspring: None,
            switches: None,
            described: kernel.call != NO_FIELD,
            undescribed,
            late_loads,
            _follow: follow,
            uprobes,
            ebpf,
        };
        attacher.load_sockets()?;
        Ok((attacher, lines))
    }

    /// The maps, for whoever reads and writes them: see [`Maps::of`].
    ///
    /// # Errors
    ///
    /// When there is no room for one more descriptor.
    pub fn handles(&self) -> std::io::Result<Vec<Handle>> {
        let data = self.ebpf.maps().filter_map(|(name, map)| Some((name, multi::data(map)?)));
        // What the compiler made of constants nobody reads.
        let named = data.filter(|(name, _)| !name.starts_with('.'));
        named.map(|(name, data)| Ok((name.to_owned(), data.fd().as_fd().try_clone_to_owned()?))).collect()
    }

    /// Whether libraries loaded late announce themselves; otherwise only the slow rescan finds them.
    pub const fn sees_late_loads(&self) -> bool {
        self.late_loads
    }
}

impl Maps {
    /// Makes them of the handles of the loaded programs, with the ring buffers beside.
    ///
    /// # Errors
    ///
    /// When one is missing or of another kind, or must not be used.
    pub fn of(handles: Vec<Handle>) -> Result<(Self, Rings), LoadError> {
        let mut handles: BTreeMap<String, OwnedFd> = handles.into_iter().collect();
        let all = &mut handles;
        let rings = Rings {
            processes: open(all, "EVENTS")?,
            requests: open(all, "REQUEST_EVENTS")?,
            payload: open(all, "PAYLOAD")?,
            stalls: open(all, "STALLS")?,
            steps: open(all, "STEP_EVENTS")?,
            told: Told(open(all, "TOLD")?),
        };
        let maps = Self {
            targets: open(all, "TARGETS")?,
            places: open(all, "PLACES")?,
            stats: open(all, "STATS")?,
            sequences: open(all, "SEQUENCES")?,
            contexts: open(all, "CONTEXTS")?,
            layouts: open(all, "LAYOUTS")?,
            memories: open(all, "MEMORIES")?,
            notes: open(all, "NOTES")?,
            clocks: open(all, "CLOCKS")?,
            connections: open(all, "CONNECTIONS")?,
            talks: open(all, "TALKS")?,
            peers: open(all, "PEERS")?,
            threads: open(all, "THREADS")?,
            tasks: open(all, "TASKS")?,
            calls: open(all, "CALLS")?,
            steps: open(all, "STEPS")?,
            scheduled: open(all, "SCHEDULED")?,
        };
        Ok((maps, rings))
    }
}

/// Opens a map under its type.
fn open<T: TryFrom<Map, Error = MapError>>(
    handles: &mut BTreeMap<String, OwnedFd>,
    name: &'static str,
) -> Result<T, LoadError> {
    let handle = handles.remove(name).ok_or_else(|| LoadError::Absent(format!("map {name}")))?;
    let map = MapData::from_fd(handle).and_then(Map::from_map_data).and_then(T::try_from);
    map.map_err(|source| LoadError::map("open", name, source))
}

/// Puts the programs of tail calls where others look for them; in place of one that this kernel refuses the other of its
/// pair.
fn fill(
    ebpf: &mut Ebpf,
    uprobes: &mut Uprobes,
    map: &'static str,
    programs: &[(&'static str, Option<&'static str>)],
) -> Result<Map, LoadError> {
    let array = ebpf.take_map(map).ok_or_else(|| LoadError::Absent(format!("map {map}")))?;
    let data = multi::data(&array).ok_or_else(|| LoadError::Absent(format!("array {map}")))?;
    for (place, &(mut name, instead)) in (0..).zip(programs) {
        if let (Err(error), Some(other)) = (uprobes.load(ebpf, name), instead) {
            debug!(name, instead, %error, "this kernel refuses a program");
            name = other;
        }
        uprobes.load(ebpf, name)?;
        let set = raw::set_program(data.fd().as_fd(), place, uprobes.descriptor(ebpf, name)?);
        set.map_err(|io_error| {
            LoadError::map("fill", map, SyscallError { call: "bpf_map_update_elem", io_error }.into())
        })?;
    }
    Ok(array)
}

/// A map of the object under its type.
fn borrow<'a, T: TryFrom<&'a mut Map, Error = MapError>>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<T, LoadError> {
    let map = ebpf.map_mut(name).ok_or_else(|| LoadError::Absent(format!("map {name}")))?;
    T::try_from(map).map_err(|source| LoadError::map("open", name, source))
}

/// Process life comes by raw tracepoints: they need no tracefs.
fn watch(ebpf: &mut Ebpf, name: &str, event: &str) -> Result<(), LoadError> {
    let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
    let program: &mut RawTracePoint =
        program.try_into().map_err(|source| LoadError::program("open", name, source))?;
    program.load().map_err(|source| LoadError::program("load", name, source))?;
    program.attach(event).map_err(|source| LoadError::program("attach", name, source))?;
    Ok(())
}

/// The tracepoints of system calls need tracefs for their numbers; without it the agent does with less.
fn watch_calls(ebpf: &mut Ebpf) -> Result<bool, LoadError> {
    for (name, event) in [("lp_mmap", "sys_enter_mmap"), ("lp_listen", "sys_exit_listen")] {
        let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
        let program: &mut TracePoint =
            program.try_into().map_err(|source| LoadError::program("open", name, source))?;
        program.load().map_err(|source| LoadError::program("load", name, source))?;
        if let Err(error) = program.attach("syscalls", event) {
            warn!(
                error = chain(&error),
                "libraries loaded late are found by the slow rescan only; \
                 `mount -t tracefs nodev /sys/kernel/tracing` helps"
            );
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, SectionKind};

    use super::OBJECT;

    /// Helpers that change the observed process or its traffic, by their numbers in linux/bpf.h: write user memory,
    /// override a return value, send signals, write packets.
    const FORBIDDEN: [i32; 6] = [36, 58, 109, 117, 9, 25];

    #[test]
    fn no_program_can_change_what_it_observes() {
        let object = object::File::parse(OBJECT).unwrap();
        let mut calls = 0;
        for section in object.sections().filter(|section| section.kind() == SectionKind::Text) {
            let code = section.data().unwrap();
            for instruction in code.chunks_exact(8) {
                // BPF_JMP | BPF_CALL of a helper: the source register is 0, the helper's number the immediate.
                if instruction[0] == 0x85 && instruction[1] >> 4 == 0 {
                    let helper = i32::from_le_bytes(instruction[4..].try_into().unwrap());
                    assert!(!FORBIDDEN.contains(&helper), "helper {helper} in {:?}", section.name());
                    calls += 1;
                }
            }
        }
        assert!(calls > 100, "only {calls} calls of helpers were found: is the object read right?");
    }
}
