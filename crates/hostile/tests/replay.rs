//! What was found once is held against the readers of today: every file of a target's corpus and of its regressions,
//! then mutations of them. A failing mutation prints its seed and where its bytes were put; `FERRY_SEED=<seed>` makes them
//! again.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::path::{Path, PathBuf};

use ferry_hostile::memory::Counting;
use ferry_hostile::mutate::Mutations;
use ferry_hostile::{TARGETS, Target, Verdict, find, judge, seeds};

#[global_allocator]
static MEMORY: Counting = Counting;

fn fuzz_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn inputs_in(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

fn replay(name: &str, mutants: usize) {
    let target = find(name).unwrap();
    let fuzz = fuzz_directory();
    let mut inputs = Vec::new();
    for kind in ["corpus", "regressions"] {
        for (path, bytes) in inputs_in(&fuzz.join(kind).join(name)) {
            assert_eq!(judge(target.run, &bytes), Verdict::Fine, "{}", path.display());
            inputs.push(bytes);
        }
    }
    assert!(!inputs.is_empty(), "{name} has no corpus");
    mutations(target, &inputs, mutants);
}

fn mutations(target: &Target, inputs: &[Vec<u8>], count: usize) {
    let seed = ferry_reference::seed();
    let mut mutations = Mutations::new(inputs, seed);
    for number in 0..count {
        let bytes = mutations.next_mutant();
        let verdict = judge(target.run, &bytes);
        if verdict != Verdict::Fine {
            let path = std::env::temp_dir().join(format!("ferry-{}-{seed}-{number}", target.name));
            fs::write(&path, bytes).unwrap();
            panic!(
                "{}: {verdict:?} by mutant {number} of FERRY_SEED={seed}, kept in {}",
                target.name,
                path.display()
            );
        }
    }
}

macro_rules! replays {
    ($($target:ident: $mutants:literal,)*) => {
        $(mod $target {
            #[test]
            fn takes_what_was_found_and_mutations_of_it_within_bounds() {
                super::replay(stringify!($target), $mutants);
            }
        })*

        #[test]
        fn every_target_has_its_test_and_its_seeds() {
            let tested = [$(stringify!($target)),*];
            let all: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(tested[..], all[..]);
            for name in all {
                assert!(!seeds::of(name).is_empty(), "{name} has no seeds");
            }
        }
    };
}

replays! {
    cls_records: 5_000,
    cls_answers: 5_000,
    cls_calls: 1_000,
    cls_stored: 2_000,
    object_map: 500,
    image_header: 500,
    image_header_v1: 1_000,
    image_messages: 5_000,
    export_files: 3_000,
    import_files: 200,
    nbd_codec: 5_000,
    nbd_server: 1_000,
    nbd_client: 1_000,
    local_columns: 5_000,
    local_rows: 1_000,
    local_files: 20,
    cli_names: 3_000,
    cli_lines: 300,
}
