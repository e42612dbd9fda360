//! Ferry from outside: what the end-to-end tests in `tests/` share.
//!
//! Promise: every test has a store of its own and drives the real `rbd` binary as a user would, by words, exit codes
//! and NBD sockets; nothing is left running or mounted when a test ends, however it ends. What this crate does not
//! know: any library behind the binary except the NBD client, which plays the part of a client that keeps books.
//!
//! | module | what it holds |
//! |---|---|
//! | [`ceph`] | a store on a real cluster, and Ceph's own `rbd` beside ours |
//! | [`certificates`] | an authority, a server and a client for TLS |
//! | [`ferry`] | a store, commands on it, a server on it |
//! | [`history`] | an image with a past on a cluster, and what each of its versions holds; whether object maps are right |
//! | [`librbd`] | a client on Ceph's librbd that does what it is told |
//! | [`process`] | commands with their output, children that die with their owner |
//! | [`load`] | a client that writes and remembers what was flushed |
//! | [`mount`] | file systems on a served image |
//! | [`tools`] | which programs and rights a test needs |
//!
//! The binary is the one named by `FERRY_RBD`, else the one that lies in the build directory of the running test;
//! `cargo test -p ferry-e2e` alone does not build it.

pub mod ceph;
pub mod certificates;
pub mod ferry;
pub mod history;
pub mod librbd;
pub mod load;
pub mod mount;
pub mod process;
pub mod tools;

pub use ceph::Side;
pub use ferry::{Ferry, Served};
pub use history::{History, Shape, check_map, check_maps, map_fault};
pub use librbd::Librbd;
pub use process::{Background, Finished, run, run_ok};
