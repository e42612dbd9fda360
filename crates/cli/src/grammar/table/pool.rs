//! Pools and namespaces.

use super::super::options::*;
use super::*;

pub(super) const COMMANDS: &[Command] = &[
    Command::built(
        CommandId::NamespaceCreate,
        &["namespace", "create"],
        "Make a namespace in a pool.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES]),
    Command::built(
        CommandId::NamespaceList,
        &["namespace", "list"],
        "List the namespaces of a pool.",
    )
    .aliases(&[&["namespace", "ls"]])
    .positionals(&[POOL_NAME])
    .options(&[&[POOL], FORMAT]),
    Command::built(
        CommandId::NamespaceRemove,
        &["namespace", "remove"],
        "Delete an empty namespace.",
    )
    .aliases(&[&["namespace", "rm"]])
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES]),
    Command::built(
        CommandId::PoolInit,
        &["pool", "init"],
        "Mark a pool as one that holds images.",
    )
    .positionals(&[POOL_NAME])
    .options(&[&[
        POOL,
        FORCE.help("also if another application has registered the pool"),
    ]]),
    Command::built(
        CommandId::PoolStats,
        &["pool", "stats"],
        "Count the images of a pool and what they may grow to.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES, FORMAT])
    .notes(&["Images of format 1 are not counted."]),
    Command::built(
        CommandId::PoolCreate,
        &["pool", "create"],
        "Make a pool in the local store.",
    )
    .positionals(&[POOL_NAME])
    .options(&[&[PATH.help("directory for the pool's data, e.g. on another disk; in the store without it")]])
    .notes(&["An addition of Ferry, for local stores."]),
    Command::built(
        CommandId::PoolList,
        &["pool", "list"],
        "List the pools of the store.",
    )
    .aliases(&[&["pool", "ls"]])
    .options(&[FORMAT])
    .notes(&["An addition of Ferry."]),
    Command::built(
        CommandId::PoolRemove,
        &["pool", "remove"],
        "Delete an empty pool of the local store.",
    )
    .aliases(&[&["pool", "rm"]])
    .positionals(&[POOL_NAME])
    .notes(&["An addition of Ferry, for local stores."]),
];
