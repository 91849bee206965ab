//! Chooses the instruction a probe is put on, because that instruction decides what a hit costs.
//!
//! In: the bytes of one function and what the probe's program reads. Out: a [`Site`]: an offset from the
//! function's entry, the two instructions concerned, and how the kernel will execute the probed one.
//!
//! The kernel emulates a few instructions in its breakpoint handler and executes every other one out of line
//! with a trap after it, which in a virtual machine is some fifteen times dearer ([`price_ns`]). On x86-64 the
//! probe may therefore move forward over instructions that every call executes exactly once and that leave the
//! arguments as they were. What is emulated is read from `arch/x86/kernel/uprobes.c` and
//! `arch/arm64/kernel/probes/decode-insn.c` of the kernel.
//!
//! Two things are not looked for, since neither is produced by a compiler for straight-line code at an entry: a
//! jump table that leads back into the first instructions, and a `.cold` part that does.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory,
    IntelFormatter, Mnemonic, OpAccess, OpKind, Register,
};
use serde::Serialize;

/// Instructions the probe may move forward; a prologue that is not over by then has no cheap instruction.
const MAX_SKIPPED: usize = 8;

/// Bytes of a function that are searched for branches back to its first instructions.
const MAX_SEARCHED: usize = 16 * 1024;

/// Integer argument registers of the System V x86-64 calling convention, by argument number.
const X86_ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Instruction set of the code a site is picked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteMachine {
    /// 64-bit x86 code.
    X86_64,
    /// 64-bit Arm code.
    Aarch64,
}

/// How the kernel executes a probed instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stepping {
    /// In its breakpoint handler, on every kernel this program supports.
    Emulated,
    /// Out of line, with a second trap.
    SingleStepped,
    /// Not decodable, or different from one supported kernel to another (some even refuse the probe).
    Unknown,
}

/// Where a probe goes, and why there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Site {
    /// Bytes from the function's entry to the probed instruction.
    pub offset: u64,
    /// The probed instruction, Intel syntax; branch targets are counted in bytes from the function's entry.
    pub instruction: String,
    /// The instruction at the function's entry.
    pub first_instruction: String,
    /// How the probed instruction is executed.
    pub stepping: Stepping,
    /// How the instruction at the entry would have been executed.
    pub entry_stepping: Stepping,
}

/// What the probe's program reads when it is hit, hence what must be as it was at the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bit i: integer argument i is read (rdi, rsi, rdx, rcx, r8, r9; x0 to x7).
    pub arguments: u8,
    /// Memory relative to the stack pointer is read, such as a structure passed by value.
    pub stack: bool,
}

