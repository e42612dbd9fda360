//! The options of `rbd`, each described once. Commands list groups of these; help, parsing and typed access all
//! read the same description, so an option cannot be documented and not parsed, or parsed and not documented.

/// Why options and commands for journals are refused.
pub(super) const JOURNALS: &str =
    "Ferry writes no journals; an image with the journaling feature can be read";
/// Why those for mirroring are.
pub(super) const MIRRORS: &str = "Ferry does not mirror images to other clusters";
/// Why those for quiesce hooks are.
pub(super) const QUIESCES: &str = "Ferry runs no quiesce hooks";

/// What kind of value an option takes, and so how it is checked while parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No value.
    Switch,
    /// Any text.
    Text,
    /// One word of a list.
    Choice(&'static [&'static str]),
    /// An unsigned number up to this bound.
    Number(u64),
    /// Bytes with an optional binary suffix; no suffix means bytes.
    Size,
    /// Bytes with an optional binary suffix; no suffix means MiB (`--size`).
    ImageSize,
    /// Bytes, rounded to the nearest power of two.
    ObjectSize,
    /// Binary logarithm of the object size, 12..=25.
    Order,
    /// Names of image features, comma-separated; may be given several times.
    Features,
    /// A fraction between 0 and 1.
    Fraction,
    /// Bytes per second with an optional binary suffix, or `none` (as 0), or `auto`.
    Rate,
    /// A number from 1 to this, or `auto`.
    NumberOrAuto(u64),
}

/// Who insists on an option that is not optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nobody.
    Optional,
    /// The command, in its own words (`must specify --size <M/G/T>`); help shows it as required.
    ByCommand,
    /// The parser.
    ByParser,
}

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opt {
    /// Long name without dashes; also the key for the typed getters.
    pub long: &'static str,
    /// Second long name, accepted and not shown.
    pub alias: Option<&'static str>,
    /// Short name.
    pub short: Option<char>,
    /// Kind of value.
    pub kind: Kind,
    /// Help text.
    pub help: &'static str,
    /// Whether it may be left out.
    pub need: Need,
    /// Shown in help; deprecated spellings are not.
    pub visible: bool,
    /// Why Ferry does not do what it asks for, which is answered with this and exit 95.
    pub refused: Option<&'static str>,
    /// It may be given several times; each is one more value.
    pub repeatable: bool,
}

impl Opt {
    pub(super) const fn new(long: &'static str, kind: Kind, help: &'static str) -> Self {
        let need = Need::Optional;
        Self {
            long,
            alias: None,
            short: None,
            kind,
            help,
            need,
            visible: true,
            refused: None,
            repeatable: false,
        }
    }

    const fn text(long: &'static str, help: &'static str) -> Self {
        Self::new(long, Kind::Text, help)
    }

    const fn switch(long: &'static str, help: &'static str) -> Self {
        Self::new(long, Kind::Switch, help)
    }

    const fn short(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }

    const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }

    pub(super) const fn help(mut self, help: &'static str) -> Self {
        self.help = help;
        self
    }

    pub(super) const fn need(mut self, need: Need) -> Self {
        self.need = need;
        self
    }

    const fn hidden(mut self) -> Self {
        self.visible = false;
        self
    }

    pub(super) const fn refused(mut self, why: &'static str) -> Self {
        self.refused = Some(why);
        self
    }

    const fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    /// True if the option is followed by a value.
    pub fn takes_value(&self) -> bool {
        self.kind != Kind::Switch
    }
}

const MAX_32: u64 = u32::MAX as u64;

/// Options accepted by every command, before or after its name.
pub const GLOBAL: &[Opt] = &[
    Opt::text(
        "conf",
        "Ceph configuration file to read (implies the ceph engine)",
    )
    .short('c'),
    Opt::text("cluster", "name of the Ceph cluster (implies the ceph engine)"),
    Opt::text("id", "Ceph user without 'client.' (implies the ceph engine)"),
    Opt::text(
        "name",
        "Ceph user with its type, e.g. client.admin (implies the ceph engine)",
    )
    .short('n'),
    Opt::text(
        "mon_host",
        "addresses of the Ceph monitors (implies the ceph engine)",
    )
    .short('m')
    .alias("mon-host"),
    Opt::text(
        "keyfile",
        "file that holds the Ceph user's secret (implies the ceph engine)",
    )
    .short('K'),
    Opt::text(
        "keyring",
        "keyring file to search for the secret (implies the ceph engine)",
    )
    .short('k'),
    Opt::new(
        "connect-timeout",
        Kind::Number(86_400),
        "seconds to wait for the Ceph monitors, and in short commands for OSDs; 30 by default",
    ),
    Opt::text(
        "store",
        "directory of a local store, or the word ceph; overrides FERRY_STORE",
    ),
];

