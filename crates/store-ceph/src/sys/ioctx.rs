//! An I/O context: a pool, a namespace, and the snapshots that it reads at and writes under, all fixed.
//!
//! librados keeps these in the handle and looks at them when an operation is submitted, so a context never changes after
//! it was made, and there is one for each combination.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use ferry_store::{Errno, Scope, SnapContext, SnapId};

use super::cluster::Cluster;
use super::library::{Functions, PoolStat, RawIoctx};
use super::{Rc, check, completion, text};

/// What a context reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ReadAt {
    /// The object at a snapshot, or its head.
    Snap(SnapId),
    /// The object's list of clones (`LIBRADOS_SNAP_DIR`).
    SnapDir,
}

/// A context. See the module's text.
pub(crate) struct Ioctx {
    pub(super) raw: RawIoctx,
    pub(super) cluster: Arc<Cluster>,
}

// SAFETY: an I/O context may be used by several threads as long as nobody changes its settings, which nobody does.
unsafe impl Send for Ioctx {}
// SAFETY: as above.
unsafe impl Sync for Ioctx {}

impl fmt::Debug for Ioctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ioctx")
    }
}

impl Drop for Ioctx {
    fn drop(&mut self) {
        // SAFETY: operations under way hold a reference, so there are none.
        unsafe { (self.functions().rados_ioctx_destroy)(self.raw) }
    }
}

impl Ioctx {
    /// A context for reads at `read` and writes under `write`. Blocks when the pool is not in this client's map yet;
    /// `ENOENT` if there is none.
    pub(crate) fn new(
        cluster: &Arc<Cluster>,
        scope: &Scope,
        read: ReadAt,
        write: &SnapContext,
    ) -> Rc<Arc<Self>> {
        const SNAP_DIR: u64 = u64::MAX;
        let namespace = text(&scope.namespace)?;
        let functions = &cluster.library.functions;
        let mut raw = ptr::null_mut();
        // SAFETY: a connected handle and a place for the context.
        check(unsafe { (functions.rados_ioctx_create2)(cluster.raw, scope.pool.0, &mut raw) })?;
        let made = Self {
            raw,
            cluster: cluster.clone(),
        };
        let mut snaps: Vec<u64> = write.snaps().iter().map(|snap| snap.0).collect();
        let count = i32::try_from(snaps.len()).map_err(|_| Errno::E2BIG)?;
        let read = match read {
            ReadAt::Snap(snap) => snap.0,
            ReadAt::SnapDir => SNAP_DIR,
        };
        // Watches, unlike writes, take no flag of their own that lets a full cluster answer.
        let full_try = functions.set_pool_full_try.or(functions.set_osdmap_full_try);
        if let Some(full_try) = full_try {
            // SAFETY: a new context that nobody else has.
            unsafe { full_try(raw) };
        }
        // SAFETY: a new context that nobody else has; a string; an array of the length that is named, which is copied.
        unsafe {
            (functions.rados_ioctx_set_namespace)(raw, namespace.as_ptr());
            (functions.rados_ioctx_snap_set_read)(raw, read);
            check((functions.rados_ioctx_selfmanaged_snap_set_write_ctx)(
                raw,
                write.seq(),
                snaps.as_mut_ptr(),
                count,
            ))?;
        }
        Ok(Arc::new(made))
    }

    pub(super) fn functions(&self) -> &'static Functions {
        &self.cluster.library.functions
    }

    /// Objects and clones of the pool, and its bytes. Blocks.
    pub(crate) fn pool_usage(&self) -> Rc<(u64, u64, u64)> {
        let mut stat = PoolStat::default();
        // SAFETY: a place for the figures, larger than they are.
        check(unsafe { (self.functions().rados_ioctx_pool_stat)(self.raw, &mut stat) })?;
        Ok((stat.num_objects, stat.num_object_clones, stat.num_bytes))
    }

    /// Says that the pool holds block-device images. Blocks.
    pub(crate) fn enable_rbd(&self) -> Rc<()> {
        // SAFETY: a string.
        check(unsafe { (self.functions().rados_application_enable)(self.raw, c"rbd".as_ptr(), 1) }).map(drop)
    }

    /// A new self-managed snapshot id of the pool.
    pub(crate) async fn create_snap(self: &Arc<Self>) -> Rc<SnapId> {
        let (functions, ioctx) = (self.functions(), Raw(self.raw));
        let done = completion::run(functions, Some(self), Box::new(0u64), move |id, completion| {
            let ioctx = ioctx;
            // SAFETY: a context that the completion keeps, and a place that it owns.
            unsafe { (functions.rados_aio_ioctx_selfmanaged_snap_create)(ioctx.0, id, completion) };
            0
        });
        done.await?.ok().map(|id| SnapId(*id))
    }

    /// Gives a snapshot id up.
    pub(crate) async fn remove_snap(self: &Arc<Self>, snap: SnapId) -> Rc<()> {
        let (functions, ioctx) = (self.functions(), Raw(self.raw));
        let done = completion::run(functions, Some(self), Box::new(()), move |_, completion| {
            let ioctx = ioctx;
            // SAFETY: a context that the completion keeps.
            unsafe { (functions.rados_aio_ioctx_selfmanaged_snap_remove)(ioctx.0, snap.0, completion) };
            0
        });
        done.await?.ok().map(drop)
    }

    /// Rolls the head back, by the call that blocks; [`Ioctx::rollback`] for the other.
    pub(crate) fn rollback_blocking(&self, object: &str, snap: SnapId) -> Rc<()> {
        let object: CString = text(object)?;
        // SAFETY: a string.
        check(unsafe {
            (self.functions().rados_ioctx_selfmanaged_snap_rollback)(self.raw, object.as_ptr(), snap.0)
        })
        .map(drop)
    }
}

/// A context's handle on its way into a closure.
#[derive(Clone, Copy)]
pub(super) struct Raw(pub(super) RawIoctx);
// SAFETY: see `Ioctx`.
unsafe impl Send for Raw {}
