//! A list of pods, as the API server and a kubelet give it. In: JSON. Out: names by ids. Pure.

use std::collections::HashMap;

use serde::Deserialize;

/// What a container is called, and its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container; empty where only the pod is known.
    pub container: String,
}

/// The pods of a node.
#[derive(Debug, Default)]
pub struct Pods {
    containers: HashMap<String, Names>,
    pods: HashMap<String, Names>,
}

/// The annotations by which a static pod has another uid in the node's cgroups than in the API.
const STATIC: [&str; 2] = ["kubernetes.io/config.hash", "kubernetes.io/config.mirror"];

#[derive(Deserialize)]
struct List {
    // `null` of a list without items.
    items: Option<Vec<Pod>>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    container_statuses: Vec<Container>,
    init_container_statuses: Vec<Container>,
    ephemeral_container_statuses: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    /// Such as `containerd://ID`; absent before it has started.
    #[serde(default, rename = "containerID")]
    id: String,
}

impl Pods {
    /// Reads a list.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn parse(json: &[u8]) -> serde_json::Result<Self> {
        let List { items } = serde_json::from_slice(json)?;
        let mut all = Self::default();
        for Pod { metadata, status } in items.unwrap_or_default() {
            let names = Names { namespace: metadata.namespace, pod: metadata.name, container: String::new() };
            let hashes = STATIC.into_iter().filter_map(|name| metadata.annotations.get(name).cloned());
            for uid in hashes.chain([metadata.uid]).filter(|uid| !uid.is_empty()) {
                all.pods.insert(uid, names.clone());
            }
            let lists = [
                status.container_statuses,
                status.init_container_statuses,
                status.ephemeral_container_statuses,
            ];
            for Container { name, id } in lists.into_iter().flatten() {
                if let Some((_, id)) = id.split_once("://") {
                    all.containers.insert(id.to_owned(), Names { container: name, ..names.clone() });
                }
            }
        }
        Ok(all)
    }

    /// How many containers there are.
    pub fn len(&self) -> usize {
        self.containers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// What a container is called; by its pod, where only that is known.
    pub fn names(&self, container: Option<&str>, pod: Option<&str>) -> Option<Names> {
        let known = container.and_then(|id| self.containers.get(id));
        // A pod of one container holds no other. Which of several it is, the list says when it has started.
        known.or_else(|| self.pods.get(pod?).filter(|_| container.is_none())).cloned()
    }
}
