//! An open image: a handful of owned parts behind one cheap handle.
//!
//! The parts, each with its own folder: the last reading of the header ([`crate::header`]), the watch that keeps that
//! reading fresh ([`crate::watch`]), the exclusive lock ([`crate::exclusive_lock`]), the head's object map
//! ([`crate::object_map`]), on a clone the parent ([`crate::layering`]), and on a migration target the source
//! ([`crate::migration`]).
//!
//! Invariants:
//! * Writers hold `gate` shared from before they look at the header until their write is in the store; whoever changes
//!   what writers rely on (snapshots, lock, size) holds it exclusively. It is never taken twice by one task.
//! * The header is replaced, never changed. `refresh` only ever moves it forward in time.
//! * A handle opened read-only changes nothing, watches nothing and takes no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ferry_cls::rbd::{MigrationState, feature};
use ferry_store::{Errno, IoCtx, SnapId, WriteAround};
use parking_lot::RwLock;

use crate::client_activity::ClientActivity;
use crate::error::{ErrorKind, ImageError, Result};
use crate::exclusive_lock::ExclusiveLock;
use crate::header::{self, Fixed, Header, HeaderKey};
use crate::io::ahead::Ahead;
use crate::io::around::Around;
use crate::io::cache_settings::CacheSettings;
use crate::io::gather::Gathered;
use crate::io::known::KnownObjects;
use crate::layering::parent::{ImageId, Parent, is_gone};
use crate::layout::Layout;
use crate::migration::execution::Execution;
use crate::migration::source::MigrationSource;
use crate::names;
use crate::object_map::HeadMap;
use crate::stats::ImageStats;
use crate::watch::ImageWatch;

/// Which image of a namespace.
#[derive(Debug, Clone, Copy)]
pub enum ImageKey<'a> {
    /// By name.
    Name(&'a str),
    /// By id; also finds images in the trash.
    Id(&'a str),
    /// By name, and only one of format 1: also finds the source of a migration that is not listed.
    Format1(&'a str),
}

impl ImageKey<'_> {
    /// The header, and the image's name (the one it had, for an image in the trash). `ENOENT` ([`ErrorKind::ImageMissing`]).
    pub(crate) async fn resolve(self, io: &IoCtx) -> Result<(HeaderKey, String)> {
        Ok(match self {
            Self::Name(name) => (header::find(io, name).await?, name.to_owned()),
            Self::Id(id) => (id.into(), crate::admin::directory::name_of_id(io, id).await?),
            Self::Format1(name) => (HeaderKey::Name(name.to_owned()), name.to_owned()),
        })
    }
}

/// Which snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapKey {
    /// By name, in the user namespace.
    Name(String),
    /// By id.
    Id(SnapId),
}

/// How to open an image.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Never writes, watches or locks.
    pub read_only: bool,
    /// Reads show this snapshot; implies `read_only`.
    pub snap: Option<SnapKey>,
    /// Opens a migration's images as they are, without looking through to the source. For maintenance only.
    pub ignore_migration: bool,
    /// Opens a clone without its parent: for work on its metadata, which must go on when the parent is gone. Reads show
    /// zeroes in the parent's place.
    pub ignore_parent: bool,
    /// Makes the clone's own what clients read of the parent; `None`: if the image's metadata ask for it.
    pub copy_on_read: Option<bool>,
    /// How writes may be acknowledged early; `None`: as the store has it ([`ferry_store::Store::write_around`]). Settings of the
    /// image and its pool may forbid it, or allow less.
    pub write_around: Option<WriteAround>,
    /// Whether reads that follow one another are read ahead of; `None`: as the store has it ([`ferry_store::Store::reads_ahead`]).
    /// Settings of the image and its pool may forbid it.
    pub read_ahead: Option<bool>,
    /// The images that this one is opened for as a parent, the nearest last.
    pub(crate) serves: Vec<ImageId>,
}

impl OpenOptions {
    /// Reads only.
    pub fn read_only() -> Self {
        Self {
            read_only: true,
            ..Self::default()
        }
    }

