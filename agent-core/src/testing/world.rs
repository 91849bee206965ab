//! A process, what is kept of it, and the calls that it makes.

use llamaprobe_common::{
    batch::Context,
    cookie::{BatchLayout, ContextLayout, Cookie},
    loss::Loss,
    probe::ProbeId,
    request::RequestKey,
    sequence::Sequence,
    target::TokenType,
    task::TaskKey,
};

use super::{
    batch::{put_automatic, put_plain, source},
    host::Host,
    maps::HostMaps,
    process::{Fake, TGID},
    requests::Told,
};
use crate::{
    batch::{attribute, enter},
    contexts, copies, cuts, failures,
    maps::Contexts as _,
    sequences, slots,
    source::Place,
    tokens,
    walk::{take, walk},
};

/// A context of the process.
pub const MAIN: u64 = 0x7000_0000;
/// Another one.
pub const DRAFT: u64 = 0x7100_0000;
/// Where the memory of a context is named in it.
pub const MEMORY_OFFSET: u16 = 64;
/// How large the state of a slot is.
pub const COPIED_BYTES: u64 = 4096;
/// Where the arguments of slots are.
const SLOT: u64 = 0x6000_0000;
const TASK: u64 = 0x6000_1000;

/// All of it.
#[derive(Default)]
pub struct World {
    /// Memory and time.
    pub host: Host,
    /// The process.
    pub target: Fake,
    /// Contexts and sequences.
    pub maps: HostMaps,
    /// What was told.
    pub told: Told,
}

/// A request that arrived at a time.
pub fn request(arrived_ns: u64) -> RequestKey {
    RequestKey { arrived_ns, tgid: TGID, fd: 7 }
}

impl World {
    /// A request takes a slot and cuts its cache.
    pub fn begin(&mut self, slot: i32) {
        self.start(slot, slot, Some(request(slot as u64 + 1))).unwrap();
        self.cut(MAIN, slot, 0, -1).unwrap();
    }

    /// A decode call that takes so long, and a token of each of the slots, sampled in 10 ns, with 1 ns of the server before.
    pub fn step(&mut self, runs: &[(i32, i32, u32)], ns: u64, slots: &[i32]) {
        self.decode(MAIN, &super::batch::tokens(runs)).unwrap();
        self.pass(ns);
        for slot in slots {
            self.sample(MAIN, 0).unwrap();
            self.pass(10);
            self.token(*slot).unwrap();
            self.pass(1);
        }
    }
}

impl World {
    /// A process with flags of [`TargetConfig`](llamaprobe_common::target::TargetConfig), at second 1.
    pub fn with(flags: u32) -> Self {
        let world = Self { target: Fake::with(flags), ..Self::default() };
        world.host.now.set(1_000_000_000);
        world
    }

    /// Lets time go by.
    pub fn pass(&self, ns: u64) {
        self.host.now.set(self.host.now.get() + ns);
    }

    /// Decodes a batch, as the programs do one after the other.
    pub fn decode(&mut self, address: u64, places: &[Place]) -> Result<(), Loss> {
        put_plain(&mut self.host, places);
        self.decode_batch(address)
    }

    /// Decodes tokens without places.
    pub fn decode_automatic(&mut self, address: u64, len: usize) -> Result<(), Loss> {
        put_automatic(&mut self.host, len);
        self.decode_batch(address)
    }

    /// Decodes the batch that was put.
    pub fn decode_batch(&mut self, address: u64) -> Result<(), Loss> {
        let Self { host, target, maps, told } = self;
        let layout = ContextLayout { total: Some(0), sequence: Some(4) };
        let cookie = Cookie::batch(ProbeId::LlamaDecode, BatchLayout::Pointer, layout, 0);
        let cookie = cookie.with_memory(Some(MEMORY_OFFSET));
        if host.bytes(address, 72).is_none() {
            // n_ctx and n_ctx_seq; the memory.
            host.put_words(address, &[4096 | 1024 << 32, 0, 0, 0, 0, 0, 0, 0, address + 0x1000]);
        }
        let source = source(host);
        enter(target, host, maps, told, cookie, address, &source)?;
        let context = maps.contexts.find(&contexts::key(target, address)).ok_or(Loss::ContextsFull)?;
        let mut done = Ok(());
        loop {
            match walk::<3>(host, context, &source) {
                Ok(true) => break,
                Ok(false) => {}
                Err(loss) => {
                    done = Err(loss);
                    break;
                }
            }
        }
        for at in 0..context.runs_len {
            let found = take(host, context, at);
            let attributed =
                attribute(target, &mut maps.sequences, told, context, address, source.automatic, found);
            done = done.and(attributed);
        }
        contexts::walked(target, told, context);
        done
    }

