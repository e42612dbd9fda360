//! The `rbd` command: its frame, which knows nothing of images, and the bodies of its commands ([`commands`]).
//!
//! A command body gets an [`grammar::Invocation`] and uses four things:
//!
//! | need | module |
//! |---|---|
//! | options, positionals, image and pool specs, `--rbd_*` settings, where the store is | [`grammar`], [`spec`] |
//! | tables, JSON, XML, sizes and times on stdout | [`output`] |
//! | progress on stderr | [`progress`] |
//! | an error with its exit code | [`exit`] |
//!
//! ```
//! use ferry_cli::exit::Failure;
//! use ferry_cli::grammar::{Environment, Invocation, Parsed, parse};
//! use ferry_cli::output::{Document, Node, OutputFormat};
//! use ferry_cli::spec::ImageQuery;
//!
//! fn status(invocation: &Invocation) -> Result<(), Failure> {
//!     let image = invocation.args.image(ImageQuery::source())?;
//!     let format = invocation.args.output_format()?;
//!     invocation.args.finish()?;
//!     // ... ask the library about `image.pool`, `image.namespace`, `image.image` ...
//!     let answer = Document::new("status", Node::map().with("watchers", Node::list("watcher")));
//!     match format {
//!         OutputFormat::Plain => println!("Watchers: none"),
//!         machine => print!("{}", answer.render(machine)),
//!     }
//!     Ok(())
//! }
//!
//! let arguments = ["status", "rbd/disk", "--format", "json"].map(std::ffi::OsString::from);
//! let Ok(Parsed::Run(invocation)) = parse(arguments, &Environment::default()) else { panic!() };
//! status(&invocation).unwrap();
//! ```
//!
//! Invariant: results go to stdout, everything else to stderr; only [`commands`] opens stores, sockets and images.

pub mod commands;
pub mod exit;
pub mod generate;
pub mod grammar;
pub mod help;
pub mod output;
pub mod progress;
pub mod spec;

/// Ferry's version, as printed by `rbd version`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
