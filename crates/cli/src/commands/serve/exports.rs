//! Images of a store as NBD exports.
//!
//! An export's name is an image spec, `[POOL/[NAMESPACE/]]IMAGE[@SNAP]`; what is left out is what the command line says.
//! Invariants: one image is open at most once, whatever the number of its connections; an image that was named on the
//! command line is closed by [`StoreExports::close_kept`] only, any other after its last connection.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ferry_image::{ErrorKind, Image, ImageError, ImageKey, OpenOptions, SnapKey, admin};
use ferry_nbd::{BlockDevice, DeviceError, ExportInfo, Exports, OpenError, OpenErrorKind};
use ferry_store::Store;
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::device::{ImageDevice, device_error};
use crate::commands::error::Explain as _;
use crate::exit::Failure;
use crate::spec::{Check, ImageSpec, PoolSpec, split};

/// Most exports that a client is told of; more can be opened by name.
const MAX_LISTED: usize = 4096;

/// See the module's text.
#[derive(Debug)]
pub(super) struct StoreExports {
    store: Arc<dyn Store>,
    place: PoolSpec,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    /// Slots of the devices that are open, by [`address`].
    open: Mutex<HashMap<usize, String>>,
    /// Exports on the command line, in its order; when there are some, nothing else is served.
    kept: AsyncMutex<Vec<String>>,
}

/// One export that is open, or being opened.
#[derive(Debug, Default)]
struct Slot {
    /// Open for the whole life of the server.
    kept: Mutex<Option<Image>>,
    device: AsyncMutex<Option<Arc<ImageDevice>>>,
}

impl StoreExports {
    pub(super) fn new(store: Arc<dyn Store>, place: PoolSpec) -> Arc<Self> {
        Arc::new(Self {
            store,
            place,
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
        let slot = Arc::<Slot>::default();
        *slot.kept.lock() = Some(image);
        self.slots.lock().insert(name.clone(), slot);
        kept.push(name);
        Ok(())
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
            None => OpenOptions::read_write(),
        };
        Image::open(&io, ImageKey::Name(&spec.image), options).await
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
            None => (self.place.pool.clone(), self.place.namespace.clone()),
        };
        let spec = ImageSpec {
            pool,
            namespace,
            image: parts.name.to_owned(),
            snap: parts.snap.map(str::to_owned),
        };
        if !kept.is_empty() && !kept.contains(&spec.to_string()) {
            return Err(unknown("this server serves other images only"));
        }
        Ok(spec)
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

    /// All images of the store that can be found; a pool that cannot be read keeps no other from being listed.
    async fn all_exports(&self) -> ferry_image::Result<Vec<ExportInfo>> {
        let mut found = Vec::new();
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
            for image in admin::directory::list(&io.with_namespace(&namespace))
                .await?
                .into_keys()
            {
                if found.len() == MAX_LISTED {
                    return Ok(());
                }
                let spec = ImageSpec {
                    pool: pool.to_owned(),
                    namespace: namespace.clone(),
                    image,
                    snap: None,
                };
                found.push(export_info(spec.to_string()));
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
fn address<T: ?Sized>(device: &Arc<T>) -> usize {
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
        if let Some(device) = &*device {
            return Ok(Arc::clone(device) as Arc<dyn BlockDevice>);
        }
        let kept = slot.kept.lock().clone();
        let image = match kept {
            Some(image) => Ok(image),
            None => self.open_image(&spec).await,
        };
        match image {
            Ok(image) => {
                let opened = Arc::new(ImageDevice::new(image));
                self.open.lock().insert(address(&opened), name);
                *device = Some(Arc::clone(&opened));
                Ok(opened)
            }
            Err(error) => {
                drop(device);
                self.forget(&name, &slot);
                Err(open_error(&error))
            }
        }
    }

    async fn close(&self, closing: Arc<dyn BlockDevice>) -> Result<(), DeviceError> {
        let name = self.open.lock().remove(&address(&closing));
        let Some(name) = name else { return Ok(()) };
        let slot = self.slots.lock().get(&name).cloned();
        let Some(slot) = slot else { return Ok(()) };
        let mut device = slot.device.lock().await;
        let found = device.take();
        let is_kept = slot.kept.lock().is_some();
        // While the slot is locked: an open that comes now finds the image closed, not half closed.
        let closed = match found {
            Some(found) if !is_kept => found.image().close().await,
            _ => Ok(()),
        };
        drop(device);
        if !is_kept {
            self.forget(&name, &slot);
        }
        closed.map_err(device_error)
    }
}
