//! The kernel programs of llamaprobe. In: entries of llama.cpp's functions, process life cycle. Out: counters and
//! histograms in per-CPU arrays, state of sequences and contexts in bounded maps, process events in a ring buffer.
//!
//! Here are the programs, their maps, and what only the kernel wants so; what is decided is in `llamaprobe-core`, where it
//! is tested.
//!
//! One program a role, generic over builds: where the arguments are comes with the attach cookie. Work per hit is
//! bounded, nothing grows with the length of a prompt, nothing is sent per token.
//!
//! No helper that writes user memory or changes a return value is used.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod arguments;
mod connections;
mod contexts;
mod diagnose;
mod kernel;
mod layouts;
mod machine;
mod maps;
mod probes;
mod record;
mod requests;
mod sequences;
mod talk;
mod target;
mod wake;

/// The kernel grants its helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
