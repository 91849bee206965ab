//! Batches as llama.cpp packs them.

use std::{vec, vec::Vec};

use llamaprobe_common::{
    batch::{Context, MAX_RUNS, Run},
    cookie::{BatchLayout, ContextLayout, Cookie},
    layout::{ExtLayout, NODE_VALUE, SET_NODE},
    probe::ProbeId,
};

use super::host::Host;
use crate::{
    arguments::Arguments,
    source::{Place, Source},
};

/// Where the address of a batch points to.
pub const BATCH: u64 = 0x1000;
const IDS: u64 = 0x10_0000;
const POSITIONS: u64 = 0x20_0000;
const POINTERS: u64 = 0x40_0000;
const SEQUENCES: u64 = 0x80_0000;
const NODES: u64 = 0x100_0000;

/// A call that decodes the batch at [`BATCH`].
pub const CALL: Arguments = Arguments { integers: [0, BATCH, BATCH, 0, 0], second_by_value: BATCH };

/// The token at a place: llama.cpp's `seq_id` and position.
pub const fn at(sequence: i32, position: i32) -> Place {
    Place { sequence, position }
}

/// The tokens of runs: each a sequence, its first position, and how many.
pub fn tokens(runs: &[(i32, i32, u32)]) -> Vec<Place> {
    let run =
        |&(sequence, first, len): &(i32, i32, u32)| (0..len).map(move |i| at(sequence, first + i as i32));
    runs.iter().flat_map(run).collect()
}

/// The cookie of a decode call.
pub fn cookie(layout: BatchLayout) -> Cookie {
    Cookie::batch(ProbeId::LlamaDecode, layout, ContextLayout::default(), 0)
}

/// Puts a `llama_batch` at [`BATCH`]. The id of a token is 100 and its place in the batch.
pub fn put_plain(host: &mut Host, places: &[Place]) {
    put_batch(host, places.len(), (POSITIONS, POINTERS));
    let words =
        |word: fn(&Place) -> i32| places.iter().flat_map(|p| word(p).to_ne_bytes()).collect::<Vec<u8>>();
    host.put(POSITIONS, words(|place| place.position));
    host.put(SEQUENCES, words(|place| place.sequence));
    let pointers: Vec<u64> = (0..places.len() as u64).map(|i| SEQUENCES + 4 * i).collect();
    host.put_words(POINTERS, &pointers);
}

/// Puts a `llama_batch` without positions, or without sequences either, as `llama_batch_get_one` makes it.
pub fn put_automatic(host: &mut Host, len: usize) {
    put_batch(host, len, (0, 0));
}

fn put_batch(host: &mut Host, len: usize, (positions, sequences): (u64, u64)) {
    host.put_words(BATCH, &[len as u64, IDS, 0, positions, 0, sequences]);
    let ids: Vec<u8> = (0..len as u32).flat_map(|i| (100 + i).to_ne_bytes()).collect();
    host.put(IDS, ids);
}

/// Puts a `llama_batch_ext` at [`BATCH`].
pub fn put_ext(host: &mut Host, layout: ExtLayout, places: &[Place]) {
    let (stride, len) = (u64::from(layout.stride), places.len() as u64);
    let mut head = vec![0_u64; 16];
    let vector = usize::from(layout.tokens) / 8;
    head[vector..vector + 3].copy_from_slice(&[IDS, IDS + stride * len, IDS + stride * (len + 3)]);
    host.put_words(BATCH, &head);
    let mut bytes = vec![0_u8; (stride * len) as usize];
    for (i, place) in places.iter().enumerate() {
        let token = &mut bytes[i * stride as usize..][..stride as usize];
        let node = NODES + 16 * i as u64;
        token[..4].copy_from_slice(&(100 + i as u32).to_ne_bytes());
        let set = usize::from(layout.sequences) + SET_NODE as usize;
        token[set..set + 8].copy_from_slice(&node.to_ne_bytes());
        token[set + 8..set + 16].copy_from_slice(&1_u64.to_ne_bytes());
        token[set + 16..set + 20].copy_from_slice(&1_f32.to_ne_bytes());
        let position = usize::from(layout.positions);
        token[position..position + 4].copy_from_slice(&place.position.to_ne_bytes());
        let mut value = [0; 16];
        let from = NODE_VALUE as usize;
        value[from..from + 4].copy_from_slice(&place.sequence.to_ne_bytes());
        host.put(node, value);
    }
    host.put(IDS, bytes);
}

/// The batch that was put.
pub fn source(host: &Host) -> Source {
    let source = Source::of(host, &CALL, cookie(BatchLayout::Pointer), |_| Ok(ExtLayout::NONE));
    source.expect("can be read").expect("is not empty")
}

/// A context of which nothing is known.
pub fn blank() -> Context {
    let run = Run { start: 0, sequence: 0, sampled: 0 };
    let step = llamaprobe_common::batch::Step {
        duration_ns: 0,
        number: 0,
        tokens: 0,
        excess_ns: 0,
        prompt: 0,
        reserved: 0,
    };
    Context {
        entered_ns: 0,
        tokens: 0,
        prompt_tokens: 0,
        first_sequence: 0,
        first_position: 0,
        n_ctx: 0,
        n_ctx_seq: 0,
        flags: 0,
        token_priority: 0,
        failed: 0,
        decoding: 0,
        met: 0,
        reserved: 0,
        sampled: 0,
        runs_len: 0,
        step: 0,
        shares_len: 0,
        mark: 0,
        rest: 0,
        sequences: 0,
        memory: 0,
        layout: ExtLayout::NONE,
        walk: llamaprobe_common::batch::Walk {
            start: 0,
            sequence: 0,
            position: 0,
            inside: 0,
            beyond: 0,
            stride: 0,
            programs: 0,
            closed: 0,
        },
        pick: llamaprobe_common::batch::Pick { own: 0, end: 0, next: 0, sequence: 0 },
        steps: [step; llamaprobe_common::batch::STEPS],
        failures: [0; llamaprobe_common::batch::FAILURES],
        runs: [run; MAX_RUNS],
    }
}
