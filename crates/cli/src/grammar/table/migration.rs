//! The four verbs of live migration.

use super::super::options::*;
use super::*;

pub(super) const COMMANDS: &[Command] = &[
    Command::built(CommandId::MigrationAbort, &["migration", "abort"], "Give up a migration and go back to the source.")
        .positionals(&[IMAGE_SPEC])
        .options(&[
            IMAGE_NAMES,
            &[NO_PROGRESS, FORCE.help("abort although something would be lost (without it, the error names what)")],
        ])
        .notes(&["--force is an addition of Ferry."]),
    Command::built(CommandId::MigrationCommit, &["migration", "commit"], "End a migration and delete the source.")
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES, &[NO_PROGRESS, FORCE.help("commit although the image has children")]]),
    Command::built(CommandId::MigrationExecute, &["migration", "execute"], "Copy what has not been copied yet.")
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES, &[NO_PROGRESS]])
        .notes(&["The image can be used meanwhile. A run that was interrupted is continued by running it again."]),
    Command::built(
        CommandId::MigrationPrepare,
        &["migration", "prepare"],
        "Put a new image in front of a source; from then on only the new one is used.",
    )
    .positionals(&[
        SOURCE_IMAGE_OR_SNAP_SPEC,
        optional("dest-image-spec", "destination image, as [POOL/[NAMESPACE/]]IMAGE; the source's name without it"),
    ])
    .options(&[
        &[IMPORT_ONLY, SOURCE_SPEC_PATH, SOURCE_SPEC],
        SOURCE_NAMES,
        SOURCE_SNAP,
        DEST_NAMES,
        IMAGE_FORMAT,
        LAYOUT,
        &[FLATTEN],
    ])
    .notes(&[
        "Layout options that are left out are taken from the source. A snapshot can only be named with --import-only.",
        FEATURES_NOTE,
    ]),
];
