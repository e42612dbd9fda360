//! The seeds of randomised tests.
//!
//! The promise: a test prints its seed, and `FERRY_SEED` replays it. Where `FERRY_DRAW` is set, what tests draw depends
//! on that text, on the test's name and on nothing else: `scripts/test` sets it to what is committed in `crates/`, so that code that
//! passed on one machine is asked the same on the next, and code that is changed is asked something new.
//!
//! What it does not know: what a seed means to a test.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// The seed of a randomised test: `FERRY_SEED`, else a [drawn](drawn) one. It is printed.
///
/// # Panics
/// If `FERRY_SEED` is no number.
pub fn seed() -> u64 {
    let seed = match std::env::var("FERRY_SEED") {
        Ok(text) => text.parse().expect("FERRY_SEED is a number"),
        Err(_) => drawn(),
    };
    println!("replay with FERRY_SEED={seed}");
    seed
}

/// A new seed, below 2^63, so that the seeds after it can be counted up to.
pub fn drawn() -> u64 {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let Ok(draw) = std::env::var("FERRY_DRAW") else {
        return RandomState::new().hash_one(0) >> 1;
    };
    let thread = std::thread::current();
    let nth = DRAWN.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    let name = thread.name().unwrap_or_default().as_bytes();
    let parts = [draw.as_bytes(), &[0], name, &[0], &nth];
    mixed(parts.into_iter().flatten().copied()) >> 1
}

/// FNV-1a over the bytes, and SplitMix64's last steps, as FNV alone hardly moves the upper bits: the same everywhere and
/// with every compiler, which the standard library's hashers don't promise.
fn mixed(bytes: impl Iterator<Item = u8>) -> u64 {
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::mixed;

    #[test]
    fn other_texts_give_seeds_that_have_nothing_in_common() {
        let seeds: Vec<u64> = (0..64_u8)
            .map(|n| mixed(b"commit".iter().copied().chain([n])))
            .collect();
        for (nth, seed) in seeds.iter().enumerate() {
            for other in &seeds[..nth] {
                let differing = (seed ^ other).count_ones();
                assert!((10..=54).contains(&differing), "{seed:x} and {other:x}");
            }
        }
        assert_eq!(mixed("a".bytes()), mixed("a".bytes()));
    }
}