// Names of images and what they live in.
pub(super) const POOL: Opt = Opt::text("pool", "pool to work in").short('p');
pub(super) const NAMESPACE: Opt = Opt::text("namespace", "namespace within the pool");
pub(super) const IMAGE: Opt = Opt::text("image", "name of the image");
pub(super) const SNAP: Opt = Opt::text("snap", "name of the snapshot");
pub(super) const IMAGE_ID: Opt = Opt::text("image-id", "id of the image, in place of its name");
pub(super) const SNAP_ID: Opt = Opt::new(
    "snap-id",
    Kind::Number(u64::MAX),
    "number of the snapshot, in place of its name",
);
pub(super) const IMAGE_NAMES: &[Opt] = &[POOL, NAMESPACE, IMAGE];
pub(super) const SNAP_NAMES: &[Opt] = &[POOL, NAMESPACE, IMAGE, SNAP];
pub(super) const POOL_NAMES: &[Opt] = &[POOL, NAMESPACE];
pub(super) const SOURCE_NAMES: &[Opt] = &[
    POOL.help("pool of the source"),
    NAMESPACE.help("namespace of the source"),
    IMAGE.help("name of the source image"),
];
pub(super) const SOURCE_SNAP: &[Opt] = &[SNAP.help("name of the source snapshot")];
pub(super) const DEST_NAMES: &[Opt] = &[
    Opt::text("dest-pool", "pool of the destination"),
    Opt::text("dest-namespace", "namespace of the destination"),
    Opt::text("dest", "name of the destination image"),
];
pub(super) const DEST_SNAP: &[Opt] = &[Opt::text("dest-snap", "name of the destination snapshot")];
pub(super) const PATH: Opt = Opt::text("path", "file to use, in place of the positional argument");

// How answers are shown.
pub(super) const FORMAT: &[Opt] = &[
    Opt::new(
        "format",
        Kind::Choice(&["plain", "json", "xml"]),
        "form of the output: plain, json or xml [default: plain]",
    ),
    Opt::switch("pretty-format", "indent json and xml output"),
];
pub(super) const FSCK: &[Opt] = &[
    Opt::switch(
        "repair",
        "put right what can be without losing anything; each repair is told",
    ),
    Opt::switch(
        "read-data",
        "read all data too, to notice what the medium does not give back",
    ),
];
pub(super) const NO_PROGRESS: Opt = Opt::switch("no-progress", "do not show progress");
pub(super) const ALL: Opt = Opt::switch("all", "include entries that are hidden by default").short('a');
pub(super) const LONG: Opt = Opt::switch("long", "show more about each entry").short('l');
pub(super) const FORCE: Opt = Opt::switch("force", "go on although a check objects");

// Layout of a new image.
pub(super) const IMAGE_FORMAT: &[Opt] = &[
    Opt::new(
        "image-format",
        Kind::Choice(&["1", "2"]),
        "version of the image format [default: 2]",
    ),
    Opt::switch("new-format", "use image format 2").hidden(),
];
/// The layout options of every command that makes an image.
pub(super) const LAYOUT: &[Opt] = &[
    Opt::new("order", Kind::Order, "binary logarithm of the object size").hidden(),
    Opt::new(
        "object-size",
        Kind::ObjectSize,
        "size of the image's objects in B/K/M, 4K to 32M, rounded up to a power of two",
    ),
    Opt::new("image-feature", Kind::Features, FEATURES_HELP),
    Opt::switch("image-shared", "leave out the features that need a single writer"),
    Opt::new("stripe-unit", Kind::Size, "length of a stripe in B/K/M"),
    Opt::new(
        "stripe-count",
        Kind::Number(u64::MAX),
        "number of objects that a stripe is spread over",
    ),
    Opt::text("data-pool", "pool for the image's data, if not its own"),
    Opt::new(
        "mirror-image-mode",
        Kind::Choice(&["journal", "snapshot"]),
        "mirroring mode: journal or snapshot",
    )
    .refused(MIRRORS),
    Opt::new(
        "journal-splay-width",
        Kind::Number(u64::MAX),
        "number of journal objects in use at once",
    )
    .refused(JOURNALS),
    Opt::new(
        "journal-object-size",
        Kind::Size,
        "size of the journal's objects, 4K to 64M",
    )
    .refused(JOURNALS),
    Opt::text("journal-pool", "pool for the journal's objects").refused(JOURNALS),
];
/// Help text of `--image-feature`; the marks are explained by [`FEATURES_NOTE`].
pub(super) const FEATURES_HELP: &str = "features of the image, by name, separated by commas: layering(+), exclusive-lock(+*), object-map(+*), \
     fast-diff(+*), deep-flatten(+-), striping, journaling(*)";
