//! What an image must show: the model that tests judge reads by.
//!
//! The promise: [`Exact`] accepts just what an image that one client uses must show; [`History`] accepts every read that an
//! image may answer while several clients use it, through resizes, snapshots, clones, migrations, kills and power losses; no
//! other, if all of it is kept ([`History::of_blocks`]). Each byte that a client writes carries the
//! write's [`Tag`], so that a lost, a stale, a torn and a misplaced write are told apart; a [`Violation`] says which it was.
//!
//! What it does not know: images, stores, NBD. Who drives an image tells it when each request begins and ends.
//!
//! | module | what it holds |
//! |---|---|
//! | [`clock`] | moments, and the writes that they stand for |
//! | [`tag`] | tags, and the bytes of a write |
//! | [`version`] | for each byte of one version of an image, the writes that it may come from |
//! | [`exact`] | an image with its snapshots under one client at a time |
//! | [`seed`](mod@seed) | the seeds of randomised tests |
//! | `order` | whether there is an order of all that happened to a block |
//! | [`history`] | an image with its snapshots and its migration under several clients |

pub mod clock;
pub mod exact;
pub mod history;
mod order;
pub mod seed;
pub mod tag;
pub mod version;

pub use clock::Clock;
pub use exact::Exact;
pub use history::History;
pub use seed::{drawn, seed};
pub use tag::Tag;
pub use version::{Version, Violation};
