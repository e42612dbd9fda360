//! On a cluster that refuses, is full or does not answer: a clear error in bounded time, and nothing half-done.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;

use ferry_e2e::ceph::{OwnCluster, unique};
use ferry_e2e::{Ferry, Finished, Side};

const MIB: usize = 1 << 20;

/// Runs one of Ceph's own administrative programs, which must succeed.
#[track_caller]
fn ceph(ferry: &Ferry, program: &str, words: &[&str]) -> String {
    let mut command = Command::new(format!("/usr/bin/{program}"));
    command
        .arg("-c")
        .arg(ferry.ceph_conf())
        .args(words)
        .env("PATH", "/usr/bin:/bin");
    ferry_e2e::run(&mut command).ok().stdout
}

/// A new user with these capabilities; its id and keyring.
fn user(ferry: &Ferry, caps: &[&str]) -> (String, String) {
    let id = unique("user");
    let keyring = ferry.file(&id);
    let name = format!("client.{id}");
    ceph(
        ferry,
        "ceph",
        &[&["auth", "get-or-create", &name], caps, &["-o", &keyring]].concat(),
    );
    (id, keyring)
}

/// The command as that user.
fn rbd_as((id, keyring): &(String, String), ferry: &Ferry, words: &[&str]) -> Finished {
    ferry.rbd(&[&["--id", id, "-k", keyring], words].concat())
}

#[test]
fn a_user_may_do_what_its_capabilities_say_and_is_told_otherwise() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let image = unique("image");
    ferry.import(&vec![7; MIB], &image, &[]);
    let nothing = user(&ferry, &["mon", "allow r"]);
    rbd_as(&nothing, &ferry, &["ls"]).fails(1, "'profile rbd' does");

    let reader = user(&ferry, &["mon", "profile rbd", "osd", "profile rbd-read-only"]);
    assert!(rbd_as(&reader, &ferry, &["ls"]).ok().stdout.contains(&image));
    let copy = ferry.file("copy");
    rbd_as(&reader, &ferry, &["export", "--no-progress", &image, &copy]).ok();
    assert_eq!(std::fs::read(&copy).unwrap(), vec![7; MIB]);
    let unborn = unique("unborn");
    rbd_as(&reader, &ferry, &["create", "--size", "8M", &unborn]).fails(1, "capabilities");
    let snap = format!("{image}@s");
    rbd_as(&reader, &ferry, &["snap", "create", "--no-progress", &snap]).fails(1, "capabilities");
    let target = format!("other/{unborn}");
    rbd_as(&reader, &ferry, &["migration", "prepare", &image, &target]).fails(1, "capabilities");
    for pool in ["rbd", "other"] {
        assert!(
            !ceph(&ferry, "rados", &["-p", pool, "ls"]).contains(&unborn),
            "left behind in {pool}"
        );
    }
    assert_eq!(ferry.ok(&["snap", "ls", &image]), "");
    assert_eq!(ferry.export(&image), vec![7; MIB]);

    let one_pool = user(&ferry, &["mon", "profile rbd", "osd", "profile rbd pool=rbd"]);
    rbd_as(&one_pool, &ferry, &["create", "--size", "8M", &unborn]).ok();
    rbd_as(&one_pool, &ferry, &["ls", "other"]).fails(1, "capabilities");
    rbd_as(&one_pool, &ferry, &["migration", "prepare", &unborn, &target]).fails(1, "capabilities");
    assert_eq!(ferry.migration_state(&unborn), "", "a migration has begun");
    rbd_as(&one_pool, &ferry, &["rm", "--no-progress", &unborn]).ok();

    let namespace = unique("place");
    ferry.ok(&["namespace", "create", &format!("rbd/{namespace}")]);
    let caps = format!("profile rbd pool=rbd namespace={namespace}");
    let inside = user(&ferry, &["mon", "profile rbd", "osd", &caps]);
    let image = format!("rbd/{namespace}/image");
    rbd_as(&inside, &ferry, &["create", "--size", "8M", &image]).ok();
    let listed = rbd_as(&inside, &ferry, &["ls", &format!("rbd/{namespace}")]).ok();
    assert_eq!(listed.stdout, "image\n");
    rbd_as(&inside, &ferry, &["ls"]).fails(1, "capabilities");
    rbd_as(&inside, &ferry, &["rm", "--no-progress", &image]).ok();
}

