//! Bytes for tests of totality: random ones, and fixtures cut and damaged.

/// SplitMix64, so that a failure repeats.
pub(super) struct Noise(pub(super) u64);

impl Noise {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Gives `parse` every piece of `sample` that lost its beginning or its end, damaged copies of it, random bytes, and
/// random bytes of the letters that the parsers look at.
pub(super) fn fuzz(sample: &[u8], parse: impl Fn(&[u8])) {
    const LETTERS: &[u8] =
        b"{}[]\",:\\ \r\n\tdata: event: errorusage0123456789eE+-.\"\"\"{}HTTP/1.1 POST\xff";
    for cut in 0..=sample.len() {
        parse(&sample[cut..]);
        parse(&sample[..cut]);
    }
    let mut noise = Noise(sample.len() as u64);
    for _ in 0..2000 {
        let mut damaged = sample.to_vec();
        for _ in 0..=noise.below(4) {
            let at = noise.below(damaged.len());
            if let Some(byte) = damaged.get_mut(at) {
                *byte = if noise.next().is_multiple_of(2) {
                    LETTERS[noise.below(LETTERS.len())]
                } else {
                    noise.next() as u8
                };
            }
        }
        let from = noise.below(damaged.len());
        let to = from + noise.below(damaged.len() - from + 1);
        parse(&damaged[from..to]);
        let length = noise.below(300);
        parse(&(0..length).map(|_| noise.next() as u8).collect::<Vec<_>>());
        parse(&(0..length).map(|_| LETTERS[noise.below(LETTERS.len())]).collect::<Vec<_>>());
    }
}
