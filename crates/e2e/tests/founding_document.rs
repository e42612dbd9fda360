//! Every command of the page that the project was founded on, typed as written there with `rbd` on the `PATH`.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::Command;

use ferry_e2e::ceph::OwnCluster;
use ferry_e2e::ferry::{binary, wait_until};
use ferry_e2e::load::{Journal, connect, write_until_gone};
use ferry_e2e::{Ferry, Finished, run};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A line that a user types, in a shell with `rbd` on the `PATH` and the store in the environment.
fn type_line(ferry: &Ferry, line: &str) -> Finished {
    let directory = binary().parent().map(Path::to_path_buf).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    // `rbd` may be named by FERRY_RBD under another name; a link gives it its own.
    let bin = ferry.path("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let link = bin.join("rbd");
    if !link.exists() {
        std::os::unix::fs::symlink(binary(), &link).unwrap();
    }
    run(Command::new("sh")
        .args(["-c", line])
        .env(
            "PATH",
            format!("{}:{}:{path}", bin.display(), directory.display()),
        )
        .envs(ferry.environment())
        .current_dir(ferry.path("")))
}

/// Ids of the source and the target, as `rbd status` shows them.
fn ids(status: &str) -> (String, String) {
    let id = |key: &str| {
        let line = status.lines().find(|line| line.trim_start().starts_with(key));
        let id = line.and_then(|line| line.split(['(', ')']).nth(1));
        let id = id.unwrap_or_else(|| panic!("no {key} in {status}")).to_owned();
        assert!(id.chars().all(|digit| digit.is_ascii_hexdigit()), "{status}");
        id
    };
    (id("source:"), id("destination:"))
}

fn status_text(watchers: &str, source: &str, destination: &str, state: &str) -> String {
    format!(
        "{watchers}\nMigration:\n\tsource: rbd/migration_source ({source})\n\tdestination: rbd/migration_target \
         ({destination})\n\tstate: {state}\n"
    )
}

fn source(ferry: &Ferry) -> Journal {
    let mut rng = StdRng::seed_from_u64(1);
    let journal = Journal::filled(8192, 80, &mut rng);
    ferry.import(&journal.bytes(), "migration_source", &["--object-size", "64K"]);
    journal
}

#[test]
fn prepare_execute_and_commit_go_as_written_with_a_client_that_watches() {
    prepare_execute_and_commit(&Ferry::bare());
}

fn prepare_execute_and_commit(ferry: &Ferry) {
    let mut journal = source(ferry);

    let prepare = type_line(ferry, "rbd migration prepare migration_source migration_target").ok();
    assert_eq!((prepare.stdout.as_str(), prepare.stderr.as_str()), ("", ""));
    let status = type_line(ferry, "rbd status migration_target").ok().stdout;
    let (from, to) = ids(&status);
    assert_eq!(status, status_text("Watchers: none", &from, &to, "prepared"));

    let info = type_line(ferry, "rbd info migration_source");
    assert_eq!(info.code, 2, "{info}");
    assert_eq!(
        info.stderr,
        "rbd: error opening image migration_source: (2) No such file or directory\n"
    );
    let trash = type_line(ferry, "rbd trash ls --all").ok().stdout;
    assert_eq!(trash, format!("{from} migration_source\n"));

    // A client that is in use while `execute` runs.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = ferry.serve(&["rbd/migration_target"]);
    let client = runtime.block_on(connect(&served.socket, "rbd/migration_target"));
    let load = runtime.spawn(write_until_gone(client, journal.clone(), 4, 3000, 1));
    // Not of the page: so slow that a status falls into its time, however busy the machine is.
    let throttle = "rbd migration throttle migration_target --max-bytes-per-second";
    type_line(ferry, &format!("{throttle} 1M")).ok();
    let mut executing = String::new();
    let execute = std::thread::scope(|scope| {
        let execute = scope.spawn(|| type_line(ferry, "rbd migration execute migration_target"));
        wait_until("status shows how far it is", || {
            let status = type_line(ferry, "rbd status migration_target").ok().stdout;
            if status.contains("state: executing (") {
                executing = status;
            }
            !executing.is_empty() || execute.is_finished()
        });
        type_line(ferry, &format!("{throttle} none")).ok();
        execute.join().unwrap().ok()
    });
    journal = runtime.block_on(load).unwrap();
    assert!(
        execute
            .stderr
            .ends_with("\rImage migration: 100% complete...done.\n"),
        "{execute}"
    );
    assert!(!executing.is_empty(), "no status fell into the time of execute");
    let lines: Vec<_> = executing.lines().collect();
    assert_eq!(lines[0], "Watchers:", "{executing}");
    let watchers: Vec<_> = lines
        .iter()
        .filter(|line| line.starts_with("\twatcher="))
        .collect();
    for watcher in &watchers {
        let words: Vec<_> = watcher.trim().split(' ').collect();
        assert_eq!(words.len(), 3, "{executing}");
        assert!(
            words[1].starts_with("client.") && words[2].starts_with("cookie="),
            "{executing}"
        );
    }
    assert!(!watchers.is_empty(), "{executing}");
    let state = lines
        .iter()
        .find(|line| line.trim().starts_with("state: executing ("));
    assert!(
        state.is_some_and(|line| line.ends_with("% complete)")),
        "{executing}"
    );
    served.stop();

    let status = type_line(ferry, "rbd status migration_target").ok().stdout;
    assert_eq!(status, status_text("Watchers: none", &from, &to, "executed"));
    let commit = type_line(ferry, "rbd migration commit migration_target").ok();
    assert!(
        commit
            .stderr
            .ends_with("\rCommit image migration: 100% complete...done.\n"),
        "{commit}"
    );
    let trash = type_line(ferry, "rbd trash list --all").ok();
    assert_eq!((trash.stdout.as_str(), trash.stderr.as_str()), ("", ""));
    assert_eq!(journal.settle(&ferry.export("migration_target")), Ok(()));
}

const BEFORE_ABORT: [&[&str]; 2] = [
    &["rbd migration prepare migration_source migration_target"],
    &[
        "rbd migration prepare migration_source migration_target",
        "rbd migration execute migration_target",
    ],
];

#[test]
fn abort_brings_the_source_back_as_written() {
    for verbs in BEFORE_ABORT {
        abort_after(&Ferry::bare(), verbs);
    }
}

fn abort_after(ferry: &Ferry, verbs: &[&str]) {
    let mut journal = source(ferry);
    for verb in verbs {
        type_line(ferry, verb).ok();
    }
    let abort = type_line(ferry, "rbd migration abort migration_target").ok();
    assert!(
        abort
            .stderr
            .ends_with("\rAbort image migration: 100% complete...done.\n"),
        "{abort}"
    );
    assert_eq!(type_line(ferry, "rbd ls").ok().stdout, "migration_source\n");
    assert_eq!(journal.settle(&ferry.export("migration_source")), Ok(()));
}

#[test]
fn without_a_target_only_the_layout_changes() {
    change_the_layout(&Ferry::bare());
}

fn change_the_layout(ferry: &Ferry) {
    let mut journal = source(ferry);
    type_line(ferry, "rbd migration prepare migration_source --object-size 1M").ok();
    type_line(ferry, "rbd migration execute migration_source").ok();
    type_line(ferry, "rbd migration commit migration_source").ok();
    let info = type_line(ferry, "rbd info migration_source").ok().stdout;
    assert!(info.contains("order 20 (1 MiB objects)"), "{info}");
    assert_eq!(type_line(ferry, "rbd ls").ok().stdout, "migration_source\n");
    assert_eq!(journal.settle(&ferry.export("migration_source")), Ok(()));
}

#[test]
fn on_a_cluster_all_of_it_goes_as_written_too() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    // Its listings show nothing but the page's own images.
    let cluster = OwnCluster::new();
    let ferry = ferry.on_another_ceph(cluster.conf());
    prepare_execute_and_commit(&ferry);
    ferry.ok(&["rm", "--no-progress", "migration_target"]);
    for verbs in BEFORE_ABORT {
        abort_after(&ferry, verbs);
        ferry.ok(&["rm", "--no-progress", "migration_source"]);
    }
    change_the_layout(&ferry);
}
