//! Every verb, killed at every step that changes the store, then run again (or aborted): the rows of `docs/migration.md`.
//!
//! A kill is a client whose operations all fail from the nth change on, before or after that change took effect, and
//! whose watches are gone; with it the power may go, so that what was not flushed is lost.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::sync::Arc;

use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::admin::{list, remove, trash};
use ferry_image::group::{self, Group};
use ferry_image::layering::children::children;
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, Result, SnapKey};
use ferry_store::wrappers::Moment;
use ferry_store::{IoCtx, Scope, Store};
use support::reference::{Compared as _, Reference};
use support::{Engine, TestLayout, pool, sound, undamaged};

const SIZE: u64 = 256 << 10;
/// More steps than any verb has here; reaching it means that a verb does not end.
const MAX_STEPS: u64 = 2_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Prepare,
    Execute,
    Commit,
    Abort,
}

/// Whose relative the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Nobody's, but it is in group `g`.
    None,
    /// Nobody's, and of format 1.
    Format1,
    /// A clone of `base`, and the parent of two clones of its own, one of each format.
    Kept,
    /// The same, and the target is cut loose from `base`.
    Flattened,
}

impl Family {
    fn is_alone(self) -> bool {
        matches!(self, Self::None | Self::Format1)
    }
}

/// A store with a source, and what it must show.
struct World {
    engine: Engine,
    family: Family,
    /// What the clones show, by name.
    kids: Vec<(&'static str, Reference)>,
    from: Scope,
    to: Scope,
    target: &'static str,
    reference: Reference,
}

impl World {
    fn io(&self, store: Arc<dyn Store>, scope: &Scope) -> IoCtx {
        IoCtx::new(store, scope.clone())
    }

    async fn new(engine: Engine, in_place: bool, family: Family) -> Self {
        let store = engine.connect().await;
        let io = pool(&store, "rbd").await;
        let other = pool(&store, "p2").await;
        let mut reference = Reference::new(SIZE);
        if family.is_alone() {
            let options = CreateOptions {
                format_1: family == Family::Format1,
                ..TestLayout(16, 0, 0).create(SIZE)
            };
            create::create(&io, "src", &options).await.unwrap();
            if family == Family::None {
                group::create(&io, "g").await.unwrap();
                let group = Group::open(&io, "g").await.unwrap();
                group.add_image(&io, "src").await.unwrap();
            }
        } else {
            create::create(&io, "base", &TestLayout(15, 0, 0).create(SIZE))
                .await
                .unwrap();
            let base = open(&io, "base").await;
            base.write(120_000, vec![5; 60_000].into()).await.unwrap();
            reference.write(120_000, &[5; 60_000]);
            base.snap_create("s", &Progress::silent()).await.unwrap();
            base.close().await.unwrap();
            clone_of(&io, "base", "s", "src", CloneFormat::Two).await;
        }
        let image = open(&io, "src").await;
        for (offset, byte, length, snap) in [
            (0, 1, 70_000, "s1"),
            (40_000, 2, 5_000, "s2"),
            (200_000, 3, 20_000, ""),
        ] {
            image.write(offset, vec![byte; length].into()).await.unwrap();
            reference.write(offset, &vec![byte; length]);
            if !snap.is_empty() {
                image.snap_create(snap, &Progress::silent()).await.unwrap();
                reference.snap(snap);
            }
        }
        image.flush().await.unwrap();
        let mut kids = Vec::new();
        if !family.is_alone() {
            image.snap_protect("s1").await.unwrap();
            for (snap, name, format) in [("s1", "kid1", CloneFormat::One), ("s2", "kid2", CloneFormat::Two)] {
                clone_of(&io, "src", snap, name, format).await;
                let kid = open(&io, name).await;
                kid.write(7, vec![6; 7].into()).await.unwrap();
                kid.close().await.unwrap();
                let mut shown = Reference::of(&reference.snaps[snap]);
                shown.write(7, &[6; 7]);
                kids.push((name, shown));
            }
        }
        image.close().await.unwrap();
        let (to, target) = if in_place {
            (io.scope().clone(), "src")
        } else {
            (other.scope().clone(), "dst")
        };
        Self {
            engine,
            family,
            kids,
            from: io.scope().clone(),
            to,
            target,
            reference,
        }
    }

    /// Runs a verb to its end with a fresh client.
    async fn run(&self, verb: Verb) -> Result<()> {
        self.run_on(self.engine.connect().await, verb).await
    }

