//! Commands on the snapshots of an image.

use super::super::options::*;
use super::*;

const SHOW_ALL: Opt = ALL.help("include snapshots that groups, mirroring and the trash keep");

pub(super) const COMMANDS: &[Command] = &[
    Command::built(CommandId::SnapCreate, &["snap", "create"], "Take a snapshot.")
        .aliases(&[&["snap", "add"]])
        .positionals(&[SNAP_SPEC])
        .options(&[SNAP_NAMES, &[SKIP_QUIESCE, IGNORE_QUIESCE_ERROR, NO_PROGRESS]]),
    Command::built(
        CommandId::SnapLimitClear,
        &["snap", "limit", "clear"],
        "Allow any number of snapshots again.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES]),
    Command::built(
        CommandId::SnapLimitSet,
        &["snap", "limit", "set"],
        "Bound the number of snapshots of an image.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[LIMIT]]),
    Command::built(
        CommandId::SnapList,
        &["snap", "list"],
        "List the snapshots of an image.",
    )
    .aliases(&[&["snap", "ls"]])
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[IMAGE_ID], FORMAT, &[SHOW_ALL]]),
    Command::built(
        CommandId::SnapProtect,
        &["snap", "protect"],
        "Keep a snapshot from being deleted.",
    )
    .positionals(&[SNAP_SPEC])
    .options(&[SNAP_NAMES]),
    Command::built(
        CommandId::SnapPurge,
        &["snap", "purge"],
        "Delete every snapshot that is not protected.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[IMAGE_ID, NO_PROGRESS]]),
    Command::built(CommandId::SnapRemove, &["snap", "remove"], "Delete a snapshot.")
        .aliases(&[&["snap", "rm"]])
        .positionals(&[SNAP_SPEC])
        .options(&[
            SNAP_NAMES,
            &[
                IMAGE_ID,
                SNAP_ID,
                NO_PROGRESS,
                FORCE.help("flatten its children and unprotect it first, if needed"),
            ],
        ]),
    Command::built(
        CommandId::SnapRename,
        &["snap", "rename"],
        "Give a snapshot another name.",
    )
    .positionals(&[
        SOURCE_SNAP_SPEC,
        positional(
            "dest-snap-spec",
            "the same image with the new name, as [POOL/[NAMESPACE/]]IMAGE@SNAP",
        ),
    ])
    .options(&[SOURCE_NAMES, SOURCE_SNAP, DEST_NAMES, DEST_SNAP]),
    Command::built(
        CommandId::SnapRollback,
        &["snap", "rollback"],
        "Put an image back to the state of a snapshot.",
    )
    .aliases(&[&["snap", "revert"]])
    .positionals(&[SNAP_SPEC])
    .options(&[SNAP_NAMES, &[NO_PROGRESS]]),
    Command::built(
        CommandId::SnapUnprotect,
        &["snap", "unprotect"],
        "Let a snapshot be deleted again.",
    )
    .positionals(&[SNAP_SPEC])
    .options(&[SNAP_NAMES, &[IMAGE_ID]]),
];
