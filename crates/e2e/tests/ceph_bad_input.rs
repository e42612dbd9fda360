//! On a cluster that refuses, or with images that Ferry does not know enough about: a clear error in bounded time, and nothing half-done.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;

use ferry_e2e::ceph::{User, unique};
use ferry_e2e::{Ferry, Side};

const MIB: usize = 1 << 20;

#[test]
fn a_user_may_do_what_its_capabilities_say_and_is_told_otherwise() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    // Nobody else is at work in them: all that is there after a refusal was there before.
    let pools = ["home", "away"].map(|what| ferry.make_pool(what));
    let [home, away] = &pools;
    let objects = || pools.each_ref().map(|pool| ferry.all_objects(pool));
    let image = format!("{home}/image");
    let target = format!("{away}/target");
    ferry.import(&vec![7; MIB], &image, &[]);
    let before = objects();
    let nothing = ferry.user(&["mon", "allow r"]);
    ferry
        .rbd_as_user(&nothing, &["ls", home])
        .fails(1, "'profile rbd' does");

    let reader = ferry.user(&["mon", "profile rbd", "osd", "profile rbd-read-only"]);
    let listed = ferry.rbd_as_user(&reader, &["ls", home]).ok();
    assert_eq!(listed.stdout, "image\n");
    let copy = ferry.file("copy");
    ferry
        .rbd_as_user(&reader, &["export", "--no-progress", &image, &copy])
        .ok();
    assert!(std::fs::read(&copy).unwrap() == vec![7; MIB]);
    for words in [
        &["create", "--size", "8M", &format!("{home}/unborn")][..],
        &["snap", "create", "--no-progress", &format!("{image}@s")],
        &["migration", "prepare", &image, &target],
        &["rm", "--no-progress", &image],
    ] {
        ferry.rbd_as_user(&reader, words).fails(1, "capabilities");
    }
    assert_eq!(objects(), before);
    assert_eq!(ferry.ok(&["snap", "ls", &image]), "");
    assert!(ferry.export(&image) == vec![7; MIB]);

    let caps = format!("profile rbd pool={home}");
    let one_pool = ferry.user(&["mon", "profile rbd", "osd", &caps]);
    let own = format!("{home}/own");
    ferry
        .rbd_as_user(&one_pool, &["create", "--size", "8M", &own])
        .ok();
    let before = objects();
    for words in [
        &["ls", away][..],
        &["create", "--size", "8M", &target],
        &["cp", "--no-progress", &own, &target],
        &["migration", "prepare", &own, &target],
    ] {
        ferry.rbd_as_user(&one_pool, words).fails(1, "capabilities");
    }
    assert_eq!(objects(), before);
    assert_eq!(ferry.migration_state(&own), "", "a migration has begun");
    ferry.rbd_as_user(&one_pool, &["rm", "--no-progress", &own]).ok();

    let place = format!("{home}/{}", unique("place"));
    ferry.ok(&["namespace", "create", &place]);
    let (_, namespace) = place.split_once('/').unwrap();
    let caps = format!("profile rbd pool={home} namespace={namespace}");
    let inside = ferry.user(&["mon", "profile rbd", "osd", &caps]);
    let image = format!("{place}/image");
    ferry
        .rbd_as_user(&inside, &["create", "--size", "8M", &image])
        .ok();
    let listed = ferry.rbd_as_user(&inside, &["ls", &place]).ok();
    assert_eq!(listed.stdout, "image\n");
    ferry.rbd_as_user(&inside, &["ls", home]).fails(1, "capabilities");
    ferry.rbd_as_user(&inside, &["rm", "--no-progress", &image]).ok();
    for pool in &pools {
        ferry.delete_pool(pool);
    }
}

