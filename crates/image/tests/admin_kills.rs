//! Every administrative command, killed at every step that changes the store, then run again: it finishes, or says
//! that it was done, and nothing half-made remains.
#![allow(clippy::unwrap_used)] // in helpers of tests

mod support;

use std::sync::Arc;

use bytes::Bytes;
use ferry_cls::rbd::GroupSnapshotState;
use ferry_image::admin::create::CreateOptions;
use ferry_image::admin::import::ImportOptions;
use ferry_image::admin::{create, directory, import, list, namespace, remove, rename, trash};
use ferry_image::group::{self, Group};
use ferry_image::layering::children::children;
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, Result, SnapKey};
use ferry_store::memory::MemoryCluster;
use ferry_store::wrappers::{FaultyStore, Moment};
use ferry_store::{IoCtx, Scope, Store, Timestamp};
use support::{pool, sound_but_for, undamaged};

/// Reaching it means that a command does not end.
const MAX_STEPS: u64 = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Create,
    Import,
    Remove,
    Rename,
    TrashMove,
    TrashRestore,
    TrashRemove,
    NamespaceCreate,
    NamespaceRemove,
    Clone,
    CloneFormat1,
    Flatten,
    FlattenFormat1,
    RemoveClone,
    RemoveLastClone,
    GroupCreate,
    GroupRename,
    GroupRemove,
    GroupAdd,
    GroupTakeOut,
    GroupSnapCreate,
    GroupSnapRename,
    GroupSnapRemove,
    GroupRollBack,
}

impl Command {
    /// Whether a clone `child` of `kept@s` is there before.
    fn has_clone(self) -> bool {
        matches!(
            self,
            Self::Flatten | Self::FlattenFormat1 | Self::RemoveClone | Self::RemoveLastClone
        )
    }

    fn is_of_groups(self) -> bool {
        matches!(
            self,
            Self::GroupCreate
                | Self::GroupRename
                | Self::GroupRemove
                | Self::GroupAdd
                | Self::GroupTakeOut
                | Self::GroupSnapCreate
                | Self::GroupSnapRename
                | Self::GroupSnapRemove
                | Self::GroupRollBack
        )
    }

    fn clone_format(self) -> CloneFormat {
        match self {
            Self::CloneFormat1 | Self::FlattenFormat1 => CloneFormat::One,
            _ => CloneFormat::Two,
        }
    }
}

struct World {
    cluster: MemoryCluster,
    scope: Scope,
    trashed: String,
}

impl World {
    /// Images `a` and `kept`, and `old` in the trash.
    async fn new() -> Self {
        let cluster = MemoryCluster::new(ferry_cls::registry());
        let store: Arc<dyn Store> = cluster.connect();
        let io = pool(&store, "rbd").await;
        for name in ["a", "kept", "old"] {
            let options = CreateOptions {
                size_bytes: 1 << 20,
                order: Some(18),
                ..CreateOptions::default()
            };
            create::create(&io, name, &options).await.unwrap();
            let image = Image::open(&io, ImageKey::Name(name), OpenOptions::read_write())
                .await
                .unwrap();
            for at in [0, 400 << 10] {
                image
                    .write(at, Bytes::from(name.as_bytes().repeat(100)))
                    .await
                    .unwrap();
            }
            image.close().await.unwrap();
        }
        let trashed = directory::id_of_name(&io, "old").await.unwrap().unwrap();
        trash::move_image(&io, "old", None).await.unwrap();
        Self {
            cluster,
            scope: io.scope().clone(),
            trashed,
        }
    }

    fn io(&self, store: Arc<dyn Store>) -> IoCtx {
        IoCtx::new(store, self.scope.clone())
    }

