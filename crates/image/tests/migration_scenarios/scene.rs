//! One image on its way from place to place, and the bytes that it must show: whatever is done is done to both, and each verb is
//! followed by a look at all of it through fresh handles.
//!
//! The client keeps the image open, and its lock, while another process executes and commits.

use std::sync::Arc;

use ferry_cls::rbd::{MigrationState, feature};
use ferry_image::admin::status::{MigrationStatus, status};
use ferry_image::admin::{create, namespace};
use ferry_image::layering::children::children;
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, Result, SnapKey};
use ferry_store::{Errno, IoCtx, Scope, Store};

use crate::support::reference::{Compared as _, Reference};
use crate::support::{Engine, TestLayout, pool, sound};

pub const OBJECT_BYTES: u64 = 1 << 16;
pub const SIZE: u64 = 20 * OBJECT_BYTES;
/// Two objects and a byte: pieces beside one another share an object.
pub const PIECE_BYTES: u64 = 2 * OBJECT_BYTES + 1;

/// Where an image moves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: only the layout changes.
    Here,
    /// To another name.
    Name,
    Pool,
    Namespace,
    /// Its data to another pool.
    DataPool,
}

impl Place {
    pub const ALL: [Self; 5] = [
        Self::Here,
        Self::Name,
        Self::Pool,
        Self::Namespace,
        Self::DataPool,
    ];
}

/// What the image holds before it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    Nothing,
    /// Two pieces.
    Plain,
    /// Three snapshots between writes, discards and sizes.
    History,
}

/// The name of an image, where it is.
#[derive(Debug, Clone)]
pub struct At {
    pub io: IoCtx,
    pub name: String,
}

pub struct Scene {
    engine: Engine,
    /// The other process, which migrates.
    verbs: Arc<dyn Store>,
    /// Where images are made.
    pub io: IoCtx,
    other: IoCtx,
    pub now: At,
    /// Source, and what it showed, while a migration is under way.
    before: Option<(At, Reference)>,
    client: Option<Image>,
    pub reference: Reference,
    /// How the target is laid out.
    pub target: PrepareOptions,
}

/// Plays a scene on every engine that there is; on those that cost nothing also with a target that is cut otherwise, and not only
/// with the last of the contents.
pub async fn everywhere(contents: &[Contents], play: impl AsyncFn(&mut Scene)) {
    let striped = PrepareOptions {
        order: Some(14),
        stripe_unit_bytes: Some(4096),
        stripe_count: Some(3),
        ..PrepareOptions::default()
    };
    let as_it_was = PrepareOptions::default();
    for (left, contents) in (0..contents.len()).rev().zip(contents) {
        let mut engines = vec![
            (Engine::memory(), &striped),
            (Engine::memory(), &as_it_was),
            (Engine::local(), &striped),
        ];
        if left == 0 {
            engines.extend(Engine::ceph().map(|engine| (engine, &as_it_was)));
        }
        for (engine, target) in engines {
            let mut scene = Scene::new(engine, target.clone()).await;
            scene.fill(*contents).await;
            play(&mut scene).await;
            scene.end().await;
        }
    }
}

impl Scene {
    async fn new(engine: Engine, target: PrepareOptions) -> Self {
        let store = engine.connect().await;
        let io = engine.place(&store, "rbd").await;
        let other = engine.place(&store, "other").await;
        let layout = TestLayout(16, 0, 0).create(SIZE);
        create::create(&io, "image", &layout).await.unwrap();
        let now = At {
            io: io.clone(),
            name: "image".to_owned(),
        };
        Self {
            verbs: engine.connect().await,
            engine,
            io,
            other,
            now,
            before: None,
            client: None,
            reference: Reference::new(SIZE),
            target,
        }
    }

    async fn end(&mut self) {
        self.close().await;
        // A cluster has images of others.
        if !matches!(self.engine, Engine::Ceph(..)) {
            sound(self.io.store(), "at the end").await;
        }
    }

    async fn fill(&mut self, contents: Contents) {
        match contents {
            Contents::Nothing => {}
            Contents::Plain => {
                self.write(0, PIECE_BYTES, 1).await;
                self.write(2 * PIECE_BYTES, PIECE_BYTES, 1).await;
            }
            Contents::History => {
                self.write(0, PIECE_BYTES, 1).await;
                self.snap("s1").await;
                self.write(PIECE_BYTES, PIECE_BYTES, 1).await;
                self.write(0, 1_000, 2).await;
                self.discard(1_010, 1_000).await;
                self.snap("s2").await;
                self.write(PIECE_BYTES, 1_000, 2).await;
                self.discard(2 * PIECE_BYTES + 10, 1_000).await;
                self.resize(2 * SIZE).await;
                self.write(SIZE - 1, PIECE_BYTES, 3).await;
                self.snap("s3").await;
                self.resize(SIZE).await;
                self.discard(SIZE - 1, 1).await;
            }
        }
    }

