use std::collections::BTreeSet;

use llamaprobe::export::metrics::METRICS;

use super::*;
use crate::deploy::{metric_of, words};

fn drawn_panels() -> Vec<Value> {
    panels(GROUPS).into_iter().filter(|panel| panel["type"] != "row").collect()
}

fn expressions() -> Vec<String> {
    let targets = drawn_panels().into_iter().flat_map(|panel| panel["targets"].as_array().unwrap().clone());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_file_is_what_the_table_says() {
    let written = fs::read_to_string(path()).unwrap();
    assert!(written == text().unwrap(), "the table of panels has changed: run `cargo xtask dashboard`");
}

#[test]
fn every_query_asks_for_metrics_that_are_published() {
    for expr in expressions() {
        let unknown: Vec<_> = words(&expr).filter(|word| metric_of(word).is_err()).collect();
        assert_eq!(unknown, [""; 0], "not in METRICS: {expr}");
        assert!(!expr.contains('@'), "a placeholder is left: {expr}");
    }
}

#[test]
fn every_metric_is_on_a_panel() {
    let shown: BTreeSet<_> =
        expressions().iter().flat_map(|expr| words(expr)).filter_map(|word| metric_of(word).ok()?).collect();
    let missing: Vec<_> = METRICS.iter().map(|metric| metric.name).filter(|it| !shown.contains(it)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_panel_has_its_place_and_its_words() {
    let mut taken = BTreeSet::new();
    let mut titles = BTreeSet::new();
    for panel in panels(GROUPS) {
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for x in place("x")..place("x") + place("w") {
            assert!(x < SCREEN, "{panel}");
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{} overlaps another panel", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert!(titles.insert(panel["title"].to_string()), "{} twice", panel["title"]);
            assert!(panel["description"].as_str().unwrap().ends_with('.'), "{}", panel["title"]);
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{}", panel["title"]);
        }
    }
}
