//! The table: every command that changes a store, in the situations in which it does different things.
//!
//! Lines are command lines without their `rbd`. In lines that set a store up, and in rows of servers, `write IMAGE OFFSET
//! LENGTH BYTE`, `serve IMAGE` and `clear GROUP` (of incomplete snapshots) are the harness's own ([`crate::world`]). `{dir}` is a directory, `{old}` the id of
//! the image `old` in the trash, `{locker}` who holds the lock of `vm`.

use ferry_cli::grammar::CommandId;

/// A command in a situation.
#[derive(Debug)]
pub struct Row {
    /// Which command it stands for; `None` for what a server does.
    pub command: Option<CommandId>,
    /// What is done first, on top of [`BASE`].
    pub setup: &'static [&'static str],
    /// The command.
    pub line: &'static str,
    /// Exit codes with which the same line says that it had been done.
    pub done: &'static [u8],
    /// What is run before it when it was killed or failed: what a person sees to do.
    pub first: &'static [&'static str],
    /// What is run after it then, with its codes: what a person is told to run.
    pub more: &'static [(&'static str, &'static [u8])],
    /// What ends the story, after which everything is compared once more.
    pub then: &'static [&'static str],
    /// Only the end counts: in between, what a killed one left is done by the next verb (`docs/migration.md`, prepare, row 10).
    pub judged_at_the_end: bool,
    /// The image whose bytes are not compared: they are random.
    pub random_bytes_of: &'static str,
}

impl Row {
    const fn of(command: Option<CommandId>, line: &'static str, done: &'static [u8]) -> Self {
        Self {
            command,
            setup: &[],
            line,
            done,
            first: &[],
            more: &[],
            then: &[],
            judged_at_the_end: false,
            random_bytes_of: "",
        }
    }

    const fn after(mut self, setup: &'static [&'static str]) -> Self {
        self.setup = setup;
        self
    }

    const fn first(mut self, first: &'static [&'static str]) -> Self {
        self.first = first;
        self
    }

    const fn more(mut self, more: &'static [(&'static str, &'static [u8])]) -> Self {
        self.more = more;
        self
    }

    const fn then(mut self, then: &'static [&'static str]) -> Self {
        self.then = then;
        self
    }

    const fn judged_at_the_end(mut self) -> Self {
        self.judged_at_the_end = true;
        self
    }

    const fn random_bytes_of(mut self, image: &'static str) -> Self {
        self.random_bytes_of = image;
        self
    }
}

const fn row(command: CommandId, line: &'static str, done: &'static [u8]) -> Row {
    Row::of(Some(command), line, done)
}

const ENOENT: u8 = 2;
const EBUSY: u8 = 16;
const EEXIST: u8 = 17;
const EINVAL: u8 = 22;

/// What every store has: `vm` with two snapshots, `kept` without, `old` in the trash; pools `rbd` and `p2`.
pub const BASE: &[&str] = &[
    "create --size 96K --object-size 16K vm",
    "write vm 0 40000 1",
    "snap create --no-progress vm@s1",
    "write vm 20000 30000 2",
    "snap create --no-progress vm@s2",
    "write vm 70000 5000 3",
    "create --size 64K --object-size 16K kept",
    "write kept 100 20000 4",
    "create --size 32K --object-size 16K old",
    "write old 0 20000 5",
    "trash mv old",
];

pub const GROUPS: &[(&str, &[Row])] = &[
    ("images", IMAGES),
    ("trash", TRASH),
    ("snapshots", SNAPSHOTS),
    ("clones", CLONES),
    ("groups", GROUPS_OF_IMAGES),
    ("properties", PROPERTIES),
    ("migrations", MIGRATIONS),
    ("servers", SERVERS),
];

