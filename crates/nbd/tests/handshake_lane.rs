//! Option haggling once more, on a plain socket, which gets a lane afterwards.

#[path = "handshake.rs"]
mod suite;
