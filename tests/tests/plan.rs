//! `llamaprobe plan` names what would be hooked, and at what price.

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::run_json;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use serde_json::Value;

#[test]
fn the_plan_of_both_builds() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let expected = [(Build::Process, "decode_ext"), (Build::Decode, "decode_batch")];
    for (build, batch_probe) in expected {
        let server = LlamaServer::start(build, &assets.tiny(), &["-np", "1", "-c", "1024"])?;
        let pid = server.pid();
        let plan = run_json(&["plan", "--json", "--pid", &pid.to_string()])?;
        let [process] = list(&plan, "processes")? else { panic!("{plan:#}") };
        assert_eq!(process["pid"], pid, "{plan:#}");
        assert_eq!(process["comm"], "llama-server", "{plan:#}");
        assert!(list(process, "missing")?.is_empty(), "{plan:#}");

        let probes = list(process, "probes")?;
        let batch: Vec<_> = probes.iter().filter(|probe| probe["role"] == "batch").collect();
        assert_eq!(batch.len(), 1, "{plan:#}");
        assert_eq!(batch[0]["probe"], batch_probe, "{plan:#}");
        probes.iter().for_each(check_probe);
    }
    Ok(())
}

fn list<'a>(document: &'a Value, name: &str) -> Result<&'a [Value]> {
    document[name].as_array().map(Vec::as_slice).with_context(|| format!("no list {name} in {document:#}"))
}

fn check_probe(probe: &Value) {
    for name in ["role", "probe", "symbol", "file", "instruction"] {
        assert!(probe[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {probe:#}");
    }
    assert!(probe["offset"].as_u64().is_some_and(|offset| offset > 0), "{probe:#}");
    assert!(probe["price_ns"].is_number(), "{probe:#}");
    // Among the sites of these builds a cheap one can always be found, but for what fires with an error only.
    if probe["role"] != "failure" {
        assert_eq!(probe["stepping"], "emulated", "{probe:#}");
    }
    let entry = &probe["entry_stepping"];
    assert!(entry == "emulated" || entry == "single_stepped", "{probe:#}");
}
