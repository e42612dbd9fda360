//! docs/compatibility.md is what the command table says: made here from the table, from the list of Ceph's commands and
//! options (tests/golden/ceph-commands.txt), and from what is written below about deliberate differences.
//!
//! `FERRY_UPDATE=1` writes the page anew.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ferry_cli::grammar::table::{Command, State, commands};

/// All others would be promises that nobody keeps.
const HONOURED: &str = "knows the settings that Ferry honours, from the next opening on: `rbd_clone_copy_on_read`; on a cluster also `rbd_cache`, \
     `rbd_cache_max_dirty`, `rbd_cache_policy`, `rbd_cache_writethrough_until_flush` and `rbd_readahead_max_bytes` (0, or more), of which an image or \
     a pool can only narrow what the client's own configuration allows";

/// Where Ferry's command does on purpose what Ceph's does not, and why.
const DIFFERS: &[(&str, &str)] = &[
    (
        "bench",
        "`full-seq` goes through the image strictly in order, which Ceph's does only if all requests take equally long",
    ),
    ("config global get", HONOURED),
    (
        "config global list",
        "lists all that is set, like Ceph's; what of it Ferry honours: see `config global get`",
    ),
    ("config global remove", HONOURED),
    ("config global set", HONOURED),
    ("config image get", HONOURED),
    ("config image list", HONOURED),
    ("config image remove", HONOURED),
    ("config image set", HONOURED),
    ("config pool get", HONOURED),
    ("config pool list", HONOURED),
    ("config pool remove", HONOURED),
    ("config pool set", HONOURED),
    (
        "copy",
        "an object size alone means default striping, where Ceph keeps the old object size as stripe unit and refuses smaller objects; \
              objects are copied as they are, where Ceph's writes whole blocks of 4 KiB",
    ),
    (
        "create",
        "images of 2^63 bytes and more are refused (27), here and in `resize`: no client could say where in them it reads, and Ceph's counts their \
         objects wrongly; an object size of one byte is too small (33), Ceph takes it for none; \
         stripe unit and count are checked before the name is looked for; `RBD_FORCE_ALLOW_V1` allows images of format 1 here, not \
         in `copy`, `deep copy` and `import`, which make format 2 only",
    ),
    (
        "clone",
        "an object size alone means default striping, as for `copy`, unless the parent is striped",
    ),
    (
        "deep copy",
        "an object size alone means default striping, as for `copy`; a clone's copy is of the clone's format, where Ceph's refuses an \
         unprotected snapshot if new clones are of format 1",
    ),
    (
        "device list",
        "lists what Ferry has mapped on this machine, of all stores; `nbd` is the kind that is meant and the only one, others are refused (95); no cookies",
    ),
    (
        "device map",
        "`nbd` is the kind that is meant and the only one, others are refused (95); `-o` takes `timeout`, `io-timeout` and `try-netlink`; a kernel without the driver is told at once (19), Ceph's says that it finds no unused device (22); not yet run on a kernel that has nbd",
    ),
    (
        "device unmap",
        "as `device map`; a device that is mounted is refused (16) without `-o force`, the only option of `-o`",
    ),
    (
        "diff",
        "with `--whole-object` and object maps, objects that a shrink took away are told too, which Ceph forgets; on a local store \
              differences within an object are told in whole blocks of 4 KiB",
    ),
    (
        "disk-usage",
        "a rollback counts as a write of all objects that it puts back; an image of no bytes uses none, where Ceph's stops with \
              a failed assertion",
    ),
    (
        "export",
        "in format 2 also an image with snapshots of groups, or with removed ones that clones still show; they stay behind, where Ceph's \
              is refused (2)",
    ),
    ("flatten", "of an image that is being migrated is refused (16)"),
    (
        "group image add",
        "`--group-namespace` and `--image-namespace` count, which Ceph's command takes and ignores; `--pool` is the pool of both unless \
                     named separately",
    ),
    (
        "group image list",
        "shows images in the trash, at which Ceph's list ends",
    ),
    (
        "group image remove",
        "as `group image add`; an image of another group leaves no trace in this one",
    ),
    (
        "group rename",
        "a pool or namespace that is named for one side counts for both",
    ),
    (
        "group snap create",
        "says why it failed; links that a killed `group image add` left do not count",
    ),
    ("group snap remove", "images that are gone are in nobody's way"),
    (
        "group snap rollback",
        "changes nothing unless the snapshot is complete and every image has its part; Ceph's rolls back the others",
    ),
    (
        "import",
        "the image has no name until it is whole; a file of format 2 that is cut off leaves nothing",
    ),
    (
        "import-diff",
        "a file is read as a whole before the image is touched; what contradicts itself is refused (22), what ends too early \
                     too (74); Ceph applies it up to there",
    ),
    (
        "info",
        "of a clone: a removed snapshot that clones still show has the name that it had, where Ceph's shows an id",
    ),
    (
        "merge-diff",
        "runs that lie outside the image are refused as damaged (22), not as out of order (95)",
    ),
    (
        "migration abort",
        "snapshots taken on the target are named, and only dropped with `--force`",
    ),
    (
        "migration prepare",
        "see [migration.md](migration.md) for what differs of all verbs, on the same records",
    ),
    (
        "resize",
        "images do not become larger than 2^63 - 1 bytes, as in `create`",
    ),
    (
        "rename",
        "the error for another pool names both pools; a new name with a pool but without a namespace is one without a namespace, not \
         one in the old namespace; an image of format 1 keeps its metadata and its limit of snapshots, and is not renamed while it is \
         open",
    ),
    (
        "snap rollback",
        "counts as a write of every object that it puts back",
    ),
    (
        "trash move",
        "refused (16) for a migration target also when it is executed; from the trash of Ceph's `rbd` no verb finds it by its name, \
         and an abort by the source's name fails halfway (2)",
    ),
    (
        "trash remove",
        "of an image in a group it names the group, where Ceph's prints an empty line",
    ),
];