#[test]
fn a_pool_for_something_else_is_what_it_is_to_ceph() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for application in [None, Some("cephfs")] {
        let pool = unique("pool");
        ceph(&ferry, "ceph", &["osd", "pool", "create", &pool, "1"]);
        if let Some(application) = application {
            ceph(
                &ferry,
                "ceph",
                &["osd", "pool", "application", "enable", &pool, application],
            );
        }
        for (side, name) in [(Side::Ferry, "ours"), (Side::Ceph, "theirs")] {
            ferry.ok_as(side, &["create", "--size", "8M", &format!("{pool}/{name}")]);
            assert_eq!(
                ferry.ok_as(side.other(), &["ls", &pool]).lines().last(),
                Some(name)
            );
        }
        delete_pool(&ferry, &pool);
        ferry.rbd(&["ls", &pool]).fails(2, &pool);
    }
}

fn delete_pool(ferry: &Ferry, pool: &str) {
    let words = [
        "osd",
        "pool",
        "delete",
        pool,
        pool,
        "--yes-i-really-really-mean-it",
    ];
    ceph(ferry, "ceph", &words);
}

#[test]
fn a_pool_that_is_gone_leaves_parents_free_and_clones_that_say_what_they_lack() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for maker in Side::BOTH {
        let (kept, gone) = (unique("kept"), unique("gone"));
        for pool in [&kept, &gone] {
            ferry.ok_as(Side::Ferry, &["pool", "create", pool]);
        }
        let (parent, other) = (format!("{kept}/parent"), format!("{gone}/parent"));
        for image in [&parent, &other] {
            let snap = format!("{image}@s");
            ferry.ok_as(maker, &["create", "--size", "8M", "--object-size", "1M", image]);
            ferry.ok_as(
                maker,
                &[
                    "bench",
                    "--io-type",
                    "write",
                    "--io-size",
                    "1M",
                    "--io-total",
                    "4M",
                    image,
                ],
            );
            ferry.ok_as(maker, &["snap", "create", "--no-progress", &snap]);
            ferry.ok_as(maker, &["snap", "protect", &snap]);
        }
        for format in ["1", "2"] {
            for (from, to) in [(&kept, &gone), (&gone, &kept)] {
                let (snap, clone) = (format!("{from}/parent@s"), format!("{to}/clone-{format}"));
                let words = ["clone", "--rbd-default-clone-format", format, &snap, &clone];
                ferry.ok_as(maker, &words);
            }
        }
        delete_pool(&ferry, &gone);
        // The parent: its clones are no more.
        let before = ferry.export_as(Side::Ceph, &parent);
        // Ceph's lists it as one that is missing.
        assert_eq!(ferry.ok(&["children", &parent]), "");
        let moved = format!("{kept}/moved");
        ferry.ok(&["migration", "prepare", &parent, &moved]);
        ferry.ok(&["migration", "abort", "--no-progress", &moved]);
        ferry.ok(&["migration", "prepare", &parent, &moved]);
        ferry.ok(&["migration", "execute", "--no-progress", &moved]);
        ferry.ok(&["migration", "commit", "--no-progress", &moved]);
        assert!(ferry.export_as(Side::Ceph, &moved) == before, "made by {maker:?}");
        ferry.ok(&["snap", "unprotect", &format!("{moved}@s")]);
        ferry.ok(&["snap", "rm", "--no-progress", &format!("{moved}@s")]);
        assert_eq!(ferry.ok_as(Side::Ceph, &["snap", "ls", "--all", &moved]), "");
        ferry.ok(&["rm", "--no-progress", &moved]);
        // The clones: what they lack is named; they can only be removed.
        for format in ["1", "2"] {
            let clone = format!("{kept}/clone-{format}");
            // What is known of it is told, where Ceph's tells nothing.
            let info = ferry.ok(&["info", &clone]);
            assert!(info.contains("parent: <") && !info.contains("(trash)"), "{info}");
            for words in [
                &["bench", "--io-type", "write", "--io-total", "4K", &clone][..],
                &["flatten", "--no-progress", &clone],
                &["migration", "prepare", &clone, &moved],
            ] {
                ferry.rbd(words).fails(2, "parent");
            }
            let listed = ferry.ok_as(Side::Ceph, &["ls", &kept]);
            assert!(listed.contains(&format!("clone-{format}")), "{listed}");
            assert!(!listed.contains("moved"), "{listed}");
            ferry.ok(&["rm", "--no-progress", &clone]);
        }
        delete_pool(&ferry, &kept);
    }
}

