//! What `deploy/` has for Prometheus and Grafana: it parses, and asks for metrics that there are.

use std::collections::BTreeSet;
use std::path::PathBuf;

use yaml_rust2::{Yaml, YamlLoader};

fn repository(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap()
}

/// Every documented name as a query spells it.
fn documented() -> BTreeSet<String> {
    let page = read("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let spelt = |(name, rest): (&str, &str)| {
        let suffixes: &[&str] =
            if rest.starts_with("histogram") { &["_bucket", "_sum", "_count"] } else { &[""] };
        suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect::<Vec<_>>()
    };
    rows.flat_map(spelt).collect()
}

/// The names of ours that a query asks for.
fn asked(query: &str) -> Vec<String> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = |word: &&str| ["gdoi_", "gcks_", "gm_"].iter().any(|prefix| word.starts_with(prefix));
    words.filter(ours).map(str::to_owned).collect()
}

fn assert_documented(queries: &[String]) {
    let (known, mut count) = (documented(), 0);
    for query in queries {
        let names = asked(query);
        assert!(!names.is_empty(), "{query} asks for nothing of ours");
        for name in names {
            assert!(known.contains(&name), "{query}: docs/metrics.md has no {name}");
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} names were found");
}

/// Events that the queries pick by name.
fn events(queries: &[String]) -> Vec<String> {
    let picked = queries.iter().filter_map(|query| query.split_once("event=\"")?.1.split_once('"'));
    picked.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_alert_rules_are_yaml_and_ask_for_documented_metrics_and_events() {
    let documents = YamlLoader::load_from_str(&read("deploy/prometheus/alerts.yml")).unwrap();
    let groups = documents[0]["groups"].as_vec().unwrap();
    let rules: Vec<&Yaml> = groups.iter().flat_map(|group| group["rules"].as_vec().unwrap()).collect();
    let names: BTreeSet<&str> = rules.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert_eq!(names.len(), rules.len(), "an alert is there twice");
    for rule in &rules {
        assert!(rule["annotations"]["summary"].as_str().is_some_and(|text| !text.is_empty()), "{rule:?}");
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{rule:?}");
    }
    let queries: Vec<String> = rules.iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect();
    assert_documented(&queries);
    let events = events(&queries);
    assert!(events.len() >= 5);
    for event in events {
        assert!(ctl::event::Event::NAMES.contains(&event.as_str()), "no event {event}");
    }
}

#[test]
fn the_dashboard_is_json_and_asks_for_documented_metrics() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/gdoi.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let mut queries: Vec<String> =
        targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    queries.extend(
        variables
            .iter()
            .filter(|variable| variable["type"] == "query")
            .map(|it| it["query"].as_str().unwrap().to_owned()),
    );
    assert_documented(&queries);
}
