//! AArch64: what the kernel simulates. The probe stays at the entry.

use super::{Site, Stepping, undecodable};

/// The site at the entry of `code`.
pub(super) fn pick(code: &[u8]) -> Site {
    let (instruction, stepping) = code.first_chunk().map_or_else(undecodable, |word| {
        let word = u32::from_le_bytes(*word);
        let (name, stepping) = class(word);
        (format!("{name} ({word:#010x})"), stepping)
    });
    let first_instruction = instruction.clone();
    Site { offset: 0, instruction, first_instruction, stepping, entry_stepping: stepping }
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
