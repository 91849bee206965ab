use super::*;
use crate::kubernetes::Names;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UID: &str = "12345678-9abc-def0-1234-56789abcdef0";

#[test]
fn a_server_in_a_pod_is_known_by_it_and_others_by_none() {
    let named = |workload: Option<&Workload>| {
        let resource = Host::default().resource(&Identity::default(), workload, "127.0.0.1:8080");
        let keys = resource.attributes.into_iter().map(|attribute| attribute.key);
        keys.filter(|key| key.starts_with("k8s.") || key == "container.id").collect::<Vec<_>>()
    };
    let names = |container: &str| Names {
        namespace: "inference".to_owned(),
        pod: "llama-7d4b9".to_owned(),
        container: container.to_owned(),
    };
    let (pod_uid, container_id) = (Some(UID.to_owned()), Some(ID.to_owned()));
    let ids = Workload { pod_uid, container_id, names: None };
    let all = Workload { names: Some(names("server")), ..ids.clone() };
    let only_pod = Workload { container_id: None, names: Some(names("")), ..ids.clone() };
    assert_eq!(named(None), [""; 0]);
    assert_eq!(named(Some(&ids)), ["k8s.pod.uid", "container.id"]);
    assert_eq!(named(Some(&only_pod)), ["k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid"]);
    let every = ["k8s.namespace.name", "k8s.pod.name", "k8s.container.name", "k8s.pod.uid", "container.id"];
    assert_eq!(named(Some(&all)), every);
}

#[test]
fn the_operator_has_the_last_word() {
    let given = vec![("service.name".to_owned(), "mine".to_owned()), ("a".to_owned(), "b".to_owned())];
    let resource = Host::new(given).resource(&Identity::own(), None, "127.0.0.1:8080");
    let names: Vec<_> = resource.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    assert_eq!(names.iter().filter(|name| **name == "service.name").count(), 1, "{names:?}");
    for name in ["a", "host.name", "process.pid", "process.executable.path", "service.instance.id"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}