#[test]
fn a_pool_for_something_else_is_what_it_is_to_ceph() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for application in [None, Some("cephfs")] {
        let pool = unique("pool");
        ferry.ceph(&["osd", "pool", "create", &pool, "1"]);
        if let Some(application) = application {
            ferry.ceph(&["osd", "pool", "application", "enable", &pool, application]);
        }
        for (side, name) in [(Side::Ferry, "ours"), (Side::Ceph, "theirs")] {
            ferry.ok_as(side, &["create", "--size", "8M", &format!("{pool}/{name}")]);
            assert_eq!(
                ferry.ok_as(side.other(), &["ls", &pool]).lines().last(),
                Some(name)
            );
        }
        ferry.delete_pool(&pool);
        ferry.rbd(&["ls", &pool]).fails(2, &pool);
    }
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
        ferry.delete_pool(&gone);
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
        ferry.delete_pool(&kept);
    }
}

#[test]
fn the_cluster_and_the_user_are_found_as_ceph_s_clients_find_them() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let conf = ferry.ceph_conf().to_string_lossy().into_owned();
    let User { id, keyring } = ferry.user(&["mon", "profile rbd", "osd", "profile rbd"]);
    let name = format!("client.{id}");
    let secret = ferry.ceph(&["auth", "print-key", &name]);
    let keyfile = ferry.file("keyfile");
    std::fs::write(&keyfile, format!("{secret}\n")).unwrap();
    let mut look_up = Command::new("/usr/bin/ceph-conf");
    let monitors = ferry_e2e::run(look_up.args(["-c", &conf, "--lookup", "mon_host"])).ok();
    let monitors = monitors.stdout.trim();
    // None of these users is in the configuration's own keyring.
    let binary = ferry_e2e::ferry::binary();
    let run = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(&binary);
        for variable in ["CEPH_CONF", "CEPH_ARGS", "CEPH_KEYRING", "FERRY_STORE"] {
            command.env_remove(variable);
        }
        command.args(words).args(["namespace", "ls", "--pool", "rbd"]);
        command.envs(variables.iter().copied()).env("FERRY_LOG", "trace");
        command.current_dir(ferry.path(""));
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
    run(&["-m", monitors, "--id", &id, "-k", &keyring], &[]).ok();
    // The name of a cluster is that of its file, which may lie in the working directory. Nothing else tells where the monitors are.
    let bare = ferry.file("mine.conf");
    std::fs::write(&bare, format!("[global]\nmon host = {monitors}\n")).unwrap();
    run(&["--cluster", "mine", "--id", &id, "-k", &keyring], &[]).ok();
    for arguments in [
        format!("--conf={conf} --id {id} --keyring {keyring}"),
        format!("-c {conf} --name={name} -k {keyring}"),
        format!("-m {monitors} -n {name} --keyring={keyring}"),
        format!("-m {monitors} --name {name} --keyring {keyring}"),
        format!("--cluster mine --id={id} --keyring {keyring}"),
    ] {
        run(&["--store", "ceph"], &[("CEPH_ARGS", &arguments)]).ok();
    }
    let arguments = format!("--id {id} --key={}", secret.trim());
    run(&["-c", &conf], &[("CEPH_ARGS", &arguments)]).ok();
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

/// Writes the bits of an image's features behind everybody's back.
fn set_features(ferry: &Ferry, image: &str, features: u64) {
    let header = format!("rbd_header.{}", ferry.image_id(image));
    let value = ferry.file("features");
    std::fs::write(&value, features.to_le_bytes()).unwrap();
    let set = ["-p", "rbd", "setomapval", &header, "features"];
    ferry.rados(&[&set[..], &["--input-file", &value]].concat());
}

