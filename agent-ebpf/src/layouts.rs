//! How the batches of a process lie in memory: tried at its first calls, then known.

use aya_ebpf::programs::ProbeContext;
use llamaprobe_common::{
    cookie::Cookie,
    layout::{ExtLayout, LayoutKey, LayoutState, SHOWN},
    loss::Loss,
};
use llamaprobe_core::{layout, machine::Machine as _, process::Counters as _};

use crate::{
    diagnose,
    machine::Helpers,
    maps::{LAYOUTS, SHOW},
    target::Target,
};

/// What is known of the file that was called.
#[inline(always)]
pub fn find(target: &Target, cookie: Cookie) -> Option<&'static mut LayoutState> {
    let key = LayoutKey { tgid: target.tgid, image: cookie.image() };
    // SAFETY: a torn count does no harm, and the choice is one integer.
    LAYOUTS.get_ptr_mut(key).map(|state| unsafe { &mut *state })
}

/// The layout of `batch`, if it is known or this call proves it.
#[inline(always)]
pub fn of(target: &Target, cookie: Cookie, batch: u64) -> Result<ExtLayout, Loss> {
    let state = match find(target, cookie) {
        Some(state) => state,
        None => {
            let key = LayoutKey { tgid: target.tgid, image: cookie.image() };
            // Another thread may have been faster, which is as good.
            let _ = LAYOUTS.insert(key, LayoutState::BLANK, 0);
            find(target, cookie).ok_or(Loss::LayoutUnknown)?
        }
    };
    let was = Helpers.load(&state.chosen);
    let layout = layout::choose(&Helpers, state, batch)?;
    if was == 0 {
        diagnose::layout(target.tgid, cookie.image(), layout.tokens, layout.stride);
    }
    Ok(layout)
}

/// A decode call could not be read: what requests that are running have computed is not known any more.
#[inline(always)]
pub fn miss(target: &Target, cookie: Cookie, loss: Loss, probe: &ProbeContext) -> Result<(), Loss> {
    count_missed(target);
    if matches!(loss, Loss::LayoutUnknown)
        && let Some(state) = find(target, cookie)
        && state.shown < SHOWN
    {
        target.lose(loss);
        // SAFETY: the map holds a program of the same type.
        unsafe { SHOW.tail_call(probe, 0) };
        return Ok(());
    }
    Err(loss)
}

/// The row of a process in which its unread calls are counted, whatever the file.
const fn all_files(target: &Target) -> LayoutKey {
    LayoutKey { tgid: target.tgid, image: LayoutKey::ALL }
}

#[inline(always)]
fn count_missed(target: &Target) {
    let key = all_files(target);
    if LAYOUTS.get_ptr_mut(key).is_none() {
        let _ = LAYOUTS.insert(key, LayoutState::BLANK, 0);
    }
    if let Some(state) = LAYOUTS.get_ptr_mut(key) {
        // SAFETY: `state` points to a map value; a lost increment is none that anybody could tell from another.
        unsafe { (*state).unread = (*state).unread.wrapping_add(1) };
    }
}

/// How many decode calls of the process could not be read so far.
#[inline(always)]
pub fn unread(target: &Target) -> u32 {
    // SAFETY: one integer.
    unsafe { LAYOUTS.get(all_files(target)) }.map_or(0, |state| state.unread)
}
