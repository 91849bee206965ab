//! Chooses the instruction a probe is put on, because that instruction decides what a hit costs.
//!
//! In: the bytes of one function and what the probe's program reads. Out: a [`Site`]: an offset from the
//! function's entry, the instruction there, and how the kernel will execute the probed one.
//!
//! The kernel emulates a few instructions in its breakpoint handler and executes every other one out of line
//! with a trap after it, which in a virtual machine is some fifteen times dearer ([`price_ns`]). The
//! probe may therefore move forward over instructions that every call executes exactly once and that leave the
//! arguments as they were. What is emulated is read from `arch/x86/kernel/uprobes.c` and
//! `arch/arm64/kernel/probes/decode-insn.c` of the kernel.
//!
//! Two things are not looked for, since neither is produced by a compiler for straight-line code at an entry: a
//! jump table that leads back into the first instructions, and a `.cold` part that does.

mod aarch64;
mod x86;

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::engines::catalog::Needs;

/// Bytes of a function that are searched for branches back to its first instructions.
const MAX_SEARCHED: usize = 16 * 1024;

/// Instruction set of the code a site is picked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteMachine {
    /// 64-bit x86 code.
    X86_64,
    /// 64-bit Arm code.
    Aarch64,
}

/// How the kernel executes a probed instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stepping {
    /// In its breakpoint handler, on every kernel this program supports.
    Emulated,
    /// Out of line, with a second trap.
    SingleStepped,
    /// Not decodable, or different from one supported kernel to another (some even refuse the probe).
    Unknown,
}

/// A probed instruction, as it stands in the code. It is put into words for people alone: the names of all instructions of x86-64
/// take more than a megabyte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probed {
    /// No instruction that is known.
    #[default]
    Undecodable,
    /// Of x86-64.
    X86 {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Where it stands, from the function's entry.
        offset: u64,
    },
    /// Of 64-bit Arm.
    Aarch64(u32),
}

/// Intel syntax; branch targets are counted in bytes from the function's entry.
impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Undecodable => "(undecodable)".to_owned(),
            Self::X86 { bytes, offset } => x86::text(bytes, *offset),
            Self::Aarch64(word) => aarch64::text(*word),
        })
    }
}

/// Where a probe goes, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Bytes from the function's entry to the probed instruction.
    pub offset: u64,
    /// The probed instruction.
    pub instruction: Probed,
    /// How the probed instruction is executed.
    pub stepping: Stepping,
    /// How the instruction at the entry would have been executed.
    pub entry_stepping: Stepping,
}

impl Site {
    /// The entry of a function whose code is none that is known.
    fn undecodable() -> Self {
        let stepping = Stepping::Unknown;
        Self { offset: 0, instruction: Probed::Undecodable, stepping, entry_stepping: stepping }
    }
}

/// Picks the site for a probe on the function that `code` begins with.
///
/// `function_size` is the symbol's size in bytes, 0 if it has none; `code` may be shorter (truncated) or longer.
/// The site is the earliest emulated instruction that is safe, or the entry. Never fails: code that cannot be
/// decoded gives the entry with [`Stepping::Unknown`].
#[must_use]
pub fn pick(machine: SiteMachine, code: &[u8], function_size: u64, needs: Needs) -> Site {
    let size = usize::try_from(function_size).unwrap_or(usize::MAX);
    let size = if size == 0 { MAX_SEARCHED } else { size.min(MAX_SEARCHED) };
    let code = &code[..code.len().min(size)];
    match machine {
        SiteMachine::X86_64 => x86::pick(code, needs),
        SiteMachine::Aarch64 => aarch64::pick(code, needs),
    }
}

/// Picks an emulated instruction near the end of the function that `code` begins with, which every return passes once,
/// with the result in its register. `function_size` is the symbol's size in bytes. `None` where there is none such, or
/// the code is not known whole.
#[must_use]
pub fn pick_end(machine: SiteMachine, code: &[u8], function_size: u64) -> Option<Site> {
    let size = usize::try_from(function_size).ok().filter(|size| *size > 0)?;
    match machine {
        SiteMachine::X86_64 => x86::pick_end(code.get(..size)?),
        SiteMachine::Aarch64 => None,
    }
}

/// Estimated cost of one hit at a site, in nanoseconds, the probe's own program included.
///
/// Measured on a virtual machine (0.4 to 0.8 us emulated, 9.9 to 11 us stepped: each trap of a step leaves the
/// guest), published figures for bare metal. An unknown site is priced as a stepped one.
#[must_use]
pub fn price_ns(stepping: Stepping, virtual_machine: bool) -> u32 {
    match (stepping, virtual_machine) {
        (Stepping::Emulated, _) => 600,
        (Stepping::SingleStepped | Stepping::Unknown, true) => 10_000,
        (Stepping::SingleStepped | Stepping::Unknown, false) => 1_600,
    }
}
