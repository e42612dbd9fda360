//! Commands on ranges longer than a device is asked for at a time.
//!
//! The promise: with extended headers a request may name any part of the export; the device sees it in steps of at
//! most [`STEP_BYTES`] that end at multiples of it, one after the other, so no request makes a device plan more
//! than that at once. The first failure ends the request. Durability is asked for once, at the end.

use crate::device::{BlockDevice, DeviceError, Errno};

/// Longest range that a device is asked to trim or to zero.
const STEP_BYTES: u64 = 1 << 30;
/// Most of a range that is cached; the rest is left to the reads to come.
const MAX_CACHE_BYTES: u64 = 64 << 20;

/// Trims a range.
pub(crate) async fn trim(
    device: &dyn BlockDevice,
    offset: u64,
    length: u64,
    fua: bool,
) -> Result<(), DeviceError> {
    let at_once = is_one_step(offset, length);
    for (at, step) in steps(offset, length) {
        device.trim(at, step, fua && at_once).await?;
    }
    persist(device, fua && !at_once).await
}

/// Makes a range read as zeroes; with `fast` only if the device says that this is fast, or not at all.
pub(crate) async fn write_zeroes(
    device: &dyn BlockDevice,
    offset: u64,
    length: u64,
    (no_hole, fua, fast): (bool, bool, bool),
) -> Result<(), DeviceError> {
    if fast && !device.is_fast_zero(offset, length, no_hole) {
        return Err(DeviceError::new(
            Errno::NotSup,
            format!("zeroing {length} bytes at offset {offset} would be no faster than writing them"),
        ));
    }
    let at_once = is_one_step(offset, length);
    for (at, step) in steps(offset, length) {
        let zeroed = device.write_zeroes(at, step, no_hole, fua && at_once).await;
        zeroed.map_err(|error| match error.errno {
            // Reserved for the answer to `fast`.
            Errno::NotSup if !fast => DeviceError::new(Errno::Inval, error.message),
            _ => error,
        })?;
    }
    persist(device, fua && !at_once).await
}

/// Tells the device what will be read soon.
pub(crate) async fn cache(device: &dyn BlockDevice, offset: u64, length: u64) -> Result<(), DeviceError> {
    match length.min(MAX_CACHE_BYTES) {
        0 => Ok(()),
        length => device.cache(offset, length).await,
    }
}

async fn persist(device: &dyn BlockDevice, wanted: bool) -> Result<(), DeviceError> {
    if wanted { device.flush().await } else { Ok(()) }
}

fn is_one_step(offset: u64, length: u64) -> bool {
    length <= STEP_BYTES - offset % STEP_BYTES
}

/// Offset and length of each step. The range lies inside a device, so its end is a u64.
fn steps(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let step = (STEP_BYTES - at % STEP_BYTES).min(end - at);
        let here = at;
        at += step;
        (step > 0).then_some((here, step))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_cover_the_range_and_end_at_multiples() {
        let all = |offset, length| steps(offset, length).collect::<Vec<_>>();
        assert_eq!(all(5, 0), []);
        assert_eq!(all(5, 7), [(5, 7)]);
        assert_eq!(all(0, STEP_BYTES), [(0, STEP_BYTES)]);
        assert_eq!(
            all(STEP_BYTES - 1, STEP_BYTES + 2),
            [(STEP_BYTES - 1, 1), (STEP_BYTES, STEP_BYTES), (2 * STEP_BYTES, 1)]
        );
        assert_eq!(all(u64::MAX - 1, 1), [(u64::MAX - 1, 1)]);
        for (offset, length, one) in [
            (0, STEP_BYTES, true),
            (1, STEP_BYTES, false),
            (STEP_BYTES - 1, 1, true),
        ] {
            assert_eq!(is_one_step(offset, length), one);
            assert_eq!(all(offset, length).len() == 1, one);
        }
    }
}
