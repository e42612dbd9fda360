//! Images of a store as NBD exports.
//!
//! An export's name is an image spec, `[POOL/[NAMESPACE/]]IMAGE[@SNAP]`; what is left out is what the command line says.
//! A name outside the server's [`Scope`] is unknown, whether there is such an image or not.
//! Invariants: one image is open at most once, whatever the number of its connections; an image that was named on the
//! command line is closed by [`StoreExports::close_kept`] only, any other after its last connection.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use ferry_image::{ErrorKind, Image, ImageError, ImageKey, OpenOptions, SnapKey, admin};
use ferry_nbd::{BlockDevice, DeviceError, ExportInfo, Exports, OnNoSpace, OpenError, OpenErrorKind};
use ferry_store::{Store, WriteAround};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::device::{ImageDevice, device_error};
use super::metrics::{ImageMetrics, MeteredDevice, ServeMetrics};
use crate::commands::error::Explain as _;
use crate::exit::Failure;
use crate::spec::{Check, ImageSpec, PoolSpec, split};

/// Most exports that a client is told of; more can be opened by name.
const MAX_LISTED: usize = 4096;

/// Which images a server shows, unless some are named on its command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// All of the store.
    Store,
    /// All of one pool.
    Pool {
        pool: String,
        /// Of this namespace only; `None` is all of the pool.
        namespace: Option<String>,
    },
}

impl Scope {
    fn holds(&self, spec: &ImageSpec) -> bool {
        match self {
            Self::Store => true,
            Self::Pool { pool, namespace } => {
                spec.pool == *pool && namespace.as_ref().is_none_or(|only| spec.namespace == *only)
            }
        }
    }
}

/// How images are found and opened.
#[derive(Debug)]
pub(super) struct ExportOptions {
    /// Where names without a pool are looked up.
    pub(super) place: PoolSpec,
    pub(super) scope: Scope,
    pub(super) read_only: bool,
    /// What becomes of changes that find no space.
    pub(super) on_no_space: OnNoSpace,
    pub(super) metrics: Option<Arc<ServeMetrics>>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct StoreExports {
    store: Arc<dyn Store>,
    options: ExportOptions,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    /// The devices that are open, by [`address`].
    open: Mutex<HashMap<usize, OpenDevice>>,
    /// Exports on the command line, in its order; when there are some, nothing else is served.
    kept: AsyncMutex<Vec<String>>,
}

/// One export that is open, or being opened.
#[derive(Debug, Default)]
struct Slot {
    /// Open for the whole life of the server.
    kept: Mutex<Option<Image>>,
    device: AsyncMutex<Option<Served>>,
}

/// An image and the device that connections use it through.
struct Served {
    image: Image,
    device: Arc<dyn BlockDevice>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Served").field(&self.image).finish()
    }
}

/// What is known of a device that connections use.
#[derive(Debug)]
struct OpenDevice {
    /// Name of its slot.
    name: String,
    metrics: Option<Arc<ImageMetrics>>,
}

impl StoreExports {
    pub(super) fn new(store: Arc<dyn Store>, options: ExportOptions) -> Arc<Self> {
        Arc::new(Self {
            store,
            options,
            slots: Mutex::default(),
            open: Mutex::default(),
            kept: AsyncMutex::default(),
        })
    }

    /// Opens an image for the life of the server and serves it, and no other that is not named too.
    pub(super) async fn keep_open(&self, spec: &ImageSpec) -> Result<(), Failure> {
        let name = spec.to_string();
        let mut kept = self.kept.lock().await;
        if kept.contains(&name) {
            return Ok(());
        }
        let image = self
            .open_image(spec)
            .await
            .map_err(|error| error.failed(format_args!("error opening image {name}")))?;
        // Shown from the start, not from the first client on.
        self.metrics_of(spec, &image);
        let slot = Arc::<Slot>::default();
        *slot.kept.lock() = Some(image);
        self.slots.lock().insert(name.clone(), slot);
        kept.push(name);
        Ok(())
    }

    /// What is served when no image is named.
    pub(super) fn scope(&self) -> &Scope {
        &self.options.scope
    }

    /// Names of what [`StoreExports::keep_open`] opened.
    pub(super) async fn kept_names(&self) -> Vec<String> {
        self.kept.lock().await.clone()
    }

