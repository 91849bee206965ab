//! What the code runs on: memory of the observed process, time, and what a verifier has to be told.

use llamaprobe_common::{batch::MAX_RUNS, layout, loss::Loss};

/// Values that may be read from foreign memory: integers, and arrays of them, of which any bytes are a value.
pub trait Plain: Copy + sealed::Sealed {
    /// The value of bytes in the order of this machine. For memories that hold bytes; a kernel copies.
    ///
    /// # Panics
    ///
    /// When they are not as many as the value has.
    fn of_bytes(bytes: &[u8]) -> Self;
}

mod sealed {
    /// Keeps types out of which not all bytes are values.
    pub trait Sealed {}
}

macro_rules! plain {
    ($($integer:ty),+) => {$(
        impl sealed::Sealed for $integer {}

        impl Plain for $integer {
            fn of_bytes(bytes: &[u8]) -> Self {
                Self::from_ne_bytes(bytes.try_into().expect("as many bytes as the integer has"))
            }
        }
    )+};
}

plain!(u8, u16, u32, u64, i32);

impl<T: Plain, const N: usize> sealed::Sealed for [T; N] {}

impl<T: Plain, const N: usize> Plain for [T; N] {
    fn of_bytes(bytes: &[u8]) -> Self {
        assert!(bytes.len() == size_of::<Self>(), "as many bytes as the array has");
        core::array::from_fn(|at| T::of_bytes(&bytes[at * size_of::<T>()..][..size_of::<T>()]))
    }
}

/// The memory of the observed process.
pub trait Memory {
    /// The value at `address`, if it can be read.
    fn read<T: Plain>(&self, address: u64) -> Result<T, Loss>;
}

/// The memory, as a search for a layout asks for it.
pub(crate) struct Words<'a, M>(pub &'a M);

impl<M: Memory> layout::Memory for Words<'_, M> {
    #[inline(always)]
    fn words<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        self.0.read::<[u64; N]>(address).ok()
    }
}

/// What the code runs on. Those that are provided are what any machine does; one whose programs are verified before they
/// run must keep the compiler from dropping what it can prove and the verifier cannot.
pub trait Machine: Memory {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    fn now(&self) -> u64;

    /// A place that changes from turn to turn of a loop, not kept in registers: there the verifier would know its value,
    /// and take no turn for the one before.
    #[inline(always)]
    fn load<T: Copy>(&self, place: &T) -> T {
        *place
    }

    /// The same, written.
    #[inline(always)]
    fn store<T: Copy>(&self, place: &mut T, value: T) {
        *place = value;
    }

    /// An index of a run, of which it is seen that it is one.
    #[inline(always)]
    fn run_index(&self, index: u32) -> usize {
        index as usize & (MAX_RUNS - 1)
    }

    /// A number of which no bound is known, so that a check of its bound stays.
    #[inline(always)]
    fn unbounded(&self, number: u64) -> u64 {
        number
    }
}
