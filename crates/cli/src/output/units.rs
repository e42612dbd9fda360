//! Sizes and times as `rbd` shows them.

use jiff::{Timestamp, tz::TimeZone};

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A byte count for people: `0 B`, `64 KiB`, `9.8 MiB`, `37 MiB`.
///
/// The unit is the largest that leaves at least 1. An exact multiple shows no fraction; otherwise there are as many
/// digits after the point (at most two) as keep number, blank and unit within seven characters.
pub fn bytes(count: u64) -> String {
    let mut whole = count;
    let mut index = 0;
    while whole >= 1024 {
        whole /= 1024;
        index += 1;
    }
    let unit = UNITS[index];
    let multiple = 1u64 << (10 * index);
    if count.is_multiple_of(multiple) {
        return format!("{whole} {unit}");
    }
    let value = count as f64 / multiple as f64;
    [2, 1]
        .into_iter()
        .map(|digits| format!("{value:.digits$} {unit}"))
        .find(|text| text.len() <= 7)
        .unwrap_or_else(|| format!("{value:.0} {unit}"))
}

/// A time in the local zone, in ctime's shape: `Mon Nov 23 00:41:25 2026`.
///
/// `seconds` counts from the Unix epoch. Values outside jiff's range are clamped to it, never an error.
pub fn timestamp(seconds: i64) -> String {
    timestamp_in(seconds, &TimeZone::system())
}

/// [`timestamp`] in a zone of the caller's choice.
pub fn timestamp_in(seconds: i64, zone: &TimeZone) -> String {
    let clamped = seconds.clamp(Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
    let time = Timestamp::from_second(clamped).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_zoned(zone.clone())
        .strftime("%a %b %e %H:%M:%S %Y")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_seven_character_rule() {
        let table: &[(u64, &str)] = &[
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (65536, "64 KiB"),
            (16 << 20, "16 MiB"),
            (1025 << 20, "1.0 GiB"),
            (1025 << 30, "1.0 TiB"),
            (10_276_045, "9.8 MiB"),
            (6_186_598, "5.9 MiB"),
            (38_836_149, "37 MiB"),
            ((1 << 20) - 1, "1024 KiB"),
            (8_388_647, "8.0 MiB"),
            (u64::MAX, "16 EiB"),
            (1 << 60, "1 EiB"),
        ];
        for (count, text) in table {
            assert_eq!(bytes(*count), *text, "{count}");
        }
    }

    #[test]
    fn times_look_like_ctime() {
        assert_eq!(
            timestamp_in(1_795_394_485, &TimeZone::UTC),
            "Mon Nov 23 00:41:25 2026"
        );
        assert_eq!(timestamp_in(0, &TimeZone::UTC), "Thu Jan  1 00:00:00 1970");
        assert!(timestamp_in(i64::MAX, &TimeZone::UTC).ends_with("9999"));
    }
}
