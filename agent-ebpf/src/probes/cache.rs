//! Role cache hit: the KV cache of a sequence is cut back; the first cut of a request tells what it reuses.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_core::cuts;

use super::observe;
use crate::{machine::Helpers, sequences::MAPS};

/// `seq_rm(memory or context, seq_id, p0, p1)`, the same four arguments in every era.
#[uprobe]
fn lp_cache_hit(probe: ProbeContext) -> u32 {
    observe(&probe, |target, cookie, call| {
        let part = (call.get(1)? as i32, call.get(2)? as i32, call.get(3)? as i32);
        cuts::cut(target, &Helpers, &mut { MAPS }, cookie, call.get(0)?, part)
    })
}
