//! Of which pod a server is. In: `/proc/PID/cgroup`, and, where that is wanted, the list of the node's pods. Out: a
//! [`Workload`] for each server of a snapshot and each request of it, whose names all outputs take from here.
//!
//! Pod and container are known by their ids from the cgroup alone. Their names only Kubernetes knows: a thread of its own asks,
//! when somebody is there whose names are not known, and now and then.

mod client;
mod list;

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tracing::{debug, info, warn};

use self::client::Client;
pub use self::list::{Names, Pods};
use crate::{
    discovery::process::{ProcessId, container},
    lock::lock,
    session::{Labels, Snapshot},
};

/// Where a pod finds who it is.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How often the list is asked for while nobody is unknown: a pod may have been made anew meanwhile.
const REFRESH: Duration = Duration::from_secs(60);
/// From one question to the next.
const PACE: Duration = Duration::from_secs(1);
/// The longest time after which the list is asked for again because of one process that is not in it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who is asked for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Nobody: pods and containers are known by their ids.
    Off,
    /// The API server, for the pods of this node.
    Api,
    /// The kubelet of this node.
    Kubelet,
}

/// How it is asked.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Who; nobody when absent.
    pub source: Option<Source>,
    /// Where, if not where it is usually.
    pub url: Option<String>,
    /// The authority of its certificate, if not that of the service account.
    pub ca_file: Option<PathBuf>,
    /// The token that it is shown, if not that of the service account.
    pub token_file: Option<PathBuf>,
    /// The node whose pods are asked for.
    pub node: Option<String>,
}

impl Options {
    /// The URL of the list; none where nobody is asked.
    fn url(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>> {
        let given = self.url.as_ref().map(|url| url.trim_end_matches('/').to_owned());
        let node = || {
            self.node.clone().context(
                "--kubernetes needs the name of this node: --node-name, or LLAMAPROBE_NODE_NAME from the field spec.nodeName",
            )
        };
        Ok(match self.source {
            None | Some(Source::Off) => None,
            Some(Source::Kubelet) => {
                let base =
                    given.map_or_else(|| Ok(format!("https://{}:10250", node()?)), Ok::<_, anyhow::Error>)?;
                Some(format!("{base}/pods"))
            }
            Some(Source::Api) => {
                let inside = || {
                    let host = variable("KUBERNETES_SERVICE_HOST")?;
                    let host = if host.contains(':') { format!("[{host}]") } else { host };
                    Some(format!("https://{host}:{}", variable("KUBERNETES_SERVICE_PORT")?))
                };
                let base = given.or_else(inside).context(
                    "--kubernetes api: this is no pod (KUBERNETES_SERVICE_HOST is not set); name the API server in --kubernetes-url",
                )?;
                Some(format!("{base}/api/v1/pods?fieldSelector=spec.nodeName%3D{}", node()?))
            }
        })
    }

    /// Whether somebody is asked.
    pub fn is_on(&self) -> bool {
        self.source.is_some_and(|source| source != Source::Off)
    }

    /// The files that are read for that.
    pub fn files(&self) -> Vec<PathBuf> {
        if self.is_on() { self.authority_and_token().into() } else { Vec::new() }
    }

    fn authority_and_token(&self) -> [PathBuf; 2] {
        let own = |name: &str| PathBuf::from(ACCOUNT).join(name);
        let given = [(&self.ca_file, "ca.crt"), (&self.token_file, "token")];
        given.map(|(file, name)| file.clone().unwrap_or_else(|| own(name)))
    }

    fn client(&self) -> Result<Option<Client>> {
        let Some(url) = self.url(|name| std::env::var(name).ok())? else { return Ok(None) };
        let [authority, token] = self.authority_and_token();
        Client::new(&url, &authority, token).map(Some)
    }
}

/// Of which pod a process is, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The uid of its pod.
    pub pod_uid: Option<String>,
    /// The id of its container.
    pub container_id: Option<String>,
    /// What they are called.
    pub names: Option<Names>,
}

/// What is known of a workload: labels, as cAdvisor and kube-state-metrics have them, and attributes, as OpenTelemetry does.
const FIELDS: [(&str, &str); 5] = [
    ("namespace", "k8s.namespace.name"),
    ("pod", "k8s.pod.name"),
    ("container", "k8s.container.name"),
    ("pod_uid", "k8s.pod.uid"),
    ("container_id", "container.id"),
];

/// The attribute of a label, if it is one of a workload.
pub fn attribute(label: &str) -> Option<&'static str> {
    FIELDS.into_iter().find(|(name, _)| *name == label).map(|(_, attribute)| attribute)
}