    async fn prepare(&self, command: Command) {
        if command == Command::NamespaceRemove {
            namespace::create(&self.io(self.cluster.connect()), "ns")
                .await
                .unwrap();
        }
        let io = self.io(self.cluster.connect());
        if command.is_of_groups() {
            self.prepare_group(&io, command).await;
        }
        let is_clone = matches!(command, Command::Clone | Command::CloneFormat1);
        if !is_clone && !command.has_clone() {
            return;
        }
        let silent = Progress::silent();
        let kept = Image::open(&io, ImageKey::Name("kept"), OpenOptions::read_write())
            .await
            .unwrap();
        kept.snap_create("s", &silent).await.unwrap();
        kept.snap_protect("s").await.unwrap();
        if command.has_clone() {
            self.clone(&io, command, "child").await.unwrap();
            let child = Image::open(&io, ImageKey::Name("child"), OpenOptions::read_write())
                .await
                .unwrap();
            child.write(1000, vec![9; 10].into()).await.unwrap();
            if command != Command::RemoveClone && command != Command::RemoveLastClone {
                child.snap_create("mine", &silent).await.unwrap();
            }
            child.close().await.unwrap();
        }
        if command == Command::RemoveLastClone {
            kept.snap_unprotect("s").await.unwrap();
            kept.snap_remove("s", &silent).await.unwrap();
        }
        kept.close().await.unwrap();
    }

    /// Group `g` with `a` and `kept`, and with its snapshot `s`, after which both were written to.
    async fn prepare_group(&self, io: &IoCtx, command: Command) {
        group::create(io, "g").await.unwrap();
        let group = Group::open(io, "g").await.unwrap();
        group.add_image(io, "kept").await.unwrap();
        if command != Command::GroupAdd {
            group.add_image(io, "a").await.unwrap();
        }
        if command == Command::GroupSnapCreate {
            return;
        }
        group.create_snapshot("s", true).await.unwrap();
        for name in ["a", "kept"] {
            let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
                .await
                .unwrap();
            image.write(7, Bytes::from_static(&[1; 999])).await.unwrap();
            image.close().await.unwrap();
        }
    }

    async fn clone(&self, io: &IoCtx, command: Command, name: &str) -> Result<()> {
        let options = CloneOptions {
            format: Some(command.clone_format()),
            ..CloneOptions::default()
        };
        clone(io, "kept", &SnapKey::Name("s".to_owned()), io, name, &options).await
    }

    async fn flatten(&self, io: &IoCtx) -> Result<()> {
        let image = Image::open(io, ImageKey::Name("child"), OpenOptions::read_write()).await?;
        let flattened = image.flatten(&Progress::silent()).await;
        flattened.and(image.close().await)
    }

    async fn run(&self, store: Arc<dyn Store>, command: Command) -> Result<()> {
        let io = self.io(store);
        let silent = Progress::silent();
        match command {
            Command::Create => {
                let options = CreateOptions {
                    size_bytes: 1 << 20,
                    order: Some(18),
                    stripe_unit_bytes: 4096,
                    stripe_count: 2,
                    ..CreateOptions::default()
                };
                create::create(&io, "new", &options).await
            }
            Command::Import => {
                let mut data: &[u8] = &[3; 600 << 10];
                import::from_reader(&io, "new", &mut data, &ImportOptions::default(), &silent).await
            }
            Command::Remove => remove::remove(&io, "a", &silent).await,
            Command::Rename => rename::rename(&io, "a", "new").await,
            Command::TrashMove => trash::move_image(&io, "a", None).await,
            Command::TrashRestore => trash::restore(&io, &self.trashed, Some("new")).await,
            Command::TrashRemove => trash::remove_image(&io, &self.trashed, false, &silent).await,
            Command::NamespaceCreate => namespace::create(&io, "ns").await,
            Command::NamespaceRemove => namespace::remove(&io, "ns").await,
            Command::Clone | Command::CloneFormat1 => self.clone(&io, command, "new").await,
            Command::Flatten | Command::FlattenFormat1 => self.flatten(&io).await,
            Command::RemoveClone | Command::RemoveLastClone => remove::remove(&io, "child", &silent).await,
            Command::GroupCreate => group::create(&io, "new").await,
            Command::GroupRename => group::rename(&io, "g", "new").await,
            Command::GroupRemove => group::remove(&io, "g").await,
            Command::GroupAdd => Group::open(&io, "g").await?.add_image(&io, "a").await,
            Command::GroupTakeOut => Group::open(&io, "g").await?.remove_image(&io, "a").await,
            Command::GroupSnapCreate => Group::open(&io, "g").await?.create_snapshot("s", true).await,
            Command::GroupSnapRename => Group::open(&io, "g").await?.rename_snapshot("s", "new").await,
            Command::GroupSnapRemove => {
                let group = Group::open(&io, "g").await?;
                group.remove_snapshot(&group.snapshot("s").await?).await
            }
            Command::GroupRollBack => Group::open(&io, "g").await?.roll_back("s", &silent).await,
        }
    }

