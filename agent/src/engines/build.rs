//! The builds that are tested: real ones, as their packages have them.

use llamaprobe_common::probe::ProbeId;

use super::catalog::Role;

/// A build, and what is to be seen of it. The end-to-end tests take their rows from here.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// The package that holds it, or its sources.
    pub package: &'static str,
    /// The version of that.
    pub version: &'static str,
    /// What was done to it.
    pub variant: Option<&'static str>,
    /// The probes that fire when it computes a prompt and generates. No others do, but for those that are given up once
    /// it is known to be a server.
    pub fires: &'static [ProbeId],
    /// The roles that no probe serves.
    pub missing: &'static [Role],
}

impl Build {
    /// A build as it is in its package.
    pub(super) const fn new(
        package: &'static str,
        version: &'static str,
        fires: &'static [ProbeId],
        missing: &'static [Role],
    ) -> Self {
        Self { package, version, variant: None, fires, missing }
    }

    /// The same, after something was done to it.
    pub(super) const fn made(self, variant: &'static str) -> Self {
        Self { variant: Some(variant), ..self }
    }

    /// Package, version and variant.
    pub fn name(&self) -> String {
        let parts = [self.package, self.version].into_iter().chain(self.variant);
        parts.collect::<Vec<_>>().join("-")
    }
}