/// Options that Ceph's command takes without explaining them.
const UNEXPLAINED: &[(&str, &[&str])] = &[
    ("clone", &["order"]),
    ("copy", &["order"]),
    ("create", &["new-format", "order"]),
    ("deep copy", &["order"]),
    ("import", &["image", "new-format", "order", "pool"]),
    ("migration prepare", &["new-format", "order"]),
];

fn list() -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ceph-commands.txt");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, options) = line.split_once(':').unwrap();
            let options = options.split_whitespace().map(str::to_owned).collect();
            (name.to_owned(), options)
        })
        .collect()
}

fn own(name: &str) -> Option<&'static Command> {
    commands().find(|command| command.name() == name)
}

/// Options of Ceph's that the command does not take, and those that it knows and refuses, by the reason.
fn missing(
    command: &Command,
    options: &BTreeSet<String>,
) -> (Vec<String>, BTreeMap<&'static str, Vec<String>>) {
    let known = |long: &str| {
        command
            .all_options()
            .find(|option| option.long == long || option.alias == Some(long))
    };
    let unknown = options.iter().filter(|long| known(long).is_none()).cloned();
    let mut refused: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for long in options {
        if let Some(why) = known(long).and_then(|option| option.refused) {
            refused.entry(why).or_default().push(long.clone());
        }
    }
    (unknown.collect(), refused)
}

