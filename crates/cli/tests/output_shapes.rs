//! Tables, JSON and XML against recorded output of `rbd` 16.2.15, byte for byte.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod support;

use ferry_cli::output::{Align, Document, Node, OutputFormat, TextTable, bytes, timestamp_in};
use jiff::tz::TimeZone;
use serde_json::Value;
use support::load_one;

const SHAPES: &str = "shapes.txt";
const JSON: OutputFormat = OutputFormat::Json { pretty: false };
const PRETTY_JSON: OutputFormat = OutputFormat::Json { pretty: true };
const PRETTY_XML: OutputFormat = OutputFormat::Xml { pretty: true };
const XML: OutputFormat = OutputFormat::Xml { pretty: false };

/// Builds our tree from recorded JSON. XML has item names that JSON does not show; they are given by list.
fn node(value: &Value, item: &str) -> Node {
    match value {
        Value::Object(fields) => fields.iter().fold(Node::map(), |map, (name, value)| {
            let item = match name.as_str() {
                "features" | "op_features" | "flags" | "watchers" | "images" => &name[..name.len() - 1],
                _ => "?",
            };
            map.with(name, node(value, item))
        }),
        Value::Array(values) => Node::list_of(item, values.iter().map(|value| node(value, "?"))),
        Value::String(text) => Node::from(text),
        Value::Bool(value) => Node::from(*value),
        Value::Number(number) => Node::from(number.as_u64().unwrap()),
        Value::Null => panic!("no null in the transcripts"),
    }
}

fn document(command: &str, root: &str, item: &str) -> Document {
    let value: Value = serde_json::from_str(&load_one(SHAPES, command).output).unwrap();
    Document::new(root, node(&value, item))
}

/// Recorded output has no blank lines, so pretty XML's last one is checked apart.
fn check(document: &Document, format: OutputFormat, command: &str) {
    let text = document.render(format);
    let text = if format == PRETTY_XML {
        text.strip_suffix('\n').unwrap()
    } else {
        &text
    };
    assert_eq!(text, load_one(SHAPES, command).output, "{command}");
}

#[test]
fn documents_have_the_recorded_json_and_xml_forms() {
    let rows = [
        (
            "rbd info img3 --format json --pretty-format",
            "image",
            "?",
            Some("rbd info img3 --format xml --pretty-format"),
        ),
        (
            "rbd ls --format json",
            "images",
            "name",
            Some("rbd ls --format xml --pretty-format"),
        ),
        (
            "rbd ls -l --format json --pretty-format",
            "images",
            "image",
            Some("rbd ls -l --format xml --pretty-format"),
        ),
        (
            "rbd snap ls img1 --format json --pretty-format",
            "snapshots",
            "snapshot",
            Some("rbd snap ls img1 --format xml --pretty-format"),
        ),
        (
            "rbd snap ls img1 --all --format json",
            "snapshots",
            "snapshot",
            None,
        ),
        (
            "rbd du img1 --format json --pretty-format",
            "stats",
            "?",
            Some("rbd du img1 --format xml --pretty-format"),
        ),
        (
            "rbd status src --format json",
            "status",
            "?",
            Some("rbd status src --format xml --pretty-format"),
        ),
        (
            "rbd status p2/dst --format json --pretty-format",
            "status",
            "?",
            Some("rbd status p2/dst --format xml --pretty-format"),
        ),
        (
            "rbd status p2/dst --format json",
            "status",
            "?",
            Some("rbd status p2/dst --format xml --pretty-format"),
        ),
        (
            "rbd status wa --format json --pretty-format",
            "status",
            "?",
            Some("rbd status wa --format xml --pretty-format"),
        ),
        (
            "rbd status r1 --format json --pretty-format",
            "status",
            "?",
            Some("rbd status r1 --format xml --pretty-format"),
        ),
        ("rbd status big2 --format json", "status", "?", None),
        (
            "rbd trash ls --all -l --format json --pretty-format",
            "trash",
            "image",
            Some("rbd trash ls -a -l --format xml --pretty-format"),
        ),
        (
            "rbd lock ls t1 --format json --pretty-format",
            "locks",
            "lock",
            Some("rbd lock ls t1 --format xml --pretty-format"),
        ),
        (
            "rbd image-meta list t1 --format json",
            "metadatas",
            "?",
            Some("rbd image-meta ls t1 --format xml --pretty-format"),
        ),
        (
            "rbd pool stats --format json",
            "stats",
            "?",
            Some("rbd pool stats --format xml --pretty-format"),
        ),
        (
            "rbd namespace ls rbd --format json",
            "namespaces",
            "namespace",
            Some("rbd namespace ls --format xml --pretty-format"),
        ),
        ("rbd info child1 --format json", "image", "?", None),
    ];
    for (json, root, item, xml) in rows {
        let document = document(json, root, item);
        check(
            &document,
            if json.ends_with("--pretty-format") {
                PRETTY_JSON
            } else {
                JSON
            },
            json,
        );
        if let Some(xml) = xml {
            check(&document, PRETTY_XML, xml);
        }
    }
}

