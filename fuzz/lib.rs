//! What all fuzz targets have in common: memory is counted for each input, so that one that takes too much is a failure even
//! if it gives it back at once.

pub use libfuzzer_sys;

use ferry_hostile::{MEMORY_LIMIT_BYTES, memory};

#[global_allocator]
static MEMORY: memory::Counting = memory::Counting;

/// Runs one input; libFuzzer watches over panics and time.
pub fn run(target: fn(&[u8]), bytes: &[u8]) {
    let before = memory::start();
    target(bytes);
    let peak_bytes = memory::peak_bytes().saturating_sub(before);
    assert!(
        peak_bytes <= MEMORY_LIMIT_BYTES,
        "one input took {peak_bytes} bytes of memory"
    );
}

/// Runs one input of the target of this name.
pub fn run_named(name: &str, bytes: &[u8]) {
    match ferry_hostile::find(name) {
        Some(target) => run(target.run, bytes),
        None => panic!("there is no target {name}"),
    }
}

/// A fuzz target: the name of a target, or a function.
#[macro_export]
macro_rules! fuzz {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::run_named($name, bytes));
    };
    ($function:path) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::run($function, bytes));
    };
}
