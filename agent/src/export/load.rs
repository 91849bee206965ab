//! How much each server has to do, as few series as decide where the next request goes: for the endpoint pickers of gateways,
//! which ask many times a second. Under this agent's names, and under those of vLLM, which pickers ask for by default.

use std::fmt::Write as _;

use super::openmetrics::Labels;
use crate::session::load::Load;

/// A figure: names with the label of the model, what it says, its value.
struct Row {
    names: &'static [(&'static str, &'static str)],
    help: &'static str,
    value: fn(&Load) -> Option<f64>,
}

const OWN: &str = "model";
const VLLM: &str = "model_name";

/// The table.
const ROWS: [Row; 4] = [
    Row {
        names: &[("llm_queue_depth", OWN), ("vllm:num_requests_waiting", VLLM)],
        help: "Inference requests that wait for a slot, and connections that no thread of the server has taken up.",
        value: |load| Some(load.queued as f64),
    },
    Row {
        names: &[("llm_slots_busy", OWN), ("vllm:num_requests_running", VLLM)],
        help: "Slots with a running request.",
        value: |load| Some(load.running as f64),
    },
    Row {
        names: &[("llm_slots", OWN)],
        help: "Slots the server was told to have.",
        value: |load| load.slots.map(|slots| slots as f64),
    },
    Row {
        names: &[("llm_context_active_ratio", OWN), ("vllm:kv_cache_usage_perc", VLLM)],
        help: "Positions held by running requests as a share of the context's size; what idle slots keep for reuse does not count.",
        value: |load| Some(load.context),
    },
];

/// All series of these servers, as Prometheus reads them.
pub fn render<'a>(loads: impl Iterator<Item = &'a Load> + Clone) -> String {
    let mut text = String::with_capacity(2048);
    for row in &ROWS {
        for (name, model) in row.names {
            let mut samples = loads.clone().filter_map(|load| Some((load, (row.value)(load)?))).peekable();
            if samples.peek().is_none() {
                continue;
            }
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} gauge", row.help);
            for (load, value) in samples {
                let labels = [("server", load.labels.server.clone()), (*model, load.labels.model.clone())];
                let _ = writeln!(text, "{name}{} {value}", Labels(&labels, None));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Labels;

    #[test]
    fn each_server_has_one_series_of_each_name() {
        let labels = Labels { server: "0.0.0.0:8080".to_owned(), model: "a \"m\"".to_owned() };
        let load = Load { labels, queued: 3, running: 2, slots: Some(4), context: 0.25 };
        let other = Load { slots: None, ..load.clone() };
        let text = render([&load].into_iter());
        for line in [
            "llm_queue_depth{server=\"0.0.0.0:8080\",model=\"a \\\"m\\\"\"} 3",
            "vllm:num_requests_waiting{server=\"0.0.0.0:8080\",model_name=\"a \\\"m\\\"\"} 3",
            "vllm:num_requests_running{server=\"0.0.0.0:8080\",model_name=\"a \\\"m\\\"\"} 2",
            "vllm:kv_cache_usage_perc{server=\"0.0.0.0:8080\",model_name=\"a \\\"m\\\"\"} 0.25",
            "llm_slots{server=\"0.0.0.0:8080\",model=\"a \\\"m\\\"\"} 4",
            "# TYPE vllm:num_requests_waiting gauge",
        ] {
            assert_eq!(text.lines().filter(|it| *it == line).count(), 1, "{line} in\n{text}");
        }
        assert!(!render([&other].into_iter()).contains("llm_slots{"), "it does not say how many it has");
        assert_eq!(render([].into_iter()), "");
    }
}
