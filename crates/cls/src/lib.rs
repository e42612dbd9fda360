//! Object classes `rbd` and `lock`: Ceph's records, typed requests against any engine, and the methods themselves for
//! engines without an OSD.
//!
//! Promise: every byte sent or stored is what Ceph 16.2.15 sends or stores, and every errno is the one its methods
//! give. What it does not know: images as wholes, migration flows, engines.
//!
//! Reading order: [`encoding`], [`rbd`] (features, types, `client`), [`lock`], [`call`] (how requests are sent),
//! [`registry`] and the `methods` modules behind it. The source of all formats and rules is the project's fact sheet
//! `rbd-format`; modules name its sections.

pub mod call;
pub mod encoding;
pub mod lock;
mod object;
pub mod rbd;
pub mod testing;

pub use call::{Call, CallExt, exec_read, exec_write, exec_write_ordered};
pub use encoding::{BitVector, DecodeError};

use ferry_store::class::ClassRegistry;

/// All methods of both classes: what an engine without OSDs hands its class calls to.
pub fn registry() -> ClassRegistry {
    let mut registry = ClassRegistry::new();
    rbd::methods::register(&mut registry);
    lock::methods::register(&mut registry);
    registry
}
