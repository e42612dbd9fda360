//! Commands of Ceph's `rbd` for what Ferry does not do. They have full entries, so that help explains them and says why.

use super::super::options::*;
use super::*;

const SCHEDULES: &str =
    "schedules are run by Ceph's manager; let a timer of the system run 'rbd trash purge'";
const MANAGER: &str =
    "these figures come from Ceph's manager; 'rbd serve --metrics' has those of a server's images";
const CACHES: &str = "Ferry keeps no write-back cache on the client";
const KEY: Positional = positional("key", "name of the setting");
const VALUE: Positional = positional("value", "its value");
const JOURNAL_SPEC: Positional = positional("journal-spec", "journal, as [POOL/[NAMESPACE/]]JOURNAL");
const INTERVAL: Positional = positional("interval", "time between two runs, e.g. 1d, 12h or 30m");
const START_TIME: Positional = optional("start-time", "time of the first run");
const ANY_INTERVAL: Positional = optional("interval", "time between two runs");
const PEER_UUID: Positional = positional("uuid", "id of the peer");

pub(super) const COMMANDS: &[Command] = &[
    Command::unsupported(
        JOURNALS,
        &["journal", "client", "disconnect"],
        "Mark a client of an image's journal as gone.",
    )
    .positionals(&[JOURNAL_SPEC])
    .options(&[JOURNAL_NAMES, &[CLIENT_ID]]),
    Command::unsupported(
        JOURNALS,
        &["journal", "export"],
        "Write an image's journal to a file.",
    )
    .positionals(&[
        positional("source-journal-spec", "journal, as [POOL/[NAMESPACE/]]JOURNAL"),
        EXPORT_PATH,
    ])
    .options(&[JOURNAL_NAMES, &[PATH, VERBOSE, NO_ERROR]]),
    Command::unsupported(
        JOURNALS,
        &["journal", "import"],
        "Read an image's journal from a file.",
    )
    .positionals(&[
        IMPORT_PATH,
        positional("dest-journal-spec", "journal, as [POOL/[NAMESPACE/]]JOURNAL"),
    ])
    .options(&[&[PATH], DEST_NAMES, &[DEST_JOURNAL, VERBOSE, NO_ERROR]]),
    Command::unsupported(
        JOURNALS,
        &["journal", "info"],
        "Show the layout of an image's journal.",
    )
    .positionals(&[JOURNAL_SPEC])
    .options(&[JOURNAL_NAMES, FORMAT]),
    Command::unsupported(
        JOURNALS,
        &["journal", "inspect"],
        "Look for damage in an image's journal.",
    )
    .positionals(&[JOURNAL_SPEC])
    .options(&[JOURNAL_NAMES, &[VERBOSE]]),
    Command::unsupported(JOURNALS, &["journal", "reset"], "Empty an image's journal.")
        .positionals(&[JOURNAL_SPEC])
        .options(&[JOURNAL_NAMES]),
    Command::unsupported(
        JOURNALS,
        &["journal", "status"],
        "Show who reads an image's journal and how far.",
    )
    .positionals(&[JOURNAL_SPEC])
    .options(&[JOURNAL_NAMES, FORMAT]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "image", "demote"],
        "Make an image a mirrored copy.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "image", "disable"],
        "Stop mirroring an image.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[&[FORCE], IMAGE_NAMES]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "image", "enable"],
        "Start mirroring an image.",
    )
    .positionals(&[
        IMAGE_SPEC,
        optional("mode", "way of mirroring: journal or snapshot [default: journal]"),
    ])
    .options(&[IMAGE_NAMES]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "image", "promote"],
        "Make a mirrored copy the image that is written to.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[&[FORCE], IMAGE_NAMES]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "image", "resync"],
        "Copy a mirrored image anew.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "image", "snapshot"],
        "Take a snapshot for mirroring.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[SKIP_QUIESCE, IGNORE_QUIESCE_ERROR]]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "image", "status"],
        "Show how mirroring of an image stands.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, FORMAT]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "pool", "demote"],
        "Make all images of a pool mirrored copies.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES]),
    Command::unsupported(MIRRORS, &["mirror", "pool", "disable"], "Stop mirroring a pool.")
        .positionals(&[POOL_SPEC])
        .options(&[POOL_NAMES]),
    Command::unsupported(MIRRORS, &["mirror", "pool", "enable"], "Start mirroring a pool.")
        .positionals(&[POOL_SPEC, positional("mode", "what is mirrored: image or pool")])
        .options(&[POOL_NAMES, &[SITE_NAME]]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "pool", "info"],
        "Show the mirroring settings of a pool.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES, FORMAT, &[MIRROR_ALL]]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "pool", "peer", "add"],
        "Add a cluster to mirror with.",
    )
    .positionals(&[
        POOL_NAME,
        positional("remote-cluster-spec", "remote cluster, as [CLIENT@]CLUSTER"),
    ])
    .options(&[&[POOL], PEER_OPTIONS, &[DIRECTION]]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "pool", "peer", "bootstrap", "create"],
        "Make a token for a cluster to mirror with.",
    )
    .positionals(&[POOL_NAME])
    .options(&[&[POOL, SITE_NAME]]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "pool", "peer", "bootstrap", "import"],
        "Read a token that another cluster made.",
    )
    .positionals(&[
        POOL_NAME,
        positional("token-path", "file of the token ('-' for stdin)"),
    ])
    .options(&[&[POOL, SITE_NAME, TOKEN_PATH, DIRECTION]]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "pool", "peer", "remove"],
        "Stop mirroring with a cluster.",
    )
    .positionals(&[POOL_NAME, PEER_UUID])
    .options(&[&[POOL]]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "pool", "peer", "set"],
        "Change how a cluster is mirrored with.",
    )
    .positionals(&[POOL_NAME, PEER_UUID, KEY, VALUE])
    .options(&[&[POOL]]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "pool", "promote"],
        "Make all mirrored copies of a pool the images that are written to.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[&[FORCE], POOL_NAMES]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "pool", "status"],
        "Show how mirroring of a pool stands.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES, FORMAT, &[VERBOSE]]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "snapshot", "schedule", "add"],
        "Take mirroring snapshots from time to time.",
    )
    .positionals(&[INTERVAL, START_TIME])
    .options(&[IMAGE_NAMES]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "snapshot", "schedule", "list"],
        "List the schedules of mirroring snapshots.",
    )
    .aliases(&[&["mirror", "snapshot", "schedule", "ls"]])
    .options(&[IMAGE_NAMES, &[RECURSIVE], FORMAT]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "snapshot", "schedule", "remove"],
        "Delete a schedule of mirroring snapshots.",
    )
    .aliases(&[&["mirror", "snapshot", "schedule", "rm"]])
    .positionals(&[ANY_INTERVAL, START_TIME])
    .options(&[IMAGE_NAMES]),
    Command::unsupported(
        MIRRORS,
        &["mirror", "snapshot", "schedule", "status"],
        "Show when mirroring snapshots are due.",
    )
    .options(&[IMAGE_NAMES, FORMAT]),
    Command::unsupported(
        MANAGER,
        &["perf", "image", "iostat"],
        "Show how busy the images of a pool are.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES, &[ITERATIONS, SORT_BY], FORMAT]),
    Command::unsupported(
        MANAGER,
        &["perf", "image", "iotop"],
        "Watch how busy the images of a pool are.",
    )
    .positionals(&[POOL_SPEC])
    .options(&[POOL_NAMES]),
    Command::unsupported(
        CACHES,
        &["persistent-cache", "flush"],
        "Write a persistent cache back to its image.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[IMAGE_ID]]),
    Command::unsupported(
        CACHES,
        &["persistent-cache", "invalidate"],
        "Throw away a persistent cache, even with unwritten data.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[IMAGE_ID]]),
    Command::unsupported(
        SCHEDULES,
        &["trash", "purge", "schedule", "add"],
        "Empty the trash from time to time.",
    )
    .positionals(&[INTERVAL, START_TIME])
    .options(&[POOL_NAMES]),
    Command::unsupported(
        SCHEDULES,
        &["trash", "purge", "schedule", "list"],
        "List the schedules that empty the trash.",
    )
    .aliases(&[&["trash", "purge", "schedule", "ls"]])
    .options(&[POOL_NAMES, &[RECURSIVE], FORMAT]),
    Command::unsupported(
        SCHEDULES,
        &["trash", "purge", "schedule", "remove"],
        "Delete a schedule that empties the trash.",
    )
    .aliases(&[&["trash", "purge", "schedule", "rm"]])
    .positionals(&[ANY_INTERVAL, START_TIME])
    .options(&[POOL_NAMES]),
    Command::unsupported(
        SCHEDULES,
        &["trash", "purge", "schedule", "status"],
        "Show when the trash is emptied next.",
    )
    .options(&[POOL_NAMES, FORMAT]),
];
