//! Requests and replies once more, on a plain socket, which gets a lane.

#[path = "transmission.rs"]
mod suite;
