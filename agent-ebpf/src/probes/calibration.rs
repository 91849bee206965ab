//! What a probe costs here: the agent probes functions of its own and times them.

use aya_ebpf::{EbpfContext as _, macros::uprobe, programs::ProbeContext};

use crate::target::Target;

/// Does what every program does before its body.
#[uprobe]
fn lp_calibration(probe: ProbeContext) -> u32 {
    // SAFETY: the context is the one the kernel called the program with.
    let cookie = unsafe { aya_ebpf::helpers::bpf_get_attach_cookie(probe.as_ptr()) };
    if let Some(target) = Target::current() {
        target.hit(cookie as u8);
    }
    0
}
