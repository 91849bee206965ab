//! The Grafana dashboard, written from a table of panels.

mod looks;
mod panels;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::workspace_root;
use serde_json::{Value, json};

use panels::{GROUPS, Group, Panel, Queries, Shape};

/// The width of the screen in Grafana's units.
const SCREEN: u64 = 24;
/// The labels that the variables select.
const SERVER: &str = "instance=\"$instance\",server=~\"$server\",model=~\"$model\"";
/// That of the agent alone.
const HOST: &str = "instance=\"$instance\"";
/// The routes that run on a slot.
const INFERENCE: &str =
    "route=~\"/completion|/infill|/v1/(chat/completions|completions|messages|responses|embeddings|rerank)\"";

/// Where the dashboard is.
fn path() -> PathBuf {
    workspace_root().join("deploy/grafana/llamaprobe.json")
}

/// Writes the dashboard.
pub fn write() -> Result<()> {
    fs::write(path(), text()?).with_context(|| format!("cannot write {}", path().display()))
}

/// The titles of the panels.
#[cfg(test)]
pub fn titles() -> Vec<&'static str> {
    GROUPS.iter().flat_map(|group| group.panels).map(|panel| panel.title).collect()
}

/// The dashboard as it is written.
fn text() -> Result<String> {
    Ok(serde_json::to_string_pretty(&document())? + "\n")
}

fn document() -> Value {
    json!({
        "__inputs": [{
            "name": "DS_PROMETHEUS",
            "label": "Prometheus",
            "description": "The Prometheus that scrapes llamaprobe",
            "type": "datasource",
            "pluginId": "prometheus",
            "pluginName": "Prometheus",
        }],
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "10.4.0"},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
        ],
        "uid": "llamaprobe",
        "title": "llama.cpp by llamaprobe",
        "description": "One host with llama.cpp servers, as llamaprobe sees them from the kernel.",
        "tags": ["llm", "llama.cpp", "llamaprobe"],
        "schemaVersion": 39,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": variables()},
        "panels": panels(GROUPS),
    })
}

/// The data source, and what the panels select by. The data source is a variable too, so that a file that is
/// provisioned works like one that is imported.
fn variables() -> Vec<Value> {
    let source = json!({
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "${DS_PROMETHEUS}", "value": "${DS_PROMETHEUS}", "selected": true},
        "hide": 0,
    });
    let selected = [
        ("job", "Job", "label_values(llamaprobe_build_info, job)", false),
        ("instance", "Host", "label_values(llamaprobe_build_info{job=~\"$job\"}, instance)", false),
        ("server", "Server", "label_values(llamaprobe_probe_attached{instance=\"$instance\"}, server)", true),
        (
            "model",
            "Model",
            "label_values(llamaprobe_probe_attached{instance=\"$instance\",server=~\"$server\"}, model)",
            true,
        ),
    ];
    let selected = selected.map(|(name, label, query, many)| {
        let mut variable = json!({
            "name": name,
            "label": label,
            "type": "query",
            "datasource": source_of_panels(),
            "query": {"query": query, "refId": name},
            "definition": query,
            // At every change of the time range: servers come and go.
            "refresh": 2,
            "sort": 1,
            "hide": 0,
            "multi": many,
            "includeAll": many,
        });
        if many {
            variable["allValue"] = json!(".*");
            variable["current"] = json!({"text": "All", "value": "$__all", "selected": true});
        }
        variable
    });
    [source].into_iter().chain(selected).collect()
}