/// What the marks behind feature names mean.
pub(super) const FEATURES_NOTE: &str = "Image features: (+) part of a new image unless features are named, (*) can be \
     switched on and off later, (-) can only be switched off later.";

// Serving.
pub(super) const SERVE: &[Opt] = &[
    SOCKET,
    LISTEN,
    Opt::switch(
        "allow-anyone",
        "let --listen go beyond this machine although clients are not verified",
    ),
    READ_ONLY.help("refuse every change, and leave locks to others"),
    Opt::text(
        "tls-certificates",
        "directory with server-cert.pem, server-key.pem and perhaps ca-cert.pem; clients must use TLS then",
    ),
    Opt::switch(
        "tls-verify-peer",
        "only clients with a certificate that ca-cert.pem has signed",
    ),
    Opt::new(
        "max-connections",
        Kind::Number(1 << 20),
        "connections at a time; one more takes the place of an unfinished handshake, or is closed [default: 128]",
    ),
    Opt::new(
        "max-requests",
        Kind::Number(1 << 16),
        "requests in flight on one connection [default: 64]",
    ),
    Opt::new(
        "max-request-bytes",
        Kind::Size,
        "data of all requests in flight on one connection, 1M to 1G [default: 64M]",
    ),
    Opt::new(
        "handshake-timeout",
        Kind::Number(86_400),
        "seconds that a client may take to choose an export [default: 30]",
    ),
    Opt::new(
        "on-enospc",
        Kind::Choice(&["fail", "pause"]),
        "what a client gets whose change finds no space: the error, or a wait until there is some (fail, pause) [default: fail]",
    ),
    Opt::text(
        "metrics",
        "port, or address and port, to show Prometheus metrics on over HTTP; a port alone is one of 127.0.0.1",
    ),
];

// The rest, in the order of the alphabet.
pub(super) const ALLOW_SHRINK: Opt =
    Opt::switch("allow-shrink", "make the image smaller, which cuts off data");
pub(super) const EXACT: Opt = Opt::switch("exact", "count bytes instead of whole objects (slow)");
pub(super) const EXPIRED_BEFORE: Opt =
    Opt::text("expired-before", "only images that expired before this date");
pub(super) const EXPIRES_AT: Opt =
    Opt::text("expires-at", "date until which the image is kept [default: now]");
pub(super) const EXPORT_FORMAT: Opt = Opt::new(
    "export-format",
    Kind::Choice(&["1", "2"]),
    "form of the file: 1 is the bare image, 2 includes snapshots [default: 1]",
);
pub(super) const FLATTEN: Opt = Opt::switch(
    "flatten",
    "copy the parent's data too, so that no parent is needed",
);
pub(super) const FROM_SNAP: Opt = Opt::text("from-snap", "snapshot to start from");
pub(super) const IGNORE_QUIESCE_ERROR: Opt =
    Opt::switch("ignore-quiesce-error", "go on when a quiesce hook fails").refused(QUIESCES);
