//! Abuses once more, on a plain socket, which gets a lane.

#[path = "abuses.rs"]
mod suite;
