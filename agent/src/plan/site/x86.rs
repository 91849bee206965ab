//! x86-64: the walk over a prologue, and what the kernel emulates.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory,
    IntelFormatter, Mnemonic, OpAccess, OpKind, Register, UsedRegister,
};

use super::{Needs, Probed, Site, Stepping};

/// Instructions the probe may move forward; a prologue that is not over by then has no cheap instruction.
const MAX_SKIPPED: usize = 8;

/// Integer argument registers of the System V x86-64 calling convention, by argument number.
const X86_ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

pub(super) fn pick(code: &[u8], needs: Needs) -> Site {
    let Some(first) = decode(code).next() else { return Site::undecodable() };
    let site = choose(code, needs).unwrap_or(first);
    Site {
        offset: site.ip(),
        instruction: probed(code, &site),
        stepping: stepping(bytes_of(code, &site)),
        entry_stepping: stepping(bytes_of(code, &first)),
    }
}

/// The branch by which a function with a guarded stack leaves its one way out when the guard was overwritten: `jne` to a
/// call at the very end, that of `__stack_chk_fail`. What follows it restores registers and returns.
pub(super) fn pick_end(code: &[u8]) -> Option<Site> {
    let all: Vec<_> = decode(code).collect();
    let last = all.last().filter(|last| last.next_ip() == code.len() as u64)?;
    let whole = last.flow_control() == FlowControl::Call;
    let inside = |target: u64| target < code.len() as u64;
    let leaves = |instruction: &Instruction| match instruction.flow_control() {
        FlowControl::IndirectBranch => true,
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
            !inside(instruction.near_branch_target())
        }
        _ => false,
    };
    let mut returns = all.iter().enumerate().filter(|(_, it)| it.flow_control() == FlowControl::Return);
    let (end, _) = returns.next()?;
    if !whole || returns.next().is_some() || all.iter().any(leaves) {
        return None;
    }
    let mut usage = InstructionInfoFactory::new();
    for at in (0..end).rev() {
        let (instruction, next) = (&all[at], &all[at + 1]);
        // Another way leads to the return.
        if all.iter().any(|it| it.near_branch_target() == next.ip()) {
            return None;
        }
        if instruction.flow_control() == FlowControl::ConditionalBranch {
            let guard = instruction.near_branch_target() == last.ip();
            let cheap = stepping(bytes_of(code, instruction)) == Stepping::Emulated;
            return (guard && cheap).then(|| Site {
                offset: instruction.ip(),
                instruction: probed(code, instruction),
                stepping: Stepping::Emulated,
                entry_stepping: stepping(bytes_of(code, &all[0])),
            });
        }
        let used = usage.info(instruction);
        let result =
            |it: &UsedRegister| writes(it.access()) && it.register().full_register() == Register::RAX;
        if instruction.flow_control() != FlowControl::Next || used.used_registers().iter().any(result) {
            return None;
        }
    }
    None
}

/// The instruction to probe, if the walk over the prologue finds a better one than the entry.
fn choose(code: &[u8], needs: Needs) -> Option<Instruction> {
    let first_target = first_branch_target(code);
    let mut usage = InstructionInfoFactory::new();
    let mut fallback = None;
    for instruction in decode(code).take(MAX_SKIPPED + 1) {
        if instruction.ip() != 0 && instruction.ip() >= first_target {
            break;
        }
        let bytes = bytes_of(code, &instruction);
        if stepping(bytes) == Stepping::Emulated {
            return Some(instruction);
        }
        // Without a cheap site, still leave behind what is dearest or impossible to probe: nothing is gained by
        // stepping `endbr64`, and a refused instruction would cost the whole probe.
        let worthless = instruction.mnemonic() == Mnemonic::Endbr64 || refused(bytes);
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
fn decode(code: &[u8]) -> impl Iterator<Item = Instruction> + '_ {
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
fn stepping(instruction: &[u8]) -> Stepping {
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
        _ if refused(instruction) => Stepping::Unknown,
        _ => Stepping::SingleStepped,
    }
}

/// Whether some supported kernel refuses to probe this instruction, or gets it wrong: it takes no segment prefix
/// but fs and gs, no lock prefix and no 16-bit branch, refused the 16-bit nop before 6.1, and takes `xchg` of rax
/// with r8 for a nop.
fn refused(instruction: &[u8]) -> bool {
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let length = instruction.iter().take_while(|byte| is_prefix(byte)).count();
    let (prefixes, rest) = instruction.split_at(length);
    let bad_prefix = prefixes.iter().any(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0xf0));
    let branch_or_nop =
        matches!(rest, [0x70..=0x7f | 0x90 | 0xe8 | 0xe9 | 0xeb, ..] | [0x0f, 0x80..=0x8f, ..]);
    bad_prefix || (prefixes.contains(&0x66) && branch_or_nop) || matches!(rest, [0x40..=0x4f, 0x90])
}

fn probed(code: &[u8], instruction: &Instruction) -> Probed {
    Probed::X86 { bytes: bytes_of(code, instruction).to_vec(), offset: instruction.ip() }
}

/// What an instruction is called that stands at an offset from the function's entry.
pub(super) fn text(bytes: &[u8], offset: u64) -> String {
    let instruction = &Decoder::with_ip(64, bytes, offset, DecoderOptions::NONE).decode();
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
