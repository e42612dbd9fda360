//! The built binary: results on stdout, all else on stderr, exit codes as promised.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::process::{Command, Output};

fn rbd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rbd"))
        .args(arguments)
        .env_remove("FERRY_STORE")
        .output()
        .unwrap()
}

#[test]
fn help_and_version_go_to_stdout_with_zero() {
    for arguments in [
        &[][..],
        &["help"],
        &["help", "migration", "prepare"],
        &["version"],
        &["--version"],
    ] {
        let output = rbd(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(
            output.stderr.is_empty() && output.stdout.len() > 20,
            "{arguments:?}"
        );
    }
}

#[test]
fn failures_go_to_stderr_with_their_code() {
    for (arguments, code, start) in [
        (&["bogus"][..], 1, "error: unknown option 'bogus'\n"),
        (
            &["status", "--image-id", "1"],
            1,
            "rbd: unrecognised option '--image-id'\n",
        ),
        (
            &["journal", "reset", "x"],
            95,
            "rbd: journal reset is not supported: Ferry writes no journals",
        ),
    ] {
        let output = rbd(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty());
        assert!(
            String::from_utf8_lossy(&output.stderr).starts_with(start),
            "{arguments:?}"
        );
    }
}