    /// Reads and writes.
    pub fn read_write() -> Self {
        Self::default()
    }

    /// As the migration verbs and status open: whatever state the image is in.
    pub fn ignoring_migration(mut self) -> Self {
        self.ignore_migration = true;
        self
    }

    /// As those open who do not look at data: also without the parent of a clone.
    pub fn ignoring_parent(mut self) -> Self {
        self.ignore_parent = true;
        self
    }

    /// With writes acknowledged early; `None`: as the store has it.
    pub fn writing_around(mut self, around: Option<WriteAround>) -> Self {
        self.write_around = around;
        self
    }

    /// With or without reading ahead; `None`: as the store has it.
    pub fn reading_ahead(mut self, ahead: Option<bool>) -> Self {
        self.read_ahead = ahead;
        self
    }

    /// At a snapshot.
    pub fn at(mut self, snap: SnapKey) -> Self {
        self.snap = Some(snap);
        self.read_only = true;
        self
    }
}

/// An open image. Clones share the handle; [`Image::close`] ends it for all.
#[derive(Debug, Clone)]
pub struct Image {
    pub(crate) inner: Arc<Inner>,
}

/// The parts of an open image.
#[derive(Debug)]
pub(crate) struct Inner {
    pub io: IoCtx,
    pub data_io: IoCtx,
    pub fixed: Fixed,
    pub header_object: String,
    pub read_only: bool,
    pub ignore_migration: bool,
    ignore_parent: bool,
    copy_on_read: AtomicBool,
    /// The images that this one is a parent of, the nearest last.
    pub serves: Vec<ImageId>,
    pub read_snap: SnapId,
    pub gate: Arc<tokio::sync::RwLock<()>>,
    pub ahead: Ahead,
    pub around: Around,
    pub gathered: Gathered,
    pub watch: ImageWatch,
    pub lock: ExclusiveLock,
    pub head_map: HeadMap,
    /// Objects of a migration target that hold all that the source has for them.
    pub complete: KnownObjects,
    /// Objects of a clone that exist; believed while this handle alone may write.
    pub present: KnownObjects,
    /// Second of the last note in the header that the image was written to; 0: none by this handle.
    pub modify_noted: AtomicU64,
    /// Whether what earlier handles had written and not flushed has been made durable.
    pub others_synced: AtomicBool,
    pub stats: Arc<ImageStats>,
    pub activity: ClientActivity,
    pub execution: Execution,
    name: RwLock<String>,
    header: RwLock<Arc<Header>>,
    source: RwLock<Option<Arc<MigrationSource>>>,
    parent: RwLock<Option<Arc<Parent>>>,
    refresh_wanted: AtomicU64,
    refresh_done: AtomicU64,
    refreshing: tokio::sync::Mutex<()>,
    closed: AtomicBool,
}

/// What an image shows where it has nothing itself.
struct Below {
    parent: Option<Arc<Parent>>,
    source: Option<Arc<MigrationSource>>,
}

/// How often one reading of a header meets somebody who takes away what it shows.
const MAX_CHANGES_BELOW: usize = 4;

/// How long an open waits for a `prepare` that is under way in another process, and an open handle for an `abort` that is about
/// to find that it cannot be.
const PREPARING_WAIT_MS: u64 = 5_000;

