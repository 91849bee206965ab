//! The tokens of a decode call, whatever the build packs them in.

use llamaprobe_common::{
    batch::{MAX_PLAUSIBLE, MAX_SEQUENCE},
    cookie::{BatchLayout, Cookie},
    loss::Loss,
};

use crate::arguments::{Arguments, read};

/// Bytes of one `llama_batch_ext::token` (b11181 on, libstdc++).
const EXT_TOKEN: u64 = 96;
/// Offset of its `seq_ids`' first list node: `std::unordered_set` keeps it third.
const EXT_TOKEN_NODE: u64 = 24 + 16;
/// Offset of its first position.
const EXT_TOKEN_POSITION: u64 = 80;
/// Offset of the vector of tokens in `llama_batch_ext`.
const EXT_TOKENS: u64 = 64;
/// Offset of the value in a node of `std::unordered_set<int>`.
const NODE_VALUE: u64 = 8;

/// A token's place: its first sequence and its position.
#[derive(Clone, Copy)]
pub struct Place {
    /// llama.cpp's `seq_id`.
    pub sequence: i32,
    /// Position in the sequence.
    pub position: i32,
}

/// A batch in the target's memory: two strided arrays, the same walk for every layout.
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
}

impl Source {
    /// Finds the batch of the probed call. `None` when it is no decode call.
    #[inline(always)]
    pub fn of(call: &Arguments, cookie: Cookie) -> Result<Option<Self>, Loss> {
        let source = match cookie.batch_layout().ok_or(Loss::Implausible)? {
            BatchLayout::ExtArg1 => Self::ext(call.get(1)?)?,
            BatchLayout::ExtArg2 => {
                // LLAMA_PROCESS_TYPE_DECODE
                if call.get(1)? as u32 != 1 {
                    return Ok(None);
                }
                Self::ext(call.get(2)?)?
            }
            BatchLayout::Pointer => Self::plain(call.get(1)?)?,
            BatchLayout::Value => Self::plain(call.second_by_value())?,
        };
        if source.len > MAX_PLAUSIBLE {
            return Err(Loss::Implausible);
        }
        Ok(if source.len == 0 { None } else { Some(source) })
    }

    #[inline(always)]
    fn ext(batch: u64) -> Result<Self, Loss> {
        let [begin, end] = read::<[u64; 2]>(batch + EXT_TOKENS)?;
        let bytes = end.wrapping_sub(begin);
        let len = bytes / EXT_TOKEN;
        if end < begin || bytes % EXT_TOKEN != 0 || len > u64::from(MAX_PLAUSIBLE) {
            return Err(Loss::Implausible);
        }
        Ok(Self {
            len: len as u32,
            automatic: false,
            sequences: begin + EXT_TOKEN_NODE,
            sequences_stride: EXT_TOKEN,
            first_sequence: NODE_VALUE,
            positions: begin + EXT_TOKEN_POSITION,
            positions_stride: EXT_TOKEN,
            ids: begin,
            ids_stride: EXT_TOKEN,
        })
    }

    /// `llama_batch`: n_tokens 0, token 8, embd 16, pos 24, n_seq_id 32, seq_id 40 (b2029 to b11434).
    #[inline(always)]
    fn plain(batch: u64) -> Result<Self, Loss> {
        let [len, ids, _, positions, _, sequences] = read::<[u64; 6]>(batch)?;
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
        })
    }

    /// The place of the first token. With [`Source::automatic`] the position is 0.
    #[inline(always)]
    pub fn first(&self) -> Result<Place, Loss> {
        if !self.automatic {
            return self.place(0);
        }
        let sequence = if self.sequences == 0 { 0 } else { read::<i32>(read::<u64>(self.sequences)?)? };
        Place { sequence, position: 0 }.checked()
    }

    /// By what the same batch is known again: its first two tokens and, of a `llama_batch`, where they lie. A retry may
    /// be shorter than what it repeats.
    #[inline(always)]
    pub fn mark(&self) -> u64 {
        if self.ids == 0 {
            return self.sequences;
        }
        let first = read::<u32>(self.ids).unwrap_or(0);
        let second = if self.len > 1 { read::<u32>(self.ids + self.ids_stride).unwrap_or(0) } else { 0 };
        let at = if self.automatic { self.ids } else { 0 };
        (u64::from(first) | u64::from(second) << 32) ^ at << 16
    }

    /// Whether token `index` goes on with a run that began at token `start` with `head`. One look at most tokens that
    /// do not: their position tells.
    #[inline(always)]
    pub fn continues(&self, index: u32, start: u32, head: Place) -> Result<bool, Loss> {
        let at = u64::from(index);
        let position = read::<i32>(self.positions + at * self.positions_stride)?;
        if position.wrapping_sub(head.position) as u32 != index.wrapping_sub(start) {
            return Ok(false);
        }
        let node = read::<u64>(self.sequences + at * self.sequences_stride)?;
        Ok(read::<i32>(node + self.first_sequence)? == head.sequence)
    }

    /// The place of token `index`, where positions and sequences are given.
    #[inline(always)]
    pub fn place(&self, index: u32) -> Result<Place, Loss> {
        let index = u64::from(index);
        let node = read::<u64>(self.sequences + index * self.sequences_stride)?;
        let sequence = read::<i32>(node + self.first_sequence)?;
        let position = read::<i32>(self.positions + index * self.positions_stride)?;
        Place { sequence, position }.checked()
    }
}

impl Place {
    #[inline(always)]
    fn checked(self) -> Result<Self, Loss> {
        let plausible = self.sequence >= 0 && self.sequence < MAX_SEQUENCE && self.position >= 0;
        if plausible { Ok(self) } else { Err(Loss::Implausible) }
    }
}
