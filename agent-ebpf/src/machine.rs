//! What the kernel is to the code of `llamaprobe-core`: memory, time, and what its verifier wants to see.

use core::arch::asm;

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_user};
use llamaprobe_common::{batch::MAX_RUNS, loss::Loss};
use llamaprobe_core::machine::{Machine, Memory, Plain};

/// What the kernel lends the programs, for the running process.
pub struct Helpers;

impl Memory for Helpers {
    #[inline(always)]
    fn read<T: Plain>(&self, address: u64) -> Result<T, Loss> {
        // SAFETY: the helper checks the address; any bytes are a value of `T`.
        unsafe { bpf_probe_read_user(address as *const T) }.map_err(|_| Loss::Unreadable)
    }
}

impl Machine for Helpers {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes no argument.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn load<T: Copy>(&self, place: &T) -> T {
        // SAFETY: a reference is valid. Volatile, so that it is not kept in registers.
        unsafe { core::ptr::from_ref(place).read_volatile() }
    }

    #[inline(always)]
    fn store<T: Copy>(&self, place: &mut T, value: T) {
        // SAFETY: as in `load`.
        unsafe { core::ptr::from_mut(place).write_volatile(value) }
    }

    #[inline(always)]
    fn run_index(&self, index: u32) -> usize {
        // The compiler knows that it is one and would drop the mask.
        let mut index = u64::from(index);
        // SAFETY: changes nothing but the register; the bound is that of the array.
        unsafe { asm!("{0} &= {1}", inout(reg) index, const MAX_RUNS - 1, options(pure, nomem, nostack)) };
        index as usize & (MAX_RUNS - 1)
    }

    #[inline(always)]
    fn unbounded(&self, number: u64) -> u64 {
        let mut number = number;
        // SAFETY: adds nothing; an empty text would leave two lines for one instruction, which the kernel refuses.
        unsafe { asm!("{0} += 0", inout(reg) number, options(nomem, nostack, preserves_flags)) };
        number
    }
}

/// Whatever was read of maps before is read anew: the compiler would keep it in registers from one turn of a loop to the
/// next, and the verifier, who knows what each turn did to it, would take every turn for another.
#[inline(always)]
pub fn reload() {
    let mut nothing = 0_u64;
    // SAFETY: changes nothing; an empty text would leave two lines for one instruction, which the kernel refuses.
    unsafe { asm!("{0} += 0", inout(reg) nothing, options(nostack, preserves_flags)) };
    let _ = nothing;
}

/// Reads a value of the running process's memory.
#[inline(always)]
pub fn read<T: Plain>(address: u64) -> Result<T, Loss> {
    Helpers.read(address)
}