impl Image {
    /// Opens the image `key` of `io`'s namespace.
    ///
    /// Errors: [`ErrorKind::ImageMissing`]; [`ErrorKind::SnapMissing`]; `EROFS` ([`ErrorKind::Migrating`]) for writing to
    /// a migration source; `EBUSY` for a target that is not prepared yet; `ENOSYS` for features Ferry does not know;
    /// [`ErrorKind::ParentMissing`] for a clone whose parent is gone; `ELOOP` for a chain of parents without end.
    pub async fn open(io: &IoCtx, key: ImageKey<'_>, options: OpenOptions) -> Result<Self> {
        let copy_on_read = options.copy_on_read;
        // Opening opens the parent, and so on to the end of the chain: what is done before and after that is kept in
        // boxes, off the stack, or a long chain would need more of it than a thread has.
        let image = Box::pin(Self::from_header(io, key, options)).await?;
        // Once more, now that no change can be missed, and with the migration source.
        image.inner.refresh_wanted.fetch_add(1, Ordering::SeqCst);
        let done = match image.refresh_if_needed().await {
            Ok(()) => Box::pin(image.decide_copy_on_read(copy_on_read)).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => Ok(image),
            Err(error) => {
                let _ = Box::pin(image.close()).await;
                Err(error.context(format!("image '{}'", image.name())))
            }
        }
    }

    /// The handle of what the header says, watching, without what it shows from below.
    async fn from_header(io: &IoCtx, key: ImageKey<'_>, options: OpenOptions) -> Result<Self> {
        let read_only = options.read_only || options.snap.is_some();
        let (key, name) = key.resolve(io).await?;
        let place = format!("image '{name}'");
        let fixed = header::load_fixed(io, &key).await?;
        let mut header = header::load(io, &key, read_only).await?;
        check_features(&header, read_only).map_err(|error| error.context(&place))?;
        if !options.ignore_migration {
            header = wait_until_prepared(io, &key, read_only, !options.serves.is_empty(), header)
                .await
                .map_err(|e| e.context(&place))?;
        }
        let read_snap = match &options.snap {
            None => SnapId::HEAD,
            Some(key) => find_snap(&header, key).map_err(|error| error.context(&place))?,
        };
        let data_io = match fixed.data_pool {
            Some(pool) => io.with_pool(pool),
            None => io.clone(),
        };
        let around = options.write_around.or_else(|| io.store().write_around());
        let around = around.filter(|_| !read_only);
        // Without a lock, others may write at any time.
        let reads_ahead = options.read_ahead.unwrap_or_else(|| io.store().reads_ahead())
            && !(read_only && read_snap.is_head());
        let settings = match around.is_some() || reads_ahead {
            true => CacheSettings::read(io, &key.object()).await?,
            false => CacheSettings::default(),
        };
        let around = around.and_then(|around| settings.write_around(around));
        let reads_ahead = reads_ahead && settings.reads_ahead();
        let inner = Arc::new(Inner {
            header_object: key.object(),
            io: io.clone(),
            data_io,
            read_only,
            ignore_migration: options.ignore_migration,
            ignore_parent: options.ignore_parent,
            copy_on_read: AtomicBool::new(false),
            serves: options.serves,
            read_snap,
            gate: Arc::default(),
            ahead: Ahead::new(reads_ahead),
            around: Around::new(around),
            gathered: Gathered::default(),
            watch: ImageWatch::default(),
            lock: ExclusiveLock::default(),
            head_map: HeadMap::default(),
            complete: KnownObjects::default(),
            present: KnownObjects::default(),
            modify_noted: AtomicU64::new(0),
            others_synced: AtomicBool::new(false),
            stats: Arc::default(),
            activity: ClientActivity::default(),
            execution: Execution::default(),
            name: RwLock::new(name),
            header: RwLock::new(Arc::new(header)),
            source: RwLock::new(None),
            parent: RwLock::new(None),
            refresh_wanted: AtomicU64::new(0),
            refresh_done: AtomicU64::new(0),
            refreshing: tokio::sync::Mutex::new(()),
            closed: AtomicBool::new(false),
            fixed,
        });
        let image = Self { inner };
        if !read_only {
            crate::watch::register(&image).await?;
        }
        Ok(image)
    }

    async fn decide_copy_on_read(&self, asked: Option<bool>) -> Result<()> {
        if self.inner.read_only || self.parent().is_none() {
            return Ok(());
        }
        let wanted = match asked {
            Some(asked) => asked,
            None => crate::layering::copy_on_read::is_wanted(self).await?,
        };
        self.inner.copy_on_read.store(wanted, Ordering::Relaxed);
        Ok(())
    }

