//! The objects of images that Ferry made equal those that Ceph's `rbd` made with the same words, byte for byte: headers, directories, trash,
//! object maps, data and their clones. Ids and times aside.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use ferry_e2e::ceph::{in_namespace, unique};
use ferry_e2e::load::connect;
use ferry_e2e::{Ferry, Librbd, Side, run};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Objects by pool and name; of each, what there is to say of it.
type Objects = BTreeMap<String, BTreeMap<String, String>>;

fn objects(ferry: &Ferry, namespace: &str) -> Objects {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/dump_objects.py");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script).arg(ferry.ceph_conf());
    command.env_remove("PYTHONPATH").env_remove("PYTHONHOME");
    for pool in ["rbd", "other"] {
        command.arg(format!("{pool}/{namespace}"));
    }
    serde_json::from_str(&run(&mut command).ok().stdout).unwrap()
}

/// Writes `length` times `byte` at `offset`, or zeroes the range (`byte` 0), through the client of a side.
fn write(ferry: &Ferry, side: Side, namespace: &str, name: &str, writes: &[(u64, u32, u8)]) {
    let place = format!("rbd/{namespace}");
    if side == Side::Ceph {
        let mut client = Librbd::open(ferry, &place, name);
        for (offset, length, byte) in writes {
            match byte {
                0 => client.ok(&format!("discard {offset} {length}")),
                _ => client.ok(&format!("write {offset} {length} {byte}")),
            };
        }
        client.ok("flush");
        client.close();
        return;
    }
    let spec = format!("{place}/{name}");
    let served = ferry.serve(&[&spec]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = connect(&served.socket, &spec).await;
        for &(offset, length, byte) in writes {
            match byte {
                0 => client.trim(offset, u64::from(length), false).await.unwrap(),
                _ => {
                    let data = bytes::Bytes::from(vec![byte; length as usize]);
                    client.write(offset, data, false).await.unwrap();
                }
            }
        }
        client.flush().await.unwrap();
        client.disconnect().await.unwrap();
    });
    served.stop();
}

