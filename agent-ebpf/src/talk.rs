//! The bytes of requests and answers on their way to the agent: handed over piece by piece while there is a budget, else
//! kept so that the end is known. Each piece says where it stands, so that what is left out, or lost, is seen.

use core::arch::asm;

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use llamaprobe_common::request::{PAGE_BYTES, PIECE_BYTES, PIECE_ROOMS, PIECES, PieceHead, Talk};

use crate::{maps::PAYLOAD, wake};

/// A piece in the ring buffer.
#[repr(C)]
struct Piece<const N: usize> {
    head: PieceHead,
    data: [u8; N],
}

/// Copies `head.len` bytes, which find room in `N`, into a piece. Returns whether that was possible.
#[inline(always)]
fn put<const N: usize, const USER: bool>(head: &PieceHead, from: u64) -> bool {
    let mut size = u64::from(head.len);
    // The compiler knows the bound and would drop the check below, which is there for the verifier.
    // SAFETY: adds nothing; an empty text would leave two lines for one instruction, which the kernel refuses.
    unsafe { asm!("{0} += 0", inout(reg) size, options(nomem, nostack, preserves_flags)) };
    if size > N as u64 {
        return false;
    }
    let Some(mut entry) = PAYLOAD.reserve::<Piece<N>>(0) else { return false };
    let piece = entry.as_mut_ptr();
    // SAFETY: `piece` has room for `N` bytes; the helper checks the source.
    let failed = unsafe {
        (*piece).head = *head;
        let to = (&raw mut (*piece).data).cast();
        if USER {
            bpf_probe_read_user(to, size as u32, from as *const _)
        } else {
            bpf_probe_read_kernel(to, size as u32, from as *const _)
        }
    };
    if failed != 0 {
        entry.discard(0);
        return false;
    }
    entry.submit(wake::for_bytes());
    true
}

#[inline(always)]
fn put_fitting<const USER: bool>(head: &PieceHead, from: u64) -> bool {
    match head.len as usize {
        len if len <= PIECE_ROOMS[0] => put::<{ PIECE_ROOMS[0] }, USER>(head, from),
        len if len <= PIECE_ROOMS[1] => put::<{ PIECE_ROOMS[1] }, USER>(head, from),
        len if len <= PIECE_ROOMS[2] => put::<{ PIECE_ROOMS[2] }, USER>(head, from),
        len if len <= PIECE_ROOMS[3] => put::<{ PIECE_ROOMS[3] }, USER>(head, from),
        len if len <= PIECE_ROOMS[4] => put::<{ PIECE_ROOMS[4] }, USER>(head, from),
        len if len <= PIECE_ROOMS[5] => put::<{ PIECE_ROOMS[5] }, USER>(head, from),
        len if len <= PIECE_ROOMS[6] => put::<{ PIECE_ROOMS[6] }, USER>(head, from),
        _ => put::<{ PIECE_ROOMS[7] }, USER>(head, from),
    }
}

/// Hands over `head.len` bytes at `from`, in as many pieces as it takes. Returns how many were not, or `u32::MAX` when
/// some were lost.
#[inline(never)]
pub fn hand(head: &mut PieceHead, from: u64) -> u32 {
    let mut left = head.len;
    let mut from = from;
    // Whole pieces first, each of the same length: one path through the loop for the verifier.
    for _ in 0..PIECES {
        if left < PIECE_BYTES as u32 {
            break;
        }
        head.len = PIECE_BYTES as u32;
        if !put::<PIECE_BYTES, true>(head, from) {
            return u32::MAX;
        }
        head.flags &= PieceHead::ANSWER;
        head.offset += PIECE_BYTES as u64;
        from += PIECE_BYTES as u64;
        left -= PIECE_BYTES as u32;
    }
    if left == 0 || left >= PIECE_BYTES as u32 {
        return left;
    }
    head.len = left;
    if put_fitting::<true>(head, from) { 0 } else { u32::MAX }
}