    /// Whether what clients read of the parent becomes the clone's own.
    pub(crate) fn copies_on_read(&self) -> bool {
        self.inner.copy_on_read.load(Ordering::Relaxed)
    }

    /// Writes out what is buffered, gives up the lock and the watch. Further use of the handle fails with `ESHUTDOWN`.
    pub async fn close(&self) -> Result<()> {
        if self.inner.lock.is_owner() {
            // What failed before is tried once more; what fails again is the error of the flush below.
            let _ = self.settle_all().await;
        }
        if self.inner.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let released = if self.inner.read_only {
            Ok(())
        } else {
            crate::exclusive_lock::close(self).await
        };
        let unwatched = crate::watch::unregister(self).await;
        let source = self.inner.source.write().take();
        if let Some(source) = source {
            Box::pin(source.close()).await;
        }
        let parent = self.inner.parent.write().take();
        if let Some(parent) = parent
            && let Err(error) = Box::pin(parent.image().close()).await
        {
            tracing::debug!(%error, "closing a parent");
        }
        released.and(unwatched)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::SeqCst) {
            return Err(ImageError::new(
                Errno::ESHUTDOWN,
                format!("image '{}' is closed", self.name()),
            ));
        }
        Ok(())
    }

    /// Name at the last reading.
    pub fn name(&self) -> String {
        self.inner.name.read().clone()
    }

    /// Notes the name after a rename.
    pub(crate) fn set_name(&self, name: &str) {
        name.clone_into(&mut self.inner.name.write());
    }

    /// Image id; empty for format 1.
    pub fn id(&self) -> &str {
        &self.inner.fixed.id
    }

    /// Which header it has.
    pub fn key(&self) -> &HeaderKey {
        &self.inner.fixed.key
    }

    /// Name of the header object.
    pub fn header_object(&self) -> &str {
        &self.inner.header_object
    }

    /// What is fixed.
    pub fn fixed(&self) -> &Fixed {
        &self.inner.fixed
    }

    /// How the image is cut into objects.
    pub fn layout(&self) -> &Layout {
        &self.inner.fixed.layout
    }

    /// Pool and namespace of the metadata.
    pub fn io(&self) -> &IoCtx {
        &self.inner.io
    }

    /// Pool and namespace of the data.
    pub fn data_io(&self) -> &IoCtx {
        &self.inner.data_io
    }

    /// What this handle has counted; it may outlive the handle.
    pub fn stats(&self) -> &Arc<ImageStats> {
        &self.inner.stats
    }

    /// The last reading of the header.
    pub fn header(&self) -> Arc<Header> {
        self.inner.header.read().clone()
    }

    /// Whether the handle may write.
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// The snapshot that reads show, or the head.
    pub fn read_snap(&self) -> SnapId {
        self.inner.read_snap
    }

    /// Size of what reads show, at the last reading of the header.
    pub fn size_bytes(&self) -> u64 {
        self.header().size_at(self.inner.read_snap).unwrap_or(0)
    }

    pub(crate) fn source(&self) -> Option<Arc<MigrationSource>> {
        self.inner.source.read().clone()
    }

    pub(crate) fn parent(&self) -> Option<Arc<Parent>> {
        self.inner.parent.read().clone()
    }

    /// Whether this handle was opened to be read through.
    pub(crate) fn serves_as_parent(&self) -> bool {
        !self.inner.serves.is_empty()
    }

    pub(crate) fn data_object(&self, object_no: u64) -> String {
        let prefix = &self.inner.fixed.object_prefix;
        match self.key() {
            HeaderKey::Id(_) => names::data_object(prefix, object_no),
            HeaderKey::Name(_) => names::v1_data_object(prefix, object_no),
        }
    }

    /// Prefix that all data objects of this image and of no other share.
    pub(crate) fn data_prefix(&self) -> String {
        format!("{}.", self.inner.fixed.object_prefix)
    }

    /// Notes that the header has changed; the next operation reads it again.
    pub(crate) fn want_refresh(&self) {
        self.inner.refresh_wanted.fetch_add(1, Ordering::SeqCst);
        self.inner.execution.poked.notify_one();
    }

    /// Whether the header is not known to have changed since it was read.
    pub(crate) fn is_fresh(&self) -> bool {
        self.inner.refresh_done.load(Ordering::SeqCst) == self.inner.refresh_wanted.load(Ordering::SeqCst)
    }

    /// Reads the header again if it is known to have changed.
    pub async fn refresh_if_needed(&self) -> Result<()> {
        if self.is_fresh() {
            return Ok(());
        }
        let _one_at_a_time = self.inner.refreshing.lock().await;
        let wanted = self.inner.refresh_wanted.load(Ordering::SeqCst);
        if self.inner.refresh_done.load(Ordering::SeqCst) == wanted {
            return Ok(());
        }
        let (header, below) = Box::pin(self.read_with_below()).await?;
        if !self.inner.ignore_parent {
            *self.inner.parent.write() = below.parent;
        }
        if !self.inner.ignore_migration {
            let ended = below.source.is_none();
            *self.inner.source.write() = below.source;
            if ended {
                self.inner.complete.clear();
            }
        }
        *self.inner.header.write() = Arc::new(header);
        self.inner.ahead.clear();
        self.inner.refresh_done.store(wanted, Ordering::SeqCst);
        Ok(())
    }

    /// A header, and what it shows open. A commit takes the record away first, then the source, and who cuts a clone loose or
    /// moves its parent does it in that order too: so what is not there any more is looked for in the header again, here for
    /// who opens the image and for who has it open.
    async fn read_with_below(&self) -> Result<(Header, Below)> {
        let mut header = self.read_usable().await?;
        for _ in 0..MAX_CHANGES_BELOW {
            match Box::pin(self.open_below(&header)).await {
                Err(error) if error.errno == Errno::ENOENT || is_gone(&error) => {
                    let now = self.read_usable().await?;
                    if now.migration == header.migration && now.parent == header.parent {
                        return Err(error);
                    }
                    header = now;
                }
                Err(error) => return Err(error),
                Ok(below) => return Ok((header, below)),
            }
        }
        let below = Box::pin(self.open_below(&header)).await?;
        Ok((header, below))
    }

    async fn open_below(&self, header: &Header) -> Result<Below> {
        let parent = match self.inner.ignore_parent {
            true => None,
            false => Parent::for_header(self, header, self.parent()).await?,
        };
        let source = match self.inner.ignore_migration {
            true => None,
            false => MigrationSource::for_header(self, header, self.source()).await?,
        };
        Ok(Below { parent, source })
    }

    /// Reads the header, and looks whether the handle can go on under it.
    async fn read_usable(&self) -> Result<Header> {
        let header = header::load(&self.inner.io, self.key(), self.inner.read_only).await?;
        check_features(&header, self.inner.read_only)?;
        if header.migration_source().is_some() && !self.inner.read_only && !self.inner.ignore_migration {
            return Err(being_migrated());
        }
        if !self.inner.ignore_migration {
            check_target_usable(&header, self.serves_as_parent())?;
        }
        if !self.inner.read_snap.is_head() && !header.snaps.contains_key(&self.inner.read_snap) {
            return Err(ImageError::of(
                ErrorKind::SnapMissing,
                Errno::ENOENT,
                format!(
                    "snapshot id {} of image '{}' was removed",
                    self.inner.read_snap,
                    self.name()
                ),
            ));
        }
        Ok(header)
    }

    /// As [`Image::refresh_if_needed`], for a client's request: an `abort` that marks the migration before it sees this handle
    /// takes the mark back at once, and the client is not to hear of it.
    pub(crate) async fn refresh_for_client(&self) -> Result<()> {
        if self.is_fresh() {
            return Ok(());
        }
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_millis(PREPARING_WAIT_MS);
        loop {
            match self.refresh_if_needed().await {
                Err(error)
                    if error.kind == ErrorKind::Migrating && tokio::time::Instant::now() < deadline =>
                {
                    self.check_open()?;
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                result => return result,
            }
        }
    }

    /// Reads the header again, whatever is known.
    pub async fn refresh(&self) -> Result<()> {
        self.want_refresh();
        self.refresh_if_needed().await
    }

    /// Tells every open handle that the header has changed, and reads it again here.
    pub async fn header_changed(&self) -> Result<()> {
        self.refresh().await?;
        crate::watch::notify_header_update(&self.inner.io, &self.inner.header_object, Some(self)).await
    }
}

