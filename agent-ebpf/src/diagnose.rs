//! Lines for whoever looks for a fault, told on demand (`--log llamaprobe_ebpf=debug`). Unless they are asked for, the level
//! is a constant that the verifier knows: it drops what stands behind it, and only the calls of these functions are left.

use aya_log_ebpf::debug;
use llamaprobe_common::loss::Loss;

/// Something was lost: its reason by number, as in [`Loss::ALL`]; process 0 when it belongs to none.
#[inline(never)]
pub fn lost(tgid: u32, loss: Loss) {
    let reason = loss as u32;
    debug!(&(), "process {}: loss {}", tgid, reason);
}

/// How the batches of a process lie is proved.
#[inline(never)]
pub fn layout(tgid: u32, image: u32, tokens: u16, stride: u16) {
    debug!(&(), "process {}: file {} has tokens at {} of {} bytes", tgid, image, tokens, stride);
}
