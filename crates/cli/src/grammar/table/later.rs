//! Commands of Ceph's `rbd` that Ferry has not built yet. They have full entries, so that help explains them and
//! building one is a matter of its body.

use super::super::options::*;
use super::*;

const KEY: Positional = positional("key", "name of the setting");
const VALUE: Positional = positional("value", "its value");
const ENTITY: Positional = positional(
    "config-entity",
    "whom the setting is for: global, client or client.ID",
);
const GROUP_SPEC: Positional = positional("group-spec", "group, as [POOL/[NAMESPACE/]]GROUP");
const GROUP_SNAP_SPEC: Positional = positional(
    "group-snap-spec",
    "snapshot of a group, as [POOL/[NAMESPACE/]]GROUP@SNAP",
);
const JOURNAL_SPEC: Positional = positional("journal-spec", "journal, as [POOL/[NAMESPACE/]]JOURNAL");
const DEVICE_SPEC: Positional = positional(
    "image-or-snap-or-device-spec",
    "image, snapshot or path of the device, as [POOL/[NAMESPACE/]]IMAGE[@SNAP] or PATH",
);
const INTERVAL: Positional = positional("interval", "time between two runs, e.g. 1d, 12h or 30m");
const START_TIME: Positional = optional("start-time", "time of the first run");
const ANY_INTERVAL: Positional = optional("interval", "time between two runs");
const PEER_UUID: Positional = positional("uuid", "id of the peer");
const FEATURES: Positional = many(
    "features",
    "names of features: exclusive-lock, object-map, fast-diff, journaling",
);

