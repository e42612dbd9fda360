//! The I/O contexts of a connection: one for each pool, namespace, snapshot to read at and snapshot context to write under.
//!
//! Invariant: at most [`CONTEXTS_MAX`] are kept; the ones that were used longest ago go first. Making one may ask the
//! monitors, so it happens where blocking is allowed.

use std::sync::Arc;

use ferry_store::{Errno, Scope, SnapContext, SnapId};
use parking_lot::Mutex;

use crate::sys::{Cluster, Ioctx, ReadAt};

/// Most contexts that are kept.
const CONTEXTS_MAX: usize = 64;

#[derive(Debug)]
struct Kept {
    scope: Scope,
    read: ReadAt,
    write: SnapContext,
    ioctx: Arc<Ioctx>,
    used: u64,
}

/// The contexts that are kept.
#[derive(Debug, Default)]
pub(crate) struct Contexts {
    kept: Mutex<(u64, Vec<Kept>)>,
}

impl Contexts {
    /// For reads at `snap`.
    pub(crate) async fn reading(
        &self,
        cluster: &Arc<Cluster>,
        scope: &Scope,
        snap: SnapId,
    ) -> Result<Arc<Ioctx>, Errno> {
        self.get(cluster, scope, ReadAt::Snap(snap), &SnapContext::empty())
            .await
    }

    /// For lists of clones.
    pub(crate) async fn listing(&self, cluster: &Arc<Cluster>, scope: &Scope) -> Result<Arc<Ioctx>, Errno> {
        self.get(cluster, scope, ReadAt::SnapDir, &SnapContext::empty())
            .await
    }

    /// For writes under `snapc`.
    pub(crate) async fn writing(
        &self,
        cluster: &Arc<Cluster>,
        scope: &Scope,
        snapc: &SnapContext,
    ) -> Result<Arc<Ioctx>, Errno> {
        self.get(cluster, scope, ReadAt::Snap(SnapId::HEAD), snapc).await
    }

    async fn get(
        &self,
        cluster: &Arc<Cluster>,
        scope: &Scope,
        read: ReadAt,
        write: &SnapContext,
    ) -> Result<Arc<Ioctx>, Errno> {
        if let Some(ioctx) = self.find(scope, read, write) {
            return Ok(ioctx);
        }
        let (cluster, scope, write) = (cluster.clone(), scope.clone(), write.clone());
        let made = tokio::task::spawn_blocking(move || {
            let ioctx = Ioctx::new(&cluster, &scope, read, &write)?;
            Ok((scope, write, ioctx))
        });
        let (scope, write, ioctx) = made.await.map_err(|_| Errno::ESHUTDOWN)??;
        self.keep(scope, read, write, &ioctx);
        Ok(ioctx)
    }

    fn find(&self, scope: &Scope, read: ReadAt, write: &SnapContext) -> Option<Arc<Ioctx>> {
        let mut kept = self.kept.lock();
        let (clock, contexts) = &mut *kept;
        *clock += 1;
        let found = contexts
            .iter_mut()
            .find(|kept| kept.read == read && kept.scope == *scope && kept.write == *write)?;
        found.used = *clock;
        Some(found.ioctx.clone())
    }

    fn keep(&self, scope: Scope, read: ReadAt, write: SnapContext, ioctx: &Arc<Ioctx>) {
        let mut kept = self.kept.lock();
        let (clock, contexts) = &mut *kept;
        if contexts.len() >= CONTEXTS_MAX {
            let oldest = (0..contexts.len()).min_by_key(|&index| contexts[index].used);
            if let Some(oldest) = oldest {
                contexts.swap_remove(oldest);
            }
        }
        contexts.push(Kept {
            scope,
            read,
            write,
            ioctx: ioctx.clone(),
            used: *clock,
        });
    }

    /// Lets all go.
    pub(crate) fn clear(&self) {
        self.kept.lock().1.clear();
    }
}
