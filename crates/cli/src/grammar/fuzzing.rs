//! Doors for tests that hand any text to what reads a command line: names, values of options, whole lines.
//!
//! Promise: each function takes any bytes and returns; it panics only where a reader breaks a promise that commands
//! rely on. Nothing is opened or made.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use super::globals::Environment;
use super::options::GLOBAL;
use super::parse::{Invocation, Parsed, parse};
use super::table::{Command, commands};
use super::values::{ORDERS, Value, check, features_setting};
use crate::spec::{Check, ImageQuery, SnapRule, split, split_pool};

/// A spec of an image, of a pool, and the value of every kind of option.
///
/// # Panics
/// When the parts of a spec do not make the spec again, or a value is outside what its kind allows.
pub fn names_and_values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for rule in [Check::Lenient, Check::SnapName, Check::Full] {
        let Ok(parts) = split(text, rule) else { continue };
        let place = [parts.pool, parts.namespace, Some(parts.name)];
        let place: Vec<&str> = place.into_iter().flatten().collect();
        let snap = parts.snap.map(|snap| format!("@{snap}")).unwrap_or_default();
        assert_eq!(format!("{}{snap}", place.join("/")), text);
        assert!(!parts.name.is_empty());
        if rule == Check::Full {
            assert!(!parts.name.contains(['/', '@']) && !parts.name.is_empty());
        }
    }
    if let Ok((pool, namespace)) = split_pool(text) {
        assert!(!pool.contains('/') && !namespace.contains('/') && !pool.is_empty());
    }
    let options = commands().flat_map(Command::own_options).chain(GLOBAL);
    let mut seen = Vec::new();
    for kind in options.map(|option| option.kind) {
        if seen.contains(&kind) {
            continue;
        }
        seen.push(kind);
        if let Some(Value::Fraction(fraction)) = check(kind, text) {
            assert!((0.0..=1.0).contains(&fraction));
        }
    }
    if let Some(Value::Number(order)) = check(super::options::Kind::Order, text) {
        assert!(ORDERS.contains(&(order as u32)));
    }
    let _ = features_setting(text);
}

/// A whole command line, its words separated by NUL bytes, and everything that a command may ask its arguments for.
///
/// # Panics
/// When a parsed line cannot be asked.
pub fn command_line(data: &[u8]) {
    let words = data
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()));
    if let Ok(Parsed::Run(invocation)) = parse(words, &Environment::default()) {
        ask(&invocation);
    }
}

fn ask(invocation: &Invocation) {
    let args = &invocation.args;
    let sides = [
        ImageQuery::source(),
        ImageQuery::dest(),
        ImageQuery::group(),
        ImageQuery::dest_group(),
        ImageQuery::group_of_image(),
        ImageQuery::image_of_group(),
    ];
    for query in sides {
        // A command asks for what its entry in the table has.
        if !query
            .side
            .options()
            .iter()
            .take(3)
            .all(|option| args.declares(option))
        {
            continue;
        }
        let snap = if args.declares(query.side.options()[3]) {
            SnapRule::Optional
        } else {
            SnapRule::Forbidden
        };
        if let Ok(spec) = args.image(query.snap(snap)) {
            assert!(!spec.image.is_empty() && !spec.pool.is_empty(), "{spec}");
        }
    }
    if args.declares("pool") && args.declares("namespace") {
        let _ = args.remaining_images();
    }
    let _ = args.finish();
    let _ = invocation.config_overrides.default_features();
    let _ = invocation.config_overrides.default_order();
}
