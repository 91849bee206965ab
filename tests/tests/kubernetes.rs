//! In Kubernetes: of which pod a server is, and what the endpoint picker of a gateway reads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::control_group::PodGroup;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::kubelet::Kubelet;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::tls::Identity;
use llamaprobe_tests::traffic::{Request, run_checked};
use llamaprobe_tests::{http, wait_for};
use serde_json::json;

const UID: &str = "0b0e6d0e-7a3c-4f57-9a39-6a2f3c1d5e77";
const ID: &str = "3f1c2a9b8d7e6f504132a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f6";
const TOKEN: &str = "of-the-service-account";

/// Requests at once, of which one runs.
const CLIENTS: usize = 5;

#[test]
fn a_server_in_a_pod_has_the_names_that_the_kubelet_knows() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let slice = format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_"));
    let path = format!("llamaprobe-kubepods-{}/{slice}/cri-containerd-{ID}.scope", std::process::id());
    let Some(group) = PodGroup::new(&path)? else {
        println!("SKIPPED: no control groups can be made here");
        return Ok(());
    };
    let launch = Launch::new(Build::Process, &assets.tiny(), &["-np", "2", "-c", "4096", "-t", "1"])?;
    let server = launch.through(group.command()).start()?;
    let label = server.label();

    // Without asking anybody the ids are known.
    let agent = Agent::observing(&server)?;
    let ids = [("server", &*label), ("pod_uid", UID), ("container_id", ID)];
    agent.wait_metrics("the ids", |metrics| metrics.select("llm_server_info", &ids).next().map(drop))?;
    assert!(!agent.scrape()?.mentions("pod", "llama-7d4b9"));
    agent.stop()?;

    let (identity, scratch) = (Identity::new()?, Scratch::new()?);
    let pods = json!({ "kind": "PodList", "items": [{
        "metadata": { "name": "llama-7d4b9", "namespace": "inference", "uid": UID },
        "status": { "containerStatuses": [{ "name": "server", "containerID": format!("containerd://{ID}") }] },
    }] });
    let kubelet = Kubelet::start(&identity, TOKEN, &pods)?;
    let token = scratch.write("token", TOKEN.as_bytes())?;
    let arguments = ["--kubernetes", "kubelet", "--kubernetes-url", &kubelet.url(), "--compat", "vllm"];
    let certificate = identity.certificate();
    let files = ["--kubernetes-ca-file", path_of(&certificate)?, "--kubernetes-token-file", path_of(&token)?];
    let agent = Agent::start(&[&arguments[..], &files].concat())?;
    agent.wait_observed(&server)?;
    run_checked(server.address(), &[Request::exact(20, 8, 1)], 1)?;
    let names = [("namespace", "inference"), ("pod", "llama-7d4b9"), ("container", "server")];
    let metrics = agent.wait_metrics("the names on what is counted", |metrics| {
        let named = [&[("type", "generated")][..], &names].concat();
        (metrics.sum("llm_tokens_total", &named) == 8.0).then(|| metrics.clone())
    })?;
    for sample in metrics.samples().iter().filter(|sample| sample.labels.get("server") == Some(&label)) {
        for (name, value) in names {
            assert_eq!(sample.labels.get(name).map(String::as_str), Some(value), "{sample:?}");
        }
    }
    assert_eq!(metrics.select("llm_server_info", &[&ids[..], &names].concat()).count(), 1);
    let asked = kubelet.asked();
    assert!(asked.iter().all(|head| head.starts_with("GET /pods HTTP/1.0\r\n")), "{asked:?}");
    agent.stop()
}

fn path_of(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// What a picker asks for by default, and the same from this agent's own names.
const PICKED: [[&str; 2]; 3] = [
    ["vllm:num_requests_waiting", "llm_queue_depth"],
    ["vllm:num_requests_running", "llm_slots_busy"],
    ["vllm:kv_cache_usage_perc", "llm_context_active_ratio"],
];

fn load(agent: &Agent, path: &str) -> Result<[f64; 3]> {
    let reply = http::get(agent.address(), path)?;
    assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    let metrics = Exposition::parse(&reply.body)?;
    let one = |name: &str| -> Result<f64> {
        // The first match wins with a picker: there must be no other.
        let samples: Vec<_> = metrics.select(name, &[]).collect();
        assert_eq!(samples.len(), 1, "{name} in\n{}", reply.body);
        Ok(samples[0].value)
    };
    let [waiting, running, used] =
        PICKED.map(|[theirs, own]| Ok::<_, anyhow::Error>((one(theirs)?, one(own)?)));
    let ((waiting, of_own), (running, own), (used, own_used)) = (waiting?, running?, used?);
    assert_eq!([waiting, running, used], [of_own, own, own_used]);
    Ok([waiting, running, used])
}

#[test]
fn a_picker_reads_what_the_server_says_itself() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "1", "-c", "4096", "-t", "1"])?;
    // In the network namespace of the agent, as the containers of a pod are; others may be here that are not in the pod.
    let agent = Agent::start(&["--sidecar", "--pid", &server.pid().to_string()])?;
    agent.wait_observed(&server)?;
    let path = format!("/load/{}", server.label());
    assert_eq!(load(&agent, &path)?, [0.0; 3], "before the first request it is ready for one");

    let requests: Vec<_> = (0..CLIENTS).map(|n| Request::exact(40, 700, n)).collect();
    let seen = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let clients = scope.spawn(|| {
            while !seen.load(Ordering::Relaxed) {
                run_checked(server.address(), &requests, CLIENTS)?;
            }
            Ok::<_, anyhow::Error>(())
        });
        let looked =
            wait_for("the same figures from the server and the agent", Duration::from_secs(60), || {
                let of_server = || {
                    let metrics = server.metrics().ok()?;
                    let value = |name| metrics.value(name);
                    Some([value("llamacpp:requests_deferred")?, value("llamacpp:requests_processing")?])
                };
                let (before, now, after) = (of_server()?, load(&agent, &path).ok()?, of_server()?);
                let same = before == after && before[0] >= 2.0 && now[..2] == before;
                (same && now[2] > 0.0).then(|| println!("waiting, running, context: {now:?}"))
            });
        seen.store(true, Ordering::Relaxed);
        looked?;
        clients.join().map_err(|_| anyhow::anyhow!("the clients panicked"))??;
        Ok(())
    })?;
    // The slot keeps the last answer, which is no load.
    wait_for("an idle server", Duration::from_secs(10), || {
        (load(&agent, &path).ok()? == [0.0; 3]).then_some(())
    })?;
    agent.wait_metrics("what the slot keeps", |metrics| {
        (metrics.sum("llm_context_resident_tokens", &[("server", &server.label())]) > 700.0).then_some(())
    })?;
    assert_eq!(load(&agent, "/load")?, [0.0; 3], "it is the only server of the pod");
    assert_eq!(http::get(agent.address(), "/load/other:1")?.status, 404);
    agent.stop()
}
