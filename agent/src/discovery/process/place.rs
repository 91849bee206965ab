//! Where a process runs: pod, container, network namespace. An address means something only there.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// Where `ip netns` and container runtimes keep network namespaces by name.
const NAMED: &str = "/run/netns";
/// Names that are looked through there.
const MAX_NAMED: usize = 4096;
/// Digits of a container's id that are shown, as container runtimes show them.
const SHOWN: usize = 12;

/// Where a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// The inode of its network namespace; 0 when it cannot be read.
    pub network: u64,
    /// What tells the place from others and stays when the process is started anew: the uid of the pod, the id of the
    /// container, the name of the network namespace, else its inode (`net-N`). Empty for what runs beside the agent.
    pub name: String,
}

impl Place {
    /// Reads it in the directory of a process; what cannot be read is left out.
    pub fn read(directory: &Path) -> Self {
        let network = inode(&directory.join("ns/net")).unwrap_or(0);
        let (container, pod) = container(&fs::read_to_string(directory.join("cgroup")).unwrap_or_default());
        let id = pod.or_else(|| Some(container?.get(..SHOWN)?.to_owned()));
        Self { network, name: id.unwrap_or_else(|| network_name(network)) }
    }
}

/// The name of a network namespace that is not the agent's.
fn network_name(network: u64) -> String {
    if network == 0 || inode(Path::new("/proc/self/ns/net")) == Some(network) {
        return String::new();
    }
    let named = fs::read_dir(NAMED).into_iter().flatten().take(MAX_NAMED).flatten();
    let mut own = named.filter(|entry| inode(&entry.path()) == Some(network));
    own.next()
        .map_or_else(|| format!("net-{network}"), |entry| entry.file_name().to_string_lossy().into_owned())
}

/// The inode behind a name.
fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|file| file.ino())
}

/// The id of the container and the uid of the pod in the lines of `/proc/PID/cgroup`, whichever runtime wrote them.
pub fn container(cgroup: &str) -> (Option<String>, Option<String>) {
    let paths = || cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let segments = || paths().flat_map(|path| path.rsplit('/'));
    let container = segments().find_map(|segment| {
        // `ID`, `docker-ID.scope`, `cri-containerd-ID.scope`.
        let id = segment.strip_suffix(".scope").unwrap_or(segment).rsplit(['-', ':']).next()?;
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
    });
    let pod = segments().find_map(|segment| {
        // `podUID`, `kubepods-burstable-podUID.slice` with `_` for `-`; `SLICE:RUNTIME:ID` where the runtime was given that.
        let segment = segment.split_once(':').map_or(segment, |(slice, _)| slice);
        let uid = segment.strip_suffix(".slice").unwrap_or(segment).rsplit_once("pod")?.1.replace('_', "-");
        // That of a static pod is a hash without dashes.
        ([32, 36].contains(&uid.len()) && uid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit()))
            .then_some(uid)
    });
    (container, pod)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_place_is_pod_container_or_network_namespace() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("ns")).unwrap();
        let read = |cgroup: &str, network: &Path| {
            let link = directory.path().join("ns/net");
            let _ = fs::remove_file(&link);
            symlink(network, &link).unwrap();
            fs::write(directory.path().join("cgroup"), cgroup).unwrap();
            Place::read(directory.path()).name
        };
        let (id, uid) = ("4f".repeat(32), "01234567-89ab-cdef-0123-456789abcdef");
        let own = Path::new("/proc/self/ns/net");
        assert_eq!(read(&format!("0::/system.slice/docker-{id}.scope\n"), own), "4f4f4f4f4f4f");
        let pod = format!("0::/kubepods.slice/kubepods-pod{}.slice/crio-{id}.scope\n", uid.replace('-', "_"));
        assert_eq!(read(&pod, own), uid);
        assert_eq!(read("0::/user.slice\n", own), "", "what runs beside the agent needs no name");
        let other = directory.path().join("cgroup");
        assert_eq!(read("0::/\n", &other), format!("net-{}", inode(&other).unwrap()));
        assert_eq!(read("0::/\n", Path::new("/no/such/file")), "");
    }
}
