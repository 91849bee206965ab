//! Arguments of the probed function, from the registers of its call.

use aya_ebpf::programs::ProbeContext;
use llamaprobe_core::arguments::Arguments;

/// Reads them at the entry of the probed function.
///
/// All are read at once and for good: the verifier wants constant offsets from the unmodified context, and the
/// compiler would fold reads chosen by a number into one with a computed address.
#[inline(always)]
pub fn of(probe: &ProbeContext) -> Arguments {
    let registers = probe.regs;
    // SAFETY: the context of a uprobe program is the register set of the call.
    unsafe {
        #[cfg(bpf_target_arch = "aarch64")]
        {
            let x = &raw const (*registers).regs;
            let x = x.cast::<u64>();
            let integers = [
                x.read_volatile(),
                x.add(1).read_volatile(),
                x.add(2).read_volatile(),
                x.add(3).read_volatile(),
                x.add(4).read_volatile(),
            ];
            // In the caller's copy behind x1 (AAPCS64: larger than 16 bytes).
            Arguments { integers, second_by_value: integers[1] }
        }
        #[cfg(not(bpf_target_arch = "aarch64"))]
        {
            let integers = [
                (&raw const (*registers).rdi).read_volatile(),
                (&raw const (*registers).rsi).read_volatile(),
                (&raw const (*registers).rdx).read_volatile(),
                (&raw const (*registers).rcx).read_volatile(),
                (&raw const (*registers).r8).read_volatile(),
            ];
            // Above the return address (System V: class MEMORY).
            let second_by_value = (&raw const (*registers).rsp).read_volatile() + 8;
            Arguments { integers, second_by_value }
        }
    }
}

/// What the probed function is about to return, at its last instructions.
#[inline(always)]
pub fn result(probe: &ProbeContext) -> u64 {
    let registers = probe.regs;
    // SAFETY: as in `of`.
    unsafe {
        #[cfg(bpf_target_arch = "aarch64")]
        {
            let x = &raw const (*registers).regs;
            x.cast::<u64>().read_volatile()
        }
        #[cfg(not(bpf_target_arch = "aarch64"))]
        {
            (&raw const (*registers).rax).read_volatile()
        }
    }
}
