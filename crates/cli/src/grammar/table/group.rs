//! Commands on groups of images and their snapshots.

use super::super::options::*;
use super::*;

const GROUP_SPEC: Positional = positional("group-spec", "group, as [POOL/[NAMESPACE/]]GROUP");
const GROUP_SNAP_SPEC: Positional = positional(
    "group-snap-spec",
    "snapshot of a group, as [POOL/[NAMESPACE/]]GROUP@SNAP",
);

pub(super) const COMMANDS: &[Command] = &[
    Command::built(
        CommandId::GroupCreate,
        &["group", "create"],
        "Make a group of images.",
    )
    .positionals(&[GROUP_SPEC])
    .options(&[GROUP_NAMES]),
    Command::built(
        CommandId::GroupImageAdd,
        &["group", "image", "add"],
        "Put an image into a group.",
    )
    .positionals(&[GROUP_SPEC, IMAGE_SPEC])
    .options(&[GROUP_AND_IMAGE]),
    Command::built(
        CommandId::GroupImageList,
        &["group", "image", "list"],
        "List the images of a group.",
    )
    .aliases(&[&["group", "image", "ls"]])
    .positionals(&[GROUP_SPEC])
    .options(&[FORMAT, GROUP_NAMES]),
    Command::built(
        CommandId::GroupImageRemove,
        &["group", "image", "remove"],
        "Take an image out of a group.",
    )
    .aliases(&[&["group", "image", "rm"]])
    .positionals(&[GROUP_SPEC, IMAGE_SPEC])
    .options(&[GROUP_AND_IMAGE, &[IMAGE_ID]]),
    Command::built(
        CommandId::GroupList,
        &["group", "list"],
        "List the groups of a pool.",
    )
    .aliases(&[&["group", "ls"]])
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES, FORMAT]),
    Command::built(
        CommandId::GroupRemove,
        &["group", "remove"],
        "Delete a group; its images stay.",
    )
    .aliases(&[&["group", "rm"]])
    .positionals(&[GROUP_SPEC])
    .options(&[GROUP_NAMES]),
    Command::built(
        CommandId::GroupRename,
        &["group", "rename"],
        "Give a group another name in its pool.",
    )
    .positionals(&[
        positional("source-group-spec", "group, as [POOL/[NAMESPACE/]]GROUP"),
        positional("dest-group-spec", "its new name, as [POOL/[NAMESPACE/]]GROUP"),
    ])
    .options(&[
        GROUP_NAMES,
        &[
            Opt::new("dest-pool", Kind::Text, "pool of the destination"),
            Opt::new("dest-namespace", Kind::Text, "namespace of the destination"),
            DEST_GROUP,
        ],
    ]),
    Command::built(
        CommandId::GroupSnapCreate,
        &["group", "snap", "create"],
        "Take a snapshot of all images of a group at one moment.",
    )
    .positionals(&[GROUP_SNAP_SPEC])
    .options(&[GROUP_NAMES, &[SNAP, SKIP_QUIESCE, IGNORE_QUIESCE_ERROR]]),
    Command::built(
        CommandId::GroupSnapList,
        &["group", "snap", "list"],
        "List the snapshots of a group.",
    )
    .aliases(&[&["group", "snap", "ls"]])
    .positionals(&[GROUP_SPEC])
    .options(&[FORMAT, GROUP_NAMES]),
    Command::built(
        CommandId::GroupSnapRemove,
        &["group", "snap", "remove"],
        "Delete a snapshot of a group.",
    )
    .aliases(&[&["group", "snap", "rm"]])
    .positionals(&[GROUP_SNAP_SPEC])
    .options(&[GROUP_NAMES, &[SNAP]]),
    Command::built(
        CommandId::GroupSnapRename,
        &["group", "snap", "rename"],
        "Give a snapshot of a group another name.",
    )
    .positionals(&[GROUP_SNAP_SPEC, positional("dest-snap", "its new name")])
    .options(&[GROUP_NAMES, &[SNAP], DEST_SNAP]),
    Command::built(
        CommandId::GroupSnapRollback,
        &["group", "snap", "rollback"],
        "Put all images of a group back to the state of a snapshot.",
    )
    .positionals(&[GROUP_SNAP_SPEC])
    .options(&[&[NO_PROGRESS], GROUP_NAMES, &[SNAP]]),
];
