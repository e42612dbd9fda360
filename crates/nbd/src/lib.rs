//! The Network Block Device protocol, both ends.
//!
//! The promise: [`Server`] serves whatever implements [`BlockDevice`] to any NBD client (QEMU, the Linux kernel,
//! libnbd, fio), and [`client`] talks to any NBD server. Bytes from a peer are hostile: they can cause an error
//! reply or the end of that one connection, never a panic, a hang of others, or memory beyond the configured
//! bounds.
//!
//! What this crate does not know: images, pools, snapshots, object stores. A device is an `Arc<dyn BlockDevice>`
//! that [`Exports`] finds by name at the moment a client asks for it.
//!
//! One file per protocol phase:
//!
//! | file | what it holds |
//! |---|---|
//! | `proto.rs` | constants and fixed-size headers, pure |
//! | `option.rs` | the data part of handshake options and of their replies, pure |
//! | `wire.rs` | bounded reading and vectored writing of frames, used by both ends |
//! | `handshake.rs` | option haggling, server side |
//! | `request.rs` | what a request may ask: one function, one error per rule, pure |
//! | `reply.rs` | encoding of replies, pure |
//! | `steps.rs` | commands on long ranges, in steps that a device can plan |
//! | `transmission/` | requests of one connection, run concurrently within bounds: a lane for a plain socket, a task for other streams |
//! | `registry.rs` | which devices are open, and when the last connection of one ended |
//! | `listen.rs`, `inherited.rs`, `server.rs`, `connection.rs`, `shutdown.rs`, `stats.rs` | sockets, connections, graceful end, their counts |
//! | `half_open.rs` | who goes when there is no room: handshakes of the peer that has the most of them |
//! | `tls.rs` | certificates and the upgrade of a connection, both ends |
//! | `client/` | the client: negotiation, then concurrent requests |
//! | `kernel/` | the Linux kernel's client: a negotiated connection becomes a block device |
//! | `testing.rs` | a device in memory with faults to order, for tests of this and other crates |
//! | `fuzzing.rs` | doors for tests that hand any bytes to the parsers |
//!
//! The facts come from the protocol's own document, `doc/proto.md` of the NetworkBlockDevice project, with the
//! extension for extended headers. What of it is spoken is listed in the crate's `README.md`.

pub mod client;
mod connection;
mod device;
mod exports;
#[doc(hidden)]
pub mod fuzzing;
mod half_open;
mod handshake;
mod inherited;
pub mod kernel;
mod listen;
mod option;
pub mod proto;
mod registry;
mod reply;
mod request;
mod server;
mod shutdown;
mod stats;
mod steps;
pub mod testing;
mod tls;
mod transmission;
mod wire;

pub use device::{
    BlockDevice, BlockSizes, BlockSizesError, DeviceError, Errno, Extent, Next, QuickRead, ReadExtent,
};
pub use exports::{ExportInfo, Exports, OpenError, OpenErrorKind};
pub use inherited::InheritedError;
pub use listen::{ListenError, Listener};
pub use server::{OnNoSpace, ServeSummary, Server, ServerConfig, ServerError};
pub use shutdown::{Shutdown, ShutdownTrigger, shutdown_channel};
pub use stats::ServerStats;
pub use tls::{TlsClient, TlsError, TlsServer};