pub(super) const COMMANDS: &[Command] = &[
    Command::to_come(
        &["config", "global", "get"],
        "Print a setting of all clients or one client.",
    )
    .positionals(&[ENTITY, KEY]),
    Command::to_come(
        &["config", "global", "list"],
        "List the settings of all clients or one client.",
    )
    .aliases(&[&["config", "global", "ls"]])
    .positionals(&[ENTITY])
    .options(&[FORMAT]),
    Command::to_come(
        &["config", "global", "remove"],
        "Delete a setting of all clients or one client.",
    )
    .aliases(&[&["config", "global", "rm"]])
    .positionals(&[ENTITY, KEY]),
    Command::to_come(
        &["config", "global", "set"],
        "Change a setting of all clients or one client.",
    )
    .positionals(&[ENTITY, KEY, VALUE]),
    Command::to_come(&["config", "image", "get"], "Print a setting of an image.")
        .positionals(&[IMAGE_SPEC, KEY])
        .options(&[IMAGE_NAMES]),
    Command::to_come(&["config", "image", "list"], "List the settings of an image.")
        .aliases(&[&["config", "image", "ls"]])
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES, FORMAT]),
    Command::to_come(&["config", "image", "remove"], "Delete a setting of an image.")
        .aliases(&[&["config", "image", "rm"]])
        .positionals(&[IMAGE_SPEC, KEY])
        .options(&[IMAGE_NAMES]),
    Command::to_come(&["config", "image", "set"], "Change a setting of an image.")
        .positionals(&[IMAGE_SPEC, KEY, VALUE])
        .options(&[IMAGE_NAMES]),
    Command::to_come(&["config", "pool", "get"], "Print a setting of a pool.").positionals(&[POOL_NAME, KEY]),
    Command::to_come(&["config", "pool", "list"], "List the settings of a pool.")
        .aliases(&[&["config", "pool", "ls"]])
        .positionals(&[POOL_NAME])
        .options(&[FORMAT]),
    Command::to_come(&["config", "pool", "remove"], "Delete a setting of a pool.")
        .aliases(&[&["config", "pool", "rm"]])
        .positionals(&[POOL_NAME, KEY]),
    Command::to_come(&["config", "pool", "set"], "Change a setting of a pool.")
        .positionals(&[POOL_NAME, KEY, VALUE]),
    Command::to_come(&["copy"], "Copy an image or one snapshot to a new image.")
        .aliases(&[&["cp"]])
        .positionals(&[SOURCE_IMAGE_OR_SNAP_SPEC, DEST_IMAGE_SPEC])
        .options(&[
            SOURCE_NAMES,
            SOURCE_SNAP,
            DEST_NAMES,
            LAYOUT,
            &[SPARSE_SIZE, NO_PROGRESS],
        ]),
    Command::to_come(
        &["deep", "copy"],
        "Copy an image with its snapshots to a new image.",
    )
    .aliases(&[&["deep", "cp"]])
    .positionals(&[SOURCE_IMAGE_OR_SNAP_SPEC, DEST_IMAGE_SPEC])
    .options(&[
        SOURCE_NAMES,
        SOURCE_SNAP,
        DEST_NAMES,
        LAYOUT,
        &[FLATTEN, NO_PROGRESS],
    ]),
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
    Command::to_come(
        &["diff"],
        "List the extents that changed since a snapshot or since the image was made.",
    )
    .positionals(&[IMAGE_OR_SNAP_SPEC])
    .options(&[SNAP_NAMES, &[FROM_SNAP, WHOLE_OBJECT], FORMAT]),
    Command::to_come(&["encryption", "format"], "Prepare an image for encryption.")
        .positionals(&[
            IMAGE_SPEC,
            positional("format", "form of encryption: luks1 or luks2"),
            positional("passphrase-file", "file with the passphrase"),
        ])
        .options(&[IMAGE_NAMES, &[CIPHER_ALG]]),
    Command::to_come(&["export-diff"], "Write what changed since a snapshot to a file.")
        .positionals(&[SOURCE_IMAGE_OR_SNAP_SPEC, EXPORT_PATH])
        .options(&[
            SOURCE_NAMES,
            SOURCE_SNAP,
            &[PATH, FROM_SNAP, WHOLE_OBJECT, NO_PROGRESS],
        ]),
    Command::to_come(&["feature", "disable"], "Switch off features of an image.")
        .positionals(&[IMAGE_SPEC, FEATURES])
        .options(&[IMAGE_NAMES]),
    Command::to_come(&["feature", "enable"], "Switch on features of an image.")
        .positionals(&[IMAGE_SPEC, FEATURES])
        .options(&[IMAGE_NAMES, JOURNAL_OPTIONS]),
    Command::to_come(&["group", "create"], "Make a group of images.")
        .positionals(&[GROUP_SPEC])
        .options(&[GROUP_NAMES]),
    Command::to_come(&["group", "image", "add"], "Put an image into a group.")
        .positionals(&[GROUP_SPEC, IMAGE_SPEC])
        .options(&[GROUP_AND_IMAGE]),
    Command::to_come(&["group", "image", "list"], "List the images of a group.")
        .aliases(&[&["group", "image", "ls"]])
        .positionals(&[GROUP_SPEC])
        .options(&[FORMAT, GROUP_NAMES]),
    Command::to_come(&["group", "image", "remove"], "Take an image out of a group.")
        .aliases(&[&["group", "image", "rm"]])
        .positionals(&[GROUP_SPEC, IMAGE_SPEC])
        .options(&[GROUP_AND_IMAGE, &[IMAGE_ID]]),
    Command::to_come(&["group", "list"], "List the groups of a pool.")
        .aliases(&[&["group", "ls"]])
        .positionals(&[POOL_SPEC])
        .options(&[POOL_NAMES, FORMAT]),
    Command::to_come(&["group", "remove"], "Delete a group; its images stay.")
        .aliases(&[&["group", "rm"]])
        .positionals(&[GROUP_SPEC])
        .options(&[GROUP_NAMES]),
    Command::to_come(&["group", "rename"], "Give a group another name in its pool.")
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
    Command::to_come(
        &["group", "snap", "create"],
        "Take a snapshot of all images of a group at one moment.",
    )
    .positionals(&[GROUP_SNAP_SPEC])
    .options(&[GROUP_NAMES, &[SNAP, SKIP_QUIESCE, IGNORE_QUIESCE_ERROR]]),
    Command::to_come(&["group", "snap", "list"], "List the snapshots of a group.")
        .aliases(&[&["group", "snap", "ls"]])
        .positionals(&[GROUP_SPEC])
        .options(&[FORMAT, GROUP_NAMES]),
    Command::to_come(&["group", "snap", "remove"], "Delete a snapshot of a group.")
        .aliases(&[&["group", "snap", "rm"]])
        .positionals(&[GROUP_SNAP_SPEC])
        .options(&[GROUP_NAMES, &[SNAP]]),
    Command::to_come(
        &["group", "snap", "rename"],
        "Give a snapshot of a group another name.",
    )
    .positionals(&[GROUP_SNAP_SPEC, positional("dest-snap", "its new name")])
    .options(&[GROUP_NAMES, &[SNAP], DEST_SNAP]),
    Command::to_come(
        &["group", "snap", "rollback"],
        "Put all images of a group back to the state of a snapshot.",
    )
    .positionals(&[GROUP_SNAP_SPEC])
    .options(&[&[NO_PROGRESS], GROUP_NAMES, &[SNAP]]),
    Command::to_come(&["import-diff"], "Apply a file of changes to an image.")
        .positionals(&[IMPORT_PATH, IMAGE_SPEC])
        .options(&[&[PATH], IMAGE_NAMES, &[SPARSE_SIZE, NO_PROGRESS]]),
    Command::to_come(
        &["journal", "client", "disconnect"],
        "Mark a client of an image's journal as gone.",
    )
    .positionals(&[JOURNAL_SPEC])
    .options(&[JOURNAL_NAMES, &[CLIENT_ID]]),
    Command::to_come(&["journal", "export"], "Write an image's journal to a file.")
        .positionals(&[
            positional("source-journal-spec", "journal, as [POOL/[NAMESPACE/]]JOURNAL"),
            EXPORT_PATH,
        ])
        .options(&[JOURNAL_NAMES, &[PATH, VERBOSE, NO_ERROR]]),
    Command::to_come(&["journal", "import"], "Read an image's journal from a file.")
        .positionals(&[
            IMPORT_PATH,
            positional("dest-journal-spec", "journal, as [POOL/[NAMESPACE/]]JOURNAL"),
        ])
        .options(&[&[PATH], DEST_NAMES, &[DEST_JOURNAL, VERBOSE, NO_ERROR]]),
    Command::to_come(&["journal", "info"], "Show the layout of an image's journal.")
        .positionals(&[JOURNAL_SPEC])
        .options(&[JOURNAL_NAMES, FORMAT]),
    Command::to_come(&["journal", "inspect"], "Look for damage in an image's journal.")
        .positionals(&[JOURNAL_SPEC])
        .options(&[JOURNAL_NAMES, &[VERBOSE]]),
    Command::to_come(&["journal", "reset"], "Empty an image's journal.")
        .positionals(&[JOURNAL_SPEC])
        .options(&[JOURNAL_NAMES]),
    Command::to_come(
        &["journal", "status"],
        "Show who reads an image's journal and how far.",
    )
    .positionals(&[JOURNAL_SPEC])
    .options(&[JOURNAL_NAMES, FORMAT]),
    Command::to_come(&["lock", "add"], "Take an advisory lock on an image.")
        .positionals(&[IMAGE_SPEC, positional("lock-id", "name for the lock")])
        .options(&[IMAGE_NAMES, &[SHARED]]),
    Command::to_come(&["lock", "remove"], "Break a lock on an image.")
        .aliases(&[&["lock", "rm"]])
        .positionals(&[
            IMAGE_SPEC,
            positional("lock-id", "name of the lock"),
            positional("locker", "client that holds it"),
        ])
        .options(&[IMAGE_NAMES]),
    Command::to_come(
        &["merge-diff"],
        "Join two files of changes that follow each other.",
    )
    .positionals(&[
        positional("diff1-path", "first file of changes ('-' for stdin)"),
        positional("diff2-path", "second file of changes"),
        EXPORT_PATH,
    ])
    .options(&[&[PATH, NO_PROGRESS]]),
    Command::to_come(&["mirror", "image", "demote"], "Make an image a mirrored copy.")
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES]),
    Command::to_come(&["mirror", "image", "disable"], "Stop mirroring an image.")
        .positionals(&[IMAGE_SPEC])
        .options(&[&[FORCE], IMAGE_NAMES]),
    Command::to_come(&["mirror", "image", "enable"], "Start mirroring an image.")
        .positionals(&[
            IMAGE_SPEC,
            optional("mode", "way of mirroring: journal or snapshot [default: journal]"),
        ])
        .options(&[IMAGE_NAMES]),
    Command::to_come(
        &["mirror", "image", "promote"],
        "Make a mirrored copy the image that is written to.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[&[FORCE], IMAGE_NAMES]),
    Command::to_come(&["mirror", "image", "resync"], "Copy a mirrored image anew.")
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES]),
    Command::to_come(&["mirror", "image", "snapshot"], "Take a snapshot for mirroring.")
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES, &[SKIP_QUIESCE, IGNORE_QUIESCE_ERROR]]),
    Command::to_come(
        &["mirror", "image", "status"],
        "Show how mirroring of an image stands.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, FORMAT]),
    Command::to_come(
        &["mirror", "pool", "demote"],
        "Make all images of a pool mirrored copies.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES]),
    Command::to_come(&["mirror", "pool", "disable"], "Stop mirroring a pool.")
        .positionals(&[POOL_SPEC])
        .options(&[POOL_NAMES]),
    Command::to_come(&["mirror", "pool", "enable"], "Start mirroring a pool.")
        .positionals(&[POOL_SPEC, positional("mode", "what is mirrored: image or pool")])
        .options(&[POOL_NAMES, &[SITE_NAME]]),
    Command::to_come(
        &["mirror", "pool", "info"],
        "Show the mirroring settings of a pool.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES, FORMAT, &[MIRROR_ALL]]),
    Command::to_come(
        &["mirror", "pool", "peer", "add"],
        "Add a cluster to mirror with.",
    )
    .positionals(&[
        POOL_NAME,
        positional("remote-cluster-spec", "remote cluster, as [CLIENT@]CLUSTER"),
    ])
    .options(&[&[POOL], PEER_OPTIONS, &[DIRECTION]]),
    Command::to_come(
        &["mirror", "pool", "peer", "bootstrap", "create"],
        "Make a token for a cluster to mirror with.",
    )
    .positionals(&[POOL_NAME])
    .options(&[&[POOL, SITE_NAME]]),
    Command::to_come(
        &["mirror", "pool", "peer", "bootstrap", "import"],
        "Read a token that another cluster made.",
    )
    .positionals(&[
        POOL_NAME,
        positional("token-path", "file of the token ('-' for stdin)"),
    ])
    .options(&[&[POOL, SITE_NAME, TOKEN_PATH, DIRECTION]]),
    Command::to_come(
        &["mirror", "pool", "peer", "remove"],
        "Stop mirroring with a cluster.",
    )
    .positionals(&[POOL_NAME, PEER_UUID])
    .options(&[&[POOL]]),
    Command::to_come(
        &["mirror", "pool", "peer", "set"],
        "Change how a cluster is mirrored with.",
    )
    .positionals(&[POOL_NAME, PEER_UUID, KEY, VALUE])
    .options(&[&[POOL]]),
    Command::to_come(
        &["mirror", "pool", "promote"],
        "Make all mirrored copies of a pool the images that are written to.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[&[FORCE], POOL_NAMES]),
    Command::to_come(
        &["mirror", "pool", "status"],
        "Show how mirroring of a pool stands.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES, FORMAT, &[VERBOSE]]),
    Command::to_come(
        &["mirror", "snapshot", "schedule", "add"],
        "Take mirroring snapshots from time to time.",
    )
    .positionals(&[INTERVAL, START_TIME])
    .options(&[IMAGE_NAMES]),
    Command::to_come(
        &["mirror", "snapshot", "schedule", "list"],
        "List the schedules of mirroring snapshots.",
    )
    .aliases(&[&["mirror", "snapshot", "schedule", "ls"]])
    .options(&[IMAGE_NAMES, &[RECURSIVE], FORMAT]),
    Command::to_come(
        &["mirror", "snapshot", "schedule", "remove"],
        "Delete a schedule of mirroring snapshots.",
    )
    .aliases(&[&["mirror", "snapshot", "schedule", "rm"]])
    .positionals(&[ANY_INTERVAL, START_TIME])
    .options(&[IMAGE_NAMES]),
    Command::to_come(
        &["mirror", "snapshot", "schedule", "status"],
        "Show when mirroring snapshots are due.",
    )
    .options(&[IMAGE_NAMES, FORMAT]),
    Command::to_come(
        &["perf", "image", "iostat"],
        "Show how busy the images of a pool are.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES, &[ITERATIONS, SORT_BY], FORMAT]),
    Command::to_come(
        &["perf", "image", "iotop"],
        "Watch how busy the images of a pool are.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES]),
    Command::to_come(
        &["persistent-cache", "flush"],
        "Write a persistent cache back to its image.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[IMAGE_ID]]),
    Command::to_come(
        &["persistent-cache", "invalidate"],
        "Throw away a persistent cache, even with unwritten data.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[IMAGE_ID]]),
    Command::to_come(&["sparsify"], "Give back the space of an image's zeros.")
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES, &[NO_PROGRESS, SPARSE_SIZE]]),
    Command::to_come(
        &["trash", "purge", "schedule", "add"],
        "Empty the trash from time to time.",
    )
    .positionals(&[INTERVAL, START_TIME])
    .options(&[POOL_NAMES]),
    Command::to_come(
        &["trash", "purge", "schedule", "list"],
        "List the schedules that empty the trash.",
    )
    .aliases(&[&["trash", "purge", "schedule", "ls"]])
    .options(&[POOL_NAMES, &[RECURSIVE], FORMAT]),
    Command::to_come(
        &["trash", "purge", "schedule", "remove"],
        "Delete a schedule that empties the trash.",
    )
    .aliases(&[&["trash", "purge", "schedule", "rm"]])
    .positionals(&[ANY_INTERVAL, START_TIME])
    .options(&[POOL_NAMES]),
    Command::to_come(
        &["trash", "purge", "schedule", "status"],
        "Show when the trash is emptied next.",
    )
    .options(&[POOL_NAMES, FORMAT]),
];
