//! Checks of option values: sizes, orders, features, words. Pure functions from text to value; the caller words the
//! error, because `rbd` names the option in it.

use super::options::Kind;

/// A checked option value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A switch that was given.
    On,
    /// Text, or a word of a list.
    Text(String),
    /// A number, a size in bytes, or feature bits.
    Number(u64),
    /// A fraction between 0 and 1.
    Fraction(f64),
}

/// Smallest and largest object size, as powers of two: 4 KiB and 32 MiB.
pub(super) const ORDERS: std::ops::RangeInclusive<u32> = 12..=25;

/// Image features and their bits in the header.
pub const FEATURES: &[(&str, u64)] = &[
    ("layering", 1 << 0),
    ("striping", 1 << 1),
    ("exclusive-lock", 1 << 2),
    ("object-map", 1 << 3),
    ("fast-diff", 1 << 4),
    ("deep-flatten", 1 << 5),
    ("journaling", 1 << 6),
    ("data-pool", 1 << 7),
    ("operations", 1 << 8),
    ("migrating", 1 << 9),
];

/// Features that only make sense for a single writer; `--image-shared` leaves them out.
pub const FEATURES_SINGLE_CLIENT: u64 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6;

/// Checks a value; `None` means it is not one of this kind.
pub(super) fn check(kind: Kind, text: &str) -> Option<Value> {
    match kind {
        Kind::Switch => Some(Value::On),
        Kind::Text => Some(Value::Text(text.to_owned())),
        Kind::Choice(words) => words.contains(&text).then(|| Value::Text(text.to_owned())),
        Kind::Number(max) => number(text).filter(|n| *n <= max).map(Value::Number),
        Kind::Size => size_bytes(text).map(Value::Number),
        Kind::ImageSize => image_size_bytes(text).map(Value::Number),
        Kind::ObjectSize => object_size_bytes(text).map(Value::Number),
        Kind::Order => number(text)
            .filter(|n| u32::try_from(*n).is_ok_and(|n| ORDERS.contains(&n)))
            .map(Value::Number),
        Kind::Features => features(text).map(Value::Number),
        Kind::Fraction => text
            .parse()
            .ok()
            .filter(|f| (0.0..=1.0).contains(f))
            .map(Value::Fraction),
        Kind::Rate => match text {
            "auto" => Some(Value::Text(text.to_owned())),
            "none" => Some(Value::Number(0)),
            _ => size_bytes(text).map(Value::Number),
        },
        Kind::NumberOrAuto(max) => match text {
            "auto" => Some(Value::Text(text.to_owned())),
            _ => number(text).filter(|n| (1..=max).contains(n)).map(Value::Number),
        },
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// Bytes: digits and perhaps `B`, or one of `K M G T P E`, alone or followed by `i` or `iB`. All factors are binary.
/// (`iB` is an addition of Ferry; Ceph stops at `i`.)
pub(super) fn size_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        _ => {
            let prefix = unit
                .strip_suffix("iB")
                .or_else(|| unit.strip_suffix('i'))
                .unwrap_or(unit);
            10 * (1 + ["K", "M", "G", "T", "P", "E"].iter().position(|p| *p == prefix)?)
        }
    };
    number(count)?.checked_mul(1u64.checked_shl(u32::try_from(shift).ok()?)?)
}

/// Like [`size_bytes`], but a bare number counts MiB.
fn image_size_bytes(text: &str) -> Option<u64> {
    let size = size_bytes(text)?;
    if text.ends_with(|c: char| c.is_ascii_digit()) {
        size.checked_mul(1 << 20)
    } else {
        Some(size)
    }
}

/// The nearest power of two, by its exponent, as Ceph's command has it: 5 MiB are 4 MiB, 6 MiB are 8 MiB. Whether objects of that
/// size exist is the library's business.
fn object_size_bytes(text: &str) -> Option<u64> {
    let size = size_bytes(text).filter(|size| *size > 0)?;
    let below = size.ilog2();
    let is_nearer_to_next = u128::from(size).pow(2) >= 1 << (2 * below + 1);
    1_u64.checked_shl(below + u32::from(is_nearer_to_next))
}