    /// Closes what [`StoreExports::keep_open`] opened; the server has ended.
    pub(super) async fn close_kept(&self) -> Result<(), Failure> {
        let slots: Vec<Arc<Slot>> = self.slots.lock().drain().map(|(_, slot)| slot).collect();
        let mut result = Ok(());
        for slot in slots {
            let image = slot.kept.lock().take();
            if let Some(image) = image
                && let Err(error) = image.close().await
            {
                result = Err(error.failed(format_args!("error closing image {}", image.name())));
            }
        }
        result
    }

    async fn open_image(&self, spec: &ImageSpec) -> ferry_image::Result<Image> {
        let io = admin::pool::open(&self.store, &spec.pool, &spec.namespace).await?;
        let options = match &spec.snap {
            Some(snap) => OpenOptions::read_only().at(SnapKey::Name(snap.clone())),
            None if self.options.read_only => OpenOptions::read_only(),
            None => {
                // Every client of NBD is told how to flush.
                let around = self.store.write_around().map(|around| WriteAround {
                    until_flush: false,
                    ..around
                });
                // A write that is to wait for space must not have been acknowledged.
                let around = around.filter(|_| self.options.on_no_space == OnNoSpace::Fail);
                OpenOptions::read_write().writing_around(around)
            }
        };
        Image::open(&io, ImageKey::Name(&spec.image), options).await
    }

    fn metrics_of(&self, spec: &ImageSpec, image: &Image) -> Option<Arc<ImageMetrics>> {
        let metrics = self.options.metrics.as_ref()?;
        let metrics = metrics.image(spec);
        metrics.attach(image);
        Some(metrics)
    }

    /// Makes the device of an image that was opened for it.
    fn device(&self, spec: &ImageSpec, image: Image) -> Served {
        let device = Arc::new(ImageDevice::new(image.clone()));
        let metrics = self.metrics_of(spec, &image);
        let device: Arc<dyn BlockDevice> = match &metrics {
            Some(metrics) => {
                let metrics = Arc::clone(metrics);
                Arc::new(MeteredDevice::new(device, metrics, self.options.on_no_space))
            }
            None => device,
        };
        let name = spec.to_string();
        self.open
            .lock()
            .insert(address(&device), OpenDevice { name, metrics });
        Served { image, device }
    }

    /// What an export's name means. The default export is the image of a server that serves one.
    async fn resolve(&self, name: &str) -> Result<ImageSpec, OpenError> {
        let unknown = |why: &str| OpenError::new(OpenErrorKind::Unknown, format!("export '{name}': {why}"));
        let kept = self.kept.lock().await;
        let name = match (name, kept.as_slice()) {
            ("", [only]) => only.as_str(),
            ("", _) => return Err(unknown("name an image as [POOL/[NAMESPACE/]]IMAGE[@SNAP]")),
            _ => name,
        };
        let parts = split(name, Check::Lenient).map_err(|_| unknown("not an image spec"))?;
        let (pool, namespace) = match parts.pool {
            Some(pool) => (pool.to_owned(), parts.namespace.unwrap_or_default().to_owned()),
            None => (
                self.options.place.pool.clone(),
                self.options.place.namespace.clone(),
            ),
        };
        let spec = ImageSpec {
            pool,
            namespace,
            image: parts.name.to_owned(),
            snap: parts.snap.map(str::to_owned),
        };
        let in_scope = if kept.is_empty() {
            self.options.scope.holds(&spec)
        } else {
            kept.contains(&spec.to_string())
        };
        if !in_scope {
            return Err(unknown("this server serves other images only"));
        }
        Ok(spec)
    }

    fn metrics_of_device(&self, device: &Arc<dyn BlockDevice>) -> Option<Arc<ImageMetrics>> {
        self.options.metrics.as_ref()?;
        self.open.lock().get(&address(device))?.metrics.clone()
    }

    fn slot(&self, name: String) -> Arc<Slot> {
        Arc::clone(self.slots.lock().entry(name).or_default())
    }

    /// Forgets a slot that nobody uses.
    fn forget(&self, name: &str, slot: &Arc<Slot>) {
        let mut slots = self.slots.lock();
        // Ours and the table's; a third one is an open that waits.
        if Arc::strong_count(slot) <= 2 && slots.get(name).is_some_and(|found| Arc::ptr_eq(found, slot)) {
            slots.remove(name);
        }
    }