    /// Samples a token of the last batch.
    pub fn sample(&mut self, address: u64, index: i32) -> Result<(), Loss> {
        tokens::sample(&self.target, &self.host, &mut self.maps, &mut self.told, 0, address, Some(index))
    }

    /// A server has a token for a slot.
    pub fn token(&mut self, slot: i32) -> Result<(), Loss> {
        tokens::of_slot(&self.target, &self.host, &mut self.maps, &mut self.told, slot)
    }

    /// A task of a request takes a slot.
    pub fn start(&mut self, slot: i32, task: i32, request: Option<RequestKey>) -> Result<(), Loss> {
        if let Some(request) = request {
            self.told.tasks.insert(TaskKey { tgid: TGID, task }, request);
        }
        self.host.put(SLOT, slot.to_ne_bytes());
        self.host.put(TASK, task.to_ne_bytes());
        slots::start(&self.target, &self.host, &mut self.maps.sequences, &mut self.told, SLOT, TASK)
    }

    /// A slot is left.
    pub fn end(&mut self, slot: i32) -> Result<(), Loss> {
        self.host.put(SLOT, slot.to_ne_bytes());
        slots::end(&self.target, &self.host, &mut self.maps, &mut self.told, SLOT)
    }

    /// The sampler of a slot is set.
    pub fn turn(&mut self, address: u64, slot: i32) -> Result<(), Loss> {
        slots::turn(&self.target, &self.host, &mut self.maps, &mut self.told, address, slot)
    }

    /// A slot's prompt is copied to another.
    pub fn fork(&mut self, from: i32, to: i32) -> Result<(), Loss> {
        slots::fork(&self.target, &self.host, &mut self.maps, &mut self.told, from, to)
    }

    /// A part of a sequence is cut out of the cache of a context.
    pub fn cut(&mut self, address: u64, sequence: i32, from: i32, to: i32) -> Result<(), Loss> {
        let cookie = Cookie::cut(ProbeId::MemorySeqRm, false);
        let Self { host, target, maps, told } = self;
        cuts::cut(target, host, maps, told, cookie, address, (sequence, from, to))
    }

    /// A saved state is put into a slot.
    pub fn restore(&mut self, slot: i32, flags: u32) -> Result<(), Loss> {
        copies::restore(
            &self.target,
            &self.host,
            &mut self.maps.sequences,
            &mut self.told,
            slot,
            flags,
            COPIED_BYTES,
        )
    }

    /// The state of a slot is saved, in so long from the question for its size on.
    pub fn save(&mut self, slot: i32, flags: u32, ns: u64) {
        for (ns, bytes) in [(ns / 2, 0), (ns - ns / 2, COPIED_BYTES)] {
            self.ask_size(slot, flags, bytes);
            self.pass(ns);
        }
    }

    /// How large it is is asked for, or it is saved.
    pub fn ask_size(&mut self, slot: i32, flags: u32, bytes: u64) {
        let Self { host, target, told, .. } = self;
        copies::save(target, host, told, slot, flags, bytes).unwrap();
    }

    /// The library has waited for what was computed, and copies.
    pub fn copying(&mut self) {
        let Self { host, target, maps, told } = self;
        copies::begin(target, host, &mut maps.contexts, told, MAIN);
    }

    /// A context is freed.
    pub fn free(&mut self, address: u64) {
        contexts::forget(&self.target, &mut self.maps, address, true, self.host.now.get());
    }

    /// The request on a slot is told that it failed.
    pub fn fail(&mut self, slot: i32) {
        failures::slot(&self.target, &mut self.maps, slot);
    }

    /// The state of a context.
    pub fn context(&self, address: u64) -> &Context {
        &self.maps.contexts.entries[&contexts::key(&self.target, address)]
    }

    /// The state of a sequence decoded on [`MAIN`].
    pub fn sequence(&self, sequence: i32) -> Sequence {
        let key = sequences::key(&self.target, MAIN, sequence);
        self.maps.sequences.entries.get(&key).copied().unwrap_or(sequences::BLANK)
    }

    /// Prompt tokens, reused ones, and those generated.
    pub fn counted(&self) -> [u64; 3] {
        TokenType::ALL.map(|kind| self.target.counted(kind))
    }
}
