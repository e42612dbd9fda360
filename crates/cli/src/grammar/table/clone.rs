//! Commands on clones and their parents.

use super::super::options::*;
use super::*;

pub(super) const COMMANDS: &[Command] = &[
    Command::built(
        CommandId::Children,
        &["children"],
        "List the clones of an image or a snapshot.",
    )
    .positionals(&[IMAGE_OR_SNAP_SPEC])
    .options(&[SNAP_NAMES, &[SNAP_ID, CHILDREN_ALL, DESCENDANTS], FORMAT]),
    Command::built(
        CommandId::Clone,
        &["clone"],
        "Make an image that starts as a copy-on-write clone of a snapshot.",
    )
    .positionals(&[SOURCE_SNAP_SPEC, DEST_IMAGE_SPEC])
    .options(&[SOURCE_NAMES, SOURCE_SNAP, DEST_NAMES, LAYOUT])
    .notes(&[
        "Without --rbd-default-clone-format the clone is of format 1, for which the snapshot must be protected, unless the \
         cluster serves no clients older than Mimic.",
        FEATURES_NOTE,
    ]),
    Command::built(
        CommandId::Flatten,
        &["flatten"],
        "Copy the parent's data into a clone, so that it needs no parent.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[NO_PROGRESS]]),
];
