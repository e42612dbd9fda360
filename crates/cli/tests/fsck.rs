//! `rbd fsck` on stores of the local engine: what it says and how it exits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use support::store::TestStore;

/// A store with an image that has bytes in several data files.
fn store() -> TestStore {
    let store = TestStore::new();
    std::fs::write(store.directory().join("raw"), vec![7; 256 << 10]).unwrap();
    store.ok("import --no-progress --object-size 64K raw vm");
    // What lies in SQLite's log would hide what happens to the file below it.
    let log = store.root().join("pools/1/pool.db-wal");
    for _ in 0..100 {
        if !log.exists() {
            break;
        }
        store.ok("ls");
    }
    assert!(!log.exists());
    store
}

fn data_files(store: &TestStore) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for dir in std::fs::read_dir(store.root().join("pools/1/data")).unwrap() {
        for file in std::fs::read_dir(dir.unwrap().path()).unwrap() {
            files.push(file.unwrap().path());
        }
    }
    files.sort();
    files
}

#[test]
fn a_sound_store_has_no_findings_in_any_format() {
    let store = store();
    assert_eq!(
        store.ok("fsck --no-progress"),
        "0 damaged, 0 left over, 0 repaired, 0 not checked\n"
    );
    assert_eq!(
        store.ok("fsck --no-progress --format json rbd --read-data"),
        "[]\n"
    );
    assert!(
        store
            .ok("fsck --no-progress --format xml --repair")
            .contains("<findings></findings>")
    );
    let missing = store.fails("fsck --no-progress nowhere", 2);
    assert!(missing.contains("error opening pool 'nowhere'"), "{missing}");
}

#[test]
fn a_missing_file_is_named_and_never_read_as_zeros() {
    let store = store();
    let gone = data_files(&store).swap_remove(1);
    std::fs::remove_file(&gone).unwrap();
    let said = store.fails("fsck --no-progress", 5);
    let name = gone.file_name().unwrap().to_str().unwrap();
    assert!(
        said.contains(name) && said.contains("[file-missing]") && said.contains("[data-object]"),
        "{said}"
    );
    store.fails("export --no-progress vm out", 5);
    let again = store.fails("fsck --no-progress --repair", 5);
    assert!(again.contains("0 repaired"), "nothing can bring it back: {again}");
}

#[test]
fn files_in_each_others_places_are_refused_and_put_back() {
    let store = store();
    let files = data_files(&store);
    let aside = store.directory().join("aside");
    std::fs::rename(&files[0], &aside).unwrap();
    std::fs::rename(&files[1], &files[0]).unwrap();
    std::fs::rename(&aside, &files[1]).unwrap();
    let said = store.fails("fsck --no-progress", 5);
    for file in &files[..2] {
        assert!(
            said.contains(file.file_name().unwrap().to_str().unwrap()),
            "{said}"
        );
    }
    assert!(said.contains("[file-misplaced]"), "{said}");
    store.fails("export --no-progress vm out", 5);
    let repaired = store.run(&["fsck", "--no-progress", "--repair"]);
    assert!(repaired.output.contains("repaired: "), "{}", repaired.output);
    store.ok("fsck --no-progress");
    store.ok("export --no-progress vm out2");
    assert_eq!(
        std::fs::read(store.directory().join("out2")).unwrap(),
        vec![7; 256 << 10]
    );
}

#[test]
fn a_flipped_byte_of_the_database_is_named_by_its_page() {
    let store = store();
    let path = store.root().join("pools/1/pool.db");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    for page in [2, pages - 1] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, page * 4096 + 1000).unwrap();
        file.write_all_at(&[byte[0] ^ 4], page * 4096 + 1000).unwrap();
    }
    let said = store.fails("fsck --no-progress", 5);
    for page in [3, pages] {
        assert!(said.contains(&format!("page {page} ")), "{said}");
    }
}

#[test]
fn a_file_that_nothing_names_is_left_over_and_put_aside() {
    let store = store();
    let stray = store.root().join("pools/1/data/07/3.7");
    std::fs::write(&stray, b"who knows").unwrap();
    let said = store.fails("fsck --no-progress", 117);
    assert!(said.contains("[file-without-row]"), "{said}");
    let said = store.ok("fsck --no-progress --repair");
    assert!(said.contains("1 repaired"), "{said}");
    let kept = store.root().join("pools/1/lost+found/07-3.7");
    assert_eq!(std::fs::read(kept).unwrap(), b"who knows");
    store.ok("fsck --no-progress");
}

#[test]
fn an_emptied_database_is_damage_not_an_empty_pool() {
    for database in ["pools/1/pool.db", "store.db"] {
        let store = store();
        std::fs::write(store.root().join(database), b"").unwrap();
        let said = store.run(&["ls"]);
        assert_ne!(said.code, 0, "{database}: {}", said.output);
        let said = store.run(&["fsck", "--no-progress"]);
        assert!(
            said.code != 0 && said.output.contains(database),
            "{}",
            said.output
        );
    }
}

