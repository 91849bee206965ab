use super::*;

const ID: &str = "3f1c2a9b8d7e6f504132a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f6";
const UID: &str = "0b0e6d0e-7a3c-4f57-9a39-6a2f3c1d5e77";
const FLAT: &str = "0b0e6d0e_7a3c_4f57_9a39_6a2f3c1d5e77";

fn list() -> Pods {
    let json = serde_json::json!({ "kind": "PodList", "items": [
        { "metadata": { "name": "llama-7d4b9", "namespace": "inference", "uid": UID },
          "status": {
            "containerStatuses": [
              { "name": "server", "containerID": format!("containerd://{ID}") },
              { "name": "waits", "state": { "waiting": {} } } ],
            "initContainerStatuses": [ { "name": "fetch", "containerID": "cri-o://abc" } ] } },
        { "metadata": { "name": "static-node1", "namespace": "kube-system", "uid": "u",
                        "annotations": { "kubernetes.io/config.mirror": "00112233445566778899aabbccddeeff" } } },
        { "metadata": { "name": "new" } } ] });
    Pods::parse(json.to_string().as_bytes()).unwrap()
}

/// Lines of `/proc/PID/cgroup` as runtimes write them, seen from the host and from a container.
#[test]
fn ids_stand_in_the_cgroups_of_all_runtimes() {
    let both = [
        format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{FLAT}.slice/cri-containerd-{ID}.scope"
        ),
        format!("0::/kubepods.slice/kubepods-pod{FLAT}.slice/crio-{ID}.scope"),
        format!("0::/kubepods.slice/kubepods-pod{FLAT}.slice/crio-{ID}.scope/container"),
        format!("0::/kubepods/besteffort/pod{UID}/{ID}"),
        format!(
            "12:cpu,cpuacct:/kubepods/burstable/pod{UID}/{ID}\n1:name=systemd:/kubepods/burstable/pod{UID}/{ID}"
        ),
        format!(
            "11:memory:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{FLAT}.slice/docker-{ID}.scope"
        ),
        // A container of containerd with the driver systemd and version 1: a path of the runtime's own.
        format!(
            "11:cpu:/system.slice/containerd.service/kubepods-burstable-pod{FLAT}.slice:cri-containerd:{ID}"
        ),
        // kind and minikube: a node that is a container itself.
        format!("0::/docker/{}/kubelet/kubepods/besteffort/pod{UID}/{ID}", "ab".repeat(32)),
        format!(
            "0::/system.slice/docker-{}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{FLAT}.slice/cri-containerd-{ID}.scope",
            "ab".repeat(32)
        ),
        // Seen from within another pod: a namespace of cgroups of its own.
        format!("0::/../../kubepods-burstable-pod{FLAT}.slice/cri-containerd-{ID}.scope"),
        format!("0::/../../../besteffort/pod{UID}/{ID}"),
    ];
    for cgroup in both {
        let workload = Workload::read(&cgroup).unwrap_or_else(|| panic!("{cgroup}"));
        assert_eq!(workload.container_id.as_deref(), Some(ID), "{cgroup}");
        assert_eq!(workload.pod_uid.as_deref(), Some(UID), "{cgroup}");
    }
    let beside = Workload::read(&format!("0::/../cri-containerd-{ID}.scope\n")).unwrap();
    assert_eq!((beside.container_id.as_deref(), beside.pod_uid), (Some(ID), None), "another of the same pod");
    let fixed = "00112233445566778899aabbccddeeff";
    let fixed_pod = Workload::read(&format!("0::/kubepods/burstable/pod{fixed}/{ID}")).unwrap();
    assert_eq!(fixed_pod.pod_uid.as_deref(), Some(fixed), "a static pod");
    for none in
        ["", "0::/", "0::/user.slice/user-1000.slice/session-1.scope", "0::/system.slice/llama.service"]
    {
        assert_eq!(Workload::read(none), None, "{none}");
    }
    let podman = format!("0::/machine.slice/libpod-{ID}.scope/container");
    assert_eq!(Workload::read(&podman).unwrap().pod_uid, None);
}

#[test]
fn containers_and_pods_have_their_names() {
    let pods = list();
    let names = |container, pod| {
        pods.names(container, pod).map(|it| format!("{}/{}/{}", it.namespace, it.pod, it.container))
    };
    assert_eq!(names(Some(ID), Some(UID)).as_deref(), Some("inference/llama-7d4b9/server"));
    assert_eq!(names(Some(ID), None).as_deref(), Some("inference/llama-7d4b9/server"));
    assert_eq!(names(None, Some(UID)).as_deref(), Some("inference/llama-7d4b9/"));
    assert_eq!(names(Some("abc"), None).as_deref(), Some("inference/llama-7d4b9/fetch"));
    assert_eq!(
        names(None, Some("00112233445566778899aabbccddeeff")).as_deref(),
        Some("kube-system/static-node1/")
    );
    assert_eq!(names(Some("of nobody"), Some(UID)), None, "which container it is, is not known yet");
    assert_eq!(names(None, None), None);
    assert_eq!(pods.len(), 2);
    assert!(Pods::parse(br#"{"items":null}"#).unwrap().is_empty());
    assert!(Pods::parse(b"Forbidden").is_err());
}

#[test]
fn it_is_known_whom_to_ask_or_said_what_is_missing() {
    let inside = |name: &str| match name {
        "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".to_owned()),
        "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
        _ => None,
    };
    let options = |source, node: Option<&str>| Options {
        source: Some(source),
        node: node.map(str::to_owned),
        ..Options::default()
    };
    let url = |options: &Options| options.url(inside).unwrap();
    assert_eq!(url(&Options::default()), None);
    assert_eq!(url(&options(Source::Off, None)), None);
    assert_eq!(
        url(&options(Source::Api, Some("n1"))).as_deref(),
        Some("https://10.96.0.1:443/api/v1/pods?fieldSelector=spec.nodeName%3Dn1")
    );
    assert_eq!(url(&options(Source::Kubelet, Some("n1"))).as_deref(), Some("https://n1:10250/pods"));
    let given = Options { url: Some("https://10.0.0.7:10250/".to_owned()), ..options(Source::Kubelet, None) };
    assert_eq!(url(&given).as_deref(), Some("https://10.0.0.7:10250/pods"));
    let missing = |options: &Options, named: &str| {
        let error = options.url(|_| None).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    };
    missing(&options(Source::Kubelet, None), "--node-name");
    missing(&options(Source::Api, Some("n1")), "--kubernetes-url");
    let plain = Options { url: Some("http://10.0.0.7".to_owned()), ..options(Source::Kubelet, None) };
    let error = plain.client().err().unwrap().to_string();
    assert!(error.contains("--kubernetes-url"), "{error}");
}
