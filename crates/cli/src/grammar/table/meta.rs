//! Metadata of images: features, key and value pairs, locks, object maps.

use super::super::options::*;
use super::*;

const KEY: Positional = positional("key", "name of the metadatum");
const FEATURES: Positional = many(
    "features",
    "names of features: exclusive-lock, object-map, fast-diff, deep-flatten (off only)",
);

pub(super) const COMMANDS: &[Command] = &[
    Command::built(
        CommandId::FeatureDisable,
        &["feature", "disable"],
        "Switch off features of an image.",
    )
    .positionals(&[IMAGE_SPEC, FEATURES])
    .options(&[IMAGE_NAMES]),
    Command::built(
        CommandId::FeatureEnable,
        &["feature", "enable"],
        "Switch on features of an image.",
    )
    .positionals(&[IMAGE_SPEC, FEATURES])
    .options(&[IMAGE_NAMES, JOURNAL_OPTIONS])
    .notes(&["A new object map serves only after 'rbd object-map rebuild'."]),
    Command::built(
        CommandId::ImageMetaGet,
        &["image-meta", "get"],
        "Print one metadatum of an image.",
    )
    .positionals(&[IMAGE_SPEC, KEY])
    .options(&[IMAGE_NAMES]),
    Command::built(
        CommandId::ImageMetaList,
        &["image-meta", "list"],
        "List the metadata of an image.",
    )
    .aliases(&[&["image-meta", "ls"]])
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, FORMAT]),
    Command::built(
        CommandId::ImageMetaRemove,
        &["image-meta", "remove"],
        "Delete one metadatum of an image.",
    )
    .aliases(&[&["image-meta", "rm"]])
    .positionals(&[IMAGE_SPEC, KEY])
    .options(&[IMAGE_NAMES]),
    Command::built(
        CommandId::ImageMetaSet,
        &["image-meta", "set"],
        "Set one metadatum of an image.",
    )
    .positionals(&[IMAGE_SPEC, KEY, positional("value", "its value")])
    .options(&[IMAGE_NAMES]),
    Command::built(
        CommandId::LockList,
        &["lock", "list"],
        "Show who holds locks on an image.",
    )
    .aliases(&[&["lock", "ls"]])
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, FORMAT]),
    Command::built(
        CommandId::ObjectMapCheck,
        &["object-map", "check"],
        "Compare an object map with the objects.",
    )
    .positionals(&[IMAGE_OR_SNAP_SPEC])
    .options(&[SNAP_NAMES, &[NO_PROGRESS]]),
    Command::built(
        CommandId::ObjectMapRebuild,
        &["object-map", "rebuild"],
        "Make an object map anew from the objects.",
    )
    .positionals(&[IMAGE_OR_SNAP_SPEC])
    .options(&[SNAP_NAMES, &[NO_PROGRESS]]),
    Command::built(
        CommandId::LockAdd,
        &["lock", "add"],
        "Take an advisory lock on an image.",
    )
    .positionals(&[IMAGE_SPEC, positional("lock-id", "name for the lock")])
    .options(&[IMAGE_NAMES, &[SHARED]]),
    Command::built(
        CommandId::LockRemove,
        &["lock", "remove"],
        "Break a lock on an image.",
    )
    .aliases(&[&["lock", "rm"]])
    .positionals(&[
        IMAGE_SPEC,
        positional("lock-id", "name of the lock"),
        positional("locker", "client that holds it"),
    ])
    .options(&[IMAGE_NAMES]),
];