    async fn run_on(&self, store: Arc<dyn Store>, verb: Verb) -> Result<()> {
        let (from, to) = (self.io(store.clone(), &self.from), self.io(store, &self.to));
        let silent = Progress::silent();
        match verb {
            Verb::Prepare => {
                let options = PrepareOptions {
                    order: Some(15),
                    flatten: self.family == Family::Flattened,
                    ..PrepareOptions::default()
                };
                prepare(&from, "src", &to, self.target, &options).await
            }
            Verb::Execute => execute(&to, self.target, &silent).await,
            Verb::Commit => commit(&to, self.target, &silent).await,
            Verb::Abort => abort(&to, self.target, AbortOptions::default(), &silent).await,
        }
    }

    /// What a client does with the prepared target; all of it flushed.
    async fn use_target(&mut self) {
        let store = self.engine.connect().await;
        let io = self.io(store, &self.to);
        let image = Image::open(&io, ImageKey::Name(self.target), OpenOptions::read_write())
            .await
            .unwrap();
        for (offset, byte, length) in [(100, 9, 300), (150_000, 8, 10_000)] {
            image.write(offset, vec![byte; length].into()).await.unwrap();
            self.reference.write(offset, &vec![byte; length]);
        }
        image.discard(65_536, 32_768).await.unwrap();
        self.reference.zero(65_536, 32_768);
        image.flush().await.unwrap();
        image.close().await.unwrap();
    }

    async fn check(&self, scope: &Scope, name: &str, when: &str) {
        let io = self.io(self.engine.connect().await, scope);
        self.reference.check_all(&io, name, when).await;
        for (name, shown) in &self.kids {
            let io = self.io(io.store().clone(), &self.from);
            let kid = Image::open(&io, ImageKey::Name(name), OpenOptions::read_only())
                .await
                .unwrap_or_else(|error| panic!("{name} {when}: {error}"));
            shown.check_head(&kid, &format!("of {name} {when}")).await;
            kid.close().await.unwrap();
        }
    }

    /// The clones are listed by `name`, and `name` by its parent, unless it was cut loose.
    async fn check_links(&self, scope: &Scope, name: &str, when: &str) {
        if self.family.is_alone() {
            return;
        }
        let store = self.engine.connect().await;
        let listed = async |io: IoCtx, name: &str| -> Vec<String> {
            let image = open(&io, name).await;
            let found = children(&io, image.id(), None).await.unwrap();
            image.close().await.unwrap();
            found.into_iter().map(|child| child.image).collect()
        };
        let kids = listed(self.io(store.clone(), scope), name).await;
        assert_eq!(kids, ["kid1", "kid2"], "{when}");
        let of_base = listed(self.io(store.clone(), &self.from), "base").await;
        let is_cut_loose =
            self.family == Family::Flattened && name == self.target && !of_base.contains(&name.to_owned());
        if !is_cut_loose {
            assert_eq!(of_base, [name], "{when}");
        }
        // Nothing is left that would keep a snapshot once its clones are gone.
        let io = self.io(store, &self.from);
        for kid in ["kid1", "kid2"] {
            remove::remove(&io, kid, &Progress::silent()).await.unwrap();
        }
        let image = open(&self.io(io.store().clone(), scope), name).await;
        image
            .snap_unprotect("s1")
            .await
            .unwrap_or_else(|error| panic!("{when}: {error}"));
        for snap in ["s1", "s2"] {
            image.snap_remove(snap, &Progress::silent()).await.unwrap();
        }
        assert!(image.header().snaps.is_empty(), "{when}");
        image.close().await.unwrap();
        let at = self.io(io.store().clone(), scope);
        remove::remove(&at, name, &Progress::silent()).await.unwrap();
        let base = open(&io, "base").await;
        base.snap_remove("s", &Progress::silent()).await.unwrap();
        assert!(base.header().snaps.is_empty(), "{when}");
        base.close().await.unwrap();
    }

    /// The source's place in the group is that of the image called `name`, and nobody else has one.
    async fn check_group(&self, scope: &Scope, name: &str, when: &str) {
        if self.family != Family::None {
            return;
        }
        let store = self.engine.connect().await;
        let (io, from) = (self.io(store.clone(), scope), self.io(store, &self.from));
        let group = Group::open(&from, "g").await.unwrap();
        let images = group.images().await.unwrap();
        let shown: Vec<_> = images
            .iter()
            .map(|image| (image.io.scope(), &*image.name, image.is_attached))
            .collect();
        assert_eq!(shown, [(scope, name, true)], "{when}");
        let of = group::of_image(&io, &images[0].id).await.unwrap();
        assert_eq!(of.map(|group| group.name).as_deref(), Some("g"), "{when}");
    }

