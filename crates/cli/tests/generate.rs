//! Completion scripts and the manual page: whole, and taken by the programs that read them, where these are installed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use ferry_cli::generate;
use ferry_cli::grammar::table::commands;

/// Runs a program on a text; `None` if it is not installed.
fn run(program: &str, words: &[&str], text: &str) -> Option<(bool, String)> {
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    Some((
        ended.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn every_command_and_visible_option_is_in_every_file() {
    for (file, text) in generate::all() {
        let plain = text.replace("\\-", "-");
        for command in commands() {
            let last = command.path.last().unwrap();
            assert!(plain.contains(last), "{file}: {}", command.name());
            for option in command.all_options().filter(|option| option.visible) {
                assert!(plain.contains(option.long), "{file}: --{}", option.long);
            }
        }
    }
}

#[test]
fn bash_completes_words_options_and_files() {
    let asked = |line: &[&str]| {
        let words: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "{}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_rbd\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            generate::bash(),
            words.join(" "),
            line.len() - 1
        );
        run("bash", &["--norc", "-s"], &script)
    };
    let Some((ok, said)) = asked(&["rbd", "migr"]) else {
        eprintln!("LEFT OUT: bash is not installed");
        return;
    };
    assert!(ok && said == "migration\n", "{said}");
    let (_, said) = asked(&["rbd", "migration", "pre"]).unwrap();
    assert_eq!(said, "prepare\n");
    let (_, said) = asked(&["rbd", "migration", "prepare", "--object-s"]).unwrap();
    assert_eq!(said, "--object-size\n");
    let (_, said) = asked(&["rbd", "snap", "create", "rbd/disk@s", "--no-pro"]).unwrap();
    assert_eq!(said, "--no-progress\n");
    let (_, said) = asked(&["rbd", "--sto"]).unwrap();
    assert_eq!(said, "--store\n");
}

#[test]
fn the_other_files_are_taken_by_their_programs() {
    for (program, words, text) in [
        ("zsh", vec!["-n"], generate::zsh()),
        ("fish", vec!["-n"], generate::fish()),
        ("man", vec!["--warnings", "-l", "-"], generate::man()),
        ("groff", vec!["-man", "-Tutf8", "-ww"], generate::man()),
    ] {
        match run(program, &words, &text) {
            Some((ok, said)) => {
                let complaint = said
                    .lines()
                    .find(|line| line.contains("warning") || line.contains("error:"));
                assert!(ok && complaint.is_none(), "{program}: {complaint:?}");
            }
            None => eprintln!("LEFT OUT: {program} is not installed"),
        }
    }
}
