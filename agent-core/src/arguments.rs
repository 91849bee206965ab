//! Arguments of the probed function. They count from 0.

use llamaprobe_common::loss::Loss;

/// What programs look at of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// The first integer arguments: none of the probed functions has its facts further back.
    pub integers: [u64; 5],
    /// Where a `llama_batch` lies that is passed by value as the second argument.
    pub second_by_value: u64,
}

impl Arguments {
    /// The integer argument `number`.
    #[inline(always)]
    pub fn get(&self, number: u8) -> Result<u64, Loss> {
        match number {
            0 => Ok(self.integers[0]),
            1 => Ok(self.integers[1]),
            2 => Ok(self.integers[2]),
            3 => Ok(self.integers[3]),
            4 => Ok(self.integers[4]),
            _ => Err(Loss::Implausible),
        }
    }
}
