//! Whole sessions recorded with rbd 16.2.15, replayed command by command against the real binary.
//!
//! Compared after `support::normalise`, with three things more taken off: lines that Ferry adds (`rbd: note: ...`), the
//! numbers of `bench`, and image ids in commands, which are translated. Every deliberate difference is in [`DIFFERENCES`].

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod support;

use std::collections::HashMap;

use support::store::{Served, TestStore};
use support::{assert_same, normalise, parse};

/// A case where Ferry does not do what rbd 16.2.15 does.
struct Difference {
    file: &'static str,
    command: &'static str,
    output: &'static str,
    code: i32,
    reason: &'static str,
}

/// Ferry's rollback writes every object that it puts back; in Ceph one that is as it was stays as it was.
const ROLLBACK_WRITES: &str = "du counts the objects that a rollback has put back";

/// The local engine knows what an object shares with its older versions by blocks of 4 KiB.
const BLOCKS: &str = "differences within an object are told in whole blocks on the local engine";
/// What is wrong with a file, and at which byte, stands in a note.
const NOTES: &str = "Ceph says in a line of its own which field is wrong, Ferry in a note";
/// A file is read as a whole before anything else is looked at.
const WHOLE: &str = "a file that is no whole diff is refused before its snapshots are looked at";

/// An exit code alone tells nobody what went wrong.
const SILENT: &str = "Ceph fails without a word";

const DIFFERENCES: &[Difference] = &[
    Difference {
        file: "session-files.txt",
        command: "rbd diff i --from-snap a",
        output: "Offset  Length  Type\n0       600     data\n69632   378     data\n196608  3408    data\n",
        code: 0,
        reason: BLOCKS,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd diff k@b --from-snap a",
        output: "Offset  Length  Type\n0       600     data\n69632   378     data\n196608  3408    data\n",
        code: 0,
        reason: BLOCKS,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import-diff /img/trunc0 i --no-progress",
        output: "rbd: import-diff failed: (74) Bad message\n",
        code: 74,
        reason: NOTES,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import-diff /img/trunc1 i --no-progress",
        output: "rbd: import-diff failed: (74) Bad message\n",
        code: 74,
        reason: WHOLE,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import-diff /img/trunc3 i --no-progress",
        output: "rbd: import-diff failed: (74) Bad message\n",
        code: 74,
        reason: WHOLE,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import-diff /img/banner i --no-progress",
        output: "rbd: import-diff failed: (22) Invalid argument\n",
        code: 22,
        reason: NOTES,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import --export-format 2 /img/d0 l --no-progress",
        output: "rbd: import failed: (22) Invalid argument\n",
        code: 22,
        reason: NOTES,
    },
    Difference {
        file: "session-groups.txt",
        command: "rbd group snap create --group g --snap s1",
        output: "rbd: failed to create group snapshot: (17) File exists\n",
        code: 17,
        reason: SILENT,
    },
    Difference {
        file: "session-groups.txt",
        command: "rbd group snap create nog@s1",
        output: "rbd: failed to create group snapshot: (2) No such file or directory\n",
        code: 2,
        reason: SILENT,
    },
    Difference {
        file: "session-groups.txt",
        command: "rbd group rename g other/g",
        output: "rbd: group rename across pools not supported\nsource pool: rbd, dest pool: other\n",
        code: 22,
        reason: "Ceph leaves the source pool's name out when it is the default one",
    },
    Difference {
        file: "session-1.txt",
        command: "rbd du img1",
        output: "NAME     PROVISIONED  USED  \n\
                 img1@s1       16 MiB  16 MiB\n\
                 img1          16 MiB  16 MiB\n\
                 <TOTAL>       16 MiB  32 MiB\n",
        code: 0,
        reason: ROLLBACK_WRITES,
    },
    Difference {
        file: "session-1.txt",
        command: "rbd du img1 --format json --pretty-format",
        output: r#"{
    "images": [
        {
            "name": "img1",
            "id": "1022332bcfd2",
            "snapshot": "s1",
            "snapshot_id": 4,
            "provisioned_size": 16777216,
            "used_size": 16777216
        },
        {
            "name": "img1",
            "id": "1022332bcfd2",
            "provisioned_size": 16777216,
            "used_size": 16777216
        }
    ]
}
"#,
        code: 0,
        reason: ROLLBACK_WRITES,
    },
    Difference {
        file: "session-1.txt",
        command: "rbd du img1 --format xml --pretty-format",
        output: r"<stats>
 <images>
  <image>
   <name>img1</name>
   <id>1022332bcfd2</id>
   <snapshot>s1</snapshot>
   <snapshot_id>4</snapshot_id>
   <provisioned_size>16777216</provisioned_size>
   <used_size>16777216</used_size>
  </image>
  <image>
   <name>img1</name>
   <id>1022332bcfd2</id>
   <provisioned_size>16777216</provisioned_size>
   <used_size>16777216</used_size>
  </image>
 </images>
</stats>
",
        code: 0,
        reason: ROLLBACK_WRITES,
    },
    Difference {
        file: "session-1.txt",
        command: "rbd mv img2x p2/img2x",
        output: "rbd: mv/rename across pools not supported\nsource pool: rbd dest pool: p2\n",
        code: 22,
        reason: "Ceph leaves the source pool's name out when it is the default one",
    },
    Difference {
        file: "session-1.txt",
        command: "rbd create --size 4M --stripe-unit 4096 img9",
        output: "rbd: must specify both (or neither) of stripe-unit and stripe-count\n",
        code: 22,
        reason: "Ceph looks for the name before it looks at the layout",
    },
];

