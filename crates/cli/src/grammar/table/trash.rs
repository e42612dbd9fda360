//! The trash: images that are out of sight and can still be brought back.

use super::super::options::*;
use super::*;

const TRASH_ID: Positional = positional("image-id", "id of the image, as [POOL/[NAMESPACE/]]ID");

pub(super) const COMMANDS: &[Command] = &[
    Command::built(
        CommandId::TrashList,
        &["trash", "list"],
        "List the images in the trash.",
    )
    .aliases(&[&["trash", "ls"]])
    .positionals(&[POOL_SPEC])
    .options(&[
        POOL_NAMES,
        &[
            ALL.help("include sources of migrations and other hidden entries"),
            LONG,
        ],
        FORMAT,
    ]),
    Command::built(
        CommandId::TrashMove,
        &["trash", "move"],
        "Put an image into the trash.",
    )
    .aliases(&[&["trash", "mv"]])
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[EXPIRES_AT]]),
    Command::built(
        CommandId::TrashPurge,
        &["trash", "purge"],
        "Delete the expired images in the trash.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES, &[NO_PROGRESS, EXPIRED_BEFORE, THRESHOLD]]),
    Command::built(
        CommandId::TrashRemove,
        &["trash", "remove"],
        "Delete one image in the trash.",
    )
    .aliases(&[&["trash", "rm"]])
    .positionals(&[TRASH_ID])
    .options(&[
        POOL_NAMES,
        &[
            IMAGE_ID,
            NO_PROGRESS,
            FORCE.help("delete it although it has not expired"),
        ],
    ]),
    Command::built(
        CommandId::TrashRestore,
        &["trash", "restore"],
        "Bring an image back from the trash.",
    )
    .positionals(&[TRASH_ID])
    .options(&[
        POOL_NAMES,
        &[IMAGE_ID, IMAGE.help("name for the image, if not its old one")],
    ]),
];