impl Workload {
    /// Of which pod the agent is itself, as far as its control group says it.
    pub fn own() -> Option<Self> {
        Self::read(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
    }

    /// Reads the ids in the lines of `/proc/PID/cgroup`; none of what runs in no container.
    fn read(cgroup: &str) -> Option<Self> {
        let (container_id, pod_uid) = container(cgroup);
        (container_id.is_some() || pod_uid.is_some()).then_some(Self { pod_uid, container_id, names: None })
    }

    /// Its names as labels; none that is not known.
    pub fn labels(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.names
            .iter()
            .flat_map(|names| {
                [("namespace", &*names.namespace), ("pod", &*names.pod), ("container", &*names.container)]
            })
            .filter(|(_, name)| !name.is_empty())
    }

    /// All that is known, by label.
    pub fn known(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let ids = [("pod_uid", self.pod_uid.as_deref()), ("container_id", self.container_id.as_deref())];
        let ids = ids.into_iter().filter_map(|(name, id)| Some((name, id?)));
        self.labels().chain(ids)
    }

    /// What is known of its pod, by label; nothing of a container that is in none.
    pub fn of_pod(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.known().filter(|(name, _)| *name != "container_id")
    }
}

/// A process of a container.
#[derive(Debug)]
struct Known {
    start_time: u64,
    /// None of what runs in no container.
    workload: Option<Workload>,
    /// How often it was asked for, and when it is again.
    asked: u32,
    next: Instant,
}

/// What is known of pods.
#[derive(Debug, Default)]
pub struct Workloads {
    pods: Arc<Mutex<Arc<Pods>>>,
    /// Wakes the thread that asks; absent where nobody is asked.
    asking: Option<SyncSender<()>>,
    processes: BTreeMap<u32, Known>,
    /// Of servers in the last snapshot: they are shown for a while when they have ended.
    servers: BTreeMap<Labels, Workload>,
}

impl Workloads {
    /// Asks from now on, where that is wanted.
    ///
    /// # Errors
    ///
    /// When it is not known whom or with what, a file cannot be read, or no thread can be started.
    pub fn start(options: &Options) -> Result<Self> {
        let mut workloads = Self::default();
        if let Some(client) = options.client()? {
            let (asking, asked) = sync_channel(1);
            let pods = workloads.pods.clone();
            thread::Builder::new()
                .name("pods".to_owned())
                .spawn(move || follow(&client, &pods, &asked))
                .context("cannot start a thread")?;
            workloads.asking = Some(asking);
        }
        Ok(workloads)
    }

    /// These processes are observed.
    pub fn learn(&mut self, observed: impl Iterator<Item = ProcessId>) {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.processes);
        for ProcessId { pid, start_time } in observed {
            let known = before.remove(&pid).filter(|known| known.start_time == start_time);
            let known = known.unwrap_or_else(|| {
                // It may have ended.
                let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                Known { start_time, workload: Workload::read(&cgroup), asked: 0, next: now }
            });
            self.processes.insert(pid, known);
        }
        let pods = lock(&self.pods).clone();
        for known in self.processes.values_mut() {
            let Some(workload) = &mut known.workload else { continue };
            if let Some(names) = pods.names(workload.container_id.as_deref(), workload.pod_uid.as_deref()) {
                workload.names = Some(names);
            }
            if let Some(asking) =
                self.asking.as_ref().filter(|_| workload.names.is_none() && known.next <= now)
            {
                // Full: it is asked already.
                let _ = asking.try_send(());
                known.next = now + PACE.saturating_mul(1 << known.asked.min(6)).min(PATIENCE);
                known.asked += 1;
            }
        }
    }

    /// Of which pod an observed process is.
    pub fn of(&self, pid: u32) -> Option<Workload> {
        self.processes.get(&pid)?.workload.clone()
    }

    /// Says of each server of which pod it is.
    pub fn name(&mut self, snapshot: &mut Snapshot) {
        let before = std::mem::take(&mut self.servers);
        for server in &mut snapshot.servers {
            server.workload = match &server.live {
                Some(live) => self.of(live.pid),
                None => before.get(&server.labels).cloned(),
            };
            if let Some(workload) = &server.workload {
                self.servers.insert(server.labels.clone(), workload.clone());
            }
        }
    }
}

/// Asks when somebody is not known, and now and then, until nobody can be told.
fn follow(client: &Client, pods: &Mutex<Arc<Pods>>, asked: &Receiver<()>) {
    let mut failing = false;
    loop {
        match client.pods() {
            Ok(list) => {
                if std::mem::take(&mut failing) {
                    info!(url = client.url(), "the list of pods can be had again");
                }
                debug!(pods = list.len(), "the list of pods");
                *lock(pods) = Arc::new(list);
            }
            Err(error) if !failing => {
                failing = true;
                warn!(url = client.url(), "no list of pods, so servers have no namespace and pod: {error:#}");
            }
            Err(error) => debug!("no list of pods: {error:#}"),
        }
        thread::sleep(PACE);
        match asked.recv_timeout(REFRESH) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What a file holds, for people who gave its name.
fn read(path: &std::path::Path, what: &str) -> Result<String> {
    let hint = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => " (in a pod: is `automountServiceAccountToken` on?)",
        _ => "",
    };
    fs::read_to_string(path).map_err(|error| {
        anyhow::anyhow!("cannot read the {what} {}: {error}{}", path.display(), hint(&error))
    })
}

#[cfg(test)]
mod tests;
