//! A reader with three mistakes that no reader of Ferry may have: what shows that the harness would notice them.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Panics on `crash`, is busy for two seconds on `slow`, and takes half a gibibyte on `large`.
///
/// # Panics
/// See above.
pub fn run(bytes: &[u8]) {
    if bytes.starts_with(b"crash") {
        let missing: Option<u8> = bytes.get(usize::MAX).copied();
        assert!(missing.is_some(), "as ordered");
    }
    if bytes.starts_with(b"slow") {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            black_box(bytes);
        }
    }
    if bytes.starts_with(b"large") {
        // Touched, so that the memory is really there.
        black_box(vec![1u8; 512 << 20]);
    }
}
