//! Room in memory for what copies have read and not written yet, shared by all images of the process.
//!
//! Keeps invariant: together they hold at most [`ROOM_BYTES`], or one copy alone what it needs. Whoever waits here holds
//! nothing that somebody with room could wait for: room is asked for after all locks of the object, and a copy that has
//! it only reads its source and writes its target.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes that may be in memory.
const ROOM_BYTES: u64 = 64 << 20;
/// What one permit stands for.
const UNIT_BYTES: u64 = 4 << 10;

static ROOM: Semaphore = Semaphore::const_new((ROOM_BYTES / UNIT_BYTES) as usize);

/// Waits until there is room for a copy that holds so many bytes at a time; it ends when the answer is dropped.
pub(crate) async fn room(bytes: u64) -> Option<SemaphorePermit<'static>> {
    let units = bytes.min(ROOM_BYTES).div_ceil(UNIT_BYTES) as u32;
    // Never closed.
    ROOM.acquire_many(units).await.ok()
}
