//! Clones, parents and their migrations on a real cluster: Ferry and Ceph's own `rbd` take turns on the same images.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ferry_e2e::ceph::unique;
use ferry_e2e::{Ferry, Side, check_maps};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const IMAGE_BYTES: usize = 8 << 20;

/// A base image with a protected snapshot `s`; its name.
fn base(ferry: &Ferry, maker: Side, seed: u64) -> String {
    let name = unique("base");
    let mut bytes = vec![0u8; IMAGE_BYTES];
    let mut rng = StdRng::seed_from_u64(seed);
    rng.fill(&mut bytes[1_000_000..3_500_000]);
    rng.fill(&mut bytes[6_000_000..6_900_000]);
    let path = ferry.file("base");
    std::fs::write(&path, &bytes).unwrap();
    ferry.ok_as(
        maker,
        &["import", "--no-progress", "--object-size", "1M", &path, &name],
    );
    let snap = format!("{name}@s");
    ferry.ok_as(maker, &["snap", "create", "--no-progress", &snap]);
    ferry.ok_as(maker, &["snap", "protect", &snap]);
    name
}

fn write(ferry: &Ferry, side: Side, image: &str) {
    let words = [
        "bench",
        "--io-type",
        "write",
        "--io-size",
        "4096",
        "--io-total",
        "131072",
        "--io-pattern",
        "rand",
        image,
    ];
    ferry.ok_as(side, &words);
}

/// Both sides read the same; the bytes.
#[track_caller]
fn same(ferry: &Ferry, spec: &str, when: &str) -> Vec<u8> {
    let [ours, theirs] = Side::BOTH.map(|side| ferry.export_as(side, spec));
    assert!(ours == theirs, "{when}: {spec} is read in two ways");
    ours
}

#[test]
fn each_side_writes_shrinks_rolls_back_and_flattens_the_other_s_clones() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for maker in Side::BOTH {
        let other = maker.other();
        let parent = base(&ferry, maker, 3);
        let (one, two) = (unique("one"), format!("other/{}", unique("two")));
        let snap = format!("{parent}@s");
        ferry.ok_as(maker, &["clone", &snap, &one]);
        let format = ["--rbd-default-clone-format", "2", "--object-size", "2M"];
        ferry.ok_as(maker, &[&["clone", &snap, &two][..], &format].concat());
        for words in [
            &["info", &one][..],
            &["info", &two, "--format", "json"],
            &["children", &parent],
            &["children", &parent, "--all", "--format", "json"],
            &["children", &snap, "--format", "xml", "--pretty-format"],
        ] {
            let [ours, theirs] = Side::BOTH.map(|side| ferry.ok_as(side, words));
            assert_eq!(ours, theirs, "{words:?}, made by {maker:?}");
        }
        for clone in [&one, &two] {
            let at = |snap: &str| format!("{clone}@{snap}");
            let fresh = same(&ferry, clone, "new");
            write(&ferry, other, clone);
            ferry.ok_as(other, &["snap", "create", "--no-progress", &at("a")]);
            let a = same(&ferry, clone, "written");
            assert!(a != fresh);
            write(&ferry, maker, clone);
            let words = ["resize", "--no-progress", "--allow-shrink", "--size", "3M", clone];
            ferry.ok_as(other, &words);
            ferry.ok_as(maker, &["resize", "--no-progress", "--size", "8M", clone]);
            let grown = same(&ferry, clone, "grown again");
            assert!(grown[3 << 20..].iter().all(|byte| *byte == 0));
            ferry.ok_as(maker, &["snap", "create", "--no-progress", &at("b")]);
            write(&ferry, other, clone);
            assert!(same(&ferry, &at("a"), "later") == a);
            assert!(same(&ferry, &at("b"), "later") == grown);
            ferry.ok_as(Side::Ferry, &["snap", "rollback", "--no-progress", &at("a")]);
            assert!(same(&ferry, clone, "rolled back") == a);
            check_maps(&ferry, clone, &["a", "b"], "rolled back");
            ferry.ok_as(other, &["flatten", "--no-progress", clone]);
            assert!(same(&ferry, clone, "flattened") == a);
            assert!(same(&ferry, &at("a"), "flattened") == a);
            assert!(same(&ferry, &at("b"), "flattened") == grown);
            check_maps(&ferry, clone, &["a", "b"], "flattened");
        }
        for side in Side::BOTH {
            assert_eq!(ferry.ok_as(side, &["children", &parent]), "");
        }
        ferry.ok_as(other, &["snap", "unprotect", &snap]);
        ferry.ok_as(maker, &["snap", "rm", "--no-progress", &snap]);
        ferry.ok_as(other, &["rm", "--no-progress", &parent]);
    }
}

/// A clone with a snapshot that has clones of its own, one of each format, and what all of them hold.
struct Family {
    parent: String,
    source: String,
    kids: [String; 2],
    head: Vec<u8>,
    snap: Vec<u8>,
}

