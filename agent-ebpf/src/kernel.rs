//! What the kernel knows of threads, read where this kernel keeps it. Fields are loaded like memory of the program's own,
//! which the kernel allows along the types that it describes: a load costs a fiftieth of what a helper would that reads them.

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
};
use llamaprobe_common::stall::{Cause, KernelLayout, NO_FIELD};
use llamaprobe_core::stall::Leaving;

/// Where this kernel keeps what is read; the agent says it before the program is loaded.
#[unsafe(no_mangle)]
static KERNEL: KernelLayout = KernelLayout::NONE;

/// An offset of [`KERNEL`]. To the verifier it is a number that it knows.
macro_rules! offset {
    ($field:ident) => {{
        // SAFETY: a field of a static. Volatile, so that the compiler does not take what stands there for what will.
        unsafe { (&raw const KERNEL.$field).read_volatile() }
    }};
}

/// A thread, as the kernel has it.
pub type Task = *const u8;

/// A field of what the kernel lets a program read like memory of its own: of a thread, and of what one points to. Where it
/// points to nothing, 0 is read.
#[inline(always)]
fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: the kernel refuses a program that could read what is no such field; any bytes are an integer.
    unsafe { base.add(offset as usize).cast::<T>().read_volatile() }
}

/// The same; 0 where this kernel has no such field.
#[inline(always)]
fn load_or_0<T: Copy + Default>(base: *const u8, offset: u32) -> T {
    if offset == NO_FIELD { T::default() } else { load(base, offset) }
}

#[inline(always)]
fn bit(task: Task, offset: u32, mask: u32) -> bool {
    u32::from(load_or_0::<u8>(task, offset)) & mask != 0
}

/// A field of the queue that a thread is in; 0 where this kernel has no such field.
#[inline(always)]
fn of_queue<T: Copy + Default>(task: Task, offset: u32) -> T {
    if offset!(cfs_rq) == NO_FIELD || offset == NO_FIELD {
        return T::default();
    }
    load(load(task, offset!(cfs_rq)), offset)
}

/// The id of a thread.
#[inline(always)]
pub fn tid(task: Task) -> u32 {
    load(task, offset!(pid))
}

/// The process of a thread; 0 for an idle one of the kernel.
#[inline(always)]
pub fn tgid(task: Task) -> u32 {
    load(task, offset!(tgid))
}

/// The state in which a thread goes: `told` is what the tracepoint says of it, where it does.
#[inline(always)]
pub fn state(task: Task, told: impl FnOnce() -> u64) -> u32 {
    if offset!(tells_state) != 0 { told() as u32 } else { load(task, offset!(state)) }
}

/// What the kernel knows of a thread that goes, as far as it says why: of one that would have gone on that is its quota.
#[inline(always)]
pub fn leaving(task: Task, preempted: bool, state: u32) -> Leaving {
    let leaving = Leaving { preempted, state, ..Leaving::default() };
    if leaving.is_ready() {
        let throttled = of_queue::<u32>(task, offset!(throttle_count)) != 0
            || load_or_0::<u8>(task, offset!(throttled)) != 0;
        return Leaving { throttled, ..leaving };
    }
    Leaving {
        flags: load_or_0(task, offset!(flags)),
        jobctl: load_or_0(task, offset!(jobctl)),
        iowait: bit(task, offset!(iowait), offset!(iowait_mask)),
        memstall: bit(task, offset!(memstall), offset!(memstall_mask)),
        call: running_call(task),
        ..leaving
    }
}

/// How long the queue of a thread has been throttled so far, where it matters: to one that is ready, and was not made to
/// wait by that at first.
#[inline(always)]
pub fn throttled_ns(task: Task, why: u32) -> u64 {
    if why == Cause::Runnable as u32 { of_queue(task, offset!(throttled_time)) } else { 0 }
}

/// How long a thread that has its processor now has been ready for it.
#[inline(always)]
pub fn waited_ns(task: Task) -> u64 {
    let queued: u64 = load_or_0(task, offset!(last_queued));
    if queued == 0 || [offset!(cfs_rq), offset!(rq), offset!(clock)].contains(&NO_FIELD) {
        return 0;
    }
    let queue: *const u8 = load(task, offset!(cfs_rq));
    load::<u64>(load(queue, offset!(rq)), offset!(clock)).saturating_sub(queued)
}

/// The system call that a thread is in.
#[inline(always)]
fn running_call(task: Task) -> Option<u32> {
    if offset!(call) == NO_FIELD {
        return Some(0);
    }
    u32::try_from(load::<i32>(registers(task.cast()), offset!(call))).ok()
}

/// The registers with which a thread entered the kernel.
#[inline(always)]
fn registers(task: *const task_struct) -> *const u8 {
    // SAFETY: the helper takes a thread and gives the address of its registers.
    let registers = unsafe { bpf_task_pt_regs(task.cast_mut()) };
    registers as *const u8
}

/// Whether this kernel says where its things are. Where it does not, none of the functions here may be run: the kernel would
/// refuse the program.
#[inline(always)]
pub fn is_described() -> bool {
    offset!(call) != NO_FIELD
}

/// Arguments of the system call that the running thread is about to leave: the first, the second and the fourth. The kernel
/// still has the registers with which it was entered, so that nothing has to run there.
#[inline(always)]
pub fn call_arguments() -> [u64; 3] {
    // SAFETY: the helper takes no argument.
    let registers = registers(unsafe { bpf_get_current_task_btf() });
    ARGUMENTS.map(|offset| load(registers, offset as u32))
}

/// Where in `pt_regs` they are: part of what the kernel promises to debuggers.
#[cfg(not(bpf_target_arch = "aarch64"))]
const ARGUMENTS: [usize; 3] = {
    use core::mem::offset_of;

    use aya_ebpf::bindings::pt_regs;
    [offset_of!(pt_regs, rdi), offset_of!(pt_regs, rsi), offset_of!(pt_regs, r10)]
};

/// The result stands in the place of the first by then, of which the kernel has a copy behind the others.
#[cfg(bpf_target_arch = "aarch64")]
const ARGUMENTS: [usize; 3] = [size_of::<aya_ebpf::bindings::user_pt_regs>(), 8, 3 * 8];
