//! Readers of a command line.

use ferry_cli::grammar::fuzzing;

/// A spec of an image or pool, and values of options.
pub fn names(data: &[u8]) {
    fuzzing::names_and_values(data);
}

/// A whole line, its words separated by NUL bytes.
pub fn lines(data: &[u8]) {
    fuzzing::command_line(data);
}