impl Family {
    fn new(ferry: &Ferry, maker: Side, seed: u64) -> Self {
        let parent = base(ferry, maker, seed);
        let source = unique("source");
        let kids = [unique("kid"), format!("other/{}", unique("kid"))];
        ferry.ok_as(maker, &["clone", &format!("{parent}@s"), &source]);
        write(ferry, maker, &source);
        let at = format!("{source}@x");
        ferry.ok_as(maker.other(), &["snap", "create", "--no-progress", &at]);
        ferry.ok_as(maker, &["snap", "protect", &at]);
        ferry.ok_as(maker, &["clone", &at, &kids[0]]);
        let format = ["--rbd-default-clone-format", "2"];
        ferry.ok_as(
            maker.other(),
            &[&["clone", &at, kids[1].as_str()][..], &format].concat(),
        );
        write(ferry, maker.other(), &source);
        Self {
            head: same(ferry, &source, "made"),
            snap: same(ferry, &at, "made"),
            parent,
            source,
            kids,
        }
    }

    #[track_caller]
    fn check(&self, ferry: &Ferry, image: &str, when: &str) {
        assert!(same(ferry, image, when) == self.head, "{when}: {image}");
        let at = format!("{image}@x");
        assert!(same(ferry, &at, when) == self.snap, "{when}: {at}");
        for kid in &self.kids {
            assert!(same(ferry, kid, when) == self.snap, "{when}: {kid}");
        }
        for side in Side::BOTH {
            let listed = ferry.ok_as(side, &["children", image]);
            let mut listed: Vec<&str> = listed.lines().collect();
            listed.sort_unstable();
            let first = format!("rbd/{}", self.kids[0]);
            assert_eq!(listed, [self.kids[1].as_str(), &first], "{when}: {side:?}");
        }
        check_maps(ferry, image, &["x"], when);
    }

    #[track_caller]
    fn check_parent_lists(&self, ferry: &Ferry, expected: &str, when: &str) {
        for side in Side::BOTH {
            let listed = ferry.ok_as(side, &["children", &self.parent]);
            assert_eq!(listed.trim_end(), expected, "{when}: {side:?}");
        }
    }
}

#[test]
fn migrations_of_an_image_with_a_parent_and_clones_can_change_hands() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    // Every verb by each side, before and after the other, at least once.
    for mask in [1u32, 2, 5, 6] {
        let [preparer, executor, finisher] =
            std::array::from_fn(|bit| Side::BOTH[(mask >> bit & 1) as usize]);
        let aborts = mask % 2 == 0;
        let when = format!("{preparer:?}, {executor:?}, {finisher:?}, abort: {aborts}");
        let family = Family::new(&ferry, preparer, u64::from(mask));
        let target = format!("other/{}", unique("target"));
        let words = [
            "migration",
            "prepare",
            "--object-size",
            "2M",
            "--stripe-unit",
            "2M",
            "--stripe-count",
            "1",
        ];
        ferry.ok_as(
            preparer,
            &[&words[..], &[family.source.as_str(), target.as_str()]].concat(),
        );
        family.check(&ferry, &target, &format!("{when}: prepared"));
        ferry.migrate_as(executor, "execute", &target);
        family.check(&ferry, &target, &format!("{when}: executed"));
        if aborts {
            ferry.migrate_as(finisher, "abort", &target);
            family.check(&ferry, &family.source, &format!("{when}: aborted"));
            family.check_parent_lists(&ferry, &format!("rbd/{}", family.source), &when);
        } else {
            let refused = ferry.run_as(finisher, &["migration", "commit", "--no-progress", &target]);
            refused.fails(16, "the image has descendants");
            let words = ["migration", "commit", "--force", "--no-progress", &target];
            ferry.ok_as(finisher, &words);
            family.check(&ferry, &target, &format!("{when}: committed"));
            family.check_parent_lists(&ferry, &target, &when);
        }
    }
}

#[test]
fn a_flattened_target_is_nobody_s_clone_whoever_prepared_it() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for preparer in Side::BOTH {
        for aborts in [false, true] {
            let when = format!("flattened by {preparer:?}, abort: {aborts}");
            let family = Family::new(&ferry, preparer, 5);
            let target = format!("other/{}", unique("target"));
            let words = ["migration", "prepare", "--flatten", &family.source, &target];
            ferry.ok_as(preparer, &words);
            family.check(&ferry, &target, &format!("{when}: prepared"));
            ferry.migrate_as(Side::Ferry, "execute", &target);
            family.check(&ferry, &target, &format!("{when}: executed"));
            if aborts {
                ferry.migrate_as(Side::Ferry, "abort", &target);
                family.check(&ferry, &family.source, &format!("{when}: aborted"));
                family.check_parent_lists(&ferry, &format!("rbd/{}", family.source), &when);
            } else {
                let words = ["migration", "commit", "--force", "--no-progress", &target];
                ferry.ok_as(Side::Ferry, &words);
                family.check(&ferry, &target, &format!("{when}: committed"));
                family.check_parent_lists(&ferry, "", &when);
                assert!(!ferry.ok_as(Side::Ceph, &["info", &target]).contains("parent: "));
                let snap = format!("{}@s", family.parent);
                ferry.ok_as(Side::Ceph, &["snap", "unprotect", &snap]);
            }
        }
    }
}