    /// After a kill a group snapshot is whole, or not there, or says that it is incomplete; then it is removed first, as a
    /// person would.
    async fn clear_incomplete(&self, when: &str) {
        let io = self.io(self.cluster.connect());
        let group = Group::open(&io, "g").await.unwrap();
        for snapshot in group.snapshots().await.unwrap() {
            if snapshot.state == GroupSnapshotState::Incomplete {
                let refused = group.roll_back("s", &Progress::silent()).await.unwrap_err();
                assert_eq!(refused.errno, ferry_store::Errno::EINVAL, "{when}");
                group
                    .remove_snapshot(&snapshot)
                    .await
                    .unwrap_or_else(|error| panic!("{when}: {error}"));
            }
        }
    }

    /// Everything that the store holds, with ids of images made by the command left out.
    async fn state(&self) -> Vec<String> {
        let io = self.io(self.cluster.connect());
        let mut out = Vec::new();
        for (name, id) in directory::list(&io).await.unwrap() {
            let image = Image::open(&io, ImageKey::Name(&name), OpenOptions::read_only())
                .await
                .unwrap_or_else(|error| panic!("{name} is listed but does not open: {error}"));
            assert_eq!(image.id(), id, "{name}");
            let size = image.size_bytes();
            let data = image.read(0, size).await.unwrap();
            let sum: u64 = data.iter().map(|byte| u64::from(*byte)).sum();
            let unit = image.layout().stripe_unit_bytes();
            out.push(format!(
                "image {name}: {size} bytes, sum {sum}, stripe unit {unit}"
            ));
            let snaps = image.header().snaps.len();
            let clones = children(&io, &id, None).await.unwrap();
            let clones: Vec<_> = clones.into_iter().map(|child| child.image).collect();
            let parent = image.header().parent.is_some();
            out.push(format!(
                "{name}: {snaps} snapshots, parent {parent}, clones {clones:?}"
            ));
            image.close().await.unwrap();
        }
        for (_, entry) in trash::list(&io).await.unwrap() {
            out.push(format!(
                "trash {} {:?} {:?}",
                entry.name, entry.source, entry.state
            ));
        }
        out.push(format!("namespaces {:?}", namespace::list(&io).await.unwrap()));
        for name in group::list(&io).await.unwrap() {
            let group = Group::open(&io, &name).await.unwrap();
            for image in group.images().await.unwrap() {
                let of = group::of_image(&image.io, &image.id).await.unwrap();
                out.push(format!(
                    "group {name}: {} {} {of:?}",
                    image.name, image.is_attached
                ));
            }
            for snapshot in group.snapshots().await.unwrap() {
                out.push(format!(
                    "group {name}@{} {:?} {}",
                    snapshot.name,
                    snapshot.state,
                    snapshot.snaps.len()
                ));
            }
        }
        out.push(format!("groups {:?}", group::list(&io).await.unwrap()));
        for prefix in ["rbd_id.", "rbd_header.", "rbd_object_map.", "rbd_data."] {
            let found = io
                .store()
                .list_objects(io.scope(), prefix, "", 1000)
                .await
                .unwrap();
            out.push(format!("{prefix} {}", found.len()));
        }
        out.push(format!("names {:?}", list::names(&io).await.unwrap()));
        // Ids are random, and with them the order of the trash.
        out.sort();
        out
    }
}

