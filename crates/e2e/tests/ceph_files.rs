//! Files of Ceph's `rbd` and of ours on a real cluster: the same bytes for the same image, and each side reads the other's.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ferry_e2e::ceph::unique;
use ferry_e2e::{Ferry, Side};

/// An image with two snapshots, holes, a shrink and metadata.
fn image(ferry: &Ferry, maker: Side, layout: &[&str]) -> String {
    let name = unique("files");
    let mut bytes = vec![0u8; 3_000_000];
    bytes[..400_000].fill(7);
    bytes[1_500_000..1_600_001].fill(9);
    let path = ferry.file("source");
    std::fs::write(&path, &bytes).unwrap();
    let words = ["import", "--no-progress", &path, &name];
    ferry.ok_as(maker, &[&words[..], layout].concat());
    let bench = |side: Side, size: &str, total: &str| {
        let words = [
            "bench",
            "--io-type",
            "write",
            "--io-size",
            size,
            "--io-total",
            total,
            &name,
        ];
        ferry.ok_as(side, &[&words[..], &["--io-pattern", "full-seq"]].concat());
    };
    ferry.ok_as(maker, &["snap", "create", "--no-progress", &format!("{name}@a")]);
    ferry.ok_as(maker, &["snap", "protect", &format!("{name}@a")]);
    bench(maker, "4096", "200K");
    ferry.ok_as(
        maker.other(),
        &["snap", "create", "--no-progress", &format!("{name}@b")],
    );
    bench(maker.other(), "512", "32K");
    let shrink = ["resize", "--no-progress", "--allow-shrink", "--size", "2M", &name];
    ferry.ok_as(maker, &shrink);
    ferry.ok_as(maker, &["image-meta", "set", &name, "key", "value"]);
    name
}

/// The file that a side writes.
#[track_caller]
fn written(ferry: &Ferry, side: Side, words: &[&str]) -> Vec<u8> {
    let path = ferry.path(&format!("written-{side:?}"));
    let _ = std::fs::remove_file(&path);
    let target = path.to_string_lossy();
    ferry.ok_as(side, &[words, &["--no-progress", &target]].concat());
    std::fs::read(&path).unwrap()
}

#[test]
fn both_sides_write_the_same_files_and_read_each_other_s() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let layouts: [&[&str]; 3] = [
        &["--object-size", "64K"],
        &[
            "--object-size",
            "256K",
            "--stripe-unit",
            "16K",
            "--stripe-count",
            "3",
        ],
        &["--image-feature", "layering"],
    ];
    for (maker, layout) in Side::BOTH
        .into_iter()
        .flat_map(|side| layouts.map(|layout| (side, layout)))
    {
        let when = format!("made by {maker:?} with {layout:?}");
        let name = image(&ferry, maker, layout);
        let (a, b) = (format!("{name}@a"), format!("{name}@b"));
        let both_write = |words: &[&str]| {
            let [ours, theirs] = Side::BOTH.map(|side| written(&ferry, side, words));
            assert!(ours == theirs, "{when}: {words:?}");
            ours
        };
        let export = both_write(&["export", "--export-format", "2", &name]);
        let diffs = [
            both_write(&["export-diff", &a]),
            both_write(&["export-diff", "--from-snap", "a", &b]),
            both_write(&["export-diff", "--from-snap", "b", &name]),
        ];
        both_write(&["export-diff", "--whole-object", "--from-snap", "a", &b]);
        let versions =
            ["", "@a", "@b"].map(|snap| (snap, ferry.export_as(Side::Ceph, &format!("{name}{snap}"))));
        let check = |image: &str, by: Side| {
            for (snap, bytes) in &versions {
                let found = ferry.export_as(by.other(), &format!("{image}{snap}"));
                assert!(found == *bytes, "{when}: {image}{snap} imported by {by:?}");
            }
        };
        for side in Side::BOTH {
            let image = unique("imported");
            let path = ferry.file("export");
            std::fs::write(&path, &export).unwrap();
            ferry.ok_as(
                side,
                &["import", "--no-progress", "--export-format", "2", &path, &image],
            );
            check(&image, side);
            let image = unique("diffs");
            ferry.ok_as(side, &["create", "--size", "1M", &image]);
            let paths = ["diff-0", "diff-1", "diff-2"].map(|file| ferry.file(file));
            for (path, diff) in paths.iter().zip(&diffs) {
                std::fs::write(path, diff).unwrap();
                ferry.ok_as(side, &["import-diff", "--no-progress", path, &image]);
            }
            check(&image, side);
        }
        let paths = ["diff-0", "diff-1"].map(|file| ferry.file(file));
        both_write(&["merge-diff", &paths[0], &paths[1]]);
    }
}
