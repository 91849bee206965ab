//! Bytes for tests of totality: seeds, cut, damaged and mixed. A test takes some thousand; `cargo xtask fuzz` gives each parser
//! as long as it is told to, compiles this crate so that it counts the branches that are taken, and then an input that takes
//! a new one becomes a seed itself.

use std::{
    slice,
    sync::Mutex,
    time::{Duration, Instant},
};

/// How long each target has, seconds; without it a number of inputs.
const SECONDS: &str = "LLAMAPROBE_FUZZ_SECONDS";
/// Inputs of a test.
const INPUTS: usize = 2000;
/// An input is at most so long, bytes.
const LONGEST: usize = 1 << 16;
/// What the parsers look at.
const WORDS: [&[u8]; 24] = [
    b"{\"",
    b"\":",
    b"\"}",
    b"[",
    b"]",
    b",",
    b"\r\n",
    b"\r\n\r\n",
    b"data: ",
    b"event: ",
    b"error",
    b"usage",
    b"timings",
    b"HTTP/1.1 ",
    b"POST /",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked",
    b"traceparent: 00-",
    b"0\r\n\r\n",
    b"\\u00",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0\0\0\0\0",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"18446744073709551616",
];

/// SplitMix64, so that a failure repeats.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// A damaged copy of one of the seeds.
    fn damaged(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(5) {
            let at = self.below(input.len() + 1);
            let to = (at + self.below(16)).min(input.len());
            match self.below(8) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.next() as u8,
                2 => drop(input.drain(at..to)),
                3 => drop(input.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied())),
                4 => drop(input.splice(at..to, WORDS[self.below(WORDS.len())].iter().copied())),
                5 => {
                    let piece = input[at..to].to_vec();
                    input.splice(to..to, piece);
                }
                6 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    input.truncate(at);
                    input.extend_from_slice(&other[from..]);
                }
                _ => {
                    let from = self.below(at + 1);
                    input = input[from..at].to_vec();
                }
            }
        }
        input.truncate(LONGEST);
        input
    }
}

/// Gives `parse` every piece of the seeds that lost its beginning or its end, and damaged copies of them. It must return,
/// whatever it gets. Says how many inputs there were, if it was told how long it has.
pub(crate) fn fuzz(target: &str, seeds: &[&[u8]], parse: impl Fn(&[u8])) {
    let mut seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    let time = std::env::var(SECONDS).ok().and_then(|it| it.parse().ok()).map(Duration::from_secs);
    let (start, given, mut executions) = (Instant::now(), seeds.len(), 0_u64);
    for seed in seeds.iter().filter(|seed| seed.len() <= 4096) {
        for cut in 0..=seed.len() {
            parse(&seed[cut..]);
            parse(&seed[..cut]);
            executions += 2;
        }
    }
    let mut noise = Noise(seeds.iter().map(Vec::len).sum::<usize>() as u64);
    let mut branches = Branches::default();
    branches.is_new();
    let over = |done: u64| match time {
        // The clock costs more than some parsers.
        Some(time) => done.is_multiple_of(64) && start.elapsed() >= time,
        None => done >= INPUTS as u64,
    };
    let mut done = 0;
    while !over(done) {
        let input = noise.damaged(&seeds);
        parse(&input);
        done += 1;
        if branches.is_new() {
            seeds.push(input);
        }
    }
    executions += done;
    if time.is_some() {
        let found = seeds.len() - given;
        let seen = branches.seen.iter().filter(|seen| **seen != 0).count();
        println!(
            "fuzzed {target}: {executions} executions, {seen} branches, {found} inputs that took a new one"
        );
    }
}

/// Which branches of this crate were ever taken.
#[derive(Default)]
struct Branches {
    seen: Vec<u8>,
}

impl Branches {
    /// Whether a branch was taken since the last time that never was before.
    fn is_new(&mut self) -> bool {
        let counters = &mut *COUNTERS.lock().unwrap();
        self.seen.resize(counters.iter().map(|part| part.len()).sum(), 0);
        let (mut new, mut seen) = (false, self.seen.as_mut_slice());
        for part in counters {
            let (own, rest) = seen.split_at_mut(part.len());
            seen = rest;
            // Nearly all are 0: by words first.
            for (counts, seen) in part.chunks_mut(64).zip(own.chunks_mut(64)) {
                if counts.iter().all(|count| *count == 0) {
                    continue;
                }
                for (count, seen) in counts.iter_mut().zip(seen) {
                    new |= *count != 0 && *seen == 0;
                    *seen |= std::mem::take(count);
                }
            }
        }
        new
    }
}

/// The counters of branches, of each part of this crate; none where it is not compiled to count.
static COUNTERS: Mutex<Vec<&'static mut [u8]>> = Mutex::new(Vec::new());

/// Called before `main` for each part of the program that counts.
#[expect(unsafe_code, reason = "the compiler's interface for who counts branches")]
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    let length = (stop as usize).saturating_sub(start as usize);
    let mut counters = COUNTERS.lock().unwrap();
    if length > 0 && !counters.iter().any(|part| part.as_ptr() == start.cast_const()) {
        // SAFETY: the linker has put the counters there for as long as the program runs; who else writes is the counting
        // code of the same thread, between two calls of who reads.
        counters.push(unsafe { slice::from_raw_parts_mut(start, length) });
    }
}
