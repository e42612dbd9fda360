//! The clones of an image, and their clones, with names: `rbd children`.

use ferry_store::{IoCtx, SnapId};

use super::links::{self, Child};
use super::parent::MAX_CHAIN;
use crate::admin::{directory, pool, trash};
use crate::error::{ErrorKind, Result};
use crate::header;

/// A clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildInfo {
    /// Pool name.
    pub pool: String,
    /// Namespace; empty for the default one.
    pub pool_namespace: String,
    /// Name; the one it had, for an image in the trash.
    pub image: String,
    /// Image id.
    pub image_id: String,
    /// Whether it is in the trash.
    pub trash: bool,
}

/// Clones of image `id`, of all its snapshots or of one, sorted. One of format 1, whose id is empty, has none.
pub async fn children(io: &IoCtx, id: &str, snap: Option<SnapId>) -> Result<Vec<ChildInfo>> {
    named(&direct(io, id, snap).await?).await
}

/// The same with the clones of the clones, as far down as there are any.
pub async fn descendants(io: &IoCtx, id: &str, snap: Option<SnapId>) -> Result<Vec<ChildInfo>> {
    let mut all = direct(io, id, snap).await?;
    let mut level = all.clone();
    // Longer chains cannot be opened; damaged links may run in circles.
    for _ in 0..MAX_CHAIN {
        let mut below = Vec::new();
        for child in &level {
            match direct(&child.io, &child.id, None).await {
                Ok(found) => below.extend(found),
                Err(error) if error.kind == ErrorKind::ImageMissing => {}
                Err(error) => return Err(error),
            }
        }
        if below.is_empty() {
            break;
        }
        all.extend(below.iter().cloned());
        level = below;
    }
    named(&all).await
}

async fn direct(io: &IoCtx, id: &str, snap: Option<SnapId>) -> Result<Vec<Child>> {
    if id.is_empty() {
        return Ok(Vec::new());
    }
    let snaps = match snap {
        Some(snap) => vec![snap],
        None => header::load(io, id, true).await?.snaps.into_keys().collect(),
    };
    let mut out = Vec::new();
    for snap in snaps {
        out.extend(links::children(io, id, snap).await?);
    }
    Ok(out)
}

async fn named(children: &[Child]) -> Result<Vec<ChildInfo>> {
    let mut out = Vec::with_capacity(children.len());
    for child in children {
        let listed = directory::listed_name(&child.io, &child.id).await?;
        let trash = listed.is_none();
        let image = match listed {
            Some(name) => name,
            None => trash::find(&child.io, &child.id)
                .await?
                .map_or_else(|| child.id.clone(), |entry| entry.name),
        };
        out.push(ChildInfo {
            pool: pool::name_of(child.io.store(), child.io.pool()).await?,
            pool_namespace: child.io.scope().namespace.to_string(),
            image,
            image_id: child.id.clone(),
            trash,
        });
    }
    out.sort();
    out.dedup();
    Ok(out)
}