/// Finds a snapshot by key: [`ErrorKind::SnapMissing`] without it.
pub fn find_snap(header: &Header, key: &SnapKey) -> Result<SnapId> {
    let found = match key {
        SnapKey::Name(name) => header.snap_by_name(name).map(|snap| snap.id),
        SnapKey::Id(id) => header.snaps.get(id).map(|snap| snap.id),
    };
    found.ok_or_else(|| {
        let what = match key {
            SnapKey::Name(name) => format!("snapshot '{name}'"),
            SnapKey::Id(id) => format!("snapshot id {id}"),
        };
        ImageError::of(ErrorKind::SnapMissing, Errno::ENOENT, what)
    })
}

/// Features that Ferry writes correctly.
const WRITABLE: u64 = feature::LAYERING
    | feature::STRIPINGV2
    | feature::EXCLUSIVE_LOCK
    | feature::OBJECT_MAP
    | feature::FAST_DIFF
    | feature::DEEP_FLATTEN
    | feature::DATA_POOL
    | feature::OPERATIONS
    | feature::MIGRATING;
/// Features that Ferry reads correctly.
const READABLE: u64 = WRITABLE | feature::JOURNALING | feature::NON_PRIMARY;

fn check_features(header: &Header, read_only: bool) -> Result<()> {
    let known = if read_only { READABLE } else { WRITABLE };
    let unknown = header.incompatible_features & !known;
    if unknown != 0 {
        return Err(ImageError::new(
            Errno::ENOSYS,
            format!(
                "image uses features that Ferry does not support: {}",
                feature::names(unknown).join(", ")
            ),
        ));
    }
    Ok(())
}

