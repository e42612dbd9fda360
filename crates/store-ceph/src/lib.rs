//! The Ceph engine: the store contract over librados.
//!
//! What it is for: images on a real cluster, side by side with Ceph's own clients. librados is loaded when the first
//! connection is made, so a program that has this engine runs where Ceph is not installed, and says what to install.
//! What it keeps: [`ferry_store::Store`], as far as a cluster keeps it ([`CephStore`] says where it differs); nothing blocks
//! a thread of the runtime. What it does not know: images.
//!
//! Reading order: [`config`], `store` (the contract), `contexts` (I/O contexts), `watches`; `sys` is librados itself.

mod addr;
pub mod config;
mod contexts;
mod copying;
mod reading;
mod reply;
mod settings;
mod space;
mod store;
mod sys;
mod watches;
mod without_cxx;
mod writing;

pub use config::{CephConfig, OpenError};
pub use store::CephStore;
pub use sys::LoadError;
