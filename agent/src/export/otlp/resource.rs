//! Who is spoken of: the process of a server, its host, its container and pod; or the agent itself.

#[cfg(test)]
mod tests;

use std::{fs, path::Path};

use opentelemetry_proto::tonic::{common::v1::InstrumentationScope, resource::v1::Resource};

use super::attribute::Attributes;
use crate::{
    engines::PROVIDER,
    kubernetes::{Workload, attribute},
};

/// A process, as far as a resource names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pid: u32,
    name: String,
    executable: Option<String>,
}

impl Identity {
    /// Reads it from `/proc`; what cannot be read is left out.
    pub fn read(proc: &Path, pid: u32, name: &str) -> Self {
        let directory = proc.join(pid.to_string());
        let executable = fs::read_link(directory.join("exe")).ok().map(|path| path.display().to_string());
        Self { pid, name: name.to_owned(), executable }
    }

    /// The agent.
    pub fn own() -> Self {
        Self::read(Path::new("/proc"), std::process::id(), env!("CARGO_PKG_NAME"))
    }
}

/// What all resources of a host share; by default it is not known which.
#[derive(Clone, Debug, Default)]
pub struct Host {
    name: String,
    /// What the operator says of all resources.
    given: Vec<(String, String)>,
}

impl Host {
    /// This host.
    pub fn new(given: Vec<(String, String)>) -> Self {
        Self { name: rustix::system::uname().nodename().to_string_lossy().into_owned(), given }
    }

    /// The resource of a process and its pod; `instance` tells it from others of its name on this host.
    pub(super) fn resource(
        &self,
        identity: &Identity,
        workload: Option<&Workload>,
        instance: &str,
    ) -> Resource {
        let mut attributes = Attributes::default();
        let name = if identity.name.is_empty() { PROVIDER } else { &identity.name };
        attributes.put("service.name", name);
        if self.name.is_empty() {
            attributes.put("service.instance.id", instance);
        } else {
            attributes.put("service.instance.id", format!("{}/{instance}", self.name));
            attributes.put("host.name", self.name.as_str());
        }
        if identity.pid != 0 {
            attributes.put("process.pid", u64::from(identity.pid));
            attributes.put("process.executable.name", identity.name.as_str());
        }
        attributes.put_some("process.executable.path", identity.executable.as_deref());
        for (label, value) in workload.into_iter().flat_map(Workload::known) {
            attributes.put(attribute(label).unwrap_or(label), value);
        }
        attributes.put("telemetry.sdk.name", env!("CARGO_PKG_NAME"));
        attributes.put("telemetry.sdk.language", "rust");
        attributes.put("telemetry.sdk.version", env!("CARGO_PKG_VERSION"));
        for (key, value) in &self.given {
            attributes.0.retain(|attribute| attribute.key != *key);
            attributes.put(key, value.as_str());
        }
        Resource { attributes: attributes.0, ..Resource::default() }
    }
}

/// Who speaks.
pub(super) fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    })
}
