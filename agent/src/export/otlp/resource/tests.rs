use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UID: &str = "12345678-9abc-def0-1234-56789abcdef0";

#[test]
fn containers_and_pods_are_read_from_the_cgroup_of_every_runtime() {
    let flat = UID.replace('-', "_");
    for (cgroup, expected) in [
        ("0::/user.slice/user-0.slice/session-1.scope\n".to_owned(), (false, false)),
        ("0::/\n".to_owned(), (false, false)),
        (String::new(), (false, false)),
        (format!("0::/system.slice/docker-{ID}.scope\n"), (true, false)),
        (format!("0::/docker/{ID}\n"), (true, false)),
        (format!("0::/machine.slice/libpod-{ID}.scope/container\n"), (true, false)),
        (format!("12:pids:/kubepods/burstable/pod{UID}/{ID}\n1:name=systemd:/\n"), (true, true)),
        (
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{flat}.slice/cri-containerd-{ID}.scope\n"
            ),
            (true, true),
        ),
        (format!("0::/../kubepods-pod{flat}.slice:cri-containerd:{ID}\n"), (true, true)),
    ] {
        let (container, pod) = container(&cgroup);
        let expected = (expected.0.then(|| ID.to_owned()), expected.1.then(|| UID.to_owned()));
        assert_eq!((container, pod), expected, "{cgroup}");
    }
}

#[test]
fn the_operator_has_the_last_word() {
    let given = vec![("service.name".to_owned(), "mine".to_owned()), ("a".to_owned(), "b".to_owned())];
    let resource = Host::new(given).resource(&Identity::own(), "127.0.0.1:8080");
    let names: Vec<_> = resource.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    assert_eq!(names.iter().filter(|name| **name == "service.name").count(), 1, "{names:?}");
    for name in ["a", "host.name", "process.pid", "process.executable.path", "service.instance.id"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}
