//! The grammar of the `rbd` command line: one table of commands and options, and the parser that it drives.
//!
//! A binary calls [`parse`] once and runs what comes back; a command body works with the [`Invocation`]:
//!
//! ```
//! use ferry_cli::exit::Failure;
//! use ferry_cli::grammar::{CommandId, Environment, Invocation, Parsed, parse};
//! use ferry_cli::spec::{Check, ImageQuery};
//!
//! fn create(invocation: &Invocation) -> Result<(), Failure> {
//!     let args = &invocation.args;
//!     // Names in the order of the positionals, then options, then `finish`.
//!     let image = args.image(ImageQuery::source().check(Check::Full))?;
//!     let size_bytes = args.required_size_bytes()?;
//!     args.finish()?;
//!     let engine = invocation.globals.engine()?;
//!     println!("{image} of {size_bytes} bytes in {engine:?}");
//!     Ok(())
//! }
//!
//! let words = ["--store", "/tmp/s", "create", "disk", "--size", "16M"].map(std::ffi::OsString::from);
//! match parse(words, &Environment::default()) {
//!     Ok(Parsed::Run(invocation)) => match invocation.command {
//!         CommandId::Create => create(&invocation).unwrap(),
//!         other => panic!("{other:?}"),
//!     },
//!     Ok(Parsed::Print(text)) => print!("{text}"),
//!     Err(failure) => { failure.report(); }
//! }
//! ```
//!
//! Invariants: what [`parse`] accepts has been checked value by value, so typed getters cannot fail on user input;
//! an option that Ferry has not built is refused, never ignored; the wording and exit codes of errors are those of
//! Ceph's `rbd` 16.2.15. The grammar does not know what commands do.

mod args;
mod config;
#[doc(hidden)]
pub mod fuzzing;
mod globals;
mod layout;
pub mod options;
mod parse;
pub mod table;
mod values;

pub use args::Args;
pub use config::ConfigOverrides;
pub(crate) use config::HONOURED;
pub use globals::{Engine, Environment, Globals};
pub use layout::ImageOptions;
pub use parse::{Invocation, Parsed, parse};
pub use table::CommandId;
pub use values::{FEATURES, FEATURES_SINGLE_CLIENT, Value};