    /// The same place in the eyes of the process that migrates.
    pub fn by_verbs(&self, at: &At) -> IoCtx {
        IoCtx::new(self.verbs.clone(), at.io.scope().clone())
    }

    pub async fn client(&mut self) -> &Image {
        if self.client.is_none() {
            let image = Image::open(
                &self.now.io,
                ImageKey::Name(&self.now.name),
                OpenOptions::read_write(),
            )
            .await
            .unwrap();
            self.client = Some(image);
        }
        self.client.as_ref().unwrap()
    }

    pub async fn close(&mut self) {
        if let Some(client) = self.client.take() {
            client.flush().await.unwrap();
            client.close().await.unwrap();
        }
    }

    pub async fn write(&mut self, offset: u64, length: u64, byte: u8) {
        let data = vec![byte; length as usize];
        self.reference.write(offset, &data);
        self.client().await.write(offset, data.into()).await.unwrap();
    }

    pub async fn discard(&mut self, offset: u64, length: u64) {
        self.reference.zero(offset, length);
        self.client().await.discard(offset, length).await.unwrap();
    }

    pub async fn resize(&mut self, size_bytes: u64) {
        self.reference.resize(size_bytes);
        let client = self.client().await;
        client
            .resize(size_bytes, true, &Progress::silent())
            .await
            .unwrap();
    }

    pub async fn snap(&mut self, name: &str) {
        self.reference.snap(name);
        let client = self.client().await;
        client.snap_create(name, &Progress::silent()).await.unwrap();
    }

    pub async fn check(&mut self, when: &str) {
        if let Some(client) = &self.client {
            self.reference
                .check_head(client, &format!("{when}, in the open client"))
                .await;
            // What the client has not flushed is its own.
            client.flush().await.unwrap();
        }
        let at = self.now.clone();
        self.reference
            .check_all(&self.by_verbs(&at), &at.name, when)
            .await;
    }

    /// The target of a migration to `place`, and what is asked of it.
    async fn target(&self, place: Place) -> (At, PrepareOptions) {
        let mut target = self.now.clone();
        let mut options = self.target.clone();
        match place {
            Place::Here => {}
            Place::Name => target.name = format!("{}-moved", target.name),
            Place::Pool => target.io = self.other.clone(),
            Place::Namespace => {
                let outside = pool(self.io.store(), "other").await;
                let name = format!("scenario-{:016x}", rand::random::<u64>());
                namespace::create(&outside, &name).await.unwrap();
                target.io = outside.with_namespace(&name);
            }
            Place::DataPool => options.data_pool = Some("other".to_owned()),
        }
        (target, options)
    }

    pub async fn prepare(&mut self, place: Place) {
        self.close().await;
        let (target, options) = self.target(place).await;
        prepare(
            &self.by_verbs(&self.now),
            &self.now.name,
            &self.by_verbs(&target),
            &target.name,
            &options,
        )
        .await
        .unwrap();
        let source = std::mem::replace(&mut self.now, target);
        self.before = Some((source, self.reference.clone()));
        self.check_status(MigrationState::Prepared).await;
        self.check("prepared").await;
        let other = self.other.pool();
        let client = self.client().await;
        if place == Place::DataPool {
            assert_eq!(client.fixed().data_pool, Some(other));
        }
    }

    /// A prepare in place that is refused.
    pub async fn refused_prepare(&mut self, options: &PrepareOptions) -> ferry_image::ImageError {
        self.close().await;
        let (at, io) = (&self.now, self.by_verbs(&self.now));
        prepare(&io, &at.name, &io, &at.name, options).await.unwrap_err()
    }

    /// How the migration stands in the eyes of the process that does it.
    pub async fn status(&self) -> MigrationStatus {
        let io = self.by_verbs(&self.now);
        let status = status(&io, ImageKey::Name(&self.now.name)).await.unwrap();
        status.migration.unwrap()
    }

    async fn check_status(&self, state: MigrationState) {
        let (source, _) = self.before.as_ref().unwrap();
        let shown = self.status().await;
        assert_eq!(shown.state, state);
        for (at, shown) in [(source, &shown.source), (&self.now, &shown.dest)] {
            assert_eq!(shown.image_name, at.name);
            assert_eq!(*shown.pool_namespace, *at.io.scope().namespace);
            let id = at.io.store().pool_list().await.unwrap();
            let id = id.iter().find(|pool| pool.name == shown.pool_name).unwrap().id;
            assert_eq!(id, at.io.pool());
        }
        assert_ne!(shown.source.image_id, shown.dest.image_id);
    }