    /// Nothing but the image called `name` is left.
    async fn check_only(&self, scope: &Scope, name: &str, when: &str) {
        self.check(scope, name, when).await;
        let store = self.engine.connect().await;
        let mut headers = 0;
        let mut listed = Vec::new();
        for pool in store.pool_list().await.unwrap() {
            let io = self.io(store.clone(), &Scope::new(pool.id));
            assert!(trash::list(&io).await.unwrap().is_empty(), "trash {when}");
            let objects = store.list_objects(io.scope(), "", "", 1_000).await.unwrap();
            let is_header = |name: &&String| name.starts_with("rbd_header.") || name.ends_with(".rbd");
            headers += objects.iter().filter(is_header).count();
            listed.extend(list::names(&io).await.unwrap());
        }
        if self.family.is_alone() {
            assert_eq!(listed, [name], "{when}");
        }
        let relatives = if self.family.is_alone() { 0 } else { 3 };
        assert_eq!(headers, 1 + relatives, "headers {when}");
        self.check_group(scope, name, when).await;
        self.check_links(scope, name, when).await;
    }
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

async fn clone_of(io: &IoCtx, parent: &str, snap: &str, child: &str, format: CloneFormat) {
    let options = CloneOptions {
        format: Some(format),
        ..CloneOptions::default()
    };
    let snap = SnapKey::Name(snap.to_owned());
    clone(io, parent, &snap, io, child, &options).await.unwrap();
}

/// Brings a fresh world to where `verb` can run.
async fn before(engine: Engine, verb: Verb, in_place: bool, family: Family) -> World {
    let mut world = World::new(engine, in_place, family).await;
    if verb != Verb::Prepare {
        world.run(Verb::Prepare).await.unwrap();
        world.use_target().await;
    }
    if verb == Verb::Commit {
        world.run(Verb::Execute).await.unwrap();
    }
    world
}

/// What is done after the kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Again,
    Abort,
    AgainAfterPowerLoss,
}

async fn finish(world: &World, verb: Verb, then: Then, when: &str) {
    if then == Then::AgainAfterPowerLoss {
        world.engine.power_loss(7);
    }
    match (verb, then) {
        (Verb::Prepare, Then::Abort) => {
            match world.run(Verb::Abort).await {
                Ok(()) => {}
                // Killed before the first step, or before the target was known by its name.
                Err(error) if matches!(error.kind, ErrorKind::ImageMissing | ErrorKind::NotMigrating) => {
                    let io = world.io(world.engine.connect().await, &world.from);
                    match abort(&io, "src", AbortOptions::default(), &Progress::silent()).await {
                        Ok(()) => {}
                        Err(error) => assert_eq!(error.kind, ErrorKind::NotMigrating, "{when}: {error}"),
                    }
                }
                Err(error) => panic!("{when}: {error}"),
            }
            world.check_only(&world.from, "src", when).await;
        }
        (Verb::Prepare, _) => {
            match world.run(Verb::Prepare).await {
                Ok(()) => {}
                // Killed after the last step. In place, the name leads to the target already.
                Err(error) => assert!(
                    matches!(error.kind, ErrorKind::ImageMissing | ErrorKind::Migrating),
                    "{when}: {error}"
                ),
            }
            world.check(&world.to, world.target, when).await;
            world.run(Verb::Execute).await.unwrap();
            world.run(Verb::Commit).await.unwrap();
            world.check_only(&world.to, world.target, when).await;
        }
        (Verb::Execute, Then::Abort) => {
            world.check(&world.to, world.target, when).await;
            world
                .run(Verb::Abort)
                .await
                .unwrap_or_else(|error| panic!("{when}: {error}"));
            world.check_only(&world.from, "src", when).await;
        }
        (Verb::Execute, _) => {
            world.check(&world.to, world.target, when).await;
            match world.run(Verb::Execute).await {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind, ErrorKind::MigrationState, "{when}: {error}"),
            }
            world.check(&world.to, world.target, when).await;
            world
                .run(Verb::Commit)
                .await
                .unwrap_or_else(|error| panic!("{when}: {error}"));
            world.check_only(&world.to, world.target, when).await;
        }
        (Verb::Commit, then) => {
            world.check(&world.to, world.target, when).await;
            if then == Then::Abort {
                // Either nothing of the commit has happened, or abort refuses and names commit.
                match world.run(Verb::Abort).await {
                    Ok(()) => return world.check_only(&world.from, "src", when).await,
                    Err(error) => assert!(
                        matches!(error.kind, ErrorKind::MigrationState | ErrorKind::NotMigrating),
                        "{when}: {error}"
                    ),
                }
            }
            finish_commit(world, when).await;
            world.check_only(&world.to, world.target, when).await;
        }
        (Verb::Abort, _) => {
            match world.run(Verb::Abort).await {
                Ok(()) => {}
                // Killed after the last step: nobody knows the target's name any more.
                Err(error) => assert!(
                    matches!(error.kind, ErrorKind::ImageMissing | ErrorKind::NotMigrating),
                    "{when}: {error}"
                ),
            }
            // The target's name may be forgotten before the source's mark is off; the source's name always works.
            let io = world.io(world.engine.connect().await, &world.from);
            match abort(&io, "src", AbortOptions::default(), &Progress::silent()).await {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind, ErrorKind::NotMigrating, "{when}: {error}"),
            }
            world.check_only(&world.from, "src", when).await;
        }
    }
}

