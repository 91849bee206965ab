//! Functions that do nothing but return a member of what their argument points to: their code says where it is.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::discovery::image::Machine;

/// Instructions of such a function at most, those that keep a frame pointer included.
const MOST: usize = 8;

/// The offset of the member that the function returns, bytes, if it is one of `bytes` (4 or 8); `None` when the function
/// does anything else.
pub fn member(machine: Machine, code: &[u8], bytes: u16) -> Option<u16> {
    match machine {
        Machine::X86_64 => x86(code, bytes),
        Machine::Aarch64 => aarch64(code, bytes),
        Machine::Other(_) => None,
    }
}

/// `mov eax, [rdi + offset]` (or `rax`), `ret`; between them nothing but what a frame pointer needs.
fn x86(code: &[u8], bytes: u16) -> Option<u16> {
    let mut offset = None;
    for instruction in Decoder::new(64, code, DecoderOptions::NONE).iter().take(MOST) {
        match instruction.mnemonic() {
            Mnemonic::Ret => return offset,
            Mnemonic::Endbr64 | Mnemonic::Nop => {}
            Mnemonic::Push | Mnemonic::Pop if instruction.op0_register() == Register::RBP => {}
            Mnemonic::Mov if is_frame(&instruction) => {}
            _ if offset.is_none() => offset = Some(loaded(&instruction, bytes)?),
            _ => return None,
        }
    }
    None
}

/// `mov rbp, rsp`.
fn is_frame(instruction: &Instruction) -> bool {
    instruction.op0_register() == Register::RBP && instruction.op1_register() == Register::RSP
}

fn loaded(instruction: &Instruction, bytes: u16) -> Option<u16> {
    let (code, result) =
        if bytes == 8 { (Code::Mov_r64_rm64, Register::RAX) } else { (Code::Mov_r32_rm32, Register::EAX) };
    let plain = instruction.code() == code
        && instruction.op0_register() == result
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_base() == Register::RDI
        && instruction.memory_index() == Register::None
        && !instruction.has_segment_prefix();
    plain.then(|| u16::try_from(instruction.memory_displacement64()).ok()).flatten()
}

/// `ldr w0, [x0, #offset]` (or `x0`), `ret`.
fn aarch64(code: &[u8], bytes: u16) -> Option<u16> {
    let words = code.chunks_exact(4).filter_map(|word| Some(u32::from_le_bytes(word.try_into().ok()?)));
    // `bti` in its kinds, and `nop`.
    let mut words = words.filter(|word| *word & 0xffff_ff3f != 0xd503_241f && *word != 0xd503_201f);
    let (load, end) = (words.next()?, words.next()?);
    let is_load = load & 0xffc0_03ff == if bytes == 8 { 0xf940_0000 } else { 0xb940_0000 };
    (is_load && end == 0xd65f_03c0).then_some((load >> 10 & 0xfff) as u16 * bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_found_where_the_code_says() {
        let x86 = |code: &[u8]| member(Machine::X86_64, code, 4);
        // b11548, xllamacpp 11549, and what a frame pointer or a far member makes of it.
        assert_eq!(x86(&[0xf3, 0x0f, 0x1e, 0xfa, 0x8b, 0x47, 0x08, 0xc3]), Some(8));
        assert_eq!(x86(&[0x8b, 0x47, 0x0c, 0xc3]), Some(12));
        // gpt4all 2.8.2, of August 2024.
        assert_eq!(x86(&[0xf3, 0x0f, 0x1e, 0xfa, 0x8b, 0x07, 0xc3]), Some(0));
        assert_eq!(x86(&[0x55, 0x8b, 0x87, 0x80, 0x01, 0, 0, 0x48, 0x89, 0xe5, 0x5d, 0xc3]), Some(0x180));
        let arm = |words: &[u32]| {
            let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            (member(Machine::Aarch64, &code, 4), member(Machine::Aarch64, &code, 8))
        };
        assert_eq!(arm(&[0xb940_0800, 0xd65f_03c0]), (Some(8), None));
        assert_eq!(arm(&[0xd503_245f, 0xb940_0c00, 0xd65f_03c0, 0xd503_201f]), (Some(12), None));
        assert_eq!(arm(&[0xf940_0800, 0xd65f_03c0]), (None, Some(16)));
        // llama_context::get_memory of mineru 0.2.0 and of b9093.
        let wide = |code: &[u8]| member(Machine::X86_64, code, 8);
        assert_eq!(wide(&[0x48, 0x8b, 0x87, 0x18, 0x01, 0, 0, 0xc3, 0xcc]), Some(0x118));
        assert_eq!(wide(&[0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x8b, 0x47, 0x40, 0xc3]), Some(0x40));
    }

    #[test]
    fn anything_else_is_not_guessed_at() {
        let x86 = |code: &[u8]| member(Machine::X86_64, code, 4);
        // A jump to where the member is returned, 64 bits, another register, two loads, no end.
        assert_eq!(x86(&[0xe9, 0x6b, 0x40, 0x6e, 0xff]), None);
        assert_eq!(x86(&[0x48, 0x8b, 0x47, 0x08, 0xc3]), None);
        assert_eq!(x86(&[0x8b, 0x46, 0x08, 0xc3]), None);
        assert_eq!(x86(&[0x8b, 0x47, 0x08, 0x8b, 0x40, 0x08, 0xc3]), None);
        assert_eq!(x86(&[0x8b, 0x47, 0x08]), None);
        assert_eq!(x86(&[0x8b, 0x04, 0x37, 0xc3]), None);
        assert_eq!(x86(&[0x8b, 0x47, 0xf8, 0xc3]), None, "before the object");
        assert_eq!(member(Machine::Aarch64, &[0; 64], 4), None);
        assert_eq!(member(Machine::Other(3), &[0x8b, 0x47, 0x08, 0xc3], 4), None);
    }
}