/// Picks the site for a probe on the function that `code` begins with.
///
/// `function_size` is the symbol's size in bytes, 0 if it has none; `code` may be shorter (truncated) or longer.
/// The site is the earliest emulated instruction that is safe, or the entry. Never fails: code that cannot be
/// decoded gives the entry with [`Stepping::Unknown`].
#[must_use]
pub fn pick(machine: SiteMachine, code: &[u8], function_size: u64, needs: Needs) -> Site {
    match machine {
        SiteMachine::X86_64 => {
            let size = usize::try_from(function_size).unwrap_or(usize::MAX);
            let size = if size == 0 { MAX_SEARCHED } else { size.min(MAX_SEARCHED) };
            pick_x86(&code[..code.len().min(size)], needs)
        }
        SiteMachine::Aarch64 => {
            let (instruction, stepping) = code.first_chunk().map_or_else(undecodable, |word| {
                let word = u32::from_le_bytes(*word);
                let (name, stepping) = aarch64_class(word);
                (format!("{name} ({word:#010x})"), stepping)
            });
            Site {
                offset: 0,
                first_instruction: instruction.clone(),
                instruction,
                stepping,
                entry_stepping: stepping,
            }
        }
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

fn undecodable() -> (String, Stepping) {
    ("(undecodable)".to_owned(), Stepping::Unknown)
}

fn pick_x86(code: &[u8], needs: Needs) -> Site {
    let Some(first) = decode_x86(code).next() else {
        let (instruction, stepping) = undecodable();
        let first_instruction = instruction.clone();
        return Site { offset: 0, instruction, first_instruction, stepping, entry_stepping: stepping };
    };
    let site = choose_x86(code, needs).unwrap_or(first);
    Site {
        offset: site.ip(),
        instruction: text_x86(&site),
        first_instruction: text_x86(&first),
        stepping: stepping_x86(bytes_of(code, &site)),
        entry_stepping: stepping_x86(bytes_of(code, &first)),
    }
}

/// The instruction to probe, if the walk over the prologue finds a better one than the entry.
fn choose_x86(code: &[u8], needs: Needs) -> Option<Instruction> {
    let first_target = first_branch_target(code);
    let mut usage = InstructionInfoFactory::new();
    let mut fallback = None;
    for instruction in decode_x86(code).take(MAX_SKIPPED + 1) {
        if instruction.ip() != 0 && instruction.ip() >= first_target {
            break;
        }
        let bytes = bytes_of(code, &instruction);
        if stepping_x86(bytes) == Stepping::Emulated {
            return Some(instruction);
        }
        // Without a cheap site, still leave behind what is dearest or impossible to probe: nothing is gained by
        // stepping `endbr64`, and a refused instruction would cost the whole probe.
        let worthless = instruction.mnemonic() == Mnemonic::Endbr64 || refused_x86(bytes);
        if fallback.is_none() && !worthless {
            fallback = Some(instruction);
        }
        if instruction.flow_control() != FlowControl::Next || clobbers(&mut usage, &instruction, needs) {
            break;
        }
    }
    fallback
}

/// The lowest offset past the entry that a direct branch of the function leads to: from there on an instruction
/// may be executed several times a call. A jump or call to the entry itself is a new call and does not count.
/// Bytes that are no instruction make the whole function suspect: then the lowest offset is 0.
fn first_branch_target(code: &[u8]) -> u64 {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let mut lowest = u64::MAX;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        match decoder.last_error() {
            DecoderError::None => {}
            // The function was cut in the middle of an instruction.
            DecoderError::NoMoreBytes => break,
            _ => return 0,
        }
        let target = instruction.near_branch_target();
        if target != 0 {
            lowest = lowest.min(target);
        }
    }
    lowest
}

/// Whether the arguments are no longer what they were at the entry once `instruction` has been executed.
fn clobbers(usage: &mut InstructionInfoFactory, instruction: &Instruction, needs: Needs) -> bool {
    // The seventh and eighth argument are on the stack on this machine.
    let stack = needs.stack || needs.arguments >> X86_ARGUMENTS.len() != 0;
    let read = |register: Register| {
        let numbered = X86_ARGUMENTS.iter().position(|&argument| argument == register);
        numbered.is_some_and(|number| needs.arguments & (1 << number) != 0)
            || (stack && register == Register::RSP)
    };
    let used = usage.info(instruction);
    used.used_registers().iter().any(|used| writes(used.access()) && read(used.register().full_register()))
        // The stack area of the arguments belongs to the function, which may store into it.
        || (stack && used.used_memory().iter().any(|used| writes(used.access()) && used.base() == Register::RSP))
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Instructions from the entry on, up to the first bytes that are none. Addresses count from the entry.
fn decode_x86(code: &[u8]) -> impl Iterator<Item = Instruction> + '_ {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    std::iter::from_fn(move || {
        let instruction = decoder.can_decode().then(|| decoder.decode())?;
        (!instruction.is_invalid()).then_some(instruction)
    })
}

fn bytes_of<'code>(code: &'code [u8], instruction: &Instruction) -> &'code [u8] {
    let start = usize::try_from(instruction.ip()).unwrap_or(usize::MAX);
    code.get(start..).and_then(|rest| rest.get(..instruction.len())).unwrap_or_default()
}