#[test]
fn the_cluster_and_the_user_are_found_as_ceph_s_clients_find_them() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let conf = ferry.ceph_conf().to_string_lossy().into_owned();
    let (id, keyring) = user(&ferry, &["mon", "profile rbd", "osd", "profile rbd"]);
    let secret = ceph(&ferry, "ceph", &["auth", "print-key", &format!("client.{id}")]);
    let keyfile = ferry.file("keyfile");
    std::fs::write(&keyfile, format!("{secret}\n")).unwrap();
    let monitors = ceph(&ferry, "ceph-conf", &["--lookup", "mon_host"]);
    let name = format!("client.{id}");
    // None of these users is in the configuration's own keyring.
    let binary = ferry_e2e::ferry::binary();
    let run = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(&binary);
        for variable in ["CEPH_CONF", "CEPH_ARGS", "CEPH_KEYRING", "FERRY_STORE"] {
            command.env_remove(variable);
        }
        command.args(words).args(["namespace", "ls", "--pool", "rbd"]);
        command.envs(variables.iter().copied()).env("FERRY_LOG", "trace");
        let finished = ferry_e2e::run(&mut command);
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(!said.contains(secret.trim()), "the secret is told: {said}");
        finished
    };
    run(&["-c", &conf, "--id", &id, "-k", &keyring], &[]).ok();
    run(&["--conf", &conf, "-n", &name, "--keyring", &keyring], &[]).ok();
    run(&["-c", &conf, "--id", &id, "-K", &keyfile], &[]).ok();
    run(
        &["--store", "ceph", "--id", &id, "-k", &keyring],
        &[("CEPH_CONF", &conf)],
    )
    .ok();
    run(&["-m", monitors.trim(), "--id", &id, "-k", &keyring], &[]).ok();
    let arguments = format!("--conf={conf} --id {id} --keyring {keyring}");
    run(&["--store", "ceph"], &[("CEPH_ARGS", &arguments)]).ok();
    let arguments = format!("--id {id} --key={}", secret.trim());
    run(&["-c", &conf], &[("CEPH_ARGS", &arguments)]).ok();
    let bare = ferry.file("bare.conf");
    std::fs::write(&bare, format!("[global]\nmon host = {}\n", monitors.trim())).unwrap();
    run(&["-c", &bare, "--id", &id], &[("CEPH_KEYRING", &keyring)]).ok();
    // The command line wins.
    run(
        &["-c", &conf, "--id", &id, "-k", &keyring],
        &[("CEPH_ARGS", "--id nobody")],
    )
    .ok();
    // A name that is also a word of the command line is a value all the same.
    run(&["-c", &conf, "--id", "pool", "-k", &keyring], &[]).fails(13, "client.pool");
    run(&["-c", &conf, "--id", "nobody"], &[]).fails(13, "does not accept this user's key");
    run(&["-c", &conf, "--id", &id, "-K", "/nowhere"], &[]).fails(2, "'/nowhere'");
    let garbage = ferry.file("garbage");
    std::fs::write(&garbage, "no-key-of-ceph-s").unwrap();
    let refused = run(&["-c", &conf, "--id", &id, "-K", &garbage], &[]);
    assert!(!refused.stderr.contains("no-key-of-ceph-s"), "{}", refused.stderr);
    refused.fails(22, "no key of Ceph's");
    let refused = run(
        &["-c", &conf, "--id", &id],
        &[("CEPH_ARGS", "--key=no-key-of-ceph-s")],
    );
    assert!(!refused.stderr.contains("no-key-of-ceph-s"), "{}", refused.stderr);
    refused.fails(22, "");
}

