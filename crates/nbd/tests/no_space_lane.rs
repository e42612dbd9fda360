//! Devices without space once more, on a plain socket, which gets a lane; and clients there that just go.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "no_space.rs"]
mod suite;