fn source_of_panels() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// Lays the panels out, from left to right and from top to bottom.
fn panels(groups: &[Group]) -> Vec<Value> {
    let (mut laid, mut y) = (Vec::new(), 0);
    for group in groups {
        laid.push(json!({
            "type": "row",
            "title": group.title,
            "collapsed": false,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": SCREEN, "h": 1},
        }));
        y += 1;
        let (mut x, mut height) = (0, 0);
        for panel in group.panels {
            let width = u64::from(panel.width);
            if x + width > SCREEN {
                (x, y, height) = (0, y + height, 0);
            }
            let own = panel.shape.height();
            let mut drawn = drawn(panel);
            drawn["gridPos"] = json!({"x": x, "y": y, "w": width, "h": own});
            laid.push(drawn);
            (x, height) = (x + width, height.max(own));
        }
        y += height;
    }
    for (index, panel) in laid.iter_mut().enumerate() {
        panel["id"] = json!(index + 1);
    }
    laid
}

fn drawn(panel: &Panel) -> Value {
    let mut steps = vec![json!({"color": "green", "value": null})];
    steps.extend(panel.red.map(|red| json!({"color": "red", "value": red})));
    json!({
        "type": panel.shape.name(),
        "title": panel.title,
        "description": panel.description,
        "datasource": source_of_panels(),
        "targets": targets(panel),
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": if panel.shape == Shape::Table { Value::Null } else { json!(0) },
                "custom": panel.shape.drawing(panel.red.is_some()),
                "color": {"mode": if panel.shape == Shape::Stat { "thresholds" } else { "palette-classic" }},
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": panel.shape.options(panel.unit),
        "transformations": if panel.shape == Shape::Table { tidied(panel) } else { json!([]) },
    })
}

/// The queries of a panel, with their variables.
fn targets(panel: &Panel) -> Vec<Value> {
    let asked: Vec<(String, String)> = match &panel.queries {
        Queries::Each(rows) => {
            rows.iter().map(|(expr, legend)| (expand(expr), (*legend).to_owned())).collect()
        }
        Queries::Quantiles(histogram) => [("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99")]
            .map(|(quantile, legend)| {
                let of = format!("sum by (le) (rate({histogram}_bucket{{@server}}[@rate]))");
                (expand(&format!("histogram_quantile({quantile}, {of})")), legend.to_owned())
            })
            .into(),
        Queries::Buckets(histogram) => {
            let expr = expand(&format!("sum by (le) (increase({histogram}_bucket{{@server}}[@rate]))"));
            vec![(expr, "{{le}}".to_owned())]
        }
    };
    let instant = matches!(panel.shape, Shape::Stat | Shape::Word | Shape::Bars | Shape::Table);
    let format = match panel.shape {
        Shape::Heatmap => "heatmap",
        Shape::Table => "table",
        _ => "time_series",
    };
    let letters = 'A'..='Z';
    let targets = letters.zip(asked).map(|(letter, (expr, legend))| {
        json!({
            "refId": letter.to_string(),
            "datasource": source_of_panels(),
            "editorMode": "code",
            "expr": expr,
            "legendFormat": legend,
            "format": format,
            "instant": instant,
            "range": !instant,
        })
    });
    targets.collect()
}

fn expand(expr: &str) -> String {
    let words = [
        ("@server", SERVER),
        ("@host", HOST),
        ("@inference", INFERENCE),
        ("@rate", "$__rate_interval"),
        ("@range", "$__range"),
    ];
    words.iter().fold(expr.to_owned(), |expr, (word, meaning)| expr.replace(word, meaning))
}

/// Joins the queries of a table, names their columns by the legends, and hides those that say nothing.
fn tidied(panel: &Panel) -> Value {
    let hidden = ["Time", "__name__", "job", "instance"];
    let mut hidden: BTreeMap<String, bool> = hidden.map(|name| (name.to_owned(), true)).into();
    let mut names = BTreeMap::new();
    if let Queries::Each([(_, legend)]) = panel.queries
        && legend.is_empty()
    {
        hidden.insert("Value".to_owned(), true);
    } else if let Queries::Each(rows) = panel.queries {
        let letters = 'A'..='Z';
        names.extend(letters.zip(rows).map(|(letter, (_, legend))| (format!("Value #{letter}"), *legend)));
    }
    json!([
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "renameByName": names}},
    ])
}
