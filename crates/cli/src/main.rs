//! The `rbd` binary.
fn main() {}