#[test]
fn features_that_ferry_lacks_are_named_and_keep_it_from_writing_only() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let image = unique("journal");
    let features = "exclusive-lock,journaling";
    ferry.ok_as(
        Side::Ceph,
        &["create", "--size", "1M", "--image-feature", features, &image],
    );
    assert_eq!(ferry.export(&image), vec![0; MIB]);
    let snap = format!("{image}@s");
    let target = format!("other/{image}");
    for words in [
        &["resize", "--no-progress", "--size", "2M", &image][..],
        &["snap", "create", "--no-progress", &snap],
        &["migration", "prepare", &image, &target],
        &["serve", "--socket", "journal.sock", &image],
    ] {
        ferry.rbd(words).fails(38, "does not support: journaling");
    }
    // A bit that nobody knows yet.
    let id = ferry.json(&["info", &image])["id"].as_str().unwrap().to_owned();
    let header = format!("rbd_header.{id}");
    let value = ferry.file("features");
    std::fs::write(&value, (1u64 << 40 | 5).to_le_bytes()).unwrap();
    ceph(
        &ferry,
        "rados",
        &[
            "-p",
            "rbd",
            "setomapval",
            &header,
            "features",
            "--input-file",
            &value,
        ],
    );
    ferry
        .rbd(&["migration", "prepare", &image, &target])
        .fails(38, "0x10000000000");
    ferry.rbd(&["info", &target]).fails(2, "No such file");
}

/// Waits until the image has a watcher, and tells its address.
fn watcher(ferry: &Ferry, image: &str) -> String {
    let mut address = None;
    ferry_e2e::ferry::wait_until("the image is watched", || {
        let status = ferry.json(&["status", image]);
        address = status["watchers"][0]["address"].as_str().map(str::to_owned);
        address.is_some()
    });
    address.unwrap()
}

#[test]
fn a_client_that_is_fenced_ends_and_another_goes_on() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let image = unique("fenced");
    let bytes: Vec<u8> = (0..24 * MIB).map(|at| (at / 4096 % 251) as u8 | 1).collect();
    ferry.import(&bytes, &image, &["--object-size", "1M"]);
    let served = ferry.serve(&[&image]);
    ceph(
        &ferry,
        "ceph",
        &["osd", "blocklist", "add", &watcher(&ferry, &image)],
    );
    served.process.finish().fails(108, "start it again");

    let target = format!("other/{image}");
    ferry.ok(&["migration", "prepare", &image, &target]);
    // It would take minutes: it is fenced long before.
    let pace = ["--max-bytes-per-second", "128K"];
    let execute = ferry.start(&[&["migration", "execute", "--no-progress", &target], &pace[..]].concat());
    ceph(
        &ferry,
        "ceph",
        &["osd", "blocklist", "add", &watcher(&ferry, &target)],
    );
    execute.finish().fails(108, "fenced");
    ferry.ok(&["migration", "throttle", &target, "--max-bytes-per-second", "0"]);
    ferry.ok(&["migration", "execute", "--no-progress", &target]);
    ferry.ok(&["migration", "commit", "--no-progress", &target]);
    assert!(ferry.export_as(Side::Ceph, &target) == bytes);
}