pub(super) const IMPORT_ONLY: Opt = Opt::switch(
    "import-only",
    "only read from the source, which may be a file or another cluster",
);
pub(super) const IO_PATTERN: Opt = Opt::new(
    "io-pattern",
    Kind::Choice(&["rand", "seq", "full-seq"]),
    "order of requests: rand, seq or full-seq [default: seq]",
);
pub(super) const IO_SIZE: Opt = Opt::new(
    "io-size",
    Kind::Size,
    "size of a request in B/K/M/G/T [default: 4K]",
);
pub(super) const IO_THREADS: Opt = Opt::new(
    "io-threads",
    Kind::Number(MAX_32),
    "requests in flight [default: 16]",
);
pub(super) const IO_TOTAL: Opt = Opt::new(
    "io-total",
    Kind::Size,
    "total size of all requests in B/K/M/G/T [default: 1G]",
);
pub(super) const IO_TYPE: Opt = Opt::new(
    "io-type",
    Kind::Choice(&["read", "write", "readwrite", "rw"]),
    "what to measure: read, write or readwrite (rw)",
)
.need(Need::ByParser);
pub(super) const LIMIT: Opt =
    Opt::new("limit", Kind::Number(u64::MAX), "largest number of snapshots").need(Need::ByCommand);
pub(super) const LISTEN: Opt = Opt::text(
    "listen",
    "address and port to serve NBD on, e.g. 127.0.0.1:10809; may be given several times",
)
.repeatable();
/// What slows an execute down.
pub(super) const EXECUTE_LIMITS: &[Opt] = &[
    Opt::new(
        "max-bytes-per-second",
        Kind::Rate,
        "copy at most this much data a second, in B/K/M/G; 0 or none: no limit; auto: yield to clients [default: auto]",
    ),
    Opt::new(
        "concurrency",
        Kind::NumberOrAuto(256),
        "objects to copy at the same time, 1 to 256, or auto [default: auto]",
    ),
    Opt::new(
        "reserve-bytes",
        Kind::Rate,
        "free space to leave to clients, in B/K/M/G; 0 or none: do not look; auto: a hundredth of the medium, 64M to 4G [default: auto]",
    ),
    Opt::new(
        "on-enospc",
        Kind::Choice(&["pause", "fail"]),
        "what to do when no more than that is free: wait, or end with an error (pause, fail) [default: pause]",
    ),
];
pub(super) const MERGE_SNAPSHOTS: Opt =
    Opt::switch("merge-snapshots", "add the snapshots to their image's row");
pub(super) const RW_MIX_READ: Opt = Opt::new(
    "rw-mix-read",
    Kind::Number(100),
    "share of reads in a readwrite run, in percent [default: 50]",
);
pub(super) const SIZE: Opt = Opt::new("size", Kind::ImageSize, "size of the image in M/G/T [default: M]")
    .short('s')
    .need(Need::ByCommand);
pub(super) const SKIP_QUIESCE: Opt =
    Opt::switch("skip-quiesce", "do not ask the image's users to hold writes back");
pub(super) const SOCKET: Opt = Opt::text(
    "socket",
    "path of a Unix socket to serve NBD on; may be given several times",
)
.repeatable();
pub(super) const SOURCE_SPEC: Opt = Opt::text("source-spec", "description of the source, as JSON");
pub(super) const SOURCE_SPEC_PATH: Opt = Opt::text(
    "source-spec-path",
    "file with the description of the source ('-' for stdin)",
);
pub(super) const SPARSE_SIZE: Opt = Opt::new(
    "sparse-size",
    Kind::Size,
    "runs of zeros of this size in B/K/M are not stored [default: 4K]",
);
pub(super) const THICK_PROVISION: Opt = Opt::switch(
    "thick-provision",
    "write zeros to the whole image, so that all space is allocated",
);
pub(super) const THRESHOLD: Opt = Opt::new(
    "threshold",
    Kind::Fraction,
    "delete until the pool's data use is down to this share, 0.0 to 1.0",
);
pub(super) const WHOLE_OBJECT: Opt = Opt::switch("whole-object", "compare whole objects");

