//! What a read or a write means for the request under way.

use llamaprobe_common::{
    loss::Loss,
    request::{
        ANSWER_BYTES, ANSWERS_EIGHTHS, Connection, ConnectionKey, EndReason, Gap, MIDDLES_EIGHTHS,
        PAGE_BYTES, REQUEST_BYTES, RequestEventKind, SHORT_READ, Talk, WriteEvent,
    },
};

use crate::{
    connections::{serve, take_up},
    exchange::{begin, end, flush, flush_kept, head, lose_bytes, lose_event},
    links::{Connections, Ends, Links, Output, Talks},
    machine::Memory,
    process::{Counters, Target},
    talk,
};

/// `HTTP` and `/1.1 100`: how an answer begins, and one that is none yet.
const HTTP: u32 = u32::from_le_bytes(*b"HTTP");
const CONTINUE: u64 = u64::from_le_bytes(*b"/1.1 100");

/// Bytes were read.
#[inline(always)]
pub fn on_read(
    target: &impl Target,
    links: &mut Links<impl Connections, impl Talks, impl Ends, impl Output>,
    key: ConnectionKey,
    (buffer, len): (u64, u32),
    now: u64,
) -> Result<(), Loss> {
    let Links { connections, talks, ends, output } = links;
    let Some(state) = connections.find(&key) else { return Ok(()) };
    if state.flags & Connection::SHUT != 0 {
        // What the server drains after its last word.
        return Ok(());
    }
    if state.arrived_ns != 0 && state.writes > 0 {
        end(target, talks, output, key, state, EndReason::NextRequest, now);
    }
    if state.arrived_ns == 0 {
        // Which thread serves it: the tasks that this thread makes are the request's.
        serve(ends, state, key)?;
        take_up(state, now);
        begin(target, talks, output, key, state, true, now);
    }
    let offset = state.bytes_in;
    state.bytes_in += u64::from(len);
    let Some(kept) = talks.find(&key) else { return Ok(()) };
    let budget = REQUEST_BYTES.saturating_sub(kept.told_in);
    let gathers = budget > 0 && len <= SHORT_READ;
    if gathers && talk::has_room(kept, len) || budget == 0 {
        if !output.keep(kept, offset, buffer, u64::from(len)) {
            lose_bytes(target, state, Gap::REQUEST);
        }
        if gathers {
            kept.told_in += u64::from(len);
        }
        return Ok(());
    }
    flush_kept(target, output, key, state, kept, now);
    if gathers {
        if !output.keep(kept, offset, buffer, u64::from(len)) {
            lose_bytes(target, state, Gap::REQUEST);
        }
        kept.told_in += u64::from(len);
        return Ok(());
    }
    let mut piece = head(key, state, offset, now);
    state.flags &= !Connection::FRESH;
    let most = if u64::from(len) > budget { budget as u32 } else { len };
    piece.len = most;
    kept.told_in += u64::from(most);
    let left = output.hand(&mut piece, buffer);
    if left == u32::MAX {
        lose_bytes(target, state, Gap::REQUEST);
    } else if left > 0 || most < len {
        let told = u64::from(most.saturating_sub(left));
        if !output.keep(kept, offset + told, buffer + told, u64::from(len) - told) {
            lose_bytes(target, state, Gap::REQUEST);
        }
    }
    Ok(())
}

