//! Moves clones from one image of a migration to the other: from the source's snapshots to their twins on the target at
//! prepare, and back at abort.
//!
//! Three steps for each clone: it names its new parent, that lists it, the old one forgets it. One of both lists has the clone at
//! any moment, so whoever comes after a kill finds it and goes on, in the same direction or back.

use std::collections::BTreeMap;

use ferry_cls::rbd::{ParentImageSpec, ProtectionStatus, client, feature};
use ferry_store::{Errno, IoCtx, SnapId};

use super::pair::Pair;
use super::record::Side;
use crate::error::{ErrorKind, ImageError, Result};
use crate::header;
use crate::layering::links::{self, Child, CloneFormat};
use crate::watch::notify_header_update;

/// Clones of the source become clones of the target.
pub(super) async fn to_target(pair: &Pair) -> Result<()> {
    let Some(spec) = &pair.target.spec else {
        return Ok(());
    };
    move_all(&pair.source, &pair.target, &spec.snap_seqs).await
}

/// Clones of the target's snapshots that came along become clones of the source.
pub(super) async fn to_source(pair: &Pair) -> Result<()> {
    let Some(spec) = &pair.target.spec else {
        return Ok(());
    };
    let back = spec.snap_seqs.iter().map(|(source, target)| (*target, *source));
    move_all(&pair.target, &pair.source, &back.collect()).await
}

/// Takes the target off the list of the source's parent, unless it is a clone of it: Ceph lists a target that is to be flat, and
/// forgets it there.
pub(super) async fn forget_flat_target(source: &Side, target_io: &IoCtx, target_id: &str) -> Result<()> {
    let header = match header::load(&source.io, &source.key(), true).await {
        Ok(header) => header,
        Err(error) if error.kind == ErrorKind::ImageMissing => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(link) = header.parent else { return Ok(()) };
    for format in [CloneFormat::One, CloneFormat::Two] {
        let target = Child {
            io: target_io.clone(),
            id: target_id.to_owned(),
            format,
        };
        if target.names_parent().await?.as_ref() != Some(&link.spec) {
            links::take_off_list(&link.spec, &target).await?;
        }
    }
    Ok(())
}

/// `EBUSY` ([`ErrorKind::HasChildren`]) when one of these snapshots has clones.
pub(super) async fn check_no_children(
    side: &Side,
    snaps: impl IntoIterator<Item = SnapId>,
    hint: &str,
) -> Result<()> {
    for snap in snaps {
        if let Some(child) = links::children(&side.io, &side.id, snap).await?.first() {
            return Err(ImageError::of(
                ErrorKind::HasChildren,
                Errno::EBUSY,
                format!(
                    "snapshot id {snap} of image '{}' has clones (image id '{}' in pool id {})",
                    side.name,
                    child.id,
                    child.io.pool()
                ),
            )
            .hint(hint));
        }
    }
    Ok(())
}

async fn move_all(from: &Side, to: &Side, twins: &BTreeMap<SnapId, SnapId>) -> Result<()> {
    if from.is_format_1() || to.is_format_1() {
        // One has no clones, the other can have none: abort has made sure that there are none.
        return Ok(());
    }
    for (old, new) in twins {
        let old = links::parent_spec(&from.io, &from.id, *old);
        let new = links::parent_spec(&to.io, &to.id, *new);
        let place = |error: ImageError, child: &Child| {
            error.context(format!("clone '{}' of '{}'", child.id, from.name))
        };
        for child in links::listed(&from.io, &from.id, old.snap_id).await? {
            move_one(to, &child, &old, &new)
                .await
                .map_err(|error| place(error, &child))?;
        }
        // Those whose move the other way was interrupted before the list of `from` had them.
        for child in links::listed(&to.io, &to.id, new.snap_id).await? {
            if child.names_parent().await?.as_ref() == Some(&old) {
                move_one(to, &child, &old, &new)
                    .await
                    .map_err(|error| place(error, &child))?;
            }
        }
    }
    Ok(())
}

async fn move_one(to: &Side, child: &Child, old: &ParentImageSpec, new: &ParentImageSpec) -> Result<()> {
    let named = child.names_parent().await?;
    // Format 1 says nothing of namespaces, and a clone of it must lie in its parent's.
    let same_namespace = child.io.scope().namespace == to.io.scope().namespace;
    let moved = Child {
        format: if same_namespace {
            child.format
        } else {
            CloneFormat::Two
        },
        ..child.clone()
    };
    if named.as_ref() == Some(old) || named.as_ref() == Some(new) {
        check_twin(to, new, moved.format).await?;
        if named.as_ref() == Some(old) {
            links::name_other_parent(&moved, old, new).await?;
            notify_header_update(&moved.io, &moved.header_object(), None).await?;
        }
        links::put_on_list(new, &moved).await?;
    }
    links::take_off_list(old, child).await
}

/// The snapshot that a clone is to show from now on must be there, and protected for format 1.
async fn check_twin(to: &Side, new: &ParentImageSpec, format: CloneFormat) -> Result<()> {
    let header = header::load(&to.io, &to.id, true).await?;
    let Some(snap) = header.snaps.get(&new.snap_id) else {
        return Err(ImageError::of(
            ErrorKind::HasChildren,
            Errno::EBUSY,
            format!(
                "snapshot id {} of image '{}' was removed, and clones of its twin are left",
                new.snap_id, to.name
            ),
        )
        .hint("flatten these clones, or run 'rbd migration abort'"));
    };
    if format == CloneFormat::One && snap.protection != ProtectionStatus::Protected {
        if !header.has(feature::LAYERING) {
            return Err(ImageError::new(
                Errno::EINVAL,
                format!("image '{}' does not have the layering feature", to.name),
            ));
        }
        let call = client::set_protection_status(new.snap_id, ProtectionStatus::Protected);
        ferry_cls::exec_write(&to.io, &to.header_object(), call).await?;
    }
    Ok(())
}
