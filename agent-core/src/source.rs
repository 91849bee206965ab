//! The tokens of a decode call, whatever the build packs them in.

use llamaprobe_common::{
    batch::{MAX_PLAUSIBLE, MAX_SEQUENCE},
    cookie::{BatchLayout, Cookie},
    layout::{ExtLayout, NODE_VALUE, SET_NODE},
    loss::Loss,
};

use crate::{arguments::Arguments, machine::Memory};

/// A token's place: its first sequence and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// llama.cpp's `seq_id`.
    pub sequence: i32,
    /// Position in the sequence.
    pub position: i32,
}

/// A batch in the target's memory: two strided arrays, the same walk for every layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Tokens in it.
    pub len: u32,
    /// Positions or sequences are not given: llama.cpp continues one sequence where it stands.
    pub automatic: bool,
    /// Where the first token's pointer to its sequence ids is; 0 when there is none.
    sequences: u64,
    sequences_stride: u64,
    /// From what that pointer points to, to the first id.
    first_sequence: u64,
    /// Where the first token's position is.
    positions: u64,
    positions_stride: u64,
    /// Where the tokens' ids are; 0 when it is a batch of embeddings.
    ids: u64,
    ids_stride: u64,
    /// Of a `llama_batch_ext`.
    pub layout: ExtLayout,
}

impl Source {
    /// Finds the batch of the probed call; `layout` says how the `llama_batch_ext` at an address lies in memory. `None` when
    /// it is no decode call.
    #[inline(always)]
    pub fn of(
        memory: &impl Memory,
        call: &Arguments,
        cookie: Cookie,
        layout: impl FnOnce(u64) -> Result<ExtLayout, Loss>,
    ) -> Result<Option<Self>, Loss> {
        let source = match cookie.batch_layout().ok_or(Loss::Implausible)? {
            BatchLayout::Pointer => Self::plain(memory, call.get(1)?)?,
            BatchLayout::Value => Self::plain(memory, call.second_by_value)?,
            BatchLayout::ExtArg1 | BatchLayout::ExtArg2 => {
                let Some(batch) = ext_batch(call, cookie)? else { return Ok(None) };
                Self::ext(memory, batch, layout(batch)?)?
            }
        };
        if source.len > MAX_PLAUSIBLE {
            return Err(Loss::Implausible);
        }
        Ok(if source.len == 0 { None } else { Some(source) })
    }

    #[inline(always)]
    fn ext(memory: &impl Memory, batch: u64, layout: ExtLayout) -> Result<Self, Loss> {
        let [begin, end] = memory.read::<[u64; 2]>(batch + u64::from(layout.tokens))?;
        let (bytes, stride) = (end.wrapping_sub(begin), u64::from(layout.stride));
        if end < begin
            || stride == 0
            || !bytes.is_multiple_of(stride)
            || bytes / stride > u64::from(MAX_PLAUSIBLE)
        {
            return Err(Loss::Implausible);
        }
        Ok(Self {
            len: (bytes / stride) as u32,
            automatic: false,
            sequences: begin + u64::from(layout.sequences) + SET_NODE,
            sequences_stride: stride,
            first_sequence: NODE_VALUE,
            positions: begin + u64::from(layout.positions),
            positions_stride: stride,
            ids: begin,
            ids_stride: stride,
            layout,
        })
    }

    /// `llama_batch`: n_tokens 0, token 8, embd 16, pos 24, n_seq_id 32, seq_id 40 (b2029 to b11434).
    #[inline(always)]
    fn plain(memory: &impl Memory, batch: u64) -> Result<Self, Loss> {
        let [len, ids, _, positions, _, sequences] = memory.read::<[u64; 6]>(batch)?;
        Ok(Self {
            len: len as u32,
            automatic: positions == 0 || sequences == 0,
            sequences,
            sequences_stride: 8,
            first_sequence: 0,
            positions,
            positions_stride: 4,
            ids,
            ids_stride: 4,
            layout: ExtLayout::NONE,
        })
    }

    /// The place of the first token. With [`Source::automatic`] the position is 0.
    #[inline(always)]
    pub fn first(&self, memory: &impl Memory) -> Result<Place, Loss> {
        if !self.automatic {
            return self.place(memory, 0);
        }
        let sequence =
            if self.sequences == 0 { 0 } else { memory.read::<i32>(memory.read::<u64>(self.sequences)?)? };
        Place { sequence, position: 0 }.checked()
    }

    /// By what the same batch is known again: its first two tokens and, of a `llama_batch`, where they lie. A retry may
    /// be shorter than what it repeats.
    #[inline(always)]
    pub fn mark(&self, memory: &impl Memory) -> u64 {
        if self.ids == 0 {
            return self.sequences;
        }
        let first = memory.read::<u32>(self.ids).unwrap_or(0);
        let second =
            if self.len > 1 { memory.read::<u32>(self.ids + self.ids_stride).unwrap_or(0) } else { 0 };
        let at = if self.automatic { self.ids } else { 0 };
        (u64::from(first) | u64::from(second) << 32) ^ at << 16
    }

    /// Whether token `index` goes on with a run that began at token `start` with `head`. One look at most tokens that
    /// do not: their position tells.
    #[inline(always)]
    pub fn continues(&self, memory: &impl Memory, index: u32, start: u32, head: Place) -> Result<bool, Loss> {
        let at = u64::from(index);
        let position = memory.read::<i32>(self.positions + at * self.positions_stride)?;
        if position.wrapping_sub(head.position) as u32 != index.wrapping_sub(start) {
            return Ok(false);
        }
        let node = memory.read::<u64>(self.sequences + at * self.sequences_stride)?;
        Ok(memory.read::<i32>(node + self.first_sequence)? == head.sequence)
    }

    /// The place of token `index`, where positions and sequences are given.
    #[inline(always)]
    pub fn place(&self, memory: &impl Memory, index: u32) -> Result<Place, Loss> {
        let index = u64::from(index);
        let node = memory.read::<u64>(self.sequences + index * self.sequences_stride)?;
        let sequence = memory.read::<i32>(node + self.first_sequence)?;
        let position = memory.read::<i32>(self.positions + index * self.positions_stride)?;
        Place { sequence, position }.checked()
    }
}

/// The `llama_batch_ext` of the probed call. `None` when it is no decode call.
#[inline(always)]
pub fn ext_batch(call: &Arguments, cookie: Cookie) -> Result<Option<u64>, Loss> {
    if cookie.batch_layout() == Some(BatchLayout::ExtArg1) {
        return call.get(1).map(Some);
    }
    // LLAMA_PROCESS_TYPE_DECODE
    if call.get(1)? as u32 != 1 {
        return Ok(None);
    }
    call.get(2).map(Some)
}

impl Place {
    #[inline(always)]
    fn checked(self) -> Result<Self, Loss> {
        let plausible = self.sequence >= 0 && self.sequence < MAX_SEQUENCE && self.position >= 0;
        if plausible { Ok(self) } else { Err(Loss::Implausible) }
    }
}

#[cfg(test)]
mod tests;
