//! Hostile peers once more, on a plain socket, which gets a lane.

#[path = "hostile.rs"]
mod suite;