/// Everything that is compared, done by one side in a namespace of its own. The output of what both can print.
fn live(ferry: &Ferry, side: Side, namespace: &str) -> Vec<String> {
    for pool in ["rbd", "other"] {
        ferry.ok_as(side, &["namespace", "create", &format!("{pool}/{namespace}")]);
    }
    let raw = ferry.file("raw");
    // In the pool rbd; `+` is the other one, `FILE` a file to import.
    let ok = |line: &str| {
        let mut words = in_namespace(line, namespace);
        for word in words.iter_mut().filter(|word| *word == "FILE") {
            word.clone_from(&raw);
        }
        ferry.ok_as(side, &words)
    };
    for line in [
        "create --size 8M /plain",
        "create --size 10M --object-size 1M --stripe-unit 64K --stripe-count 3 --image-feature layering,exclusive-lock /striped",
        "create --size 8M --object-size 64K --data-pool other /pooled",
        "create --size 8M --image-shared /shared",
        "create --size 8M --image-feature layering,exclusive-lock,object-map /maps",
        "import --no-progress --object-size 1M FILE /written",
        "snap create --no-progress /written@s1",
    ] {
        ok(line);
    }
    let writes = [(4096, 4096, 5), (1 << 20, 1 << 20, 0), (3 << 20, 8192, 6)];
    write(ferry, side, namespace, "written", &writes);
    ok("snap create --no-progress /written@s2");
    write(
        ferry,
        side,
        namespace,
        "written",
        &[(1 << 20, 4096, 7), (8 << 20, 4096, 8)],
    );
    write(ferry, side, namespace, "striped", &[(65536, 200_000, 9)]);
    write(ferry, side, namespace, "pooled", &[(65536, 200_000, 9)]);
    for line in [
        "snap create --no-progress /written@s3",
        "snap protect /written@s1",
        "snap rename /written@s2 /written@s2b",
        "snap rm --no-progress /written@s3",
        "resize --no-progress --size 12M /written",
        "image-meta set /written key value",
        "image-meta set /written conf_rbd_cache false",
        "image-meta set /written gone value",
        "image-meta remove /written gone",
        "resize --no-progress --size 5M --allow-shrink /written",
        "resize --no-progress --size 9M /written",
        "mv /plain /renamed",
        "trash mv /shared",
        "feature disable /maps object-map",
        "feature enable /maps object-map",
        "object-map rebuild --no-progress /maps",
        "feature disable /pooled deep-flatten",
        "clone /written@s1 /child",
        "import --no-progress --object-size 1M FILE /prepared",
        "snap create --no-progress /prepared@s1",
        "migration prepare /prepared +/prepared",
        "import --no-progress --object-size 1M FILE /executed",
        "snap create --no-progress /executed@s1",
    ] {
        ok(line);
    }
    write(
        ferry,
        side,
        namespace,
        "executed",
        &[(0, 4 << 20, 11), (5_000_000, 4096, 12)],
    );
    for line in [
        "snap create --no-progress /executed@s2",
        "migration prepare /executed +/executed",
        "migration execute --no-progress +/executed",
        "import --no-progress --object-size 1M FILE /committed",
        "migration prepare /committed +/committed",
        "migration execute --no-progress +/committed",
        "migration commit --no-progress +/committed",
        "import --no-progress --object-size 1M FILE /aborted",
        "snap create --no-progress /aborted@s1",
        "migration prepare /aborted +/aborted",
        "migration abort --no-progress +/aborted",
        "create --size 4M /grouped",
        "import --no-progress --object-size 1M FILE /moved",
        "group create /g",
        "group image add /g /grouped",
        "group image add /g +/committed",
        "group snap create /g@empty",
        "group snap create /g@s1",
    ] {
        ok(line);
    }
    write(ferry, side, namespace, "grouped", &[(4096, 4096, 13)]);
    for line in [
        "group snap create /g@s2",
        "group snap rename /g@s2 renamed",
        "group snap rm /g@empty",
        "group image rm /g +/committed",
        "group create /h",
        "group image add /h /moved",
        "migration prepare /moved +/moved",
        "group rename /h /k",
        "group create /gone",
        "group rm /gone",
    ] {
        ok(line);
    }
    let mut printed = Vec::new();
    for printer in Side::BOTH {
        for line in [
            "ls --format json /",
            "ls --format json +/",
            "snap ls --format json /written",
            "du --format json /written",
            "du --format json /maps",
            "du --format json +/committed",
            "image-meta list /written",
            "children /written@s1",
            "trash ls --format json /",
            "group ls --format json /",
            "group image ls --format json /g",
            "group image ls --format json /k",
            "group snap ls --format json /g",
        ] {
            let words = in_namespace(line, namespace);
            printed.push(format!("{printer:?} {line}: {}", ferry.ok_as(printer, &words)));
        }
    }
    for spec in [
        "/written",
        "/written@s1",
        "/written@s2b",
        "/striped",
        "+/executed",
        "+/executed@s2",
    ] {
        let (pool, name) = match spec.strip_prefix('+') {
            Some(name) => ("other", name),
            None => ("rbd", spec),
        };
        let words = ["diff", "--format", "json", &format!("{pool}/{namespace}{name}")];
        printed.push(format!("diff {spec}: {}", ferry.ok_as(Side::Ceph, &words)));
    }
    // Of images of both sides, in the eyes of Ceph's.
    for line in [
        "info --format json /renamed",
        "info --format json /striped",
        "info --format json /pooled",
        "info --format json /maps",
        "info --format json /written",
        "info --format json /child",
        "info --format json /grouped",
        "info --format json /aborted",
        "info --format json +/prepared",
        "info --format json +/executed",
        "info --format json +/committed",
        "info --format json +/moved",
        "info /striped",
        "info /pooled",
        "info /written@s1",
        "info /child",
        "info +/prepared",
        "info +/executed",
        "status --format json /renamed",
        "status --format json /aborted",
        "status --format json +/prepared",
        "status --format json +/executed",
        "status --format json +/committed",
        "status --format json +/moved",
        "status /written",
        "status +/prepared",
        "status +/executed",
    ] {
        let words = in_namespace(line, namespace);
        printed.push(format!("{line}: {}", ferry.ok_as(Side::Ceph, &words)));
    }
    printed
}

