//! The four verbs of live migration, and those that say how fast it goes.

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
        .options(&[IMAGE_NAMES, EXECUTE_LIMITS, &[ZERO_DETECT, NO_PROGRESS]])
        .notes(&[
            "The image can be used meanwhile. A run that was interrupted is continued by running it again.",
            "The limits and --zero-detect are additions of Ferry. They stay until the migration ends; 'rbd migration \
             throttle' changes them while the copy runs. While it is paused, execute waits, and so it does while no more space is free than is left to clients.",
        ]),
    Command::built(CommandId::MigrationPause, &["migration", "pause"], "Let the copy of a migration stand still.")
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES])
        .notes(&[
            "An addition of Ferry. The pause holds until 'rbd migration resume', whatever processes end or begin; the \
             image can be used all the time.",
        ]),
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
    Command::built(CommandId::MigrationResume, &["migration", "resume"], "Let a paused copy go on.")
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES])
        .notes(&["An addition of Ferry. An execute that waits goes on at once; without one, run 'rbd migration execute'."]),
    Command::built(
        CommandId::MigrationThrottle,
        &["migration", "throttle"],
        "Say how fast the copy of a migration may go, also while it runs.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, EXECUTE_LIMITS])
    .notes(&[
        "An addition of Ferry. Without limits it shows those in force. With 'auto' for both, the copy goes at full speed \
         while no client uses the image, and at little speed while one does.",
    ]),
];