// Options of settings, devices, groups, and of what is not supported.
pub(super) const CHILDREN_ALL: Opt = ALL.help("include children in the trash");
pub(super) const CIPHER_ALG: Opt = Opt::new(
    "cipher-alg",
    Kind::Choice(&["aes-128", "aes-256"]),
    "cipher: aes-128 or aes-256 [default: aes-256]",
);
pub(super) const CLIENT_ID: Opt = Opt::text(
    "client-id",
    "journal client to disconnect; all clients without it",
);
pub(super) const COOKIE: Opt = Opt::text("cookie", "cookie of the device");
pub(super) const DESCENDANTS: Opt = Opt::switch("descendants", "include children of children");
pub(super) const DEST_GROUP: Opt = Opt::text("dest-group", "name of the destination group");
pub(super) const DEST_JOURNAL: Opt = Opt::text("dest-journal", "name of the destination journal");
pub(super) const DEVICE: Opt = Opt::text("device", "path of the device").need(Need::ByParser);
pub(super) const DEVICE_OPTIONS: Opt = Opt::text("options", "options of the device type").short('o');
pub(super) const DEVICE_TYPE: Opt = Opt::text(
    "device-type",
    "kind of device: nbd, which is the default; krbd and ggate are not supported",
)
.short('t');
pub(super) const DIRECTION: Opt = Opt::new(
    "direction",
    Kind::Choice(&["rx-only", "tx-only", "rx-tx"]),
    "direction of mirroring: rx-only or rx-tx [default: rx-tx]",
);
pub(super) const EXCLUSIVE: Opt = Opt::switch("exclusive", "do not give up the exclusive lock on request");
pub(super) const GROUP: Opt = Opt::text("group", "name of the group");
pub(super) const GROUP_NAMES: &[Opt] = &[POOL, NAMESPACE, GROUP];
pub(super) const GROUP_AND_IMAGE: &[Opt] = &[
    Opt::text("group-pool", "pool of the group"),
    Opt::text("group-namespace", "namespace of the group"),
    GROUP,
    Opt::text("image-pool", "pool of the image"),
    Opt::text("image-namespace", "namespace of the image"),
    IMAGE,
    POOL.help("pool of both, unless named separately"),
];
pub(super) const ITERATIONS: Opt = Opt::new(
    "iterations",
    Kind::Number(u64::MAX),
    "number of measurements, at least 1",
);
pub(super) const JOURNAL: Opt = Opt::text("journal", "name of the journal");
pub(super) const JOURNAL_NAMES: &[Opt] = &[POOL, NAMESPACE, IMAGE, JOURNAL];
pub(super) const JOURNAL_OPTIONS: &[Opt] = &[
    Opt::new(
        "journal-splay-width",
        Kind::Number(u64::MAX),
        "number of journal objects in use at once",
    ),
    Opt::new(
        "journal-object-size",
        Kind::Size,
        "size of the journal's objects, 4K to 64M",
    ),
    Opt::text("journal-pool", "pool for the journal's objects"),
];
pub(super) const MIRROR_ALL: Opt = Opt::switch("all", "show every attribute");
pub(super) const NO_ERROR: Opt = Opt::switch("no-error", "go on after an error");
pub(super) const PEER_OPTIONS: &[Opt] = &[
    Opt::text("remote-client-name", "user on the remote cluster"),
    Opt::text("remote-cluster", "name of the remote cluster"),
    Opt::text("remote-mon-host", "monitors of the remote cluster"),
    Opt::text("remote-key-file", "file with the remote user's key"),
];
pub(super) const QUIESCE: Opt = Opt::switch("quiesce", "run quiesce hooks");
pub(super) const QUIESCE_HOOK: Opt = Opt::text("quiesce-hook", "path of the quiesce hook");
pub(super) const READ_ONLY: Opt = Opt::switch("read-only", "attach without write access");
pub(super) const RECURSIVE: Opt = Opt::switch("recursive", "list the schedules below too").short('R');
pub(super) const SHARED: Opt = Opt::text("shared", "tag of a shared lock");
pub(super) const SHOW_COOKIE: Opt = Opt::switch("show-cookie", "print the cookie of the device");
pub(super) const SITE_NAME: Opt = Opt::text("site-name", "name of the local site");
pub(super) const SORT_BY: Opt = Opt::text("sort-by", "column to sort by [default: write-ops]");
pub(super) const TOKEN_PATH: Opt = Opt::text("token-path", "file of the token ('-' for stdin)");
pub(super) const VERBOSE: Opt = Opt::switch("verbose", "say more");
pub(super) const ZERO_DETECT: Opt = Opt::switch(
    "zero-detect",
    "do not write blocks of 4 KiB that hold only zeros, so that the image stays thin",
);
