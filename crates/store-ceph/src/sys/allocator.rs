//! How the C library's allocator treats large buffers.
//!
//! Data of objects pass through buffers of megabytes, librados' own and ours. An allocator that gives each back to the kernel
//! has the kernel find and clear its pages again for the next one, which costs as much as the copying. The setting is the
//! whole process's; it keeps at most [`KEPT_BYTES`] for each of the allocator's arenas.

#![allow(unsafe_code)]

/// Free memory at the end of an arena that is kept.
const KEPT_BYTES: i32 = 64 << 20;
/// Buffers up to this size come from arenas; the most that the allocator takes.
const LARGE_BYTES: i32 = 32 << 20;

/// Sets it, where the C library is glibc.
pub(super) fn keep_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two settings of the allocator, with values in their ranges.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}