/// Changes the images of the store behind the command's back.
fn damage(store: &TestStore, object: &str, op: ferry_store::WriteOp) {
    use ferry_store::Store as _;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = ferry_store_local::LocalOptions {
            registry: ferry_cls::registry(),
            disk: None,
        };
        let engine = ferry_store_local::LocalStore::open(&store.root(), options).unwrap();
        let scope = ferry_store::Scope::new(ferry_store::PoolId(1));
        ferry_store::IoCtx::new(engine.clone(), scope)
            .write_meta(object, op)
            .await
            .unwrap();
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn an_image_that_lost_its_name_is_found_and_gets_it_back() {
    let store = store();
    damage(&store, "rbd_id.vm", ferry_store::WriteOp::new().remove());
    store.fails("export --no-progress vm out", 2);
    let said = store.fails("fsck --no-progress rbd", 5);
    assert!(
        said.contains("damaged: image 'rbd/vm': 'rbd_id.vm'") && said.contains("[id-object]"),
        "{said}"
    );
    let json = store.run(&["fsck", "--no-progress", "rbd/vm", "--format", "json"]);
    assert!(
        json.code == 5 && json.output.contains("\"kind\":\"id-object\""),
        "{}",
        json.output
    );
    let said = store.ok("fsck --no-progress rbd/vm --repair");
    assert!(said.contains("1 repaired"), "{said}");
    store.ok("fsck --no-progress");
    store.ok("export --no-progress vm out");
}

#[test]
fn data_of_no_image_is_left_over_and_kept() {
    let store = store();
    let op = ferry_store::WriteOp::new().write(0, b"whose".as_slice());
    damage(&store, "rbd_data.cafe.0000000000000001", op);
    for options in ["", " --repair"] {
        let said = store.fails(&format!("fsck --no-progress{options}"), 117);
        assert!(
            said.contains("[data-stray]") && said.contains("rbd_data.cafe.*"),
            "{said}"
        );
    }
}

#[test]
fn one_image_is_checked_by_its_spec_and_what_is_none_is_said() {
    let store = store();
    assert_eq!(
        store.ok("fsck --no-progress rbd/vm"),
        "0 damaged, 0 left over, 0 repaired, 0 not checked\n"
    );
    store.fails("fsck --no-progress rbd/nothing", 2);
    store.fails("fsck --no-progress nowhere/vm", 2);
    store.fails("fsck --no-progress a/b/c/d", 22);
}

/// `kill -9` of the real command at random moments; `FERRY_KILLS` says how many, `FERRY_SEED` replays the choices, not the moments.
#[test]
fn a_killed_repair_is_finished_by_the_next_which_says_the_same() {
    let mut rng = StdRng::seed_from_u64(ferry_e2e::tools::seed("killed repairs"));
    let store = store();
    store.ok("create --size 1M lost");
    let files = data_files(&store);
    let aside = store.directory().join("aside");
    for pair in files.chunks_exact(2) {
        std::fs::rename(&pair[0], &aside).unwrap();
        std::fs::rename(&pair[1], &pair[0]).unwrap();
        std::fs::rename(&aside, &pair[1]).unwrap();
    }
    for number in 0..20 {
        let stray = store
            .root()
            .join(format!("pools/1/data/{number:02x}/ffff.{number}"));
        std::fs::create_dir_all(stray.parent().unwrap()).unwrap();
        std::fs::write(stray, b"who knows").unwrap();
    }
    for object in ["rbd_id.vm", "rbd_id.lost"] {
        damage(&store, object, ferry_store::WriteOp::new().remove());
    }
    let op = ferry_store::WriteOp::new().write(0, b"whose".as_slice());
    damage(&store, "rbd_data.cafe.0000000000000001", op);
    let damaged = store.directory().join("damaged");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        // With extended attributes.
        let done = std::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status();
        assert!(done.unwrap().success());
    };
    copy(&store.root(), &damaged);

    let repair = ["fsck", "--no-progress", "--repair"];
    let started = std::time::Instant::now();
    let unkilled = store.run(&repair);
    let longest = started.elapsed();
    // The first run tells what it found before it moved the files.
    let settled = store.run(&repair);
    let left = store.run(&["fsck", "--no-progress", "--read-data"]);
    let strays = std::fs::read_dir(store.root().join("pools/1/lost+found"))
        .unwrap()
        .count();
    assert!(
        unkilled.output.contains("repaired: ") && strays == 20,
        "{}",
        unkilled.output
    );
    for kill in 0..ferry_e2e::tools::kills(8) {
        std::fs::remove_dir_all(store.root()).unwrap();
        copy(&damaged, &store.root());
        let mut child = store
            .command(&repair)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(longest.mul_f64(rng.random_range(0.0..1.1)));
        child.kill().unwrap();
        child.wait().unwrap();
        let again = store.run(&repair);
        assert!(
            !again.output.contains("repair-failed"),
            "kill {kill}: {}",
            again.output
        );
        assert_eq!(store.run(&repair), settled, "kill {kill}");
        assert_eq!(
            store.run(&["fsck", "--no-progress", "--read-data"]),
            left,
            "kill {kill}"
        );
        assert_eq!(
            std::fs::read_dir(store.root().join("pools/1/lost+found"))
                .unwrap()
                .count(),
            strays,
            "kill {kill}"
        );
        let out = format!("out-{kill}");
        store.ok(&format!("export --no-progress vm {out}"));
        assert!(
            std::fs::read(store.directory().join(out)).unwrap() == vec![7; 256 << 10],
            "kill {kill}"
        );
    }
}
