//! Where the running kernel keeps what is read of threads, by its own description (BTF). In: the file's bytes. Out: a
//! [`KernelLayout`].
//!
//! Only names, members and their places are read, of a handful of types; the format is described in
//! Documentation/bpf/btf.rst of the kernel.

use llamaprobe_common::stall::{KernelLayout, NO_FIELD};

const MAGIC: u16 = 0xeb9f;
/// Kinds of types, as linux/btf.h numbers them.
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const PROTOTYPE: u32 = 13;

/// The description of a kernel's types.
struct Btf<'a> {
    strings: &'a [u8],
    types: &'a [u8],
    /// Where in `types` each one begins; of the first, which is none, nothing is there.
    starts: Vec<u32>,
}

/// A member of a struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    /// Bits from the begin of the struct.
    bit: u32,
    /// Its type.
    kind: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        let head = word(bytes, 4)? as usize;
        let part = |at: usize| {
            let (offset, len) = (word(bytes, at)? as usize, word(bytes, at + 4)? as usize);
            bytes.get(head.checked_add(offset)?..)?.get(..len)
        };
        let (types, strings) = (part(8)?, part(16)?);
        let mut starts = vec![0];
        let mut at = 0;
        while magic == MAGIC && at < types.len() {
            starts.push(u32::try_from(at).ok()?);
            let (kind, len) = kind_of(word(types, at + 4)?);
            at += 12 + extra(kind, len)?;
        }
        (magic == MAGIC).then_some(Self { strings, types, starts })
    }

    fn word(&self, id: u32, at: usize) -> Option<u32> {
        word(self.types, *self.starts.get(id as usize)? as usize + at)
    }

    fn kind(&self, id: u32) -> Option<(u32, usize)> {
        Some(kind_of(self.word(id, 4)?))
    }

    fn is_called(&self, offset: u32, name: &str) -> bool {
        let text = self.strings.get(offset as usize..).unwrap_or_default();
        text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The type of a kind and a name.
    fn find(&self, wanted: u32, name: &str) -> Option<u32> {
        let mut ids = 1..u32::try_from(self.starts.len()).ok()?;
        ids.find(|id| {
            self.kind(*id).is_some_and(|(kind, _)| kind == wanted)
                && self.word(*id, 0).is_some_and(|offset| self.is_called(offset, name))
        })
    }

    /// A member of a struct, also of those without a name within it.
    fn member(&self, id: u32, name: &str) -> Option<Member> {
        let (kind, len) = self.kind(id)?;
        if kind != STRUCT && kind != UNION {
            return None;
        }
        let bitfields = self.word(id, 4)? >> 31 != 0;
        for at in (12..).step_by(12).take(len) {
            let (called, kind, offset) = (self.word(id, at)?, self.word(id, at + 4)?, self.word(id, at + 8)?);
            let bit = if bitfields { offset & 0x00ff_ffff } else { offset };
            if self.is_called(called, name) {
                return Some(Member { bit, kind });
            }
            if called == 0
                && let Some(inner) = self.member(kind, name)
            {
                return Some(Member { bit: bit + inner.bit, ..inner });
            }
        }
        None
    }

    /// The offset in bytes of a member, given by the names that lead to it from a struct.
    fn offset(&self, name: &str, path: &[&str]) -> u32 {
        self.place(name, path).map_or(NO_FIELD, |bit| bit / 8)
    }

    /// The same in bits.
    fn place(&self, name: &str, path: &[&str]) -> Option<u32> {
        let mut id = self.find(STRUCT, name)?;
        path.iter().try_fold(0, |bit, name| {
            let member = self.member(id, name)?;
            id = member.kind;
            Some(bit + member.bit)
        })
    }

    /// The byte and the mask of a member of one bit.
    fn flag(&self, name: &str, path: &[&str]) -> (u32, u32) {
        self.place(name, path).map_or((NO_FIELD, 0), |bit| (bit / 8, 1 << (bit % 8)))
    }

    /// Arguments of a raw tracepoint, beside the one that every one has.
    fn arguments(&self, tracepoint: &str) -> Option<usize> {
        let pointer = self.word(self.find(TYPEDEF, &format!("btf_trace_{tracepoint}"))?, 8)?;
        let prototype =
            self.word(pointer, 8).filter(|_| self.kind(pointer).is_some_and(|it| it.0 == POINTER))?;
        let (kind, len) = self.kind(prototype)?;
        (kind == PROTOTYPE).then(|| len.saturating_sub(1))
    }
}

/// Kind and number of members of a type, by its second word.
fn kind_of(info: u32) -> (u32, usize) {
    (info >> 24 & 0x1f, (info & 0xffff) as usize)
}

