//! Arguments of the probed function and what they point to. Arguments count from 0.

use aya_ebpf::{helpers::bpf_probe_read_user, programs::ProbeContext};
use llamaprobe_common::loss::Loss;

/// The registers of a call that programs look at.
///
/// All are read at once and for good: the verifier wants constant offsets from the unmodified context, and the
/// compiler would fold reads chosen by a number into one with a computed address.
pub struct Arguments {
    integers: [u64; 4],
    stack: u64,
}

impl Arguments {
    /// Reads them at the entry of the probed function.
    #[inline(always)]
    pub fn of(probe: &ProbeContext) -> Self {
        let registers = probe.regs;
        // SAFETY: the context of a uprobe program is the register set of the call.
        unsafe {
            #[cfg(bpf_target_arch = "aarch64")]
            {
                let x = &raw const (*registers).regs;
                let x = x.cast::<u64>();
                Self {
                    integers: [
                        x.read_volatile(),
                        x.add(1).read_volatile(),
                        x.add(2).read_volatile(),
                        x.add(3).read_volatile(),
                    ],
                    stack: (&raw const (*registers).sp).read_volatile(),
                }
            }
            #[cfg(not(bpf_target_arch = "aarch64"))]
            {
                Self {
                    integers: [
                        (&raw const (*registers).rdi).read_volatile(),
                        (&raw const (*registers).rsi).read_volatile(),
                        (&raw const (*registers).rdx).read_volatile(),
                        (&raw const (*registers).rcx).read_volatile(),
                    ],
                    stack: (&raw const (*registers).rsp).read_volatile(),
                }
            }
        }
    }

    /// The integer argument `number` (0 to 3: none of the probed functions has its facts further back).
    #[inline(always)]
    pub fn get(&self, number: u8) -> Result<u64, Loss> {
        match number {
            0 => Ok(self.integers[0]),
            1 => Ok(self.integers[1]),
            2 => Ok(self.integers[2]),
            3 => Ok(self.integers[3]),
            _ => Err(Loss::Implausible),
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

    /// Where a `llama_batch` passed by value as the second argument lies: above the return address on x86-64
    /// (System V: class MEMORY), in the caller's copy behind x1 on aarch64 (AAPCS64: larger than 16 bytes).
    #[inline(always)]
    pub fn second_by_value(&self) -> u64 {
        if cfg!(bpf_target_arch = "aarch64") { self.integers[1] } else { self.stack + 8 }
    }
}

/// Reads a value of the target's memory.
#[inline(always)]
pub fn read<T>(address: u64) -> Result<T, Loss> {
    // SAFETY: the helper checks the address; `T` is only used with plain integers and arrays of them.
    unsafe { bpf_probe_read_user(address as *const T) }.map_err(|_| Loss::Unreadable)
}