/// Whoever would write is told what he lacks, and has done nothing.
#[track_caller]
fn writers_are_refused(ferry: &Ferry, image: &str, feature: &str) {
    let snap = format!("{image}@s");
    let target = format!("other/{image}");
    let named = format!("does not support: {feature}");
    for words in [
        &["bench", "--io-type", "write", "--io-total", "4K", image][..],
        &["resize", "--no-progress", "--size", "2M", image],
        &["snap", "create", "--no-progress", &snap],
        &["migration", "prepare", image, &target],
        &["serve", "--socket", "lacking.sock", image],
    ] {
        ferry.rbd(words).fails(38, &named);
    }
    let info = ferry.ok(&["info", image]);
    for said in ["size 1 MiB in", "snapshot_count: 0\n", feature] {
        assert!(info.contains(said), "no {said:?} in {info}");
    }
    ferry.rbd(&["info", &target]).fails(2, "No such file");
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
    writers_are_refused(&ferry, &image, "journaling");
    assert!(ferry.export(&image) == vec![0; MIB]);
    // Users cannot ask for these. The OSD lets readers in to the first, and nobody to the second, which may lack what is in a cache.
    for (bit, feature) in [(1 << 10, "non-primary"), (1 << 11, "dirty-cache")] {
        let image = unique(feature);
        let options = ["--image-feature", "layering,exclusive-lock"];
        ferry.import(&vec![7; MIB], &image, &options);
        set_features(&ferry, &image, bit | 0b101);
        writers_are_refused(&ferry, &image, feature);
        if feature == "non-primary" {
            assert!(ferry.export(&image) == vec![7; MIB]);
        } else {
            let copy = ferry.file("copy");
            ferry
                .rbd(&["export", "--no-progress", &image, &copy])
                .fails(38, "does not support: dirty-cache");
            assert!(!ferry.path("copy").exists(), "a file of nothing");
        }
    }
}

#[test]
fn a_feature_bit_that_nobody_knows_does_no_harm_but_keeps_migrations_away() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let image = unique("future");
    let options = ["--image-feature", "layering,exclusive-lock"];
    ferry.import(&vec![7; MIB], &image, &options);
    set_features(&ferry, &image, 1 << 40 | 0b101);
    for side in Side::BOTH {
        let info = ferry.ok_as(side, &["info", &image]);
        assert!(
            info.contains("features: layering, exclusive-lock\n"),
            "{side:?}: {info}"
        );
        ferry.ok_as(
            side,
            &[
                "bench",
                "--io-type",
                "write",
                "--io-size",
                "4096",
                "--io-total",
                "4096",
                &image,
            ],
        );
        let snap = format!("{image}@{side:?}");
        ferry.ok_as(side, &["snap", "create", "--no-progress", &snap]);
    }
    let bytes = ferry.export(&image);
    assert!(bytes != vec![7; MIB], "nothing was written");
    let target = format!("other/{image}");
    ferry
        .rbd(&["migration", "prepare", &image, &target])
        .fails(38, "0x10000000000");
    ferry.rbd(&["info", &target]).fails(2, "No such file");
    assert_eq!(ferry.migration_state(&image), "");
    assert!(ferry.export_as(Side::Ceph, &image) == bytes);
}

#[test]
fn a_client_that_is_fenced_ends_and_another_goes_on() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let image = unique("fenced");
    let bytes: Vec<u8> = (0..24 * MIB).map(|at| (at / 4096 % 251) as u8 | 1).collect();
    ferry.import(&bytes, &image, &["--object-size", "1M"]);
    let served = ferry.serve(&[&image]);
    ferry.ceph(&["osd", "blocklist", "add", &ferry.watcher(&image)]);
    served.process.finish().fails(108, "start it again");

    let target = format!("other/{image}");
    ferry.ok(&["migration", "prepare", &image, &target]);
    // It would take minutes: it is fenced long before.
    let pace = ["--max-bytes-per-second", "128K"];
    let execute = ferry.start(&[&["migration", "execute", "--no-progress", &target], &pace[..]].concat());
    ferry.ceph(&["osd", "blocklist", "add", &ferry.watcher(&target)]);
    execute.finish().fails(108, "fenced");
    ferry.ok(&["migration", "throttle", &target, "--max-bytes-per-second", "0"]);
    ferry.ok(&["migration", "execute", "--no-progress", &target]);
    ferry.ok(&["migration", "commit", "--no-progress", &target]);
    assert!(ferry.export_as(Side::Ceph, &target) == bytes);
}