/// Bytes behind the three words of a type; `None` for kinds that this build does not know: what follows cannot be found.
fn extra(kind: u32, len: usize) -> Option<usize> {
    Some(match kind {
        // An integer, a variable, a tag.
        1 | 14 | 17 => 4,
        ARRAY => 12,
        // Structs, unions, sections, enums of 64 bits.
        STRUCT | UNION | 15 | 19 => 12 * len,
        // Enums and prototypes.
        6 | PROTOTYPE => 8 * len,
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, tags of types.
        POINTER | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

/// What the description of a kernel says; `None` when it is none.
pub fn layout(bytes: &[u8]) -> Option<KernelLayout> {
    let btf = Btf::parse(bytes)?;
    let thread = |path: &[&str]| btf.offset("task_struct", path);
    let queue = |path: &[&str]| btf.offset("cfs_rq", path);
    let (iowait, iowait_mask) = btf.flag("task_struct", &["in_iowait"]);
    let (memstall, memstall_mask) = btf.flag("task_struct", &["in_memstall"]);
    let either = |one, other| if one == NO_FIELD { other } else { one };
    Some(KernelLayout {
        pid: thread(&["pid"]),
        tgid: thread(&["tgid"]),
        state: thread(&["__state"]),
        flags: thread(&["flags"]),
        jobctl: thread(&["jobctl"]),
        iowait,
        iowait_mask,
        memstall,
        memstall_mask,
        throttled: thread(&["throttled"]),
        last_queued: thread(&["sched_info", "last_queued"]),
        cfs_rq: thread(&["se", "cfs_rq"]),
        throttle_count: queue(&["throttle_count"]),
        throttled_time: either(queue(&["throttled_clock_pelt_time"]), queue(&["throttled_clock_task_time"])),
        rq: queue(&["rq"]),
        clock: btf.offset("rq", &["clock"]),
        // x86, and Arm.
        call: either(btf.offset("pt_regs", &["orig_ax"]), btf.offset("pt_regs", &["syscallno"])),
        tells_state: u32::from(btf.arguments("sched_switch") == Some(4)),
    })
}

/// The description of a kernel that has all that is read but for one member.
#[cfg(test)]
pub(crate) fn staged(without: &str) -> Vec<u8> {
    const INTEGER: u32 = 1;
    let structs: [(&str, &[(&str, u32)]); 6] = [
        ("sched_info", &[("last_queued", INTEGER)]),
        ("sched_entity", &[("cfs_rq", INTEGER)]),
        (
            "task_struct",
            &[
                ("pid", INTEGER),
                ("tgid", INTEGER),
                ("__state", INTEGER),
                ("flags", INTEGER),
                ("jobctl", INTEGER),
                ("in_iowait", INTEGER),
                ("in_memstall", INTEGER),
                ("throttled", INTEGER),
                ("sched_info", 2),
                ("se", 3),
            ],
        ),
        ("cfs_rq", &[("throttle_count", INTEGER), ("throttled_clock_pelt_time", INTEGER), ("rq", INTEGER)]),
        ("rq", &[("clock", INTEGER)]),
        ("pt_regs", &[("orig_ax", INTEGER)]),
    ];
    let (mut strings, mut types) = (vec![0], vec![0, INTEGER << 24, 4, 32]);
    let mut named = |name: &str| {
        let at = strings.len() as u32;
        strings.extend(name.bytes().chain([0]));
        at
    };
    for (name, members) in structs {
        let members: Vec<_> = members.iter().filter(|(name, _)| *name != without).collect();
        types.extend([named(name), STRUCT << 24 | members.len() as u32, 4 * members.len() as u32]);
        for (bit, (name, kind)) in (0..).step_by(32).zip(members) {
            types.extend([named(name), *kind, bit]);
        }
    }
    described(&strings, &types)
}

/// A description of these types and strings.
#[cfg(test)]
fn described(strings: &[u8], types: &[u32]) -> Vec<u8> {
    let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut bytes = [MAGIC.to_ne_bytes(), [1, 0]].concat();
    for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    [bytes, types, strings.to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_by_name_also_within_what_has_none() {
        const STRINGS: &[u8] = b"\0cfs_rq\0rq\0throttle_count\0";
        let kind = |kind: u32, len: u32| kind << 24 | len;
        let types = [
            // 1: an integer; 2: a union without a name, with `rq` at 0 and `throttle_count` at 32; 3: the struct.
            [0, kind(1, 0), 4, 32].as_slice(),
            &[0, kind(UNION, 2), 8, 8, 1, 0, 11, 1, 32],
            &[1, kind(STRUCT, 1) | 1 << 31, 16, 0, 2, 1 << 24 | 64],
        ]
        .concat();
        let bytes = described(STRINGS, &types);
        let layout = layout(&bytes).unwrap();
        assert_eq!((layout.rq, layout.throttle_count, layout.clock), (8, 12, NO_FIELD));
        assert_eq!((layout.pid, layout.iowait, layout.tells_state), (NO_FIELD, NO_FIELD, 0));
    }

    #[test]
    fn what_a_kernel_has_is_found_and_what_it_lacks_is_not() {
        let all = layout(&staged("")).unwrap();
        assert_eq!((all.pid, all.tgid, all.last_queued, all.cfs_rq, all.call), (0, 4, 32, 36, 0));
        assert_eq!((all.iowait, all.iowait_mask, all.clock), (20, 1, 0));
        let older = layout(&staged("throttled")).unwrap();
        assert_eq!((older.throttled, older.throttle_count), (NO_FIELD, 0));
    }

    #[test]
    fn damage_is_no_description() {
        let bytes = described(b"\0", &[0, 1 << 24, 4, 32]);
        assert!(layout(&bytes).is_some());
        assert!(layout(&bytes[..bytes.len() - 3]).is_none(), "cut");
        assert!(layout(&[&[0, 0], &bytes[2..]].concat()).is_none(), "another mark");
        assert!(layout(&described(b"\0", &[0, 31 << 24, 4, 32])).is_none(), "an unknown kind");
        assert!(layout(&[]).is_none());
    }
}
