//! In Kubernetes: of which pod a server is, and what the endpoint picker of a gateway reads.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::control_group::PodGroup;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::kubelet::Kubelet;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::otlp::calls::{FAST, is_of};
use llamaprobe_tests::otlp::{Point, Taken};
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::tls::Identity;
use llamaprobe_tests::traffic::{Request, run_checked};
use llamaprobe_tests::{http, wait_for};
use serde_json::{Map, Value, json};

const UID: &str = "0b0e6d0e-7a3c-4f57-9a39-6a2f3c1d5e77";
const ID: &str = "3f1c2a9b8d7e6f504132a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f6";
const TOKEN: &str = "of-the-service-account";

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];

/// How long something may take on its way.
const PATIENCE: Duration = Duration::from_secs(30);

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
    let launch = Launch::new(Build::Process, &assets.tiny(), &SERVER)?;
    let server = launch.through(group.command()).start()?;
    let label = server.label();

    // Without asking anybody the ids are known.
    let log = RequestLog::new()?;
    let agent = Agent::start(&[&log.arguments()?[..], &["--pid", &server.pid().to_string()]].concat())?;
    agent.wait_observed(&server)?;
    run_checked(server.address(), &[Request::exact(20, 8, 0)], 1)?;
    let line = wait_for("a line of the log", PATIENCE, || lines_of(&log, &label).pop())?;
    assert_eq!(pod_of(&line), [None, None, None, Some(UID)], "{line}");
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
    let (log, taken) = (RequestLog::new()?, Taken::new()?);
    let receiver = taken.receiver(&assets, 0, &[])?;
    let endpoint = receiver.endpoint();
    let outputs = [&log.arguments()?[..], &["--otlp-endpoint", &endpoint]].concat();
    let token = scratch.write("token", TOKEN.as_bytes())?;
    let arguments = ["--kubernetes", "kubelet", "--kubernetes-url", &kubelet.url(), "--compat", "vllm"];
    let certificate = identity.certificate();
    let files = ["--kubernetes-ca-file", path_of(&certificate)?, "--kubernetes-token-file", path_of(&token)?];
    // Beside it, one that is in no pod. It is the second one by its address, and `top` shows the first.
    let beside = Launch::new(Build::Process, &assets.tiny(), &SERVER)?;
    let address = SocketAddr::from(([127, 0, 0, 2], beside.address().port()));
    let other = beside.at(address).start()?;
    let pids = [&server, &other].map(|server| server.pid().to_string());
    let pids = ["--pid", &pids[0], "--pid", &pids[1]];
    let agent = Agent::start_with(&[&arguments[..], &files, &outputs, &pids].concat(), &FAST)?;
    agent.wait_metrics("the names", |metrics| {
        metrics.select("llm_server_info", &[("pod", "llama-7d4b9")]).next().map(drop)
    })?;
    for server in [&server, &other] {
        agent.wait_observed(server)?;
        run_checked(server.address(), &[Request::exact(20, 8, 1)], 1)?;
    }
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
    everywhere(&agent, &log, &taken, [&label, &other.label()])?;
    let asked = kubelet.asked();
    assert!(asked.iter().all(|head| head.starts_with("GET /pods HTTP/1.0\r\n")), "{asked:?}");
    agent.stop()
}

/// The lines of requests of a server.
fn lines_of(log: &RequestLog, server: &str) -> Vec<Value> {
    let text = log.text();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["server"] == server).collect()
}

/// What something says of a pod, by the names that labels have; nothing where it does not say it.
fn pod_of(told: &Value) -> [Option<&str>; 4] {
    ["namespace", "pod", "container", "pod_uid"].map(|name| told.get(name).and_then(Value::as_str))
}

/// The same of a resource of OpenTelemetry.
fn pod_of_resource(resource: &Map<String, Value>) -> [Option<&str>; 4] {
    ["k8s.namespace.name", "k8s.pod.name", "k8s.container.name", "k8s.pod.uid"]
        .map(|name| resource.get(name).and_then(Value::as_str))
}

/// The log, what goes out over OpenTelemetry, the document, `top` and `explain` say of the first server of which pod it is,
/// and of the other that it is of none.
fn everywhere(agent: &Agent, log: &RequestLog, taken: &Taken, servers: [&str; 2]) -> Result<()> {
    let (named, none) = ([Some("inference"), Some("llama-7d4b9"), Some("server"), Some(UID)], [None; 4]);
    for (server, expected) in servers.into_iter().zip([named, none]) {
        let line = wait_for("a line of the log", PATIENCE, || lines_of(log, server).pop())?;
        assert_eq!(pod_of(&line), expected, "{line}");
        let of = |resource: &Map<String, Value>| is_of(resource, server);
        let spans = taken.wait("spans", |taken| {
            let spans: Vec<_> = taken.spans().ok()?.into_iter().filter(|it| of(&it.resource)).collect();
            (spans.len() >= 4).then_some(spans)
        })?;
        spans.iter().for_each(|it| assert_eq!(pod_of_resource(&it.resource), expected, "{it:?}"));
        let record = taken
            .wait("a log record", |taken| taken.records().ok()?.into_iter().find(|it| of(&it.resource)))?;
        assert_eq!(pod_of_resource(&record.resource), expected, "{record:?}");
        assert!(["pod", "namespace"].iter().all(|it| !record.attributes.contains_key(*it)), "{record:?}");
        let point = taken.wait("a data point of the request", |taken| {
            let of_request = |it: &Point| it.name == "gen_ai.server.request.duration" && of(&it.resource);
            taken.points().ok()?.into_iter().find(of_request)
        })?;
        assert_eq!(pod_of_resource(&point.resource), expected, "{point:?}");
        let document: Value = serde_json::from_str(&http::get(agent.address(), "/snapshot")?.body)?;
        let told = document["servers"].as_array().context("no servers")?;
        let told = told.iter().find(|it| it["server"] == server).context("not this server")?;
        assert_eq!(pod_of(&told["workload"]), expected, "{told}");
        let listen = agent.address().to_string();
        let id = line["request_id"].as_str().context("no id")?;
        let said = agent::run(&["explain", id, "--listen", &listen])?;
        let said = String::from_utf8(said.stdout)?;
        let place = " (pod inference/llama-7d4b9, container server), ";
        assert_eq!(said.contains(place), expected == named, "{said}");
        assert!(said.starts_with(&format!("request {id} of ")), "{said}");
    }
    let frame = agent::run(&["top", "--once", "--listen", &agent.address().to_string()])?;
    let frame = String::from_utf8(frame.stdout)?;
    println!("{frame}");
    assert!(frame.contains("  pod inference/llama-7d4b9, container server "), "{frame}");
    Ok(())
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