/// Takes out what is documented to be otherwise (docs/ceph.md): an object of an executed migration has a clone that shares all bytes
/// with its head, and the head's object map tells of that.
fn leave_out_the_documented(objects: &mut Objects) {
    for (name, said) in objects.iter_mut() {
        if !name.contains("<other.executed>") {
            continue;
        }
        if name.contains("rbd_object_map") && !name.contains("<snap") {
            said.retain(|what, _| !what.starts_with("bytes"));
        }
        if name.contains("rbd_data") {
            let head = said["bytes head"].clone();
            let shared: Vec<String> = said
                .keys()
                .filter_map(|what| what.strip_prefix("clone snap ").map(str::to_owned))
                .filter(|snap| said[&format!("bytes snap {snap}")] == head)
                .collect();
            for snap in shared {
                said.remove(&format!("clone snap {snap}"));
                said.remove(&format!("bytes snap {snap}"));
            }
        }
    }
}

/// Text without what differs between two namespaces: their names, ids, times.
fn without_ids(text: &str, namespace: &str) -> String {
    // Of JSON, then of plain text, where names stand beside ids: JSON has them alone.
    const DIFFERS: [&str; 10] = [
        "\"timestamp\"",
        "\"deleted_at\"",
        "\"id\"",
        "\"snapshot_id\"",
        "_image_id\"",
        "block_name_prefix",
        "_timestamp",
        "\tid: ",
        "\tsource: ",
        "\tdestination: ",
    ];
    let text = text.replace(namespace, "<ns>");
    let mut out = String::new();
    for line in text.split_inclusive([',', '\n']) {
        let differs = DIFFERS.iter().any(|key| line.contains(key));
        out.push_str(if differs { "<differs>" } else { line });
    }
    out
}

#[test]
fn images_of_both_sides_are_the_same_bytes_and_print_the_same() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let mut rng = StdRng::seed_from_u64(5);
    let mut bytes = vec![0u8; 9 << 20];
    rng.fill(&mut bytes[..2_500_000]);
    rng.fill(&mut bytes[5_000_000..5_100_000]);
    std::fs::write(ferry.path("raw"), bytes).unwrap();
    let [(ours, our_words), (theirs, their_words)] = Side::BOTH.map(|side| {
        let namespace = unique("bytes");
        let printed = live(&ferry, side, &namespace);
        let mut objects = objects(&ferry, &namespace);
        leave_out_the_documented(&mut objects);
        let printed: Vec<String> = printed.iter().map(|text| without_ids(text, &namespace)).collect();
        (objects, printed)
    });
    let mut different = Vec::new();
    for name in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        let nothing = BTreeMap::new();
        let (our, their) = (
            ours.get(name).unwrap_or(&nothing),
            theirs.get(name).unwrap_or(&nothing),
        );
        for what in our.keys().chain(their.keys()).collect::<BTreeSet<_>>() {
            if our.get(what) != their.get(what) {
                let (our, their) = (our.get(what), their.get(what));
                different.push(format!("{name}: {what}:\n  Ferry {our:?}\n  Ceph  {their:?}"));
            }
        }
    }
    for (our, their) in our_words.iter().zip(&their_words) {
        if our != their {
            different.push(format!("printed:\n  of Ferry's {our}\n  of Ceph's  {their}"));
        }
    }
    assert!(ours.len() > 60, "{} objects", ours.len());
    assert!(different.is_empty(), "{}", different.join("\n"));
}