fn page() -> String {
    let mut text = String::from(
        "# Compatibility with Ceph's rbd\n\n\
         Every command and option of Ceph's `rbd` 16.2.15. This page is made from the command table by `crates/cli/tests/compatibility.rs`,\n\
         which fails if it is out of date; `FERRY_UPDATE=1` writes it anew.\n\n\
         Outputs and exit codes are compared with recorded sessions of Ceph's command (`crates/cli/tests/golden`), files with Ceph's\n\
         own, byte by byte. An option that a row does not name is taken and does what Ceph's does. What is *not supported* is known to the command line,\n         explained by `rbd help`, and exits 95.\n\n\
         | command | state | notes |\n|---|---|---|\n",
    );
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, options) in list() {
        let command = own(&name).unwrap_or_else(|| panic!("'{name}' is not in the command table"));
        let mut notes = Vec::new();
        let differs = DIFFERS.iter().find(|(command, _)| *command == name);
        let state = match command.state {
            State::Unsupported(reason) => {
                notes.push(reason.to_owned());
                "not supported"
            }
            State::Built(_) | State::Frame(_) => {
                let (unknown, refused) = missing(command, &options);
                let listed = |names: &[String]| {
                    let names: Vec<String> = names.iter().map(|long| format!("`--{long}`")).collect();
                    names.join(", ")
                };
                notes.extend(differs.map(|(_, why)| (*why).to_owned()));
                for (why, options) in &refused {
                    notes.push(format!("refused (95): {} ({why})", listed(options)));
                }
                if !unknown.is_empty() {
                    notes.push(format!("not known: {}", listed(&unknown)));
                }
                match differs {
                    Some(_) => "works, differs on purpose",
                    None => "works",
                }
            }
        };
        *count.entry(state).or_default() += 1;
        let _ = writeln!(text, "| {name} | {state} | {} |", notes.join("; "));
    }
    let counts: Vec<String> = count
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let _ = writeln!(text, "\n{} commands: {}.", list().len(), counts.join(", "));
    let mut additions: Vec<String> = commands()
        .filter(|command| !list().contains_key(&command.name()))
        .filter(|command| matches!(command.state, State::Built(_)))
        .map(|command| format!("`{}`", command.name()))
        .collect();
    additions.sort();
    let _ = writeln!(text, "\nFerry's own additions: {}.", additions.join(", "));
    text
}

#[test]
fn the_page_says_what_the_command_table_says() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compatibility.md");
    let page = page();
    if std::env::var_os("FERRY_UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    let first = page.lines().zip(written.lines()).find(|(now, then)| now != then);
    assert!(
        page == written,
        "docs/compatibility.md is out of date (FERRY_UPDATE=1 writes it anew): {first:?}"
    );
}

#[test]
fn what_is_said_to_differ_works() {
    for (name, why) in DIFFERS {
        let command = own(name).unwrap();
        assert!(matches!(command.state, State::Built(_)), "{name}: {why}");
    }
}

/// The options that a text of `rbd help` explains: `  --long arg  what` or `  -s [ --long ] arg  what`.
fn explained(help: &str) -> BTreeSet<String> {
    let long = |line: &str| {
        let line = line.strip_prefix("  ")?;
        let line = match line.strip_prefix('-') {
            Some(rest) if !rest.starts_with('-') => rest.get(1..)?.strip_prefix(" [ ")?,
            _ => line,
        };
        let name = line.strip_prefix("--")?;
        let end = name.find(|c: char| !c.is_ascii_lowercase() && c != '-' && c != '_');
        Some(name[..end.unwrap_or(name.len())].to_owned())
    };
    help.lines().filter_map(long).collect()
}

/// The list itself is judged by Ceph's command, where it is installed.
#[test]
fn the_list_of_commands_and_options_is_the_one_that_ceph_s_command_explains() {
    let help = |words: &[&str]| {
        let asked = std::process::Command::new("/usr/bin/rbd")
            .arg("help")
            .args(words)
            .output();
        asked
            .ok()
            .map(|asked| String::from_utf8_lossy(&asked.stdout).into_owned())
    };
    let Some(all) = help(&[]).filter(|text| text.contains("mirror pool peer bootstrap create")) else {
        eprintln!("LEFT OUT: Ceph's rbd is not installed");
        return;
    };
    let rows = all
        .lines()
        .filter(|line| line.starts_with("    ") && !line.starts_with("     "));
    assert_eq!(rows.count(), list().len(), "commands");
    for (name, options) in list() {
        let words: Vec<&str> = name.split(' ').collect();
        let text = help(&words).unwrap();
        assert!(text.starts_with(&format!("usage: rbd {name}")), "{name}: {text}");
        let unexplained = UNEXPLAINED.iter().find(|(command, _)| *command == name);
        let unexplained = unexplained.map_or(&[][..], |(_, options)| *options);
        let mut expected = explained(&text);
        expected.extend(unexplained.iter().map(|&option| option.to_owned()));
        assert_eq!(options, expected, "{name}");
    }
}

#[test]
fn an_option_is_found_in_a_line_of_help_however_it_is_written() {
    let text = "usage: rbd x [--no]\n  -t [ --device-type ] arg device\n  --show-cookie            x --y\n                  --z\n";
    let found: Vec<String> = explained(text).into_iter().collect();
    assert_eq!(found, ["device-type", "show-cookie"]);
}