    pub async fn execute(&mut self) {
        let io = self.by_verbs(&self.now);
        execute(&io, &self.now.name, &Progress::silent()).await.unwrap();
        self.executed().await;
    }

    async fn executed(&mut self) {
        self.check_status(MigrationState::Executed).await;
        self.check("executed").await;
    }

    /// Executes while the client does something.
    pub async fn execute_beside(&mut self, work: impl AsyncFnOnce(&mut Self)) {
        let (io, name) = (self.by_verbs(&self.now), self.now.name.clone());
        let silent = Progress::silent();
        let (executed, ()) = tokio::join!(execute(&io, &name, &silent), work(self));
        executed.unwrap();
        self.executed().await;
    }

    pub async fn commit(&mut self) {
        let io = self.by_verbs(&self.now);
        commit(&io, &self.now.name, &Progress::silent()).await.unwrap();
        self.before = None;
        self.check("committed").await;
    }

    pub async fn migrate(&mut self, place: Place) {
        self.prepare(place).await;
        self.finish().await;
    }

    pub async fn finish(&mut self) {
        self.execute().await;
        self.commit().await;
    }

    /// Takes the migration back, by the name of the source or of the target. The source has what was written since;
    /// snapshots taken since are named, and go only when that is wanted.
    pub async fn abort(&mut self, by_source: bool) {
        self.close().await;
        let (source, before) = self.before.take().unwrap();
        let at = if by_source { &source } else { &self.now };
        let new: Vec<&String> = self
            .reference
            .snaps
            .keys()
            .filter(|name| !before.snaps.contains_key(*name))
            .collect();
        let io = self.by_verbs(at);
        let run = async |force: bool| -> Result<()> {
            abort(&io, &at.name, AbortOptions { force }, &Progress::silent()).await
        };
        if !new.is_empty() {
            let refused = run(false).await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::WouldLose, "{refused}");
            assert!(refused.message.contains(new[0]), "{refused}");
        }
        run(!new.is_empty()).await.unwrap();
        let target = std::mem::replace(&mut self.now, source);
        self.reference.snaps = before.snaps;
        self.check("aborted").await;
        if target.io.scope() != self.now.io.scope() {
            let io = self.by_verbs(&target);
            let gone = Image::open(&io, ImageKey::Name(&target.name), OpenOptions::read_only()).await;
            assert_eq!(gone.unwrap_err().errno, Errno::ENOENT);
        }
        if target.io.scope().namespace != self.io.scope().namespace {
            // Nothing is left in it.
            let outside = IoCtx::new(self.verbs.clone(), Scope::new(target.io.pool()));
            namespace::remove(&outside, &target.io.scope().namespace)
                .await
                .unwrap();
        }
    }

    /// Makes a clone of a snapshot of the image.
    pub async fn clone_of(&mut self, snap: &str, name: &str, format: CloneFormat) {
        let parent = self.now.clone();
        let client = self.client().await;
        assert!(client.header().has(feature::LAYERING));
        let is_protected = |image: &Image| {
            let header = image.header();
            let snap = header.snap_by_name(snap).unwrap();
            snap.protection != ferry_cls::rbd::ProtectionStatus::Unprotected
        };
        if !is_protected(client) {
            client.snap_protect(snap).await.unwrap();
        }
        let options = CloneOptions {
            format: Some(format),
            ..CloneOptions::default()
        };
        let key = SnapKey::Name(snap.to_owned());
        clone(&parent.io, &parent.name, &key, &self.io, name, &options)
            .await
            .unwrap();
    }

    /// Goes on with a clone of a snapshot of the image in its place.
    pub async fn become_clone(&mut self, snap: &str, name: &str) {
        self.clone_of(snap, name, CloneFormat::Two).await;
        self.close().await;
        self.now = At {
            io: self.io.clone(),
            name: name.to_owned(),
        };
        self.reference = Reference::of(&self.reference.snaps[snap]);
        self.check("cloned").await;
    }

    /// Names of the clones of an image, in the eyes of the process that migrates.
    pub async fn children(&self, at: &At) -> Vec<String> {
        let io = self.by_verbs(at);
        let image = Image::open(&io, ImageKey::Name(&at.name), OpenOptions::read_only())
            .await
            .unwrap();
        let found = children(&io, image.id(), None).await.unwrap();
        image.close().await.unwrap();
        found.into_iter().map(|child| child.image).collect()
    }
}