/// Replays one file.
fn replay(file: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let store = TestStore::new();
    let mut ids = HashMap::new();
    let mut served: Option<Served> = None;
    let mut pending = String::new();
    let mut used = 0;
    let mut wrong = Vec::new();
    for (number, line) in (1..).zip(text.split('\n')) {
        if let Some(setup) = line.strip_prefix("# setup: rbd ") {
            store.ok(setup);
        } else if let Some(file) = line.strip_prefix("# file: ") {
            let (name, hex) = file.split_once(' ').unwrap();
            std::fs::write(store.directory().join(name), from_hex(hex)).unwrap();
        } else if let Some(images) = line.strip_prefix("# serve: ") {
            served = Some(store.serve(images));
        } else if line == "# write" {
            write_something(served.as_ref().unwrap());
        } else if line == "# stop" {
            assert_eq!(served.take().unwrap().stop(), (String::new(), 0), "{file}");
        } else {
            pending.push_str(line);
            pending.push('\n');
            if line.starts_with("[rc=") {
                let mut case = parse(&std::mem::take(&mut pending)).remove(0);
                case.line = number;
                if let Err(text) = check(&store, file, &case, &mut ids, &mut used) {
                    wrong.push(text);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed = DIFFERENCES
        .iter()
        .filter(|difference| difference.file == file)
        .count();
    assert_eq!(used, listed, "{file}: differences that are listed but no more");
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

fn check(
    store: &TestStore,
    file: &str,
    case: &support::Case,
    ids: &mut HashMap<String, String>,
    used: &mut usize,
) -> Result<(), String> {
    let words: Vec<String> = case.words[1..]
        .iter()
        .map(|word| {
            let here = store.directory().display().to_string();
            let word = ids.get(word).unwrap_or(word);
            word.replace("/img/", &format!("{here}/"))
        })
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut ran = store.run(&words);
    let here = format!("{}/", store.directory().display());
    ran.output = ran.output.replace(&here, "/img/");
    for (recorded, now) in ids_of(&case.output).into_iter().zip(ids_of(&ran.output)) {
        ids.entry(recorded).or_insert(now);
    }
    let command = case.command();
    let found = DIFFERENCES
        .iter()
        .find(|difference| difference.file == file && difference.command == command);
    let (output, code) = match found {
        Some(difference) => {
            *used += 1;
            assert!(!difference.reason.is_empty());
            assert_ne!(
                (bare(&case.output), case.code),
                (bare(difference.output), difference.code),
                "{file}: {command}: no difference"
            );
            (difference.output.to_owned(), difference.code)
        }
        None => (case.output.clone(), case.code),
    };
    let (expected, actual) = (bare(&output), bare(&ran.output));
    if (&expected, code) == (&actual, ran.code) {
        return Ok(());
    }
    Err(format!(
        "{file}:{} $ {command}\n--- expected\n{expected}[rc={code}]\n--- actual\n{actual}[rc={}]",
        case.line, ran.code
    ))
}

/// Image ids in the order of their appearance.
fn ids_of(output: &str) -> Vec<String> {
    output
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| {
            (10..=14).contains(&word.len())
                && word
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
        .map(str::to_owned)
        .collect()
}

fn bare(output: &str) -> String {
    normalise(output)
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("rbd: note: "))
        .map(bench_line)
        .collect()
}

/// How fast a run of `bench` was says nothing about its output.
fn bench_line(line: &str) -> String {
    if !["elapsed: ", "read_ops: ", "write_ops: "]
        .iter()
        .any(|start| line.starts_with(start))
    {
        return line.to_owned();
    }
    let counts_differ = !line.starts_with("elapsed: ");
    let fields = line.trim_end().split("   ").map(|field| {
        let (name, value) = field.split_once(": ").unwrap();
        let keep = name == "ops" && !counts_differ;
        format!("{name}: {}", if keep { value } else { "N" })
    });
    format!("{}\n", fields.collect::<Vec<_>>().join("   "))
}

fn write_something(served: &Served) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = support::nbd::connect(&served.socket, "").await;
        client
            .write(4096, bytes::Bytes::from_static(&[7; 4096]), true)
            .await
            .unwrap();
        client.disconnect().await.unwrap();
    });
}

#[test]
fn images_snapshots_and_sizes_read_as_recorded() {
    replay("session-1.txt");
}

#[test]
fn a_migration_to_another_pool_and_layout_reads_as_recorded() {
    replay("session-2.txt");
}

#[test]
fn aborts_and_migrations_in_place_read_as_recorded() {
    replay("session-3.txt");
}

#[test]
fn watchers_and_lock_owners_read_as_recorded() {
    replay("session-4.txt");
}

#[test]
fn clones_and_their_children_read_as_recorded() {
    replay("session-5.txt");
}

#[test]
fn a_migration_of_a_parent_and_of_a_clone_reads_as_recorded() {
    replay("session-6.txt");
}

#[test]
fn files_metadata_namespaces_and_trash_read_as_recorded() {
    replay("session-7.txt");
}

#[test]
fn differences_between_snapshots_read_as_recorded() {
    replay("session-diff.txt");
}

#[test]
fn files_of_differences_and_exports_with_snapshots_read_as_recorded() {
    replay("session-files.txt");
}

#[test]
fn copies_with_and_without_snapshots_read_as_recorded() {
    replay("session-copy.txt");
}

#[test]
fn locks_taken_by_hand_read_as_recorded() {
    replay("session-locks.txt");
}

#[test]
fn groups_and_their_snapshots_read_as_recorded() {
    replay("session-groups.txt");
}

#[test]
fn bench_numbers_are_hidden_and_nothing_else() {
    assert_eq!(
        bench_line("elapsed: 0   ops: 16   ops/sec: 4000   bytes/sec: 16 MiB/s\n"),
        bench_line("elapsed: 3   ops: 16   ops/sec: inf   bytes/sec: 0 B/s\n")
    );
    assert_ne!(
        bench_line("elapsed: 0   ops: 16\n"),
        bench_line("elapsed: 0   ops: 17\n")
    );
    assert_same("a\n", "a\n", "equal texts");
}