/// Bytes were written: at `now` the kernel, or the TLS library, has taken them.
#[inline(always)]
pub fn on_write(
    target: &impl Target,
    links: &mut Links<impl Connections, impl Talks, impl Ends, impl Output>,
    key: ConnectionKey,
    (buffer, len): (u64, u64),
    now: u64,
) -> Result<(), Loss> {
    let Links { connections, talks, output, .. } = links;
    let Some(state) = connections.find(&key) else { return Ok(()) };
    if len == 0 {
        return Ok(());
    }
    let begins = len >= 12 && output.read::<u32>(buffer).unwrap_or(0) == HTTP;
    if begins && output.read::<u64>(buffer + 4).unwrap_or(0) == CONTINUE {
        return Ok(());
    }
    // An answer begins with its status line: what comes before, or after the last chunk, frames something else.
    let under_way = state.arrived_ns != 0 && state.writes > 0;
    if !begins && !under_way {
        return Ok(());
    }
    if begins && under_way {
        // The answer to a request that came in the same bytes as the one before it.
        end(target, talks, output, key, state, EndReason::NextRequest, now);
    }
    if state.arrived_ns == 0 {
        begin(target, talks, output, key, state, false, now);
    }
    let index = state.writes;
    if index == 0 {
        flush(target, talks, output, key, state, now);
        state.code = if target.keeps_payload() { status(output, buffer) } else { 0 };
    }
    let offset = state.bytes_out;
    state.writes += 1;
    state.bytes_out += len;
    state.last_write_ns = now;
    let mut told = index < target.writes();
    if let Some(kept) = talks.find(&key) {
        let budget = ANSWER_BYTES.saturating_sub(kept.told_out);
        // Where the agent is behind, the middle of a long answer is left out as beyond the budget, and its end is kept.
        let long = len >= PAGE_BYTES as u64 && budget > 0 && !output.is_behind(MIDDLES_EIGHTHS);
        if told || long {
            if output.is_behind(ANSWERS_EIGHTHS) {
                lose_bytes(target, state, Gap::ANSWER);
            } else {
                hand_over(target, output, key, state, kept, (buffer, offset, len, budget), now);
                told |= long;
            }
        } else if !output.keep(kept, offset, buffer, len) {
            lose_bytes(target, state, Gap::ANSWER);
        }
    }
    if told {
        tell_write(target, output, key, state, index, now);
    }
    // The last chunk: `0\r\n`, with or without the empty line in the same write.
    if (len == 3 || len == 5) && output.read::<u16>(buffer).unwrap_or(0) == u16::from_le_bytes(*b"0\r") {
        end(target, talks, output, key, state, EndReason::LastChunk, now);
    }
    Ok(())
}

/// Hands over a write as far as the budget goes, and keeps the end of what is left.
#[inline(always)]
fn hand_over(
    target: &impl Counters,
    output: &mut impl Output,
    key: ConnectionKey,
    state: &mut Connection,
    kept: &mut Talk,
    (buffer, offset, len, budget): (u64, u64, u64, u64),
    now: u64,
) {
    // What is kept stands before it, and no end was there.
    talk::forget(kept);
    let mut piece = head(key, state, offset, now);
    let most = if len > budget { budget } else { len };
    piece.len = most as u32;
    kept.told_out += most;
    let left = output.hand(&mut piece, buffer);
    if left == u32::MAX {
        lose_bytes(target, state, Gap::ANSWER);
    } else if left > 0 || most < len {
        let told = most.saturating_sub(u64::from(left));
        if !output.keep(kept, offset + told, buffer + told, len - told) {
            lose_bytes(target, state, Gap::ANSWER);
        }
    }
}

#[inline(always)]
fn tell_write(
    target: &impl Counters,
    output: &mut impl Output,
    key: ConnectionKey,
    state: &mut Connection,
    index: u32,
    now: u64,
) {
    let told = output.tell(|| WriteEvent {
        kind: RequestEventKind::Write as u32,
        index,
        request: state.request(key),
        at_ns: now,
        bytes_in: state.bytes_in,
        bytes_out: state.bytes_out,
        code: state.code,
        gaps: state.flags & Gap::ANY,
    });
    if !told {
        lose_event(target, state);
    }
}

/// The code in a status line, `HTTP/1.1 200`; 0 when there is none.
#[inline(always)]
fn status(memory: &impl Memory, buffer: u64) -> u32 {
    let Ok([a, b, c]) = memory.read::<[u8; 3]>(buffer + 9) else { return 0 };
    let digit = |byte: u8| u32::from(byte.wrapping_sub(b'0'));
    let (a, b, c) = (digit(a), digit(b), digit(c));
    if a > 9 || b > 9 || c > 9 { 0 } else { a * 100 + b * 10 + c }
}

#[cfg(test)]
mod tests;
