//! One random sequence of commands, carried out by Ferry on one set of images and by Ceph's own `rbd` on another: whatever is asked,
//! both answer the same.
//!
//! After each step the exit codes and messages are compared, after every few steps the bytes of all versions, and what the
//! commands print that show images. `FERRY_STEPS` says how many steps, `FERRY_SEED` which. Where Ceph's dies in the middle of a
//! step, there is nothing left to compare with: the sequence ends before it, and says so.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod canary;
mod compare;
mod groups;
mod improvements;
mod steps;
mod world;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ferry_e2e::Ferry;
use ferry_e2e::tools::seed;
use rand::RngExt;

use compare::{Outcome, Sides};
use improvements::{IMPROVEMENTS, Known, Past, Treatment};
use steps::{Step, Steps};
use world::{Group, Kind, World};

/// Steps between two looks at everything.
const LOOK: usize = 4;

fn steps_to_do() -> usize {
    std::env::var("FERRY_STEPS").map_or(40, |text| text.parse().expect("FERRY_STEPS is a number"))
}

/// Compares what commands print of an image.
fn look(sides: &mut Sides, known: &Known, steps: &mut Steps, world: &World, name: &str) -> Vec<String> {
    let mut lines: Vec<(String, String)> = [
        "info",
        "status",
        "snap ls --all",
        "du",
        "diff",
        "children --all",
        "image-meta ls",
    ]
    .map(|verb| (format!("{verb} {name}"), name.to_owned()))
    .to_vec();
    if steps.rng().random_bool(0.3) {
        lines.push((format!("du --exact {name}"), name.to_owned()));
    }
    let snaps = world.image(name).map_or(&[][..], |image| &image.snaps);
    if !snaps.is_empty() {
        let snap = &snaps[steps.rng().random_range(0..snaps.len())];
        let spec = format!("{name}@{}", snap.name);
        lines.push((format!("info {spec}"), spec.clone()));
        lines.push((format!("children {spec}"), spec.clone()));
        lines.push((format!("du {spec}"), spec.clone()));
        for version in [name, &spec] {
            let from = steps.start_of_diff(world, version);
            let whole = if steps.rng().random_bool(0.3) {
                " --whole-object"
            } else {
                ""
            };
            lines.push((format!("diff{from}{whole} {version}"), version.to_owned()));
        }
    }
    lines
        .into_iter()
        .flat_map(|(line, spec)| sides.print(&format!("{line} --format json"), known.rule(&line, &spec)))
        .collect()
}

#[test]
fn whatever_is_asked_both_sides_answer_the_same() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let count = steps_to_do();
    let mut steps = Steps::new(seed("differential"));
    let mut sides = Sides::new(ferry.with_variable("RBD_FORCE_ALLOW_V1", "1"));
    let mut known = Known::default();
    let mut log: Vec<String> = Vec::new();
    let mut touched = BTreeSet::new();
    let (shape, _) = sides.shape();
    let mut world = World::new(&shape);
    for number in 1..=count {
        let step = loop {
            let step = steps.next(&world);
            match &step {
                Step::Command(line) if known.is_left_out(line, &world) => steps.forget_files(&step),
                Step::Command(line) => break Step::Command(known.adapted(line, &world)),
                Step::Write(..) => break step,
            }
        };
        let Outcome::Done(done, mut differences) = sides.step(&step, &known, &world) else {
            println!("the sequence ends before step {number} of {count}: {step:?}");
            break;
        };
        log.push(format!(
            "{number} {step:?} {}",
            if done { "" } else { "(refused)" }
        ));
        match &step {
            Step::Command(line) => {
                if done {
                    known.done(line, &world);
                } else {
                    steps.forget_files(&step);
                }
                let specs = line.split(' ').map(|word| word.split('@').next().unwrap_or(word));
                touched.extend(specs.map(str::to_owned));
            }
            Step::Write(image, requests) => {
                if requests.iter().any(|request| request.kind != Kind::Write) {
                    known.add(image, Past::Less);
                    if world.image(image).is_some_and(|image| image.migration.is_some()) {
                        known.add(image, Past::Emptied);
                    }
                }
                touched.insert(image.clone());
            }
        }
        let (shape, different) = sides.shape();
        differences.extend(different);
        world = World::new(&shape);
        if differences.is_empty() && (number % LOOK == 0 || number == count) {
            differences.extend(sides.contents());
            let mut names: Vec<String> = world.images.iter().map(|image| image.name.clone()).collect();
            if number != count {
                names.retain(|name| touched.contains(name) || steps.rng().random_bool(0.1));
            }
            touched.clear();
            for name in &names {
                differences.extend(look(&mut sides, &known, &mut steps, &world, name));
            }
            // Ceph's list of a group ends at an image in the trash.
            let listed = |group: &&Group| group.images.iter().all(|name| world.image(name).is_some());
            let groups = world.groups.iter().filter(listed).flat_map(|group| {
                ["group image ls", "group snap ls"].map(|verb| format!("{verb} {}", group.name))
            });
            let lists = [
                "ls -l --pool rbd --namespace {ns}",
                "ls -l --pool other --namespace {ns}",
                "trash ls -l --all --pool rbd --namespace {ns}",
                "trash ls -l --all --pool other --namespace {ns}",
                "group ls --pool rbd --namespace {ns}",
                "group ls --pool other --namespace {ns}",
            ];
            for line in groups.chain(lists.map(str::to_owned)) {
                let line = format!("{line} --format json");
                differences.extend(sides.print(&line, improvements::Rule::Same));
            }
        }
        assert!(
            differences.is_empty(),
            "after step {number} of\n{}\n{}",
            log.join("\n"),
            differences.join("\n")
        );
    }
    println!("{} steps, {} images at the end", log.len(), world.images.len());
}

#[test]
fn every_deliberate_difference_is_documented() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for improvement in IMPROVEMENTS {
        let text = std::fs::read_to_string(root.join(improvement.document)).unwrap();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            text.contains(improvement.words),
            "{} does not say {:?}",
            improvement.document,
            improvement.words
        );
    }
}

const BEGIN: &str = "<!-- made by crates/e2e/tests/ceph_differential (FERRY_UPDATE=1 writes it anew) -->";
const END: &str = "<!-- end -->";

#[test]
fn the_page_lists_every_deliberate_difference() {
    let mut made = String::new();
    for treatment in Treatment::ALL {
        let _ = writeln!(made, "\n**{}**\n", treatment.title());
        for improvement in IMPROVEMENTS.iter().filter(|one| one.treatment == treatment) {
            let name = improvement.document.trim_start_matches("docs/");
            let _ = writeln!(made, "- {} ([{name}]({name}))", improvement.sentence());
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("docs/differential.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let wanted = format!("{before}{BEGIN}\n{made}\n{END}{after}");
    if std::env::var_os("FERRY_UPDATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    } else {
        assert!(
            page == wanted,
            "docs/differential.md is out of date; FERRY_UPDATE=1 writes it anew"
        );
    }
}