const IMAGES: &[Row] = &[
    row(
        CommandId::Create,
        "create --size 64K --object-size 16K --stripe-unit 4096 --stripe-count 2 new",
        &[EEXIST],
    ),
    row(
        CommandId::Create,
        "create --size 64K --object-size 16K --data-pool p2 new",
        &[EEXIST],
    ),
    row(
        CommandId::Create,
        "create --size 64K --object-size 16K --thick-provision --no-progress new",
        &[EEXIST],
    ),
    row(
        CommandId::Import,
        "import --no-progress --object-size 16K {dir}/raw new",
        &[EEXIST],
    ),
    row(
        CommandId::Import,
        "import --no-progress --export-format 2 {dir}/whole p2/new",
        &[EEXIST],
    )
    .after(&["export --no-progress --export-format 2 vm {dir}/whole"]),
    row(
        CommandId::ImportDiff,
        "import-diff --no-progress {dir}/changes twin",
        &[EEXIST],
    )
    .after(&[
        "cp --no-progress vm@s1 twin",
        "snap create --no-progress twin@s1",
        "export-diff --no-progress --from-snap s1 vm@s2 {dir}/changes",
    ]),
    row(CommandId::Copy, "cp --no-progress vm new", &[EEXIST]),
    row(
        CommandId::Copy,
        "cp --no-progress --object-size 8K vm@s1 p2/new",
        &[EEXIST],
    ),
    row(CommandId::DeepCopy, "deep cp --no-progress vm new", &[EEXIST]),
    row(
        CommandId::DeepCopy,
        "deep cp --no-progress --object-size 32K vm@s2 p2/new",
        &[EEXIST],
    ),
    row(CommandId::Remove, "rm --no-progress kept", &[ENOENT]),
    row(CommandId::Rename, "mv kept new", &[ENOENT]),
    row(
        CommandId::Resize,
        "resize --no-progress --size 200K vm",
        &[EINVAL],
    ),
    row(
        CommandId::Resize,
        "resize --no-progress --size 30K --allow-shrink vm",
        &[EINVAL],
    ),
    row(CommandId::Sparsify, "sparsify --no-progress vm", &[]).after(&["write vm 16384 40000 0"]),
    row(
        CommandId::Bench,
        "bench --io-type write --io-size 4K --io-threads 2 --io-total 96K vm",
        &[],
    )
    .random_bytes_of("vm"),
];

const TRASH: &[Row] = &[
    row(CommandId::TrashMove, "trash mv kept", &[ENOENT]),
    row(CommandId::TrashRestore, "trash restore {old}", &[ENOENT]),
    row(
        CommandId::TrashRestore,
        "trash restore --image new {old}",
        &[ENOENT],
    ),
    row(CommandId::TrashRemove, "trash rm --no-progress {old}", &[ENOENT]),
    row(CommandId::TrashPurge, "trash purge --no-progress", &[]).after(&["trash mv kept"]),
];

const SNAPSHOTS: &[Row] = &[
    row(
        CommandId::SnapCreate,
        "snap create --no-progress vm@new",
        &[EEXIST],
    ),
    row(CommandId::SnapRemove, "snap rm --no-progress vm@s1", &[ENOENT]),
    row(CommandId::SnapRemove, "snap rm --no-progress vm@s2", &[ENOENT]),
    row(
        CommandId::SnapRemove,
        "snap rm --no-progress --force vm@s1",
        &[ENOENT],
    )
    .after(&[
        "snap protect vm@s1",
        "clone --rbd-default-clone-format 1 vm@s1 child",
        "write child 5 5 5",
    ]),
    row(CommandId::SnapRename, "snap rename vm@s1 vm@new", &[ENOENT]),
    row(CommandId::SnapRollback, "snap rollback --no-progress vm@s1", &[]),
    row(CommandId::SnapRollback, "snap rollback --no-progress vm@s1", &[])
        .after(&["resize --no-progress --size 120K vm", "write vm 100000 9000 9"]),
    row(CommandId::SnapPurge, "snap purge --no-progress vm", &[]),
    row(CommandId::SnapProtect, "snap protect vm@s1", &[EBUSY]),
    row(CommandId::SnapUnprotect, "snap unprotect vm@s1", &[EINVAL]).after(&["snap protect vm@s1"]),
    row(CommandId::SnapLimitSet, "snap limit set --limit 7 vm", &[]),
    row(CommandId::SnapLimitClear, "snap limit clear vm", &[]).after(&["snap limit set --limit 7 vm"]),
];

