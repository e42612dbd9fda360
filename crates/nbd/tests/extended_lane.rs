//! Extended headers once more, on a plain socket, which gets a lane.

#[path = "extended.rs"]
mod suite;
