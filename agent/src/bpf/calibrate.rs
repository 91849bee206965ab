//! What a probe hit costs on this machine: functions of the agent's own are probed and timed.

use std::{
    hint::black_box,
    num::NonZeroU32,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Attacher, LoadError,
    raw::{emulated, single_stepped},
    uprobes::Site,
};
use crate::{
    discovery::process::ProcessRoot,
    plan::{catalog::Program, site::Stepping},
};

/// Calls timed for each kind of site; enough for three digits, a few milliseconds in all.
const CALLS: u32 = 300;

/// Nanoseconds of one probe hit with a program that only looks up its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// At an instruction that the kernel emulates.
    pub emulated_ns: u32,
    /// At one that is single-stepped.
    pub single_stepped_ns: u32,
    /// What the program that is hit takes beyond that, by its number, as far as it has been measured.
    pub bodies: [u32; Program::COUNT],
    /// Time of the programs at tracepoints, in whichever process they ran, in billionths of one processor's. Not in
    /// journals: it is the host's, not the session's.
    #[serde(skip)]
    pub tracepoints_ppb: u32,
}

impl Prices {
    /// The price of a kind of site; what is not known counts as the dear one.
    pub const fn of(&self, stepping: Stepping) -> u32 {
        match stepping {
            Stepping::Emulated => self.emulated_ns,
            Stepping::SingleStepped | Stepping::Unknown => self.single_stepped_ns,
        }
    }
}

impl Attacher {
    /// Measures both prices. `None` when the agent's own file cannot be found: then estimates serve.
    ///
    /// # Errors
    ///
    /// When the agent's own file cannot be probed. If that is for want of rights, no other can be either.
    pub fn calibrate(&mut self) -> Result<Option<Prices>, LoadError> {
        let emulated_ns = self.price(emulated)?;
        let single_stepped_ns = self.price(single_stepped)?;
        Ok(emulated_ns.zip(single_stepped_ns).map(|(emulated_ns, single_stepped_ns)| Prices {
            emulated_ns,
            single_stepped_ns,
            ..Prices::default()
        }))
    }

    fn price(&mut self, function: extern "C" fn()) -> Result<Option<u32>, LoadError> {
        let Some(offset) = file_offset(function as usize as u64) else { return Ok(None) };
        let bare = time(function);
        let only = NonZeroU32::new(std::process::id());
        let site = Site { offset, cookie: 0, only };
        let path = Path::new("/proc/self/exe");
        let link = self.uprobes.attach(&mut self.ebpf, "lp_calibration", path, &site)?;
        let probed = time(function);
        drop(link);
        let one = probed.saturating_sub(bare) / CALLS;
        Ok(Some(u32::try_from(one.as_nanos()).unwrap_or(u32::MAX)))
    }
}

/// The shortest of three runs: anything longer was disturbed.
fn time(function: extern "C" fn()) -> Duration {
    let run = || {
        let start = Instant::now();
        for _ in 0..CALLS {
            black_box(function)();
        }
        start.elapsed()
    };
    run().min(run()).min(run())
}

/// Where an address of this process lies in its executable.
fn file_offset(address: u64) -> Option<u64> {
    let mapping = ProcessRoot::new(Path::new("/proc"), std::process::id()).mapping_at(address).ok()??;
    Some(address - mapping.start + mapping.offset)
}