const CLONES: &[Row] = &[
    row(
        CommandId::Clone,
        "clone --rbd-default-clone-format 2 vm@s1 p2/child",
        &[EEXIST],
    ),
    row(
        CommandId::Clone,
        "clone --rbd-default-clone-format 1 vm@s1 child",
        &[EEXIST],
    )
    .after(&["snap protect vm@s1"]),
    row(CommandId::Flatten, "flatten --no-progress child", &[EINVAL]).after(&[
        "clone --rbd-default-clone-format 2 vm@s1 child",
        "write child 1000 10 9",
        "snap create --no-progress child@mine",
    ]),
    row(CommandId::Flatten, "flatten --no-progress p2/child", &[EINVAL])
        .after(&[
            "snap protect vm@s1",
            "clone --rbd-default-clone-format 1 vm@s1 p2/child",
            "write p2/child 1000 10 9",
        ])
        .then(&["snap unprotect vm@s1"]),
    row(CommandId::Remove, "rm --no-progress child", &[ENOENT])
        .after(&[
            "snap protect vm@s1",
            "clone --rbd-default-clone-format 1 vm@s1 child",
            "write child 1000 10 9",
        ])
        .then(&["snap unprotect vm@s1", "snap rm --no-progress vm@s1"]),
    // The last clone of a removed snapshot takes it along.
    row(CommandId::Remove, "rm --no-progress child", &[ENOENT]).after(&[
        "clone --rbd-default-clone-format 2 vm@s1 child",
        "snap rm --no-progress vm@s1",
    ]),
    row(CommandId::TrashRemove, "trash rm --no-progress {old}", &[ENOENT]).after(&[
        "trash restore {old}",
        "rm --no-progress old",
        "clone --rbd-default-clone-format 2 vm@s1 old",
        "write old 0 20000 6",
        "trash mv old",
    ]),
    row(
        CommandId::DeepCopy,
        "deep cp --no-progress child p2/new",
        &[EEXIST],
    )
    .after(&[
        "clone --rbd-default-clone-format 2 vm@s1 child",
        "write child 1000 10 9",
        "snap create --no-progress child@mine",
    ]),
    row(
        CommandId::DeepCopy,
        "deep cp --no-progress --flatten child new",
        &[EEXIST],
    )
    .after(&[
        "clone --rbd-default-clone-format 2 vm@s1 child",
        "write child 1000 10 9",
    ]),
    row(
        CommandId::Resize,
        "resize --no-progress --size 10K --allow-shrink child",
        &[EINVAL],
    )
    .after(&[
        "clone --rbd-default-clone-format 2 vm@s1 child",
        "snap create --no-progress child@mine",
    ]),
];

const GROUP: &[&str] = &["group create g", "group image add g kept", "group image add g vm"];
const GROUP_WITH_SNAPSHOT: &[&str] = &[
    "group create g",
    "group image add g kept",
    "group image add g vm",
    "group snap create g@gs",
    "write vm 7 999 1",
    "write kept 7 999 1",
];

const GROUPS_OF_IMAGES: &[Row] = &[
    row(CommandId::GroupCreate, "group create g", &[EEXIST]),
    row(CommandId::GroupRename, "group rename g new", &[ENOENT]).after(GROUP),
    row(CommandId::GroupRemove, "group rm g", &[ENOENT]).after(GROUP_WITH_SNAPSHOT),
    row(CommandId::GroupImageAdd, "group image add g vm", &[EEXIST])
        .after(&["group create g", "group image add g kept"]),
    row(CommandId::GroupImageRemove, "group image rm g vm", &[ENOENT]).after(GROUP),
    row(CommandId::GroupSnapCreate, "group snap create g@new", &[EEXIST])
        .after(GROUP_WITH_SNAPSHOT)
        .first(&["clear g"]),
    row(
        CommandId::GroupSnapRename,
        "group snap rename g@gs new",
        &[ENOENT],
    )
    .after(GROUP_WITH_SNAPSHOT),
    row(CommandId::GroupSnapRemove, "group snap rm g@gs", &[ENOENT]).after(GROUP_WITH_SNAPSHOT),
    row(
        CommandId::GroupSnapRollback,
        "group snap rollback --no-progress g@gs",
        &[],
    )
    .after(GROUP_WITH_SNAPSHOT),
];