    /// All images of the scope that can be found; a pool that cannot be read keeps no other from being listed.
    async fn all_exports(&self) -> ferry_image::Result<Vec<ExportInfo>> {
        let mut found = Vec::new();
        if let Scope::Pool { pool, .. } = &self.options.scope {
            self.exports_of(pool, &mut found).await?;
            return Ok(found);
        }
        for pool in admin::pool::list(&self.store).await? {
            if let Err(error) = self.exports_of(&pool.name, &mut found).await {
                tracing::error!(pool = pool.name, %error, "cannot list the images of a pool");
            }
        }
        Ok(found)
    }

    async fn exports_of(&self, pool: &str, found: &mut Vec<ExportInfo>) -> ferry_image::Result<()> {
        let io = admin::pool::open(&self.store, pool, "").await?;
        let namespaces = admin::namespace::list(&io).await?;
        for namespace in std::iter::once(String::new()).chain(namespaces) {
            for image in admin::list::names(&io.with_namespace(&namespace)).await? {
                if found.len() == MAX_LISTED {
                    return Ok(());
                }
                let spec = ImageSpec {
                    pool: pool.to_owned(),
                    namespace: namespace.clone(),
                    image,
                    snap: None,
                };
                if self.options.scope.holds(&spec) {
                    found.push(export_info(spec.to_string()));
                }
            }
        }
        Ok(())
    }
}

fn export_info(name: String) -> ExportInfo {
    ExportInfo {
        name,
        description: String::new(),
    }
}

fn open_error(error: &ImageError) -> OpenError {
    let kind = match error.kind {
        ErrorKind::ImageMissing
        | ErrorKind::PoolMissing
        | ErrorKind::NamespaceMissing
        | ErrorKind::SnapMissing => OpenErrorKind::Unknown,
        ErrorKind::Migrating => OpenErrorKind::Policy,
        _ => OpenErrorKind::Io,
    };
    OpenError::new(kind, error.to_string())
}

/// What tells a device from others while it lives.
fn address(device: &Arc<dyn BlockDevice>) -> usize {
    Arc::as_ptr(device).cast::<()>() as usize
}

#[async_trait]
impl Exports for StoreExports {
    async fn list(&self) -> Result<Vec<ExportInfo>, OpenError> {
        let kept = self.kept_names().await;
        if !kept.is_empty() {
            return Ok(kept.into_iter().map(export_info).collect());
        }
        self.all_exports().await.map_err(|error| open_error(&error))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, OpenError> {
        let spec = self.resolve(name).await?;
        let name = spec.to_string();
        let slot = self.slot(name.clone());
        let mut device = slot.device.lock().await;
        if let Some(served) = &*device {
            return Ok(Arc::clone(&served.device));
        }
        let kept = slot.kept.lock().clone();
        let image = match kept {
            Some(image) => Ok(image),
            None => self.open_image(&spec).await,
        };
        match image {
            Ok(image) => {
                let served = self.device(&spec, image);
                Ok(Arc::clone(&device.insert(served).device))
            }
            Err(error) => {
                drop(device);
                self.forget(&name, &slot);
                Err(open_error(&error))
            }
        }
    }

    async fn close(&self, closing: Arc<dyn BlockDevice>) -> Result<(), DeviceError> {
        let open = self.open.lock().remove(&address(&closing));
        let Some(OpenDevice { name, metrics }) = open else {
            return Ok(());
        };
        let slot = self.slots.lock().get(&name).cloned();
        let Some(slot) = slot else { return Ok(()) };
        let mut device = slot.device.lock().await;
        let found = device.take();
        let is_kept = slot.kept.lock().is_some();
        // While the slot is locked: an open that comes now finds the image closed, not half closed.
        let closed = match found {
            Some(found) if !is_kept => found.image.close().await,
            _ => Ok(()),
        };
        if let Some(metrics) = metrics.filter(|_| !is_kept) {
            metrics.detach();
        }
        drop(device);
        if !is_kept {
            self.forget(&name, &slot);
        }
        closed.map_err(device_error)
    }

    fn connected(&self, device: &Arc<dyn BlockDevice>) {
        if let Some(metrics) = self.metrics_of_device(device) {
            metrics.connected();
        }
    }

    fn disconnected(&self, device: &Arc<dyn BlockDevice>) {
        if let Some(metrics) = self.metrics_of_device(device) {
            metrics.disconnected();
        }
    }
}
