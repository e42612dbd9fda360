//! What a command prints: plain tables, JSON and XML, sizes and times, in the shapes that scripts written for
//! Ceph's `rbd` expect.
//!
//! A command body builds one [`Document`] for `--format json|xml` and either lines or a [`TextTable`] for plain:
//!
//! ```
//! use ferry_cli::output::{Align, Document, Node, OutputFormat, TextTable, bytes};
//!
//! let names = Node::list("name").push("disk1").push("disk2");
//! let document = Document::new("images", names);
//! assert_eq!(document.render(OutputFormat::Json { pretty: false }), "[\"disk1\",\"disk2\"]\n");
//!
//! let mut table = TextTable::new(&[("NAME", Align::Left), ("SIZE", Align::Right)]);
//! table.row(["disk1".to_owned(), bytes(16 << 20)]);
//! assert_eq!(table.to_string(), "NAME   SIZE  \ndisk1  16 MiB\n");
//! ```
//!
//! Invariant: the same value gives the same bytes, fields stay in the order they were added, and nothing here
//! prints by itself except [`emit`].

mod document;
mod table;
mod units;

use std::io::{self, Write};

pub use document::{Document, Node, OutputFormat};
pub use table::{Align, TextTable};
pub use units::{bytes, timestamp, timestamp_in};

/// Writes a finished text to stdout. A reader that closed the pipe early counts as done, like in other filters.
pub fn emit(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