const PROPERTIES: &[Row] = &[
    row(CommandId::ImageMetaSet, "image-meta set vm key value", &[]),
    row(CommandId::ImageMetaRemove, "image-meta remove vm key", &[ENOENT])
        .after(&["image-meta set vm key value"]),
    row(
        CommandId::ConfigImageSet,
        "config image set vm rbd_clone_copy_on_read true",
        &[],
    ),
    row(
        CommandId::ConfigImageRemove,
        "config image remove vm rbd_clone_copy_on_read",
        &[ENOENT],
    )
    .after(&["config image set vm rbd_clone_copy_on_read true"]),
    row(
        CommandId::ConfigGlobalSet,
        "config global set client rbd_clone_copy_on_read true",
        &[],
    ),
    row(
        CommandId::ConfigGlobalRemove,
        "config global remove client rbd_clone_copy_on_read",
        &[],
    )
    .after(&["config global set client rbd_clone_copy_on_read true"]),
    row(
        CommandId::ConfigPoolSet,
        "config pool set rbd rbd_clone_copy_on_read true",
        &[],
    ),
    row(
        CommandId::ConfigPoolRemove,
        "config pool remove rbd rbd_clone_copy_on_read",
        &[ENOENT],
    )
    .after(&["config pool set rbd rbd_clone_copy_on_read true"]),
    row(
        CommandId::FeatureDisable,
        "feature disable vm fast-diff object-map",
        &[EINVAL],
    ),
    row(
        CommandId::FeatureDisable,
        "feature disable vm fast-diff object-map exclusive-lock",
        &[EINVAL],
    ),
    row(
        CommandId::FeatureEnable,
        "feature enable vm exclusive-lock object-map fast-diff",
        &[EINVAL],
    )
    .after(&["feature disable vm fast-diff object-map exclusive-lock"])
    .then(&["object-map rebuild --no-progress vm"]),
    row(
        CommandId::ObjectMapRebuild,
        "object-map rebuild --no-progress vm",
        &[],
    )
    .after(&[
        "feature disable vm fast-diff object-map",
        "feature enable vm object-map fast-diff",
    ]),
    row(CommandId::LockAdd, "lock add vm mine", &[EBUSY, EEXIST]),
    row(
        CommandId::LockAdd,
        "lock add --shared tag vm mine",
        &[EBUSY, EEXIST],
    ),
    row(CommandId::LockRemove, "lock rm vm mine {locker}", &[ENOENT]).after(&["lock add vm mine"]),
    row(CommandId::NamespaceCreate, "namespace create rbd/ns", &[EEXIST]),
    row(CommandId::NamespaceRemove, "namespace rm rbd/ns", &[ENOENT]).after(&["namespace create rbd/ns"]),
    row(CommandId::PoolInit, "pool init p2", &[]),
    row(CommandId::PoolCreate, "pool create new", &[EEXIST]).more(&[("pool init new", &[])]),
    row(CommandId::PoolRemove, "pool rm empty", &[ENOENT]).after(&["pool create empty"]),
];

const PREPARED: &[&str] = &[
    "migration prepare --object-size 8K vm p2/vm",
    "write p2/vm 100 300 9",
    "write p2/vm 60000 10000 8",
];
const PAUSED: &[&str] = &[
    "migration prepare --object-size 8K vm p2/vm",
    "write p2/vm 100 300 9",
    "migration pause p2/vm",
];
const EXECUTED: &[&str] = &[
    "migration prepare --object-size 8K vm p2/vm",
    "write p2/vm 100 300 9",
    "migration execute --no-progress p2/vm",
    "write p2/vm 60000 10000 8",
];
const TO_THE_END: &[&str] = &[
    "migration execute --no-progress p2/vm",
    "migration commit --no-progress p2/vm",
];
/// `vm` in the middle of a chain: a clone of `base`, with clones of both formats.
const FAMILY: &[&str] = &[
    "rm --no-progress kept",
    "create --size 96K --object-size 8K base",
    "write base 30000 50000 7",
    "snap create --no-progress base@s",
    "clone --rbd-default-clone-format 2 --object-size 16K base@s mid",
    "write mid 0 20000 1",
    "snap create --no-progress mid@s1",
    "snap protect mid@s1",
    "clone --rbd-default-clone-format 1 mid@s1 kid1",
    "clone --rbd-default-clone-format 2 mid@s1 kid2",
    "write kid1 7 7 6",
];
const FAMILY_PREPARED: &[&str] = &[
    "rm --no-progress kept",
    "create --size 96K --object-size 8K base",
    "write base 30000 50000 7",
    "snap create --no-progress base@s",
    "clone --rbd-default-clone-format 2 --object-size 16K base@s mid",
    "write mid 0 20000 1",
    "snap create --no-progress mid@s1",
    "snap protect mid@s1",
    "clone --rbd-default-clone-format 1 mid@s1 kid1",
    "clone --rbd-default-clone-format 2 mid@s1 kid2",
    "write kid1 7 7 6",
    "migration prepare mid p2/mid",
    "write p2/mid 100 300 9",
];
const IN_A_GROUP: &[&str] = &["group create g", "group image add g vm"];

