//! Loading: the embedded object, its programs, the probes on process life.

use std::error::Error;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, ProgramArray, RingBuf},
    programs::{ProgramError, RawTracePoint, TracePoint, UProbe, trace_point::TracePointLink},
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
    raw,
    sockets::SocketLinks,
    switches::{self, SwitchError, SwitchLink},
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
    /// What holds process events back.
    pub told: Told,
    /// What the programs say, where that is wanted.
    pub lines: Option<LineReader>,
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

/// The maps of the loaded programs.
pub struct Maps {
    pub(super) targets: HashMap<MapData, u32, TargetConfig>,
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
    _only: HashMap<MapData, u32, u8>,
    /// Maps the programs read only; held so that they are not closed.
    _blank: (Array<MapData, Context>, Array<MapData, Talk>, Array<MapData, u32>),
    late_loads: bool,
}

/// The loaded programs and what is attached with them. Apart from the maps, because attaching and detaching take their
/// time: whoever does it is not who reads.
pub struct Attacher {
    pub(super) ebpf: Ebpf,
    pub(super) attachments: Attachments,
    pub(super) sockets: SocketLinks,
    pub(super) sessions: Option<TracePointLink>,
    pub(super) offspring: Option<TracePointLink>,
    pub(super) switches: Option<SwitchLink>,
    /// Whether the kernel says where it keeps the arguments of a system call.
    pub(super) described: bool,
    /// Why the switches of threads cannot be followed, until that is said.
    pub(super) undescribed: Option<SwitchError>,
    /// Keeps the programs of the tail calls alive.
    _follow: Vec<ProgramArray<MapData>>,
}

impl Maps {
    /// Loads everything and starts to watch process life. Returns what attaches, and the ring buffers of process and
    /// request events, beside. Of other processes than `only` nothing is told, unless it is empty.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a program or a map: no rights, Linux older than 5.15, lockdown.
    pub fn load(only: &[u32], lines: Lines) -> Result<(Self, Attacher, Rings), LoadError> {
        raw::keep_no_large_memory();
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
        if level == 0 {
            // Nothing will be in it.
            loader.map_max_entries(lines::MAP, rustix::param::page_size() as u32);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|cause| LoadError::Object { cause: Box::new(cause) })?;
        let at_return = Program::ALL.into_iter().filter_map(Program::at_return);
        let at_end = Program::ALL.into_iter().filter_map(Program::at_end);
        let names = Program::ALL.into_iter().map(Program::name).chain(at_return).chain(at_end);
        for name in names.chain(["lp_show", "lp_calibration"]) {
            let program = uprobe(&mut ebpf, name)?;
            program.load().map_err(|source| LoadError::program("load", name, source))?;
        }
        let follow =
            vec![fill(&mut ebpf, "FOLLOW", &FOLLOW)?, fill(&mut ebpf, "SHOW", &[("lp_show", None)])?];

        // Before anything is told: who is not meant never fills a ring.
        let mut meant: HashMap<MapData, u32, u8> = take(&mut ebpf, "ONLY")?;
        for pid in only.first().map(|_| &0).into_iter().chain(only) {
            meant.insert(pid, 1, 0).map_err(|source| LoadError::map("fill", "ONLY", source))?;
        }
        watch(&mut ebpf, "lp_exec", "sched_process_exec")?;
        watch(&mut ebpf, "lp_exit", "sched_process_exit")?;
        let late_loads = watch_calls(&mut ebpf)?;
        let lines = if level > 0 { Some(lines.reader(&mut ebpf)?) } else { None };
        let rings = Rings {
            lines,
            processes: take(&mut ebpf, "EVENTS")?,
            requests: take(&mut ebpf, "REQUEST_EVENTS")?,
            payload: take(&mut ebpf, "PAYLOAD")?,
            stalls: take(&mut ebpf, "STALLS")?,
            told: Told(take(&mut ebpf, "TOLD")?),
        };
        let mut classes = take(&mut ebpf, "CALL_CLASSES")?;
        switches::fill_classes(&mut classes)?;
        let maps = Self {
            targets: take(&mut ebpf, "TARGETS")?,
            stats: take(&mut ebpf, "STATS")?,
            sequences: take(&mut ebpf, "SEQUENCES")?,
            contexts: take(&mut ebpf, "CONTEXTS")?,
            layouts: take(&mut ebpf, "LAYOUTS")?,
            memories: take(&mut ebpf, "MEMORIES")?,
            notes: take(&mut ebpf, "NOTES")?,
            clocks: take(&mut ebpf, "CLOCKS")?,
            connections: take(&mut ebpf, "CONNECTIONS")?,
            talks: take(&mut ebpf, "TALKS")?,
            peers: take(&mut ebpf, "PEERS")?,
            threads: take(&mut ebpf, "THREADS")?,
            tasks: take(&mut ebpf, "TASKS")?,
            calls: take(&mut ebpf, "CALLS")?,
            steps: take(&mut ebpf, "STEPS")?,
            scheduled: take(&mut ebpf, "SCHEDULED")?,
            _only: meant,
            _blank: (take(&mut ebpf, "BLANK_CONTEXT")?, take(&mut ebpf, "BLANK_TALK")?, classes),
            late_loads,
        };
        let mut attacher = Attacher {
            attachments: Attachments::default(),
            sockets: SocketLinks::new(),
            sessions: None,
            offspring: None,
            switches: None,
            described: kernel.call != NO_FIELD,
            undescribed,
            _follow: follow,
            ebpf,
        };
        attacher.load_sockets()?;
        // Of the object and of what the kernel says of its types.
        raw::give_memory_back();
        Ok((maps, attacher, rings))
    }

    /// Whether libraries loaded late announce themselves; otherwise only the slow rescan finds them.
    pub const fn sees_late_loads(&self) -> bool {
        self.late_loads
    }
}

/// Puts the programs of tail calls where others look for them; in place of one that this kernel refuses the other of its
/// pair.
fn fill(
    ebpf: &mut Ebpf,
    map: &'static str,
    programs: &[(&'static str, Option<&'static str>)],
) -> Result<ProgramArray<MapData>, LoadError> {
    let mut array: ProgramArray<MapData> = take(ebpf, map)?;
    for (place, &(mut name, instead)) in (0..).zip(programs) {
        let loaded = uprobe(ebpf, name)?.fd().is_ok();
        if !loaded && let (Err(error), Some(instead)) = (uprobe(ebpf, name)?.load(), instead) {
            debug!(name, instead, error = chain(&error), "this kernel refuses a program");
            name = instead;
        }
        let program = uprobe(ebpf, name)?;
        if program.fd().is_err() {
            program.load().map_err(|source| LoadError::program("load", name, source))?;
        }
        let fd = program.fd().map_err(|source| LoadError::program("open", name, source))?;
        array.set(place, fd, 0).map_err(|source| LoadError::map("fill", map, source))?;
    }
    Ok(array)
}

/// Takes a map out of the object under its type.
fn take<T: TryFrom<aya::maps::Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, LoadError> {
    let map = ebpf.take_map(name).ok_or_else(|| LoadError::Absent(format!("map {name}")))?;
    T::try_from(map).map_err(|source| LoadError::map("open", name, source))
}

pub(super) fn uprobe<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, LoadError> {
    let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
    program.try_into().map_err(|source| LoadError::program("open", name, source))
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