/// What a command may answer when it was killed after its work was done.
fn says_done(command: Command, kind: ErrorKind, errno: ferry_store::Errno) -> bool {
    match command {
        Command::Create | Command::Import => kind == ErrorKind::ImageExists,
        Command::Remove | Command::Rename | Command::TrashMove => kind == ErrorKind::ImageMissing,
        Command::TrashRestore | Command::TrashRemove => kind == ErrorKind::ImageMissing,
        Command::NamespaceCreate => errno == ferry_store::Errno::EEXIST,
        Command::NamespaceRemove => kind == ErrorKind::NamespaceMissing,
        Command::Clone | Command::CloneFormat1 => kind == ErrorKind::ImageExists,
        Command::Flatten | Command::FlattenFormat1 => errno == ferry_store::Errno::EINVAL,
        Command::RemoveClone | Command::RemoveLastClone => kind == ErrorKind::ImageMissing,
        Command::GroupCreate | Command::GroupSnapCreate => errno == ferry_store::Errno::EEXIST,
        Command::GroupRename => kind == ErrorKind::GroupMissing,
        Command::GroupSnapRename | Command::GroupSnapRemove => kind == ErrorKind::SnapMissing,
        Command::GroupRemove | Command::GroupAdd | Command::GroupTakeOut | Command::GroupRollBack => false,
    }
}

async fn kill_everywhere(command: Command, power_loss: bool) {
    let expected = {
        let world = World::new().await;
        world.prepare(command).await;
        world.run(world.cluster.connect(), command).await.unwrap();
        world.state().await
    };
    for moment in [Moment::Before, Moment::After] {
        for nth in 1.. {
            assert!(nth < MAX_STEPS, "{command:?} does not end");
            let world = World::new().await;
            world.prepare(command).await;
            let inner = world.cluster.connect();
            let dying = inner.clone();
            let store = FaultyStore::with_death(inner, move || dying.kill());
            store.hook().kill_at(nth, moment);
            let result = world.run(store.clone(), command).await;
            if !store.hook().is_dead() {
                result.unwrap_or_else(|error| panic!("{command:?} without a kill: {error}"));
                assert!(nth > 1, "{command:?} changes nothing");
                break;
            }
            let when = format!("{command:?} killed {moment:?} step {nth}");
            if power_loss {
                world.cluster.power_loss(nth);
            }
            let store: Arc<dyn Store> = world.cluster.connect();
            // What a repair does in between keeps nobody from finishing.
            undamaged(&store, nth % 2 == 0, &when).await;
            if command == Command::GroupSnapCreate {
                world.clear_incomplete(&when).await;
            }
            if let Err(error) = world.run(world.cluster.connect(), command).await {
                assert!(
                    says_done(command, error.kind, error.errno),
                    "{when}, then: {error}"
                );
            }
            assert_eq!(world.state().await, expected, "{when}");
            // A second flatten says that there is no parent any more; the entry is dropped when it would be in the way.
            sound_but_for(&store, "clone-listed", &when).await;
            check_nothing_holds_the_parent(&world, command, &when).await;
        }
    }
}

/// Once its clone is gone or cut loose, the parent's snapshot can go, whatever a kill left in a list.
async fn check_nothing_holds_the_parent(world: &World, command: Command, when: &str) {
    if !command.has_clone() {
        return;
    }
    let io = world.io(world.cluster.connect());
    let kept = Image::open(&io, ImageKey::Name("kept"), OpenOptions::read_write())
        .await
        .unwrap();
    let silent = Progress::silent();
    if command != Command::RemoveLastClone {
        kept.snap_unprotect("s")
            .await
            .unwrap_or_else(|error| panic!("{when}: {error}"));
        kept.snap_remove("s", &silent).await.unwrap();
    }
    assert!(
        kept.header().snaps.is_empty(),
        "{when}: {:?}",
        kept.header().snaps
    );
    kept.close().await.unwrap();
    remove::remove(&io, "kept", &silent).await.unwrap();
}

macro_rules! kills {
    ($($name:ident: $command:ident, $power_loss:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                kill_everywhere(Command::$command, $power_loss).await;
            }
        )*
    };
}

