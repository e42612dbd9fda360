//! Settings of images, pools and clients, block devices, and encryption.

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

const NO_SHOW_COOKIE: Opt = SHOW_COOKIE.refused(COOKIES);
const NO_COOKIE: Opt = COOKIE.refused(COOKIES);
const NO_EXCLUSIVE: Opt =
    EXCLUSIVE.refused("a server of Ferry gives the exclusive lock up when another client asks for it");
const NO_QUIESCE: Opt = QUIESCE.refused(QUIESCES);
const NO_QUIESCE_HOOK: Opt = QUIESCE_HOOK.refused(QUIESCES);

const COOKIES: &str =
    "cookies find a device again when another server is attached to it, which Ferry does not do";
const ENCRYPTION: &str = "Ferry encrypts nothing; use LUKS (cryptsetup) on the device that serves the image";
const ONE_SERVER: &str = "a device stays with the server that it was mapped with; unmap it and map it again";

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
    Command::unsupported(
        ONE_SERVER,
        &["device", "attach"],
        "Connect an image to a device that exists.",
    )
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
    Command::unsupported(
        ONE_SERVER,
        &["device", "detach"],
        "Disconnect an image from its device, which stays.",
    )
    .positionals(&[DEVICE_SPEC])
    .options(&[&[DEVICE_TYPE, POOL, IMAGE, SNAP, DEVICE_OPTIONS]]),
    Command::built(
        CommandId::DeviceList,
        &["device", "list"],
        "List the devices that show images.",
    )
    .aliases(&[&["device", "ls"], &["showmapped"]])
    .options(&[&[DEVICE_TYPE], FORMAT])
    .notes(&["Those that 'rbd device map' of Ferry has made on this machine, of all stores."]),
    Command::built(
        CommandId::DeviceMap,
        &["device", "map"],
        "Show an image as a block device.",
    )
    .aliases(&[&["map"]])
    .positionals(&[IMAGE_OR_SNAP_SPEC])
    .options(&[
        &[DEVICE_TYPE],
        SNAP_NAMES,
        &[
            NO_SHOW_COOKIE,
            NO_COOKIE,
            READ_ONLY,
            NO_EXCLUSIVE,
            NO_QUIESCE,
            NO_QUIESCE_HOOK,
            DEVICE_OPTIONS,
        ],
    ])
    .notes(&[
        "An 'rbd serve' of its own is started for the image, and the kernel becomes its client; the driver nbd must be loaded (modprobe nbd), and only root may do this.",
        "-o takes timeout=SECONDS (or io-timeout): after that time without an answer the kernel fails a request.",
    ]),
    Command::built(
        CommandId::DeviceUnmap,
        &["device", "unmap"],
        "Take away the block device of an image.",
    )
    .aliases(&[&["unmap"]])
    .positionals(&[DEVICE_SPEC])
    .options(&[&[DEVICE_TYPE], SNAP_NAMES, &[DEVICE_OPTIONS]])
    .notes(&["A device that is mounted is refused (16) unless -o force is given."]),
    Command::unsupported(
        ENCRYPTION,
        &["encryption", "format"],
        "Prepare an image for encryption.",
    )
    .positionals(&[
        IMAGE_SPEC,
        positional("format", "form of encryption: luks1 or luks2"),
        positional("passphrase-file", "file with the passphrase"),
    ])
    .options(&[IMAGE_NAMES, &[CIPHER_ALG]]),
];
