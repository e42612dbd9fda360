//! Which programs and rights a test needs.
//!
//! A test whose needs are not met says so and passes, except where `CI` or `FERRY_REQUIRE_TOOLS` is set: there it fails.

use std::process::{Command, Stdio};

/// Whether all of these programs can be run.
///
/// # Panics
/// If one is missing where none may be.
#[track_caller]
pub fn installed(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| {
            // A program that dislikes the option is there as well.
            Command::new(program)
                .arg("--version")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_err()
        })
        .collect();
    missing.is_empty()
        || skip(&format!(
            "not installed: {missing:?}; scripts/setup installs them"
        ))
}

/// Whether file systems can be mounted here: root, FUSE and loop devices.
///
/// # Panics
/// If not, where it must be possible.
#[track_caller]
pub fn can_mount() -> bool {
    if !is_root() {
        return skip("mounting needs root");
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(device) {
            return skip(&format!("{device}: {error}"));
        }
    }
    true
}

/// Whether the test runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says why a test is left out. Always false.
///
/// # Panics
/// Where nothing may be left out.
#[track_caller]
pub fn skip(why: &str) -> bool {
    let required = ["CI", "FERRY_REQUIRE_TOOLS"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    assert!(!required, "this test may not be left out here: {why}");
    eprintln!("LEFT OUT: {why}");
    false
}

/// The seed of a randomised test: `FERRY_SEED`, else a new one. It is printed, so that a failure can be replayed.
///
/// # Panics
/// If `FERRY_SEED` is no number.
pub fn seed(test: &str) -> u64 {
    println!("{test}:");
    ferry_reference::seed()
}

/// How many processes a kill test kills: `FERRY_KILLS`, else `otherwise`.
///
/// # Panics
/// If `FERRY_KILLS` is no number.
pub fn kills(otherwise: u32) -> u32 {
    std::env::var("FERRY_KILLS").map_or(otherwise, |text| text.parse().expect("FERRY_KILLS is a number"))
}