/// How full the cluster is when it warns, and when it takes no more.
fn full_at(ferry: &Ferry, near: f64, full: f64) {
    for (what, ratio) in [
        ("nearfull", near),
        ("backfillfull", (near + full) / 2.0),
        ("full", full),
    ] {
        let ratio = format!("{ratio:.9}");
        ceph(ferry, "ceph", &["osd", &format!("set-{what}-ratio"), &ratio]);
    }
}

/// Whether the health of the cluster tells of this.
fn has_health(ferry: &Ferry, what: &str) -> bool {
    ceph(ferry, "ceph", &["health", "detail"]).contains(what)
}

#[test]
fn a_full_cluster_and_one_whose_osd_is_away() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let cluster = OwnCluster::new();
    let ferry = ferry.on_another_ceph(cluster.conf());
    let bytes: Vec<u8> = (0..24 * MIB).map(|at| (at / 4096 % 251) as u8 | 1).collect();
    ferry.import(&bytes, "disk", &["--object-size", "1M"]);
    ferry.ok(&["migration", "prepare", "disk", "other/disk"]);

    // Nearly full: everything goes on.
    full_at(&ferry, 0.000_1, 0.9);
    ferry_e2e::ferry::wait_until("the OSD is nearly full", || has_health(&ferry, "OSD_NEARFULL"));
    ferry.import(&bytes[..MIB], "near", &[]);
    ferry.ok(&["rm", "--no-progress", "near"]);

    full_at(&ferry, 0.000_1, 0.000_2);
    ferry_e2e::ferry::wait_until("the OSD is full", || has_health(&ferry, "OSD_FULL"));
    // Nobody waits for room: a command that did would not end in time.
    ferry.rbd(&["create", "--size", "8M", "new"]).fails(28, "is full");
    ferry
        .rbd(&["migration", "execute", "--no-progress", "other/disk"])
        .fails(28, "is full");
    let served = ferry.serve(&["other/disk"]);
    let uri = served.uri("other%2fdisk");
    let mut write = Command::new("/usr/bin/python3");
    write.args(["-m", "nbd", "-u", &uri, "-c", "h.pwrite(b'x'*4096, 0)"]);
    ferry_e2e::run(&mut write).fails(1, "No space left");
    served.stop();
    assert!(ferry.export("other/disk") == bytes, "a full cluster can be read");
    full_at(&ferry, 0.85, 0.95);
    ferry_e2e::ferry::wait_until("there is room", || !has_health(&ferry, "OSD_FULL"));
    assert_eq!(ferry.ok(&["ls"]), "", "something half made is listed");
    ferry.ok(&["create", "--size", "8M", "new"]);

    // An OSD that goes down under an execute, which waits for it; others tell that nobody answers.
    let pace = ["--max-bytes-per-second", "128K"];
    let mut execute = ferry.start(
        &[
            &["migration", "execute", "--no-progress", "other/disk"],
            &pace[..],
        ]
        .concat(),
    );
    watcher(&ferry, "other/disk");
    cluster.dev("osd-down");
    assert!(execute.is_running(), "{}", execute.stderr());
    for words in [
        &["ls", "--connect-timeout", "3"][..],
        &["info", "new", "--connect-timeout", "3"],
    ] {
        ferry.rbd(words).fails(110, "did not answer in time");
    }
    cluster.dev("osd-up");
    // The rest need not take minutes.
    ferry.ok(&[
        "migration",
        "throttle",
        "other/disk",
        "--max-bytes-per-second",
        "none",
    ]);
    assert!(execute.is_running(), "{}", execute.stderr());
    execute.finish().ok();
    ferry.ok(&["migration", "commit", "--no-progress", "other/disk"]);
    assert!(ferry.export_as(Side::Ceph, "other/disk") == bytes);
}
