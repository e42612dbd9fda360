//! Command lines for tests: written as one text, parsed without the environment of the process.

use std::ffi::OsString;

use ferry_cli::exit::Failure;
use ferry_cli::grammar::{Environment, Invocation, Parsed, parse};

/// An environment in which only a home is known.
pub fn environment() -> Environment {
    Environment {
        home: Some("/home/u".into()),
        ..Environment::default()
    }
}

/// The words of a line.
pub fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

/// Parses a line without its `rbd`.
pub fn run(line: &str) -> Result<Box<Invocation>, Failure> {
    match parse(words(line), &environment())? {
        Parsed::Run(invocation) => Ok(invocation),
        Parsed::Print(text) => panic!("{line}: {text}"),
    }
}

/// The text that a line prints without running a command.
pub fn printed(line: &str) -> String {
    match parse(words(line), &environment()) {
        Ok(Parsed::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    }
}
