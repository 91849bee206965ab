//! The bytes of requests and answers on their way to the agent: handed over piece by piece while there is a budget, else
//! kept so that the end is known. Each piece says where it stands, so that what is left out, or lost, is seen.

use llamaprobe_common::request::{PAGE_BYTES, PIECE_BYTES, PIECES, PieceHead, Talk};

use crate::links::Output;

/// Hands over `head.len` bytes at `from`, in as many pieces as it takes. Returns how many were not, or `u32::MAX` when
/// some were lost.
#[inline(always)]
pub fn hand(output: &mut impl Output, head: &mut PieceHead, from: u64) -> u32 {
    let mut left = head.len;
    let mut from = from;
    // Whole pieces first, each of the same length: one path through the loop for the verifier.
    for _ in 0..PIECES {
        if left < PIECE_BYTES as u32 {
            break;
        }
        head.len = PIECE_BYTES as u32;
        if !output.put_whole(head, from) {
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
    if output.put(head, from) { 0 } else { u32::MAX }
}

/// Hands over what is kept in the pages, older first. Returns whether that was possible.
#[inline(always)]
pub fn flush(output: &mut impl Output, talk: &mut Talk, head: &mut PieceHead) -> bool {
    // Not a loop: the pages are then at constant places.
    if talk.page & 1 == 0 {
        let older = flush_page::<1>(output, talk, head);
        let newer = flush_page::<0>(output, talk, head);
        older && newer
    } else {
        let older = flush_page::<0>(output, talk, head);
        let newer = flush_page::<1>(output, talk, head);
        older && newer
    }
}

#[inline(always)]
fn flush_page<const PAGE: usize>(output: &mut impl Output, talk: &mut Talk, head: &mut PieceHead) -> bool {
    let len = talk.lens[PAGE];
    if len == 0 {
        return true;
    }
    talk.lens[PAGE] = 0;
    head.flags = head.flags & (PieceHead::ANSWER | PieceHead::FRESH)
        | if talk.cut & 1 << PAGE == 0 { 0 } else { PieceHead::CUT };
    head.len = len;
    head.offset = talk.starts[PAGE];
    let done = output.put_page::<PAGE>(head, &talk.pages);
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
#[inline(always)]
pub fn keep(output: &impl Output, talk: &mut Talk, offset: u64, buffer: u64, len: u64) -> bool {
    let most = PAGE_BYTES as u64 - 1;
    let skip = len.saturating_sub(most);
    let size = len - skip;
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
    // The compiler knows these bounds and would drop the check below, which a verifier wants to see.
    let place = output.unbounded(u64::from(page) * PAGE_BYTES as u64 + at);
    let size = output.unbounded(size);
    if place >= 2 * PAGE_BYTES as u64 || size >= PAGE_BYTES as u64 {
        // A page that is full to its last byte has no place for more; nothing was lost of what is kept.
        return true;
    }
    if !output.copy(&mut talk.pages, place, size, buffer + skip) {
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

#[cfg(test)]
mod tests;
