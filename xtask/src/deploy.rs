//! What is shipped under `deploy/` fits together: names of metrics, rules and their tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use llamaprobe::export::metrics::{Kind, METRICS};
use llamaprobe_tests::assets::workspace_root;

/// How the names of metrics begin.
const PREFIXES: [&str; 3] = ["llm_", "llamaprobe_", "process_"];

/// The words of an expression, or of a text about it.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_' && it != ':')
}

/// The metric that a word means: none where it means none, an error where it looks like one that is not published.
pub fn metric_of(word: &str) -> Result<Option<&'static str>, ()> {
    if word.contains(':') || !PREFIXES.iter().any(|prefix| word.starts_with(prefix)) {
        return Ok(None);
    }
    let fits = METRICS.iter().find(|metric| match metric.kind {
        Kind::Counter | Kind::Gauge => word == metric.name,
        Kind::Histogram => {
            let rest = word.strip_prefix(metric.name);
            rest.is_some_and(|rest| ["_bucket", "_sum", "_count"].contains(&rest))
        }
    });
    fits.map(|metric| Some(metric.name)).ok_or(())
}

/// The YAML files of a directory below `deploy/prometheus`, without comments.
fn files(directory: &str) -> Vec<(String, String)> {
    let directory = workspace_root().join("deploy/prometheus").join(directory);
    let paths = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|end| end == "yml"));
    let files: Vec<_> = files.map(|path| (name(&path), uncommented(&path))).collect();
    assert!(!files.is_empty(), "no file in {}", directory.display());
    files
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn uncommented(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with('#')).map(|line| format!("{line}\n")).collect()
}

/// The values of a key, wherever it stands.
fn values<'a>(text: &'a str, key: &str) -> BTreeSet<&'a str> {
    let lines = text.lines().map(|line| line.trim_start().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).collect()
}

#[test]
fn rules_name_only_what_is_published_or_recorded() {
    let rules = files("rules");
    let recorded: BTreeSet<_> = rules.iter().flat_map(|(_, text)| values(text, "record")).collect();
    for (file, text) in &rules {
        for word in words(text) {
            assert!(metric_of(word).is_ok(), "{file}: {word} is not in METRICS");
            // A key of the file ends with its colon.
            let recording = word.contains(':') && !word.ends_with(':') && !word.starts_with(':');
            assert!(!recording || recorded.contains(word), "{file}: {word} is not recorded");
        }
    }
}

#[test]
fn every_rule_has_its_tests() {
    let tests: Vec<_> = files("tests");
    let asked: BTreeSet<_> =
        tests.iter().flat_map(|(_, text)| text.lines().filter(|line| line.contains("expr:"))).collect();
    // An alert that is expected, and one that is expected not to be.
    let cases = |alert: &str, silent: bool| {
        let begins = format!("alertname: {alert}\n");
        tests.iter().any(|(_, text)| {
            let mut parts = text.split(&begins).skip(1);
            parts.any(|part| {
                let own = part.split("alertname:").next().unwrap_or_default();
                own.contains("exp_alerts: []") == silent
            })
        })
    };
    for (file, text) in files("rules") {
        for alert in values(&text, "alert") {
            assert!(cases(alert, false), "{file}: no test fires {alert}");
            assert!(cases(alert, true), "{file}: no test in which {alert} stays silent");
        }
        for record in values(&text, "record") {
            let tested = asked.iter().any(|line| words(line).any(|word| word == record));
            assert!(tested, "{file}: no test asks for {record}");
        }
    }
}

#[test]
fn every_alert_says_what_to_do() {
    for (file, text) in files("rules") {
        for rule in text.split("- alert: ").skip(1) {
            let rule = rule.split("- alert: ").next().unwrap_or_default();
            let alert = rule.lines().next().unwrap_or_default();
            for key in ["severity:", "summary:", "description:"] {
                assert!(rule.contains(key), "{file}: {alert} has no {key}");
            }
        }
    }
}

#[test]
fn the_questions_have_their_answers() {
    let page = fs::read_to_string(workspace_root().join("docs/prometheus.md")).unwrap();
    let rows = page.split("| Question | Metric | Panel | Alert |\n").nth(1).unwrap().lines().skip(1);
    let rules = files("rules");
    let alerts: BTreeSet<_> = rules.iter().flat_map(|(_, text)| values(text, "alert")).collect();
    let panels = crate::dashboard::titles();
    let mut named = BTreeSet::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, metrics, panel, answers] = cells[..] else { panic!("{row}") };
        for metric in words(metrics).filter(|word| !word.is_empty()) {
            assert!(METRICS.iter().any(|known| known.name == metric), "{metric} is not published: {row}");
        }
        assert!(panels.contains(&panel), "there is no panel {panel}: {row}");
        named.extend(words(answers).filter(|word| !word.is_empty()));
    }
    assert_eq!(named, alerts, "alerts of the table, of the rules");
}
