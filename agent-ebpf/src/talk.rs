//! Bytes of requests and answers, copied to where the agent reads them, or to the pages where they wait. Here because of
//! the verifier: each length is checked beside the constant size of its room.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use llamaprobe_common::request::{PAGE_BYTES, PIECE_BYTES, PIECE_ROOMS, PieceHead, Talk};
use llamaprobe_core::{links::Output, machine::Machine as _, talk};

use crate::{machine::Helpers, maps::PAYLOAD, wake};

/// A piece in the ring buffer.
#[repr(C)]
struct Piece<const N: usize> {
    head: PieceHead,
    data: [u8; N],
}

/// Copies `head.len` bytes, which find room in `N`, into a piece. Returns whether that was possible.
#[inline(always)]
fn put<const N: usize, const USER: bool>(head: &PieceHead, from: u64) -> bool {
    // The compiler knows the bound and would drop the check below, which is there for the verifier.
    let size = Helpers.unbounded(u64::from(head.len));
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
        len if len <= PIECE_ROOMS[7] => put::<{ PIECE_ROOMS[7] }, USER>(head, from),
        len if len <= PIECE_ROOMS[8] => put::<{ PIECE_ROOMS[8] }, USER>(head, from),
        len if len <= PIECE_ROOMS[9] => put::<{ PIECE_ROOMS[9] }, USER>(head, from),
        _ => put::<{ PIECE_ROOMS[10] }, USER>(head, from),
    }
}

impl Output for Helpers {
    #[inline(always)]
    fn is_behind(&self, eighths: u64) -> bool {
        wake::is_behind(eighths)
    }

    #[inline(always)]
    fn put(&mut self, head: &PieceHead, from: u64) -> bool {
        put_fitting::<true>(head, from)
    }

    #[inline(always)]
    fn put_whole(&mut self, head: &PieceHead, from: u64) -> bool {
        put::<PIECE_BYTES, true>(head, from)
    }

    #[inline(always)]
    fn put_page<const PAGE: usize>(&mut self, head: &PieceHead, pages: &[u8; 3 * PAGE_BYTES]) -> bool {
        // SAFETY: both pages lie within the map value.
        let from = unsafe { pages.as_ptr().add(PAGE * PAGE_BYTES) };
        put_fitting::<false>(head, from as u64)
    }

    #[inline(always)]
    fn copy(&self, pages: &mut [u8; 3 * PAGE_BYTES], place: u64, size: u64, from: u64) -> bool {
        // SAFETY: the place lies within the map value: below two pages, and what is copied is below one; the helper checks
        // the source.
        unsafe {
            let to = pages.as_mut_ptr().add(place as usize);
            bpf_probe_read_user(to.cast(), size as u32, from as *const _) == 0
        }
    }

    #[inline(always)]
    fn hand(&mut self, head: &mut PieceHead, from: u64) -> u32 {
        hand(head, from)
    }

    #[inline(always)]
    fn flush(&mut self, kept: &mut Talk, head: &mut PieceHead) -> bool {
        flush(kept, head)
    }

    #[inline(always)]
    fn keep(&self, kept: &mut Talk, offset: u64, buffer: u64, len: u64) -> bool {
        keep(kept, offset, buffer, len)
    }
}

// Functions of their own, each verified once and not wherever it is called.

#[inline(never)]
fn hand(head: &mut PieceHead, from: u64) -> u32 {
    talk::hand(&mut Helpers, head, from)
}

#[inline(never)]
fn flush(kept: &mut Talk, head: &mut PieceHead) -> bool {
    talk::flush(&mut Helpers, kept, head)
}

#[inline(never)]
fn keep(kept: &mut Talk, offset: u64, buffer: u64, len: u64) -> bool {
    talk::keep(&Helpers, kept, offset, buffer, len)
}
