//! A decode call whose batch lies in no known way: what its memory looks like, for the agent to find the tokens.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    cookie::Cookie,
    event::ShownEvent,
    layout::{BODY, HEAD, Word},
    loss::Loss,
};
use llamaprobe_core::source::ext_batch;

use super::resume;
use crate::{layouts, machine::read, maps::EVENTS, target::Target};

/// The first word of a batch behind which there may be a vector: numbers come first.
const FIRST: u32 = 2;

/// Goes on from `lp_batch`; not attached anywhere.
#[uprobe]
fn lp_show(probe: ProbeContext) -> u32 {
    resume(&probe, |target, cookie, call| {
        let Some(batch) = ext_batch(call, cookie)? else { return Ok(()) };
        let Some(state) = layouts::find(target, cookie) else { return Ok(()) };
        state.shown += 1;
        // One vector at each call; the next call goes on behind it.
        for _ in 0..HEAD as u32 - FIRST {
            // In the map, so that to the verifier one turn is like the next.
            let at = next(&raw mut state.looked);
            let bounds = read::<[u64; 3]>(batch + 8 * u64::from(FIRST + at))?;
            if is_vector(bounds) {
                return show(target, cookie, FIRST + at, bounds);
            }
        }
        Ok(())
    })
}

/// The next word to look at, counted from [`FIRST`].
#[inline(always)]
fn next(looked: *mut u32) -> u32 {
    // SAFETY: the place is a map value's.
    unsafe {
        let at = looked.read_volatile() % (HEAD as u32 - FIRST);
        looked.write_volatile(at + 1);
        at
    }
}

/// Whether three words can be the beginning, the end and the end of the room of a vector that holds something.
#[inline(always)]
fn is_vector([begin, end, room]: [u64; 3]) -> bool {
    matches!(Word::of(begin), Word::Address) && begin < end && end <= room
}

/// Shows the vector that begins at word `at` of a batch.
#[inline(always)]
fn show(target: &Target, cookie: Cookie, at: u32, bounds: [u64; 3]) -> Result<(), Loss> {
    let mut entry = EVENTS.reserve::<ShownEvent>(0).ok_or(Loss::RingFull)?;
    let shown = entry.as_mut_ptr();
    // SAFETY: `shown` points to the entry, all of which is written before it is submitted.
    unsafe {
        (&raw mut (*shown).kind).write(ShownEvent::KIND);
        (&raw mut (*shown).tgid).write(target.tgid);
        (&raw mut (*shown).image).write(cookie.image());
        (&raw mut (*shown).vector).write(at);
        (&raw mut (*shown).bounds).write(bounds);
    }
    let [begin, end, _] = bounds;
    for at in 0..BODY {
        let address = begin.wrapping_add(8 * at as u64);
        let word =
            if address < end { read::<u64>(address).map_or(Word::Unread, Word::of) } else { Word::Unread };
        // SAFETY: as above; the index is below the array's length.
        unsafe { (&raw mut (*shown).body).cast::<u8>().add(at).write(word as u8) };
    }
    entry.submit(0);
    Ok(())
}
