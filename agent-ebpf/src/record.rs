//! The records of tracepoints. Their fields are loaded from where the program gets them, which the kernel allows at offsets
//! that are known: a helper that reads them would take longer than most of the programs.

use aya_ebpf::{EbpfContext as _, programs::TracePointContext};

/// A field of 1, 2, 4 or 8 bytes, at an offset in bytes within the record of the program's tracepoint, as
/// `events/CATEGORY/NAME/format` of tracefs says it.
#[inline(always)]
pub fn field<T: Copy>(record: &TracePointContext, offset: usize) -> T {
    // SAFETY: the kernel refuses a program that reads beyond the record; any bytes are an integer. Volatile, so that the
    // load is one, at its own offset.
    unsafe { record.as_ptr().cast::<u8>().add(offset).cast::<T>().read_volatile() }
}

/// An argument of the system call that begins: after 8 bytes that all records have, and the number of the call.
#[inline(always)]
pub fn argument(call: &TracePointContext, number: usize) -> u64 {
    field(call, 16 + number * 8)
}

/// The result of the system call that ends.
#[inline(always)]
pub fn result(call: &TracePointContext) -> i64 {
    field(call, 16)
}