/// A target that is not prepared yet, or is being taken back, has no source to show.
/// As a parent it may be read until it is gone: its snapshots show what the source's show, and its children are told.
fn check_target_usable(header: &Header, is_parent: bool) -> Result<()> {
    match header.migration_target().map(|spec| spec.state) {
        Some(MigrationState::Preparing) => Err(ImageError::of(
            ErrorKind::Migrating,
            Errno::EBUSY,
            "migration is not prepared yet",
        )
        .hint("if 'rbd migration prepare' was interrupted, run it again or run 'rbd migration abort'")),
        Some(MigrationState::Aborting) if !is_parent => {
            Err(
                ImageError::of(ErrorKind::Migrating, Errno::EROFS, "migration is being aborted")
                    .hint("finish it with 'rbd migration abort'"),
            )
        }
        _ => Ok(()),
    }
}

fn being_migrated() -> ImageError {
    ImageError::of(ErrorKind::Migrating, Errno::EROFS, "image is being migrated")
        .hint("use the migration target, or run 'rbd migration abort' to get the source back")
}

async fn wait_until_prepared(
    io: &IoCtx,
    key: &HeaderKey,
    read_only: bool,
    is_parent: bool,
    mut header: Header,
) -> Result<Header> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_millis(PREPARING_WAIT_MS);
    loop {
        if header.migration_source().is_some() && !read_only {
            return Err(being_migrated());
        }
        match header.migration_target().map(|spec| spec.state) {
            Some(MigrationState::Preparing) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                header = header::load(io, key, read_only).await?;
            }
            _ => {
                check_target_usable(&header, is_parent)?;
                return Ok(header);
            }
        }
    }
}
