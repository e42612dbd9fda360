//! Commands of Ceph's `rbd` that Ferry has not built yet, and those built of their families. They have full entries, so that help explains them and
//! building one is a matter of its body.

use super::super::options::*;
use super::*;

const KEY: Positional = positional("key", "name of the setting");
const VALUE: Positional = positional("value", "its value");
const ENTITY: Positional = positional(
    "config-entity",
    "whom the setting is for: global, client or client.ID",
);
const DEVICE_SPEC: Positional = positional(
    "image-or-snap-or-device-spec",
    "image, snapshot or path of the device, as [POOL/[NAMESPACE/]]IMAGE[@SNAP] or PATH",
);

pub(super) const COMMANDS: &[Command] = &[
    Command::built(
        CommandId::ConfigGlobalGet,
        &["config", "global", "get"],
        "Print a setting of all clients or one client.",
    )
    .positionals(&[ENTITY, KEY]),
    Command::built(
        CommandId::ConfigGlobalList,
        &["config", "global", "list"],
        "List the settings of all clients or one client.",
    )
    .aliases(&[&["config", "global", "ls"]])
    .positionals(&[ENTITY])
    .options(&[FORMAT]),
    Command::built(
        CommandId::ConfigGlobalRemove,
        &["config", "global", "remove"],
        "Delete a setting of all clients or one client.",
    )
    .aliases(&[&["config", "global", "rm"]])
    .positionals(&[ENTITY, KEY]),
    Command::built(
        CommandId::ConfigGlobalSet,
        &["config", "global", "set"],
        "Change a setting of all clients or one client.",
    )
    .positionals(&[ENTITY, KEY, VALUE]),
    Command::built(
        CommandId::ConfigImageGet,
        &["config", "image", "get"],
        "Print a setting of an image.",
    )
    .positionals(&[IMAGE_SPEC, KEY])
    .options(&[IMAGE_NAMES]),
    Command::built(
        CommandId::ConfigImageList,
        &["config", "image", "list"],
        "List the settings of an image.",
    )
    .aliases(&[&["config", "image", "ls"]])
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, FORMAT]),
    Command::built(
        CommandId::ConfigImageRemove,
        &["config", "image", "remove"],
        "Delete a setting of an image.",
    )
    .aliases(&[&["config", "image", "rm"]])
    .positionals(&[IMAGE_SPEC, KEY])
    .options(&[IMAGE_NAMES]),
    Command::built(
        CommandId::ConfigImageSet,
        &["config", "image", "set"],
        "Change a setting of an image.",
    )
    .positionals(&[IMAGE_SPEC, KEY, VALUE])
    .options(&[IMAGE_NAMES]),
    Command::built(
        CommandId::ConfigPoolGet,
        &["config", "pool", "get"],
        "Print a setting of a pool.",
    )
    .positionals(&[POOL_NAME, KEY]),
    Command::built(
        CommandId::ConfigPoolList,
        &["config", "pool", "list"],
        "List the settings of a pool.",
    )
    .aliases(&[&["config", "pool", "ls"]])
    .positionals(&[POOL_NAME])
    .options(&[FORMAT]),
    Command::built(
        CommandId::ConfigPoolRemove,
        &["config", "pool", "remove"],
        "Delete a setting of a pool.",
    )
    .aliases(&[&["config", "pool", "rm"]])
    .positionals(&[POOL_NAME, KEY]),
    Command::built(
        CommandId::ConfigPoolSet,
        &["config", "pool", "set"],
        "Change a setting of a pool.",
    )
    .positionals(&[POOL_NAME, KEY, VALUE]),
    Command::to_come(&["device", "attach"], "Connect an image to a device that exists.")
        .positionals(&[IMAGE_OR_SNAP_SPEC])
        .options(&[
            &[DEVICE_TYPE],
            SNAP_NAMES,
            &[
                DEVICE,
                SHOW_COOKIE,
                COOKIE,
                READ_ONLY,
                FORCE,
                EXCLUSIVE,
                QUIESCE,
                QUIESCE_HOOK,
                DEVICE_OPTIONS,
            ],
        ]),
    Command::to_come(
        &["device", "detach"],
        "Disconnect an image from its device, which stays.",
    )
    .positionals(&[DEVICE_SPEC])
    .options(&[&[DEVICE_TYPE, POOL, IMAGE, SNAP, DEVICE_OPTIONS]]),
    Command::to_come(&["device", "list"], "List the devices that show images.")
        .aliases(&[&["device", "ls"], &["showmapped"]])
        .options(&[&[DEVICE_TYPE], FORMAT]),
    Command::to_come(&["device", "map"], "Show an image as a block device.")
        .aliases(&[&["map"]])
        .positionals(&[IMAGE_OR_SNAP_SPEC])
        .options(&[
            &[DEVICE_TYPE],
            SNAP_NAMES,
            &[
                SHOW_COOKIE,
                COOKIE,
                READ_ONLY,
                EXCLUSIVE,
                QUIESCE,
                QUIESCE_HOOK,
                DEVICE_OPTIONS,
            ],
        ]),
    Command::to_come(&["device", "unmap"], "Take away the block device of an image.")
        .aliases(&[&["unmap"]])
        .positionals(&[DEVICE_SPEC])
        .options(&[&[DEVICE_TYPE], SNAP_NAMES, &[DEVICE_OPTIONS]]),
    Command::to_come(&["encryption", "format"], "Prepare an image for encryption.")
        .positionals(&[
            IMAGE_SPEC,
            positional("format", "form of encryption: luks1 or luks2"),
            positional("passphrase-file", "file with the passphrase"),
        ])
        .options(&[IMAGE_NAMES, &[CIPHER_ALG]]),
];
