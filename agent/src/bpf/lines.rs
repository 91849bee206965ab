//! Lines that the kernel programs say, for whoever looks for a fault: as messages of the agent, on demand. In: the ring
//! buffer of aya-log. Out: messages under the name of the programs' crate.

use aya::Ebpf;
use aya_log::{EbpfLogger, Level};
use tracing::enabled;
use tracing_log::LogTracer;

use super::{LoadError, waitable};

/// The map that aya-log makes.
pub(super) const MAP: &str = "AYA_LOGS";

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines(u8);

impl Lines {
    /// As much as `--log` asks for. Nothing is said unless the level of debugging is: the verifier drops it all then.
    pub fn wanted() -> Self {
        let debug = enabled!(target: "llamaprobe_ebpf", tracing::Level::DEBUG);
        Self(if debug { Level::Debug as u8 } else { 0 })
    }

    /// As the programs are told; 0 for nothing.
    pub(super) const fn level(self) -> u8 {
        self.0
    }

    pub(super) fn reader(self, ebpf: &mut Ebpf) -> Result<LineReader, LoadError> {
        let absent = |error: aya_log::Error| LoadError::Absent(format!("map {MAP}: {error}"));
        Ok(LineReader(EbpfLogger::init_with_logger(ebpf, LogTracer::new()).map_err(absent)?))
    }
}

/// Reads the lines.
pub struct LineReader(EbpfLogger<LogTracer>);

impl LineReader {
    /// Passes lines on as they come, and does not end.
    ///
    /// # Errors
    ///
    /// When the ring buffer cannot be waited for.
    pub async fn pass_on(self) -> std::io::Result<()> {
        let mut lines = waitable(self.0)?;
        loop {
            let mut ready = lines.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}