/// Hands over what is kept in the pages, older first. Returns whether that was possible.
#[inline(never)]
pub fn flush(talk: &mut Talk, head: &mut PieceHead) -> bool {
    // Not a loop: the pages are then at constant places.
    if talk.page & 1 == 0 {
        let older = flush_page::<1>(talk, head);
        let newer = flush_page::<0>(talk, head);
        older && newer
    } else {
        let older = flush_page::<0>(talk, head);
        let newer = flush_page::<1>(talk, head);
        older && newer
    }
}

#[inline(always)]
fn flush_page<const PAGE: usize>(talk: &mut Talk, head: &mut PieceHead) -> bool {
    let len = talk.lens[PAGE];
    if len == 0 {
        return true;
    }
    talk.lens[PAGE] = 0;
    head.flags = head.flags & (PieceHead::ANSWER | PieceHead::FRESH)
        | if talk.cut & 1 << PAGE == 0 { 0 } else { PieceHead::CUT };
    head.len = len;
    head.offset = talk.starts[PAGE];
    // SAFETY: both pages lie within the map value.
    let from = unsafe { (&raw const talk.pages).cast::<u8>().add(PAGE * PAGE_BYTES) };
    let done = put_fitting::<false>(head, from as u64);
    head.flags &= PieceHead::ANSWER;
    done
}

/// Forgets what is kept: it is left out.
#[inline(always)]
pub fn forget(talk: &mut Talk) {
    talk.lens = [0; 2];
    talk.cut = 0;
}

/// Whether `len` more bytes find room in the page that is written to.
#[inline(always)]
pub fn has_room(talk: &Talk, len: u32) -> bool {
    let filled = if talk.page & 1 == 0 { talk.lens[0] } else { talk.lens[1] };
    len < PAGE_BYTES as u32 && filled + len <= PAGE_BYTES as u32
}

/// Keeps the bytes of a read or write that stand at `offset`, of a long one the end. Where the page is full, the other
/// one is begun anew. Returns whether they could be read.
#[inline(never)]
pub fn keep(talk: &mut Talk, offset: u64, buffer: u64, len: u64) -> bool {
    let most = PAGE_BYTES as u64 - 1;
    let skip = len.saturating_sub(most);
    let mut size = len - skip;
    let mut page = talk.page & 1;
    let mut at = u64::from(if page == 0 { talk.lens[0] } else { talk.lens[1] });
    if skip > 0 || at + size > PAGE_BYTES as u64 {
        page ^= u32::from(at != 0);
        talk.page = page;
        at = 0;
    }
    if at == 0 {
        let cut = 1 << page;
        talk.cut = if skip > 0 { talk.cut | cut } else { talk.cut & !cut };
        let start = offset + skip;
        if page == 0 {
            (talk.starts[0], talk.lens[0]) = (start, 0);
        } else {
            (talk.starts[1], talk.lens[1]) = (start, 0);
        }
    }
    let mut place = u64::from(page) * PAGE_BYTES as u64 + at;
    // SAFETY: as in `put`.
    unsafe {
        asm!("{0} += 0", "{1} += 0", inout(reg) place, inout(reg) size, options(nomem, nostack, preserves_flags))
    };
    if place >= 2 * PAGE_BYTES as u64 || size >= PAGE_BYTES as u64 {
        // A page that is full to its last byte has no place for more; nothing was lost of what is kept.
        return true;
    }
    // SAFETY: the place lies within the map value: below two pages, and what is copied is below one; the helper checks the
    // source.
    let failed = unsafe {
        let to = (&raw mut talk.pages).cast::<u8>().add(place as usize);
        bpf_probe_read_user(to.cast(), size as u32, (buffer + skip) as *const _)
    };
    if failed != 0 {
        return false;
    }
    let filled = (at + size) as u32;
    if page == 0 {
        talk.lens[0] = filled;
    } else {
        talk.lens[1] = filled;
    }
    true
}
