//! An allocator that counts: how much memory the process holds, and the most it has held since a moment.
//!
//! Promise: it hands everything to the system's allocator and changes nothing else. Programs that want it declare it
//! their `#[global_allocator]`; in others all counts stay 0.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The allocator.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counting;

/// Forgets the peak; what is held now.
pub fn start() -> usize {
    let held = HELD_BYTES.load(Ordering::Relaxed);
    PEAK_BYTES.store(held, Ordering::Relaxed);
    held
}

/// The most that was held since [`start`], in bytes.
#[must_use]
pub fn peak_bytes() -> usize {
    PEAK_BYTES.load(Ordering::Relaxed)
}

fn took(bytes: usize) {
    let held = HELD_BYTES.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK_BYTES.fetch_max(held, Ordering::Relaxed);
}

fn gave_back(bytes: usize) {
    HELD_BYTES.fetch_sub(bytes, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator with the arguments it came with; counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        gave_back(layout.size());
        // SAFETY: the pointer came from this allocator with this layout, so from the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        took(new_size);
        gave_back(layout.size());
        // SAFETY: the pointer came from this allocator with this layout, so from the system's; the rest is the caller's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
