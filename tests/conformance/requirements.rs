//! `requirements.toml`: every number has a row, which names tests that exist, or says why it has none; `docs/rfc-matrix.md` shows it.
//!
//! `BLESS=1 cargo test --test conformance requirements` writes the page anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use serde::Deserialize;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Requirements {
    requirement: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Row {
    id: String,
    level: String,
    source: String,
    text: String,
    #[serde(default)]
    tests: Vec<String>,
    exempt: Option<String>,
    not_yet: Option<String>,
    note: Option<String>,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn requirements() -> Requirements {
    toml::from_str(&read("tests/conformance/requirements.toml")).unwrap_or_else(|error| panic!("{error}"))
}

/// Names of the functions under `#[test]` in a source file.
fn tests_of(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        let name = line.strip_prefix("fn ").and_then(|rest| rest.split_once('('));
        match name {
            Some((name, _)) if marked => drop(names.insert(name.to_owned())),
            _ => {}
        }
        // Other attributes may stand between the mark and the function.
        marked = line == "#[test]" || (marked && line.starts_with("#["));
    }
    names
}

#[test]
fn every_row_names_tests_that_exist_or_says_why_it_has_none() {
    let all = requirements();
    let mut files: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for row in &all.requirement {
        let id = &row.id;
        assert!(seen.insert(id), "{id} stands twice");
        assert!(["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY"].contains(&row.level.as_str()), "{id}");
        assert!(!row.source.is_empty() && !row.text.is_empty(), "{id}");
        let reasons = [&row.exempt, &row.not_yet].into_iter().flatten().filter(|it| !it.is_empty()).count();
        assert_eq!(reasons + usize::from(!row.tests.is_empty()), 1, "{id}: tests, exempt or not-yet");
        for test in &row.tests {
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{id}: {test}"));
            let found = files.entry(file).or_insert_with(|| tests_of(&read(file)));
            assert!(found.contains(name), "{id}: there is no test {test}");
        }
    }
    for (document, rows) in [("GDOI", 150), ("IKE", 101)] {
        for number in 1..=rows {
            let id = format!("{document}-{number:03}");
            assert!(seen.remove(id.as_str()), "{id} has no row");
        }
    }
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn only_functions_marked_as_tests_count() {
    let source = "#[test]\n#[ignore]\nfn one() {}\nfn two() {}\n#[test]\nfn three() {}";
    assert_eq!(tests_of(source), ["one".to_owned(), "three".to_owned()].into());
}

/// The page: a summary, one table per document, what is left.
fn page(all: &Requirements) -> String {
    let mut out = "# Requirements and the tests that show them\n\n".to_owned();
    out += "Made from `tests/conformance/requirements.toml` by `BLESS=1 cargo test --test conformance requirements`.\n\n";
    let count = |of: &dyn Fn(&&Row) -> bool| all.requirement.iter().filter(of).count();
    let shown = count(&|row| !row.tests.is_empty() && row.note.is_none());
    let partly = count(&|row| !row.tests.is_empty() && row.note.is_some());
    let exempt = count(&|row| row.exempt.is_some());
    let not_yet = count(&|row| row.not_yet.is_some());
    out += "| shown | shown with a remark | exempt | not yet |\n| --- | --- | --- | --- |\n";
    writeln!(out, "| {shown} | {partly} | {exempt} | {not_yet} |").expect("a string");
    for (prefix, title) in [("GDOI-", "GDOI"), ("IKE-", "ISAKMP and IKE phase 1")] {
        writeln!(out, "\n## {title}\n\n| id | level | source | requirement | shown by |").expect("a string");
        out += "| --- | --- | --- | --- | --- |\n";
        for row in all.requirement.iter().filter(|row| row.id.starts_with(prefix)) {
            let Row { id, level, source, text, .. } = row;
            let by = shown_by(row);
            writeln!(out, "| {id} | {level} | {source} | {text} | {by} |").expect("a string");
        }
    }
    out
}

fn shown_by(row: &Row) -> String {
    let mut parts: Vec<String> = row.tests.iter().map(|test| format!("`{test}`")).collect();
    parts.extend(row.exempt.iter().map(|reason| format!("exempt: {reason}")));
    parts.extend(row.not_yet.iter().map(|reason| format!("not yet: {reason}")));
    parts.extend(row.note.iter().map(|note| format!("({note})")));
    parts.join("<br>")
}

#[test]
fn the_page_of_the_requirements_is_current() {
    let page = page(&requirements());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(Path::new(ROOT).join("docs/rfc-matrix.md"), &page).expect("the page is written");
    }
    let hint = "run with BLESS=1 to write docs/rfc-matrix.md anew";
    assert!(read("docs/rfc-matrix.md") == page, "{hint}");
}
