//! Ceph settings on the command line: `--rbd_NAME=VALUE` or `--rbd-name VALUE`, anywhere.
//!
//! Only settings that Ferry honours are accepted; any other is an error, because an option that is parsed and
//! ignored would promise something. `rbd_cache*` are settings of clients of a Ceph cluster, which checks them; a local store
//! has no such cache, so there they are accepted, that existing scripts run, and change nothing. Help says so.

use super::values::{self, features_setting};
use crate::exit::Failure;

/// The accepted settings, in the order given; the last one of a name counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigOverrides {
    entries: Vec<(String, String)>,
}

/// Settings that commands honour, and what their values mean.
pub(crate) const HONOURED: &[(&str, &str)] = &[
    (
        "rbd_concurrent_management_ops",
        "objects in flight in a long operation, 1 to 1024",
    ),
    ("rbd_default_clone_format", "1, 2 or auto"),
    ("rbd_default_data_pool", "name of a pool"),
    (
        "rbd_default_features",
        "feature names separated by commas, or their sum",
    ),
    ("rbd_default_format", "1 or 2"),
    ("rbd_default_order", "12 to 25"),
    ("rbd_default_pool", "name of a pool"),
    ("rbd_default_stripe_count", "a number"),
    ("rbd_default_stripe_unit", "a size"),
];

/// `rbd_cache*` settings, and whether they are booleans, which take a value only behind `=`.
const CACHE: &[(&str, bool)] = &[
    ("rbd_cache", true),
    ("rbd_cache_block_writes_upfront", true),
    ("rbd_cache_max_dirty", false),
    ("rbd_cache_max_dirty_age", false),
    ("rbd_cache_max_dirty_object", false),
    ("rbd_cache_policy", false),
    ("rbd_cache_size", false),
    ("rbd_cache_target_dirty", false),
    ("rbd_cache_writethrough_until_flush", true),
];

impl ConfigOverrides {
    /// All accepted settings in the order given, names with `_`.
    pub fn entries(&self) -> &[(String, String)] {
        &self.entries
    }

    /// The settings of a cluster's client, `rbd_cache*`, in the order given.
    pub fn of_the_cluster(&self) -> Vec<(String, String)> {
        let is_cache = |name: &str| CACHE.iter().any(|(known, _)| *known == name);
        let chosen = self.entries.iter().filter(|(name, _)| is_cache(name));
        chosen.cloned().collect()
    }

    /// The last value given for a setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// `rbd_concurrent_management_ops`, 1..=1024.
    pub fn concurrent_management_ops(&self) -> Option<u32> {
        self.get("rbd_concurrent_management_ops")
            .and_then(|value| value.parse().ok())
    }

    /// `rbd_default_clone_format`; `auto` counts as not given.
    pub fn clone_format(&self) -> Option<u8> {
        self.get("rbd_default_clone_format")
            .and_then(|value| value.parse().ok())
    }

    /// `rbd_default_data_pool`.
    pub fn default_data_pool(&self) -> Option<&str> {
        self.get("rbd_default_data_pool").filter(|pool| !pool.is_empty())
    }

    /// `rbd_default_features` as bits.
    pub fn default_features(&self) -> Option<u64> {
        self.get("rbd_default_features").and_then(features_setting)
    }

    /// `rbd_default_format`: 1 or 2.
    pub fn default_format(&self) -> Option<u8> {
        self.get("rbd_default_format")
            .and_then(|value| value.parse().ok())
    }

    /// `rbd_default_order`, 12..=25.
    pub fn default_order(&self) -> Option<u8> {
        self.get("rbd_default_order").and_then(|value| value.parse().ok())
    }

    /// `rbd_default_pool`.
    pub fn default_pool(&self) -> Option<&str> {
        self.get("rbd_default_pool")
    }

    /// `rbd_default_stripe_count`.
    pub fn default_stripe_count(&self) -> Option<u64> {
        self.get("rbd_default_stripe_count")
            .and_then(|value| value.parse().ok())
    }

    /// `rbd_default_stripe_unit` in bytes.
    pub fn default_stripe_unit_bytes(&self) -> Option<u64> {
        self.get("rbd_default_stripe_unit").and_then(values::size_bytes)
    }

    /// Takes the settings out of the arguments, up to a `--`. What is left keeps its order.
    pub(super) fn extract(arguments: Vec<String>) -> Result<(Self, Vec<String>), Failure> {
        let mut overrides = Self::default();
        let mut rest = Vec::with_capacity(arguments.len());
        let mut arguments = arguments.into_iter().peekable();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                rest.push(argument);
                rest.extend(arguments);
                break;
            }
            if !argument.starts_with("--rbd_") && !argument.starts_with("--rbd-") {
                rest.push(argument);
                continue;
            }
            let (option, attached) = match argument.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let name = option.trim_start_matches('-').replace('-', "_");
            let cache = CACHE.iter().find(|(known, _)| *known == name);
            if cache.is_none() && !HONOURED.iter().any(|(known, _)| *known == name) {
                return Err(unknown(option));
            }
            let is_switch = cache.is_some_and(|(_, boolean)| *boolean);
            let value = match attached {
                Some(value) => value,
                None if is_switch => "true".to_owned(),
                None => arguments.next().ok_or_else(|| {
                    Failure::usage(format_args!(
                        "the required argument for option '{option}' is missing"
                    ))
                })?,
            };
            check(&name, &value)?;
            overrides.entries.push((name, value));
        }
        Ok((overrides, rest))
    }
}