#[test]
fn compact_xml_is_pretty_xml_without_its_blanks() {
    let document = document("rbd status p2/dst --format json", "status", "?");
    let joined: String = document.render(PRETTY_XML).lines().map(str::trim).collect();
    assert_eq!(document.render(XML), format!("{joined}\n"));
}

fn table(columns: &[(&str, Align)], rows: &[&[&str]]) -> String {
    let mut table = TextTable::new(columns);
    rows.iter().for_each(|row| table.row(row.iter().copied()));
    table.to_string()
}

#[test]
fn tables_have_the_recorded_padding() {
    use Align::{Left, Right};
    let snaps = [
        ("SNAPID", Right),
        ("NAME", Left),
        ("SIZE", Left),
        ("PROTECTED", Left),
        ("TIMESTAMP", Left),
    ];
    let long = [
        ("NAME", Left),
        ("SIZE", Right),
        ("PARENT", Left),
        ("FMT", Right),
        ("PROT", Left),
        ("LOCK", Left),
    ];
    let usage = [("NAME", Left), ("PROVISIONED", Right), ("USED", Right)];
    let locks = [("Locker", Left), ("ID", Left), ("Address", Left)];
    let first = timestamp_in(1_795_394_486, &TimeZone::UTC);
    let second = timestamp_in(1_795_394_487, &TimeZone::UTC);
    let expired = "expired at Mon Nov 23 00:42:26 2026";
    let mib = |count: u64| bytes(count << 20);
    let rows: Vec<(&str, String)> = vec![
        (
            "rbd snap ls img1",
            table(
                &snaps,
                &[
                    &["4", "s1", &mib(16), "yes", &first],
                    &["5", "s2", &mib(16), "", &second],
                ],
            ),
        ),
        (
            "rbd du img1",
            table(
                &usage,
                &[
                    &["img1@s1", &mib(16), &mib(16)],
                    &["img1", &mib(16), "0 B"],
                    &["<TOTAL>", &mib(16), &mib(16)],
                ],
            ),
        ),
        (
            "rbd du --exact img1@s1",
            table(&usage, &[&["img1@s1", &mib(16), &bytes(65536)]]),
        ),
        (
            "rbd du r1",
            table(
                &usage,
                &[
                    &["r1@sn1", &mib(9), "0 B"],
                    &["r1", &mib(9), "0 B"],
                    &["<TOTAL>", &mib(9), "0 B"],
                ],
            ),
        ),
        (
            "rbd trash ls -a -l",
            table(
                &[
                    ("ID", Left),
                    ("NAME", Left),
                    ("SOURCE", Left),
                    ("DELETED_AT", Left),
                    ("STATUS", Left),
                    ("PARENT", Left),
                ],
                &[&[
                    "10e86fcd637c",
                    "src",
                    "MIGRATION",
                    "Mon Nov 23 00:42:26 2026",
                    expired,
                ]],
            ),
        ),
        (
            "rbd lock ls wax",
            format!(
                "There is 1 exclusive lock on this image.\n{}",
                table(
                    &locks,
                    &[&["client.4934", "auto 140538577771216", "127.0.0.1:0/1401521130"]]
                )
            ),
        ),
        ("rbd namespace ls rbd", table(&[("NAME", Left)], &[&["ns1"]])),
        (
            "rbd group snap ls g",
            table(&[("NAME", Left), ("STATUS", Right)], &[&["gs", "ok"]]),
        ),
        (
            "rbd image-meta ls p2/dst",
            format!(
                "There are 2 metadata on this image:\n{}",
                table(
                    &[("Key", Left), ("Value", Left)],
                    &[&["conf_rbd_cache", "false"], &["k1", "v1"]]
                )
            ),
        ),
    ];
    for (command, actual) in rows {
        assert_eq!(actual, load_one(SHAPES, command).output, "{command}");
    }
    let listed = table(
        &long,
        &[
            &["a", &mib(8), "", "2"],
            &["img1", &mib(16), "", "2"],
            &["img1@s1", &mib(16), "", "2", "yes"],
            &["img1@s2b", &mib(16), "", "2"],
            &["img2", &mib(10), "", "2"],
            &["img3", &mib(10), "", "2"],
            &["img9", &mib(4), "", "2"],
        ],
    );
    let recorded = support::load(SHAPES)
        .into_iter()
        .filter(|case| case.command() == "rbd ls -l");
    assert!(recorded.into_iter().any(|case| case.output == listed), "{listed}");
}

#[test]
fn a_column_can_be_added_before_the_first_row() {
    use Align::{Left, Right};
    let mut table = TextTable::new(&[
        ("SNAPID", Right),
        ("NAME", Left),
        ("SIZE", Left),
        ("PROTECTED", Left),
        ("TIMESTAMP", Left),
    ]);
    table.add_column("NAMESPACE", Left);
    let time = |seconds| timestamp_in(seconds, &TimeZone::UTC);
    table.row(["4", "s1", "16 MiB", "yes", &time(1_795_394_486), "user"]);
    table.row(["5", "s2", "16 MiB", "", &time(1_795_394_487), "user"]);
    assert_eq!(
        table.to_string(),
        load_one(SHAPES, "rbd snap ls img1 --all").output
    );
}