/// How the kernel executes one x86-64 instruction, from its bytes because the kernel decides by opcode:
/// `push %rdi` as `57` is emulated and the same instruction as `ff f7` is not.
fn stepping_x86(instruction: &[u8]) -> Stepping {
    match *instruction {
        // push r64, without any prefix but the one that names r8 to r15.
        [0x50..=0x57] | [0x41, 0x50..=0x57] => Stepping::Emulated,
        // nop, pause; call rel32, jmp rel32, jmp rel8; jcc rel8, jcc rel32.
        [0x90] | [0xf3, 0x90] | [0xe8 | 0xe9, _, _, _, _] | [0xeb | 0x70..=0x7f, _] => Stepping::Emulated,
        [0x0f, 0x80..=0x8f, _, _, _, _] => Stepping::Emulated,
        // The same after `bnd`, which compilers put before branches for the former MPX.
        [0xf2, 0xe8 | 0xe9, _, _, _, _] | [0xf2, 0xeb | 0x70..=0x7f, _] => Stepping::Emulated,
        [0xf2, 0x0f, 0x80..=0x8f, _, _, _, _] => Stepping::Emulated,
        // Long nops: emulated by kernels since 2025, stepped before.
        [] | [0x0f, 0x1f, ..] | [0x66, 0x0f, 0x1f, ..] => Stepping::Unknown,
        _ if refused_x86(instruction) => Stepping::Unknown,
        _ => Stepping::SingleStepped,
    }
}

/// Whether some supported kernel refuses to probe this instruction, or gets it wrong: it takes no segment prefix
/// but fs and gs, no lock prefix and no 16-bit branch, refused the 16-bit nop before 6.1, and takes `xchg` of rax
/// with r8 for a nop.
fn refused_x86(instruction: &[u8]) -> bool {
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let length = instruction.iter().take_while(|byte| is_prefix(byte)).count();
    let (prefixes, rest) = instruction.split_at(length);
    let bad_prefix = prefixes.iter().any(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0xf0));
    let branch_or_nop =
        matches!(rest, [0x70..=0x7f | 0x90 | 0xe8 | 0xe9 | 0xeb, ..] | [0x0f, 0x80..=0x8f, ..]);
    bad_prefix || (prefixes.contains(&0x66) && branch_or_nop) || matches!(rest, [0x40..=0x4f, 0x90])
}

fn text_x86(instruction: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_rip_relative_addresses(true);
    options.set_space_after_operand_separator(true);
    let mut text = String::new();
    if instruction.op0_kind() != OpKind::NearBranch64 {
        formatter.format(instruction, &mut text);
        return text;
    }
    // An absolute target means nothing here, and one before the entry would print as a huge number.
    formatter.format_mnemonic(instruction, &mut text);
    let target = instruction.near_branch_target().cast_signed();
    let sign = if target < 0 { '-' } else { '+' };
    format!("{text} {sign}{:#x}", target.unsigned_abs())
}