async fn finish_commit(world: &World, when: &str) {
    match world.run(Verb::Commit).await {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind, ErrorKind::NotMigrating, "{when}: {error}"),
    }
    // A trash entry without a header can only be named by the source.
    let io = world.io(world.engine.connect().await, &world.from);
    match commit(&io, "src", &Progress::silent()).await {
        Ok(()) => {}
        Err(error) => assert!(
            matches!(error.kind, ErrorKind::NotMigrating | ErrorKind::ImageMissing),
            "{when}: {error}"
        ),
    }
}

/// Kills `verb` at step `first`, `first + stride`, ... until it gets through.
async fn kill_at(
    engine: &str,
    (first, stride): (u64, u64),
    verb: Verb,
    in_place: bool,
    family: Family,
    then: Then,
) {
    for moment in [Moment::Before, Moment::After] {
        for nth in (first..).step_by(stride as usize) {
            assert!(nth < MAX_STEPS, "{verb:?} does not end");
            let world = before(Engine::named(engine), verb, in_place, family).await;
            let when = format!(
                "after {verb:?} ({family:?}) on {engine} was killed {moment:?} step {nth}, then {then:?}"
            );
            let doomed = world.engine.doomed(nth, moment).await;
            let result = world.run_on(doomed.store.clone(), verb).await;
            let died = doomed.is_dead();
            doomed.bury().await;
            if !died {
                result.unwrap_or_else(|error| panic!("{verb:?} without a kill: {error}"));
                assert!(nth > 5, "{verb:?} has only {nth} steps");
                break;
            }
            if engine == "memory" {
                // What a repair does in between keeps nobody from finishing.
                undamaged(&world.engine.connect().await, nth % 2 == 0, &when).await;
            }
            finish(&world, verb, then, &when).await;
            if engine == "memory" {
                sound(&world.engine.connect().await, &when).await;
            }
        }
    }
}

async fn kill_everywhere(verb: Verb, in_place: bool, then: Then) {
    kill_at("memory", (1, 1), verb, in_place, Family::None, then).await;
}

/// The local engine over the simulated disk, which loses its power too. Every `FERRY_KILL_STRIDE`th step, from a random
/// one on; a campaign sets it to 1.
async fn kill_on_the_simulated_disk(verb: Verb, family: Family, then: Then) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let stride = number("FERRY_KILL_STRIDE").unwrap_or(12).max(1);
    let first = number("FERRY_SEED").unwrap_or_else(ferry_reference::drawn) % stride + 1;
    println!("FERRY_SEED={} FERRY_KILL_STRIDE={stride}", first - 1);
    kill_at("simulated", (first, stride), verb, false, family, then).await;
}

macro_rules! kills {
    ($($name:ident: $verb:ident, $in_place:literal, $then:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                kill_everywhere(Verb::$verb, $in_place, Then::$then).await;
            }
        )*
    };
}

macro_rules! family_kills {
    ($($name:ident: $verb:ident, $in_place:literal, $family:ident, $then:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                kill_at("memory", (1, 1), Verb::$verb, $in_place, Family::$family, Then::$then).await;
            }
        )*
    };
}

