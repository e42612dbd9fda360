//! What Ceph's own tests of its migration do, each of them on every engine: on a real cluster beside them, where there is one.
//!
//! `docs/differential.md` has them one by one, with the test that shows each; a test here looks for every test that it names.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

#[path = "../support/mod.rs"]
mod support;

mod clones;
mod places;
mod scene;
mod sizes;
mod stress;

#[test]
fn every_scenario_in_the_list_names_a_test_that_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/differential.md")).unwrap();
    let (_, list) = page.split_once("| Ceph's test |").unwrap();
    // | Ceph's test | what happens | tests, `FILE`: `TEST` |
    let rows: Vec<Vec<&str>> = list
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let mut scenarios = 0;
    for row in &rows {
        scenarios += row[1].split(',').count();
        let named: Vec<&str> = row[3].split('`').skip(1).step_by(2).collect();
        let (file, tests) = named.split_first().unwrap();
        assert!(!tests.is_empty(), "{row:?} names no test");
        let source = std::fs::read_to_string(root.join("crates").join(file)).unwrap();
        for test in tests {
            let is_there = [format!("fn {test}("), format!("{test}: ")];
            assert!(
                is_there.iter().any(|words| source.contains(words)),
                "{file} has no {test}"
            );
        }
    }
    // As many as Ceph has.
    assert_eq!(scenarios, 55);
}