/// Name and execution of one A64 instruction. What the kernel simulates are the instructions that read or write
/// the program counter; `bti` and `paciasp`, at the entry of most functions, are stepped.
fn aarch64_class(word: u32) -> (&'static str, Stepping) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use Stepping::{Emulated, SingleStepped, Unknown};

    const NOTHING: Needs = Needs { arguments: 0, stack: false };
    const FIRST: Needs = Needs { arguments: 0b1, stack: false };
    const SECOND: Needs = Needs { arguments: 0b10, stack: false };
    const THIRD: Needs = Needs { arguments: 0b100, stack: false };
    const STACK: Needs = Needs { arguments: 0, stack: true };
    const SEVENTH: Needs = Needs { arguments: 0b100_0000, stack: false };

    fn x86(hex: &str, needs: Needs) -> Site {
        pick(SiteMachine::X86_64, &bytes(hex), 0, needs)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    }

    #[test]
    fn picks_the_earliest_cheap_and_safe_instruction() {
        #[rustfmt::skip]
        let table = [
            // The entry is cheap.
            ("55 48 89 e5",                   FIRST,  0, "push rbp",         Emulated),
            ("41 57 41 56",                   STACK,  0, "push r15",         Emulated),
            ("e9 fb ff ff ff",                FIRST,  0, "jmp +0x0",         Emulated),
            ("e9 00 f0 ff ff",                FIRST,  0, "jmp -0xffb",       Emulated),
            ("e8 10 00 00 00 53",             FIRST,  0, "call +0x15",       Emulated),
            ("eb 02 00 00 c3",                FIRST,  0, "jmp +0x4",         Emulated),
            ("90 c3",                         FIRST,  0, "nop",              Emulated),
            // It is not, but something after it is.
            ("f3 0f 1e fa 55",                FIRST,  4, "push rbp",         Emulated),
            ("48 85 ff 74 05",                FIRST,  3, "je +0xa",          Emulated),
            ("8b 87 78 15 00 00 85 c0 74 01", FIRST,  8, "je +0xb",          Emulated),
            ("85 ff 0f 88 10 00 00 00",       FIRST,  2, "js +0x18",         Emulated),
            ("f3 0f 1e fa e9 00 10 00 00",    FIRST,  4, "jmp +0x1009",      Emulated),
            ("0f 1f 44 00 00 53",             FIRST,  5, "push rbx",         Emulated),
            // An argument would be lost on the way: whole, in part, by an implied operand.
            ("89 f7 53",                      FIRST,  0, "mov edi, esi",     SingleStepped),
            ("89 f7 53",                      SECOND, 2, "push rbx",         Emulated),
            ("40 b7 01 53",                   FIRST,  0, "mov dil, 1",       SingleStepped),
            ("99 53",                         THIRD,  0, "cdq",              SingleStepped),
            ("48 0f 45 fe 53",                FIRST,  0, "cmovne rdi, rsi",  SingleStepped),
            // The stack pointer is needed as it was, and so is what it points to.
            ("48 83 ec 18 53",                FIRST,  4, "push rbx",         Emulated),
            ("48 83 ec 18 53",                STACK,  0, "sub rsp, 0x18",    SingleStepped),
            ("48 83 ec 18 53",                SEVENTH, 0, "sub rsp, 0x18",   SingleStepped),
            ("48 89 74 24 08 53",             STACK,  0, "mov [rsp+8], rsi", SingleStepped),
            ("48 89 74 24 f8 53",             FIRST,  5, "push rbx",         Emulated),
            ("49 89 e2 53",                   STACK,  3, "push rbx",         Emulated),
            // A loop leads to the site, or before it; a new call of itself does not matter.
            ("8b 07 53 eb fd",                FIRST,  0, "mov eax, [rdi]",   SingleStepped),
            ("48 8b 07 53 eb fb",             FIRST,  0, "mov rax, [rdi]",   SingleStepped),
            ("8b 07 53 eb fb",                FIRST,  2, "push rbx",         Emulated),
            ("f3 0f 1e fa 53 eb fd",          FIRST,  0, "endbr64",          SingleStepped),
            ("8b 07 53 eb fe",                FIRST,  2, "push rbx",         Emulated),
            // Control leaves, so that what follows runs later, elsewhere or never.
            ("ff d0 53",                      NOTHING, 0, "call rax",        SingleStepped),
            ("c3 53",                         NOTHING, 0, "ret",             SingleStepped),
            ("0f 05 53",                      NOTHING, 0, "syscall",         SingleStepped),
            ("ff 25 00 01 00 00",             FIRST,  0, "jmp qword ptr [rip+0x100]", SingleStepped),
            // Nothing cheap: at least not endbr64, nor what kernels refuse or mistake.
            ("f3 0f 1e fa c3",                FIRST,  4, "ret",              SingleStepped),
            ("66 90 c3",                      FIRST,  2, "ret",              SingleStepped),
            ("f0 48 ff 07 c3",                FIRST,  4, "ret",              SingleStepped),
            ("49 90 c3",                      FIRST,  2, "ret",              SingleStepped),
            ("66 e9 00 00 00 00",             FIRST,  0, "jmp +0x6",         Unknown),
            ("0f 1f 44 00 00 c3",             FIRST,  0, "nop [rax+rax]", Unknown),
            ("ff f7 c3",                      FIRST,  0, "push rdi",         SingleStepped),
        ];
        for (code, needs, offset, instruction, stepping) in table {
            let site = x86(code, needs);
            assert_eq!(
                (site.offset, site.instruction.as_str(), site.stepping),
                (offset, instruction, stepping),
                "{code} {needs:?}"
            );
        }
    }

    #[test]
    fn tells_what_the_entry_would_have_been() {
        let site = x86("f3 0f 1e fa 55", FIRST);
        assert_eq!((site.first_instruction.as_str(), site.entry_stepping), ("endbr64", SingleStepped));
        let site = x86("55", FIRST);
        assert_eq!((site.first_instruction.as_str(), site.entry_stepping), ("push rbp", Emulated));
    }

    #[test]
    fn walks_eight_instructions_and_no_further() {
        let far = |count: usize| x86(&format!("{} 53", "8b 07 ".repeat(count)), FIRST);
        assert_eq!(far(8).offset, 16);
        assert_eq!(far(9).offset, 0);
    }

    #[test]
    fn stays_at_the_entry_of_code_it_cannot_read_to_the_end() {
        // 06 is no instruction in 64-bit code; a branch may hide behind it.
        assert_eq!(x86("8b 07 53 06 c3", FIRST).offset, 0);
        // An instruction that is merely cut off hides nothing that can be seen.
        assert_eq!(x86("8b 07 53 e8 00", FIRST).offset, 2);
        // What follows the function is not the function.
        let code = bytes("8b 07 53 c3 eb fc");
        assert_eq!(pick(SiteMachine::X86_64, &code, 4, FIRST).offset, 2);
        assert_eq!(pick(SiteMachine::X86_64, &code, 6, FIRST).offset, 0);
        assert_eq!(pick(SiteMachine::X86_64, &code, u64::MAX, FIRST).offset, 0);
    }

    #[test]
    fn undecodable_code_is_unknown() {
        for (machine, hex) in [
            (SiteMachine::X86_64, ""),
            (SiteMachine::X86_64, "06"),
            (SiteMachine::X86_64, "48"),
            (SiteMachine::X86_64, "e8 00 00"),
            (SiteMachine::Aarch64, ""),
            (SiteMachine::Aarch64, "5f 24 03"),
        ] {
            let site = pick(machine, &bytes(hex), 4, FIRST);
            assert_eq!((site.offset, site.stepping, site.entry_stepping), (0, Unknown, Unknown), "{hex}");
        }
    }

    #[test]
    fn any_bytes_give_a_site_inside_them() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let length = random() % 64;
            let code: Vec<u8> = (0..length).map(|_| random().to_le_bytes()[0]).collect();
            let needs = Needs { arguments: random().to_le_bytes()[0], stack: random() % 2 == 0 };
            for machine in [SiteMachine::X86_64, SiteMachine::Aarch64] {
                let site = pick(machine, &code, random() % 96, needs);
                assert!(site.offset == 0 || site.offset < length, "{code:02x?}");
            }
        }
    }

    #[test]
    fn classifies_arm_entries_and_never_moves() {
        let table = [
            (0x1400_0001_u32, "b", Emulated),
            (0x97ff_ffff, "bl", Emulated),
            (0x5400_0040, "b.cond", Emulated),
            (0xb400_0060, "cbz", Emulated),
            (0x3500_0060, "cbnz", Emulated),
            (0x3600_0080, "tbz", Emulated),
            (0xb707_ff80, "tbnz", Emulated),
            (0x1000_0000, "adr", Emulated),
            (0xb000_00e0, "adrp", Emulated),
            (0xd61f_0200, "br", Emulated),
            (0xd65f_03c0, "ret", Emulated),
            (0x5800_0040, "ldr (literal)", Unknown),
            (0xd503_201f, "nop", Unknown),
            (0xd503_245f, "bti", SingleStepped),
            (0xd503_233f, "paciasp", SingleStepped),
            (0xa9bd_7bfd, "instruction", SingleStepped),
            (0xd101_83ff, "instruction", SingleStepped),
            (0xf940_0000, "instruction", SingleStepped),
        ];
        for (word, name, stepping) in table {
            let mut code = word.to_le_bytes().to_vec();
            code.extend(0x1400_0001_u32.to_le_bytes());
            let site = pick(SiteMachine::Aarch64, &code, 8, FIRST);
            assert_eq!(
                (site.offset, site.stepping, site.entry_stepping),
                (0, stepping, stepping),
                "{word:#x}"
            );
            assert_eq!(site.instruction, format!("{name} ({word:#010x})"));
        }
    }

    #[test]
    fn a_stepped_hit_is_dear_above_all_in_a_guest() {
        assert_eq!(price_ns(Emulated, true), price_ns(Emulated, false));
        assert!(price_ns(Emulated, false) < price_ns(SingleStepped, false));
        assert!(price_ns(SingleStepped, false) < price_ns(SingleStepped, true));
        assert_eq!(price_ns(Unknown, true), price_ns(SingleStepped, true));
    }

    #[test]
    fn serialises_in_snake_case() {
        let json = serde_json::to_string(&x86("f3 0f 1e fa 55", FIRST)).unwrap();
        assert!(json.contains(r#""entry_stepping":"single_stepped""#), "{json}");
    }
}