fn unknown(option: &str) -> Failure {
    let names: Vec<&str> = HONOURED.iter().map(|(name, _)| *name).collect();
    Failure::usage(format_args!("unrecognised option '{option}'"))
        .with_line(format_args!("Ferry honours these settings: {}", names.join(", ")))
}

fn check(name: &str, value: &str) -> Result<(), Failure> {
    let in_range = |range: std::ops::RangeInclusive<u64>| value.parse().is_ok_and(|n| range.contains(&n));
    let valid = match name {
        "rbd_concurrent_management_ops" => in_range(1..=1024),
        "rbd_default_clone_format" => matches!(value, "1" | "2" | "auto"),
        "rbd_default_features" => features_setting(value).is_some(),
        "rbd_default_format" => in_range(1..=2),
        "rbd_default_order" => in_range(12..=25),
        "rbd_default_stripe_count" => in_range(0..=u64::MAX),
        "rbd_default_stripe_unit" => values::size_bytes(value).is_some(),
        "rbd_default_pool" => !value.is_empty(),
        _ => true,
    };
    if valid {
        return Ok(());
    }
    let expected = HONOURED
        .iter()
        .find(|(known, _)| *known == name)
        .map_or("", |(_, expected)| expected);
    Err(Failure::invalid(format_args!(
        "invalid value '{value}' for setting {name} (expected: {expected})"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extract(arguments: &[&str]) -> Result<(ConfigOverrides, Vec<String>), Failure> {
        ConfigOverrides::extract(arguments.iter().map(|a| a.to_string()).collect())
    }

    #[test]
    fn dashes_and_underscores_are_the_same_and_the_last_value_counts() {
        let (config, rest) = extract(&[
            "ls",
            "--rbd-concurrent-management_ops",
            "1",
            "-l",
            "--rbd_concurrent_management_ops=3",
        ])
        .unwrap();
        assert_eq!(rest, ["ls", "-l"]);
        assert_eq!(config.concurrent_management_ops(), Some(3));
        assert_eq!(config.entries().len(), 2);
        assert_eq!(
            config.entries()[0],
            ("rbd_concurrent_management_ops".to_owned(), "1".to_owned())
        );
    }

    #[test]
    fn cache_settings_are_accepted_and_booleans_do_not_swallow_the_next_word() {
        let (config, rest) = extract(&[
            "--rbd-cache",
            "ls",
            "--rbd_cache=false",
            "--rbd-cache-size",
            "32M",
        ])
        .unwrap();
        assert_eq!(rest, ["ls"]);
        assert_eq!(config.get("rbd_cache"), Some("false"));
        let names: Vec<String> = config
            .of_the_cluster()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["rbd_cache", "rbd_cache", "rbd_cache_size"]);
    }

    #[test]
    fn unknown_settings_and_bad_values_are_errors() {
        let failure = extract(&["--rbd_bogus=1", "ls"]).unwrap_err();
        assert!(
            failure
                .text()
                .starts_with("rbd: unrecognised option '--rbd_bogus'\nFerry honours"),
            "{failure}"
        );
        assert_eq!(failure.code(), 1);
        assert_eq!(extract(&["--rbd_default_order=99"]).unwrap_err().code(), 22);
        assert_eq!(extract(&["--rbd_default_order"]).unwrap_err().code(), 1);
        assert_eq!(
            extract(&["--rbd_concurrent_management_ops=0"])
                .unwrap_err()
                .code(),
            22
        );
    }

    #[test]
    fn nothing_behind_a_double_dash_is_a_setting() {
        let (config, rest) = extract(&["info", "--", "--rbd_bogus"]).unwrap();
        assert!(config.entries().is_empty());
        assert_eq!(rest, ["info", "--", "--rbd_bogus"]);
    }

    #[test]
    fn typed_values_come_out_checked() {
        let (config, _) = extract(&[
            "--rbd_default_features=layering,exclusive-lock",
            "--rbd_default_order=20",
            "--rbd_default_stripe_unit=64K",
            "--rbd_default_clone_format=auto",
        ])
        .unwrap();
        assert_eq!(config.default_features(), Some(5));
        assert_eq!(config.default_order(), Some(20));
        assert_eq!(config.default_stripe_unit_bytes(), Some(65536));
        assert_eq!(config.clone_format(), None);
    }
}