kills! {
    create_killed_anywhere_is_finished_by_the_next: Create, false;
    import_killed_anywhere_is_finished_by_the_next: Import, false;
    import_survives_power_loss_anywhere: Import, true;
    remove_killed_anywhere_is_finished_by_the_next: Remove, false;
    remove_survives_power_loss_anywhere: Remove, true;
    rename_killed_anywhere_is_finished_by_the_next: Rename, false;
    trash_move_killed_anywhere_is_finished_by_the_next: TrashMove, false;
    trash_restore_killed_anywhere_is_finished_by_the_next: TrashRestore, false;
    trash_remove_killed_anywhere_is_finished_by_the_next: TrashRemove, false;
    clone_killed_anywhere_is_finished_by_the_next: Clone, false;
    clone_of_format_1_killed_anywhere_is_finished_by_the_next: CloneFormat1, false;
    clone_survives_power_loss_anywhere: Clone, true;
    flatten_killed_anywhere_is_finished_by_the_next: Flatten, false;
    flatten_of_format_1_killed_anywhere_is_finished_by_the_next: FlattenFormat1, false;
    flatten_survives_power_loss_anywhere: Flatten, true;
    removal_of_a_clone_killed_anywhere_is_finished_by_the_next: RemoveClone, false;
    removal_of_the_last_clone_killed_anywhere_takes_the_snapshot_along: RemoveLastClone, false;
    namespace_create_killed_anywhere_is_finished_by_the_next: NamespaceCreate, false;
    namespace_remove_killed_anywhere_is_finished_by_the_next: NamespaceRemove, false;
    group_create_killed_anywhere_finishes: GroupCreate, false;
    group_rename_killed_anywhere_finishes: GroupRename, false;
    group_remove_killed_anywhere_finishes: GroupRemove, false;
    group_remove_finishes_after_a_power_loss_too: GroupRemove, true;
    adding_to_a_group_killed_anywhere_finishes: GroupAdd, false;
    taking_out_of_a_group_killed_anywhere_finishes: GroupTakeOut, false;
    a_group_snapshot_killed_anywhere_is_whole_or_says_that_it_is_not: GroupSnapCreate, false;
    a_group_snapshot_is_whole_or_says_that_it_is_not_after_a_power_loss_too: GroupSnapCreate, true;
    renaming_a_group_snapshot_killed_anywhere_finishes: GroupSnapRename, false;
    removing_a_group_snapshot_killed_anywhere_finishes: GroupSnapRemove, false;
    a_group_rollback_killed_anywhere_finishes: GroupRollBack, false;
    a_group_rollback_finishes_after_a_power_loss_too: GroupRollBack, true;
}

/// Another command than the killed one meets what it left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_killed_command_every_name_can_be_used_or_removed() {
    for command in [
        Command::Create,
        Command::Import,
        Command::Rename,
        Command::TrashRestore,
    ] {
        for nth in 1..MAX_STEPS {
            let world = World::new().await;
            let inner = world.cluster.connect();
            let dying = inner.clone();
            let store = FaultyStore::with_death(inner, move || dying.kill());
            store.hook().kill_at(nth, Moment::After);
            let _ = world.run(store.clone(), command).await;
            if !store.hook().is_dead() {
                break;
            }
            let when = format!("{command:?} killed after step {nth}");
            let io = world.io(world.cluster.connect());
            // Whatever is called "new" now is whole, or can be made.
            let options = CreateOptions {
                size_bytes: 1 << 20,
                ..CreateOptions::default()
            };
            match create::create(&io, "new", &options).await {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind, ErrorKind::ImageExists, "{when}: {error}"),
            }
            let image = Image::open(&io, ImageKey::Name("new"), OpenOptions::read_write())
                .await
                .unwrap();
            image.close().await.unwrap();
            for name in ["new", "a", "kept", "old"] {
                if let Err(error) = remove::remove(&io, name, &Progress::silent()).await {
                    assert_eq!(
                        error.kind,
                        ErrorKind::ImageMissing,
                        "{when}, removing {name}: {error}"
                    );
                }
            }
            let _ = trash::restore(&io, &world.trashed, Some("again")).await;
            let _ = remove::remove(&io, "again", &Progress::silent()).await;
            trash::purge(&io, Timestamp::now(), &Progress::silent())
                .await
                .unwrap();
            let left = io
                .store()
                .list_objects(io.scope(), "rbd_", "", 1000)
                .await
                .unwrap();
            let fixed = ["rbd_directory", "rbd_info", "rbd_trash"];
            assert!(
                left.iter().all(|name| fixed.contains(&name.as_str())),
                "{when}: {left:?}"
            );
        }
    }
}