fn features(text: &str) -> Option<u64> {
    text.split(',')
        .filter(|name| !name.is_empty())
        .try_fold(0, |bits, name| {
            FEATURES
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, bit)| bits | bit)
        })
}

/// Feature bits from a setting, which may also be one number.
pub(super) fn features_setting(text: &str) -> Option<u64> {
    let known: u64 = FEATURES.iter().map(|(_, bit)| bit).sum();
    number(text)
        .filter(|bits| bits & !known == 0)
        .or_else(|| features(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes() {
        let table: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("1B", Some(1)),
            ("4K", Some(4096)),
            ("4Ki", Some(4096)),
            ("4KiB", Some(4096)),
            ("16M", Some(16 << 20)),
            ("1G", Some(1 << 30)),
            ("2T", Some(2 << 40)),
            ("2P", Some(2 << 50)),
            ("15E", Some(15 << 60)),
            ("16E", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("K", None),
            ("4k", None),
            ("4KB", None),
            ("1Bi", None),
            ("4 K", None),
            ("-4K", None),
            ("+4", None),
            ("1.5G", None),
            ("4iB", None),
            ("٤K", None),
        ];
        for (text, wanted) in table {
            assert_eq!(size_bytes(text), *wanted, "{text}");
        }
    }

    #[test]
    fn image_sizes_count_mebibytes_without_a_suffix() {
        assert_eq!(image_size_bytes("4"), Some(4 << 20));
        assert_eq!(image_size_bytes("4M"), Some(4 << 20));
        assert_eq!(image_size_bytes("100B"), Some(100));
        assert_eq!(image_size_bytes("18446744073709551615"), None);
    }

    #[test]
    fn object_sizes_are_rounded_as_by_ceph_s_command() {
        let table = [
            ("3000", 4096),
            ("2896", 2048),
            ("2897", 4096),
            ("4096", 4096),
            ("4097", 4096),
            ("3M", 4 << 20),
            ("5931641", 4 << 20),
            ("5931642", 8 << 20),
            ("512K", 512 << 10),
            ("32M", 32 << 20),
            ("47453132", 32 << 20),
            ("47453133", 64 << 20),
            ("1", 1),
        ];
        for (text, wanted) in table {
            assert_eq!(object_size_bytes(text), Some(wanted), "{text}");
        }
        for text in ["0", "16E", "15E"] {
            assert_eq!(object_size_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn features_are_named_and_never_numbered_on_the_command_line() {
        assert_eq!(features("layering,exclusive-lock"), Some(5));
        assert_eq!(features("layering,,"), Some(1));
        assert_eq!(features("bogus"), None);
        assert_eq!(features("61"), None);
        assert_eq!(features_setting("61"), Some(61));
        assert_eq!(features_setting("layering,striping"), Some(3));
        assert_eq!(features_setting("1048576"), None);
    }

    #[test]
    fn orders_words_and_fractions_have_bounds() {
        assert_eq!(check(Kind::Order, "30"), None);
        assert_eq!(check(Kind::Order, "22"), Some(Value::Number(22)));
        assert_eq!(check(Kind::Choice(&["json"]), "bad"), None);
        assert_eq!(check(Kind::Fraction, "1.5"), None);
        assert_eq!(check(Kind::Fraction, "nan"), None);
        assert_eq!(check(Kind::Fraction, "0.5"), Some(Value::Fraction(0.5)));
        assert_eq!(check(Kind::Number(100), "101"), None);
        assert_eq!(check(Kind::Rate, "none"), Some(Value::Number(0)));
        assert_eq!(check(Kind::Rate, "2M"), Some(Value::Number(2 << 20)));
        assert_eq!(check(Kind::Rate, "fast"), None);
        assert_eq!(
            check(Kind::NumberOrAuto(9), "auto"),
            Some(Value::Text("auto".to_owned()))
        );
        assert_eq!(check(Kind::NumberOrAuto(9), "0"), None);
        assert_eq!(check(Kind::NumberOrAuto(9), "10"), None);
    }
}
