//! Live migration: the four verbs, what a target shows of its source, and the status of both.
//!
//! The states, what is durable in each, and what every verb does in each are the table of `docs/migration.md`; the
//! functions here are named after its rows. [`source`] is how a target reads through; [`prepare`], [`execute`],
//! [`commit`] and [`abort`] are the verbs; [`pair`] finds both images from either name; [`record`] reads and writes
//! the records in both headers. How fast an execute goes is told by [`settings`] and kept by its pace; how far it is,
//! by [`execution`].

pub mod abort;
pub mod commit;
pub mod execute;
pub mod execution;
pub mod pace;
pub mod pair;
pub mod prepare;
pub mod record;
pub mod settings;
pub mod source;

use ferry_store::Errno;

use crate::error::{ErrorKind, ImageError, Result};
use crate::layering::links;

/// Refuses sources with clones, whose links this version cannot move.
pub(crate) async fn check_no_children(source: &record::Side) -> Result<()> {
    let header = crate::header::load(&source.io, &source.id, true).await?;
    for snap in header.snaps.values() {
        if !links::children(&source.io, &source.id, snap.id).await?.is_empty() {
            return Err(ImageError::of(
                ErrorKind::HasChildren,
                Errno::EBUSY,
                format!("snapshot '{}' of image '{}' has clones", snap.name, source.name),
            )
            .hint("this version cannot migrate the parent of clones; flatten them first"));
        }
    }
    Ok(())
}