const MIGRATIONS: &[Row] = &[
    row(
        CommandId::MigrationPrepare,
        "migration prepare --object-size 8K vm p2/vm",
        &[ENOENT, EBUSY],
    )
    .after(IN_A_GROUP)
    .then(TO_THE_END),
    row(
        CommandId::MigrationPrepare,
        "migration prepare --object-size 8K vm",
        &[ENOENT, EBUSY],
    )
    .then(&[
        "migration execute --no-progress vm",
        "migration commit --no-progress vm",
    ]),
    row(
        CommandId::MigrationPrepare,
        "migration prepare mid p2/mid",
        &[ENOENT, EBUSY],
    )
    .after(FAMILY)
    .then(&[
        "migration execute --no-progress p2/mid",
        "migration commit --no-progress --force p2/mid",
    ])
    .judged_at_the_end(),
    row(
        CommandId::MigrationPrepare,
        "migration prepare --flatten mid p2/mid",
        &[ENOENT, EBUSY],
    )
    .after(FAMILY)
    .then(&[
        "migration execute --no-progress p2/mid",
        "migration commit --no-progress --force p2/mid",
    ])
    .judged_at_the_end(),
    row(
        CommandId::MigrationExecute,
        "migration execute --no-progress p2/vm",
        &[EINVAL],
    )
    .after(PREPARED)
    .then(&["migration commit --no-progress p2/vm"]),
    row(
        CommandId::MigrationExecute,
        "migration execute --no-progress --zero-detect p2/vm",
        &[EINVAL],
    )
    .after(PREPARED)
    .then(&["migration abort --no-progress p2/vm"]),
    row(
        CommandId::MigrationExecute,
        "migration execute --no-progress p2/mid",
        &[EINVAL],
    )
    .after(FAMILY_PREPARED)
    .then(&["migration commit --no-progress --force p2/mid"]),
    row(
        CommandId::MigrationCommit,
        "migration commit --no-progress p2/vm",
        &[EINVAL],
    )
    .after(EXECUTED)
    .more(&[("migration commit --no-progress vm", &[EINVAL, ENOENT])]),
    row(
        CommandId::MigrationAbort,
        "migration abort --no-progress p2/vm",
        &[EINVAL, ENOENT],
    )
    .after(PREPARED)
    .more(&[("migration abort --no-progress vm", &[EINVAL])]),
    row(
        CommandId::MigrationAbort,
        "migration abort --no-progress p2/vm",
        &[EINVAL, ENOENT],
    )
    .after(EXECUTED)
    .more(&[("migration abort --no-progress vm", &[EINVAL])]),
    row(
        CommandId::MigrationAbort,
        "migration abort --no-progress p2/mid",
        &[EINVAL, ENOENT],
    )
    .after(FAMILY_PREPARED)
    .more(&[("migration abort --no-progress mid", &[EINVAL])]),
    row(
        CommandId::MigrationThrottle,
        "migration throttle --max-bytes-per-second 1M --concurrency 3 p2/vm",
        &[],
    )
    .after(PREPARED)
    .then(TO_THE_END),
    row(CommandId::MigrationPause, "migration pause p2/vm", &[])
        .after(PREPARED)
        .then(&["migration resume p2/vm", "migration execute --no-progress p2/vm"]),
    row(CommandId::MigrationResume, "migration resume p2/vm", &[])
        .after(PAUSED)
        .then(TO_THE_END),
];

const SERVERS: &[Row] = &[
    Row::of(None, "serve vm", &[]),
    Row::of(None, "serve child", &[]).after(&["clone --rbd-default-clone-format 2 vm@s2 child"]),
    Row::of(None, "serve p2/vm", &[]).after(PREPARED).then(TO_THE_END),
];