family_kills! {
    prepare_in_a_family_killed_anywhere_is_finished_by_the_next: Prepare, false, Kept, Again;
    prepare_in_a_family_killed_anywhere_is_taken_back_by_abort: Prepare, true, Kept, Abort;
    prepare_that_flattens_killed_anywhere_is_finished_by_the_next: Prepare, true, Flattened, Again;
    execute_in_a_family_killed_anywhere_is_finished_by_the_next: Execute, false, Kept, Again;
    execute_that_flattens_killed_anywhere_is_finished_by_the_next: Execute, false, Flattened, AgainAfterPowerLoss;
    execute_in_a_family_killed_anywhere_can_be_aborted: Execute, false, Kept, Abort;
    commit_in_a_family_killed_anywhere_is_finished_by_the_next: Commit, false, Kept, Again;
    commit_that_flattens_killed_anywhere_is_finished_by_the_next: Commit, false, Flattened, Again;
    abort_in_a_family_killed_anywhere_is_finished_by_the_next: Abort, false, Kept, Again;
    abort_that_flattens_killed_anywhere_is_finished_by_the_next: Abort, false, Flattened, AgainAfterPowerLoss;
}

family_kills! {
    prepare_from_format_1_killed_anywhere_is_finished_by_the_next: Prepare, false, Format1, Again;
    prepare_from_format_1_in_place_killed_anywhere_is_taken_back_by_abort: Prepare, true, Format1, Abort;
    execute_from_format_1_killed_anywhere_is_finished_by_the_next: Execute, false, Format1, AgainAfterPowerLoss;
    commit_from_format_1_killed_anywhere_is_finished_by_the_next: Commit, false, Format1, Again;
    commit_from_format_1_in_place_killed_anywhere_is_finished_by_the_next: Commit, true, Format1, AgainAfterPowerLoss;
    commit_from_format_1_killed_anywhere_is_aborted_whole_or_not_at_all: Commit, false, Format1, Abort;
    abort_to_format_1_killed_anywhere_is_finished_by_the_next: Abort, false, Format1, Again;
    abort_to_format_1_in_place_killed_anywhere_is_finished_by_the_next: Abort, true, Format1, AgainAfterPowerLoss;
}

macro_rules! simulated_kills {
    ($($name:ident: $verb:ident, $family:ident, $then:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                kill_on_the_simulated_disk(Verb::$verb, Family::$family, Then::$then).await;
            }
        )*
    };
}

simulated_kills! {
    prepare_on_the_simulated_disk_is_finished_after_power_loss: Prepare, None, AgainAfterPowerLoss;
    execute_on_the_simulated_disk_is_finished_after_power_loss: Execute, None, AgainAfterPowerLoss;
    commit_on_the_simulated_disk_is_finished_after_power_loss: Commit, None, AgainAfterPowerLoss;
    abort_on_the_simulated_disk_is_finished_after_power_loss: Abort, None, AgainAfterPowerLoss;
    execute_on_the_simulated_disk_can_be_aborted: Execute, None, Abort;
    commit_from_format_1_on_the_simulated_disk_is_finished_after_power_loss: Commit, Format1, AgainAfterPowerLoss;
    prepare_in_a_family_on_the_simulated_disk_is_finished_after_power_loss: Prepare, Kept, AgainAfterPowerLoss;
    execute_in_a_family_on_the_simulated_disk_is_finished_after_power_loss: Execute, Kept, AgainAfterPowerLoss;
    commit_that_flattens_on_the_simulated_disk_is_finished_after_power_loss: Commit, Flattened, AgainAfterPowerLoss;
    abort_in_a_family_on_the_simulated_disk_is_finished_after_power_loss: Abort, Kept, AgainAfterPowerLoss;
}

kills! {
    prepare_killed_anywhere_is_finished_by_the_next: Prepare, false, Again;
    prepare_in_place_killed_anywhere_is_finished_by_the_next: Prepare, true, Again;
    prepare_killed_anywhere_is_taken_back_by_abort: Prepare, false, Abort;
    prepare_in_place_killed_anywhere_is_taken_back_by_abort: Prepare, true, Abort;
    prepare_survives_power_loss_anywhere: Prepare, false, AgainAfterPowerLoss;
    execute_killed_anywhere_is_finished_by_the_next: Execute, false, Again;
    execute_killed_anywhere_can_be_aborted: Execute, false, Abort;
    execute_survives_power_loss_anywhere: Execute, false, AgainAfterPowerLoss;
    commit_killed_anywhere_is_finished_by_the_next: Commit, false, Again;
    commit_in_place_killed_anywhere_is_finished_by_the_next: Commit, true, Again;
    commit_killed_anywhere_is_aborted_whole_or_not_at_all: Commit, false, Abort;
    commit_survives_power_loss_anywhere: Commit, false, AgainAfterPowerLoss;
    abort_killed_anywhere_is_finished_by_the_next: Abort, false, Again;
    abort_in_place_killed_anywhere_is_finished_by_the_next: Abort, true, Again;
    abort_survives_power_loss_anywhere: Abort, false, AgainAfterPowerLoss;
}
