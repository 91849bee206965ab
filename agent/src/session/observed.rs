//! What the session knows of a process under observation: who it is, and what is hooked in it.

use std::collections::BTreeSet;

use llamaprobe_common::{cookie::Cookie, probe::ProbeId, target::TargetConfig};
use serde::{Deserialize, Serialize};

use crate::{
    discovery::Target,
    plan::{Joining, Plan, catalog::Role, site::Stepping},
};

/// A process under observation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Observed {
    /// The process. Without its images: what they say is in the rest.
    pub target: Target,
    /// What is attached.
    pub hooks: Vec<Hook>,
    /// Roles that nothing serves.
    pub missing: Vec<Role>,
    /// Flags of its [`TargetConfig`].
    pub flags: u32,
    /// How its requests are joined to what its engine does.
    pub joining: Joining,
}

/// A probe that is attached, as far as counts depend on it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Hook {
    /// What it is for.
    pub role: Role,
    /// Its identity, [`ProbeId`], by number.
    pub(crate) probe: u8,
    /// What it was told: the layouts that it reads.
    pub cookie: Cookie,
    /// How the kernel executes the probed instruction.
    pub stepping: Stepping,
    /// Which program runs, by number.
    pub program: u8,
}

impl Hook {
    /// Its identity.
    ///
    /// # Panics
    ///
    /// Never for one that was made from a plan; a journal is checked when it is read.
    pub fn probe(&self) -> ProbeId {
        ProbeId::ALL[usize::from(self.probe)]
    }
}

impl Observed {
    /// What is known of a process by a look at it and by what was planned for it.
    pub fn new(mut target: Target, plan: &Plan) -> Self {
        target.images = Vec::new();
        let hook = |probe: &crate::plan::Probe| Hook {
            role: probe.role,
            probe: probe.probe as u8,
            cookie: probe.cookie,
            stepping: probe.site.stepping,
            program: probe.program as u8,
        };
        Self {
            joining: plan.joining_of(&target),
            target,
            hooks: plan.probes.iter().map(hook).collect(),
            missing: plan.missing.iter().map(|missing| missing.role).collect(),
            flags: plan.flags,
        }
    }

    /// Whether all its numbers name something.
    pub fn is_sound(&self) -> bool {
        self.hooks.iter().all(|hook| {
            usize::from(hook.probe) < ProbeId::ALL.len()
                && usize::from(hook.program) < crate::plan::catalog::Program::ALL.len()
        })
    }

    /// Whether something serves a role.
    pub fn has(&self, role: Role) -> bool {
        self.hooks.iter().any(|hook| hook.role == role)
    }

    /// Whether its requests are followed.
    pub fn speaks_http(&self) -> bool {
        self.flags & TargetConfig::HTTP != 0
    }

    /// Whether it may still turn out to be a server, or not to be one.
    pub fn is_undecided(&self) -> bool {
        self.flags & TargetConfig::EITHER != 0
    }

    /// The roles that are served, each with every probe that serves it.
    pub fn served(&self) -> BTreeSet<(Role, ProbeId)> {
        self.hooks.iter().map(|hook| (hook.role, hook.probe())).collect()
    }
}
