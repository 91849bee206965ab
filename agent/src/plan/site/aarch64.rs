//! AArch64: the walk over a prologue, and what the kernel simulates.

use super::{Needs, Probed, Site, Stepping};

/// Instructions the probe may move forward: prologues that save all registers are that long.
const MAX_SKIPPED: usize = 16;
/// Bytes of an instruction.
const WORD: usize = 4;

/// The earliest simulated instruction before which nothing but a prologue runs, or the entry of `code`.
pub(super) fn pick(code: &[u8], needs: Needs) -> Site {
    let words: Vec<u32> = code.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let Some(first) = words.first() else { return Site::undecodable() };
    let at = choose(&words, needs).unwrap_or(0);
    Site {
        offset: (at * WORD) as u64,
        instruction: Probed::Aarch64(words[at]),
        stepping: class(words[at]).1,
        entry_stepping: class(*first).1,
    }
}

/// What an instruction is called, as far as that matters here.
pub(super) fn text(word: u32) -> String {
    format!("{} ({word:#010x})", class(word).0)
}

/// The number of the instruction to probe, if one is cheaper than the entry.
fn choose(words: &[u32], needs: Needs) -> Option<usize> {
    // From there on an instruction may be executed several times a call. A jump to the entry is a new call.
    let targets = words.iter().enumerate().filter_map(|(at, word)| at.checked_add_signed(distance(*word)?));
    let end = targets.filter(|target| *target != 0).min().unwrap_or(usize::MAX);
    for (at, word) in words.iter().enumerate().take(end.min(MAX_SKIPPED + 1)) {
        if class(*word).1 == Stepping::Emulated {
            return Some(at);
        }
        // What lies behind a pointer to the caller's copy belongs to the function, and a return is told by the link
        // register of the entry.
        if needs.stack || !keeps(*word, needs) {
            return None;
        }
    }
    None
}

/// How far a branch goes, instructions; `None` for what is no direct branch.
fn distance(word: u32) -> Option<isize> {
    let signed = |shift: u32, bits: u32| ((word >> shift) << (32 - bits)).cast_signed() >> (32 - bits);
    let far = match class(word).0 {
        "b" | "bl" => signed(0, 26),
        "b.cond" | "cbz" | "cbnz" => signed(5, 19),
        "tbz" | "tbnz" => signed(5, 14),
        _ => return None,
    };
    isize::try_from(far).ok()
}

/// Whether an instruction is one of a prologue, after which the arguments are what they were and the next one follows.
/// What it writes in memory lies in the function's own frame.
fn keeps(word: u32, needs: Needs) -> bool {
    const SP: u32 = 31;
    let (target, base) = (word & 31, word >> 5 & 31);
    let is = |mask: u32, value: u32| word & mask == value;
    let spared = target > 7 || needs.arguments & (1 << target) == 0;
    match word {
        _ if matches!(class(word).0, "bti" | "paciasp" | "nop") => true,
        // stp, with the new stack pointer written back or not; of all registers.
        _ if is(0x3b40_0000, 0x2900_0000) => base == SP,
        // str to a multiple of its size, and with the stack pointer written back.
        _ if is(0xbfc0_0000, 0xb900_0000) || is(0xffe0_0c00, 0xf800_0c00) => base == SP,
        // sub, add with a number, and with a register behind the stack pointer, where frames are large.
        _ if is(0xff80_0000, 0xd100_0000) || is(0xff80_0000, 0x9100_0000) || is(0xffe0_fc00, 0xcb20_6000) => {
            spared
        }
        // mov of a register, or of a number.
        _ if is(0x7fe0_ffe0, 0x2a00_03e0) || is(0x7f80_0000, 0x5280_0000) => spared,
        // ldr of 32 or 64 bits: if the page is not there, it is executed again.
        _ if is(0xbfc0_0000, 0xb940_0000) => spared,
        _ => false,
    }
}

/// Name and execution of one A64 instruction. What the kernel simulates are the instructions that read or write
/// the program counter; `bti` and `paciasp`, at the entry of most functions, are stepped.
fn class(word: u32) -> (&'static str, Stepping) {
    match word {
        // Simulated since 6.13, stepped before.
        0xd503_201f => ("nop", Stepping::Unknown),
        _ if word & 0xfc00_0000 == 0x1400_0000 => ("b", Stepping::Emulated),
        _ if word & 0xfc00_0000 == 0x9400_0000 => ("bl", Stepping::Emulated),
        _ if word & 0xff00_0010 == 0x5400_0000 => ("b.cond", Stepping::Emulated),
        _ if word & 0x7f00_0000 == 0x3400_0000 => ("cbz", Stepping::Emulated),
        _ if word & 0x7f00_0000 == 0x3500_0000 => ("cbnz", Stepping::Emulated),
        _ if word & 0x7f00_0000 == 0x3600_0000 => ("tbz", Stepping::Emulated),
        _ if word & 0x7f00_0000 == 0x3700_0000 => ("tbnz", Stepping::Emulated),
        _ if word & 0x9f00_0000 == 0x1000_0000 => ("adr", Stepping::Emulated),
        _ if word & 0x9f00_0000 == 0x9000_0000 => ("adrp", Stepping::Emulated),
        _ if word & 0xffff_fc1f == 0xd61f_0000 => ("br", Stepping::Emulated),
        _ if word & 0xffff_fc1f == 0xd63f_0000 => ("blr", Stepping::Emulated),
        _ if word & 0xffff_fc1f == 0xd65f_0000 => ("ret", Stepping::Emulated),
        // Simulated until late 2024, refused since: the simulation read user memory as if it were the kernel's.
        _ if word & 0x3b00_0000 == 0x1800_0000 => ("ldr (literal)", Stepping::Unknown),
        _ if word & 0xffff_ff3f == 0xd503_241f => ("bti", Stepping::SingleStepped),
        0xd503_233f => ("paciasp", Stepping::SingleStepped),
        _ => ("instruction", Stepping::SingleStepped),
    }
}
