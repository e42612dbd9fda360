//! Finds both images of a migration from the name of either, whatever step it was interrupted at.

use ferry_cls::rbd::{MigrationHeaderType, MigrationSpec, MigrationState, TrashImageSource, client};
use ferry_store::{Errno, IoCtx};

use super::record::{self, Side};
use crate::error::{ErrorKind, ImageError, Result};
use crate::header::{self, HeaderKey};

/// What a name leads to.
#[derive(Debug, Clone)]
pub enum Found {
    /// A migration.
    Pair(Box<Pair>),
    /// A source whose record never came to be, or whose header is gone: only the trash entry is left.
    TrashEntry(Side),
    /// A source whose target is an ordinary image already: a commit was interrupted.
    Leftover(Side),
    /// An image that takes part in no migration.
    NotMigrating(Side),
}

/// Both images of a migration.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The source; its header exists.
    pub source: Side,
    /// The target; its header may not exist yet, or no longer.
    pub target: Side,
    /// Whether the target's header exists.
    pub target_exists: bool,
}

/// Looks `name` up in `io`'s namespace. `ENOENT` ([`ErrorKind::ImageMissing`]) when there is nothing.
pub async fn find(io: &IoCtx, name: &str) -> Result<Found> {
    match header::find(io, name).await {
        Ok(key) => by_key(io, &key, name).await,
        Err(error) if error.kind == ErrorKind::ImageMissing => by_trash(io, name).await,
        Err(error) => Err(error),
    }
}

async fn by_trash(io: &IoCtx, name: &str) -> Result<Found> {
    let entries = client::trash_list_all(io).await?;
    let found = entries
        .into_iter()
        .find(|(_, entry)| entry.source == TrashImageSource::Migration && entry.name == name);
    if let Some((id, _)) = found {
        return by_key(io, &HeaderKey::Id(id), name).await;
    }
    // A target that has no name yet, or no longer: its source knows it.
    let is_ours = |spec: &MigrationSpec| {
        spec.pool_id == io.pool() && *spec.pool_namespace == *io.scope().namespace && spec.image_name == name
    };
    match find_source(io, is_ours).await? {
        Some(source) => by_key(&source.io, &source.key(), &source.name).await,
        None => Err(missing(name)),
    }
}

/// The same for a header that is known.
pub(crate) async fn by_key(io: &IoCtx, key: &HeaderKey, name: &str) -> Result<Found> {
    let mut side = Side {
        io: io.clone(),
        id: key.id().to_owned(),
        name: name.to_owned(),
        spec: None,
    };
    let Some(spec) = record::read(io, key).await? else {
        return Ok(Found::TrashEntry(side));
    };
    let Some(spec) = spec else {
        if is_in_migration_trash(io, key.id()).await? {
            return Ok(Found::TrashEntry(side));
        }
        return match leftover(&side).await? {
            Some(source) => Ok(Found::Leftover(source)),
            None => Ok(Found::NotMigrating(side)),
        };
    };
    let other_io = io.with_pool(spec.pool_id).with_namespace(&spec.pool_namespace);
    let other_spec = record::read(&other_io, &HeaderKey::of_record(&spec.image_id, &spec.image_name)).await?;
    let other_exists = other_spec.is_some();
    let other = Side {
        io: other_io,
        id: spec.image_id.clone(),
        name: spec.image_name.clone(),
        spec: other_spec.flatten(),
    };
    side.spec = Some(spec.clone());
    let matches = other
        .spec
        .as_ref()
        .is_some_and(|other| names(other, &spec, &side));
    match spec.header_type {
        MigrationHeaderType::Source if matches => Ok(pair(side, other, true)),
        MigrationHeaderType::Source if other.spec.is_none() && !was_prepared(&spec) => {
            Ok(pair(side, other, other_exists))
        }
        MigrationHeaderType::Destination if matches => Ok(pair(other, side, true)),
        // What does not fit may have been changed by a verb of somebody else between the two looks.
        role => match (role, record::read(io, key).await?) {
            (_, Some(Some(now))) if now == spec => stays_unlike(side, other, &spec, other_exists),
            // An abort removes the target, then the source's record.
            (MigrationHeaderType::Destination, None) => Err(missing(name)),
            _ => Box::pin(by_key(io, key, name)).await,
        },
    }
}

/// What a record means whose other side does not name it.
fn stays_unlike(side: Side, other: Side, spec: &MigrationSpec, other_exists: bool) -> Result<Found> {
    if spec.header_type == MigrationHeaderType::Source {
        // Only a commit takes the record off a target that clients may have used. What has become of the target since (another
        // migration, removal) is no business of this one.
        if may_be_committed(spec) {
            return Ok(Found::Leftover(side));
        }
        // An abort has removed it, and somebody wrote over its mark: Ceph's executor does, if it stood still meanwhile.
        if !other_exists {
            return Ok(pair(side, other, false));
        }
    }
    Err(ImageError::of(
        ErrorKind::Damaged,
        Errno::EIO,
        format!(
            "image '{}': its migration record and that of '{}' (id {}) do not match",
            side.name, other.name, other.id
        ),
    ))
}

fn missing(name: &str) -> ImageError {
    ImageError::of(ErrorKind::ImageMissing, Errno::ENOENT, format!("image '{name}'"))
}

fn pair(source: Side, target: Side, target_exists: bool) -> Found {
    Found::Pair(Box::new(Pair {
        source,
        target,
        target_exists,
    }))
}

/// Whether `other`, the record on the other side of `spec`, names `side`.
fn names(other: &MigrationSpec, spec: &MigrationSpec, side: &Side) -> bool {
    other.header_type != spec.header_type
        && other.pool_id == side.io.pool()
        && *other.pool_namespace == *side.io.scope().namespace
        && other.image_id == side.id
        && (!side.is_format_1() || other.image_name == side.name)
}

/// Whether clients may have used the target.
pub(crate) fn was_prepared(source: &MigrationSpec) -> bool {
    matches!(
        source.state,
        MigrationState::Prepared | MigrationState::Executing | MigrationState::Executed
    )
}

/// Whether a commit may have begun: it asks for both sides to say so, and an execute says so to the source first.
fn may_be_committed(source: &MigrationSpec) -> bool {
    source.state == MigrationState::Executed
}

pub(crate) async fn is_in_migration_trash(io: &IoCtx, id: &str) -> Result<bool> {
    let entry =
        crate::error::optional(ferry_cls::exec_read(io, crate::names::TRASH, client::trash_get(id)).await)?;
    Ok(entry.is_some_and(|entry| entry.source == TrashImageSource::Migration))
}

/// The source that an interrupted commit left behind for a target that is an ordinary image already.
async fn leftover(target: &Side) -> Result<Option<Side>> {
    let is_ours = |spec: &MigrationSpec| {
        spec.pool_id == target.io.pool()
            && *spec.pool_namespace == *target.io.scope().namespace
            && spec.image_id == target.id
            && may_be_committed(spec)
    };
    if let Some(source) = super::leftover::find(target).await?
        && source.spec.as_ref().is_some_and(is_ours)
    {
        return Ok(Some(source));
    }
    find_source(&target.io, is_ours).await
}

/// Looks for a migration source whose record fits: for targets that cannot name their source.
async fn find_source(io: &IoCtx, fits: impl Fn(&MigrationSpec) -> bool) -> Result<Option<Side>> {
    let sources = sources_in_trash(io).await?;
    Ok(sources.into_iter().find(|side| {
        side.spec
            .as_ref()
            .is_some_and(|spec| spec.header_type == MigrationHeaderType::Source && fits(spec))
    }))
}

/// Trash entries of migration sources whose header is gone: all that a commit leaves if it is killed before its last
/// step. (Prepare marks the header before it makes the entry, and commit removes the header last.)
pub(crate) async fn dangling_entries(io: &IoCtx) -> Result<Vec<Side>> {
    let mut out = Vec::new();
    for side in sources_in_trash(io).await? {
        if side.spec.is_none() && !side.io.exists(&side.header_object()).await? {
            out.push(side);
        }
    }
    Ok(out)
}

/// Migration sources in the trash of every pool and namespace.
pub(crate) async fn sources_in_trash(io: &IoCtx) -> Result<Vec<Side>> {
    let mut out = Vec::new();
    for pool in io.store().pool_list().await? {
        let default = io.with_pool(pool.id).with_namespace("");
        let namespaces = match client::namespace_list_all(&default).await {
            Ok(namespaces) => namespaces,
            // One broken pool must not keep the others' migrations from ending.
            Err(error) => {
                tracing::warn!(pool = pool.name, %error, "cannot look for a migration source");
                continue;
            }
        };
        for namespace in std::iter::once(String::new()).chain(namespaces) {
            let there = default.with_namespace(&namespace);
            for (id, entry) in client::trash_list_all(&there).await? {
                if entry.source == TrashImageSource::Migration {
                    let spec = record::read(&there, &HeaderKey::from(&id)).await?.flatten();
                    out.push(Side {
                        io: there.clone(),
                        id,
                        name: entry.name,
                        spec,
                    });
                }
            }
        }
    }
    Ok(out)
}

/// The error for a verb on an image that takes part in no migration.
pub(crate) fn not_migrating(side: &Side) -> ImageError {
    ImageError::of(
        ErrorKind::NotMigrating,
        Errno::EINVAL,
        format!("image '{}' takes part in no migration", side.name),
    )
}

/// The error for a verb in a state it does not fit.
pub(crate) fn wrong_state(pair: &Pair, needed: &str, next: &str) -> ImageError {
    let state = pair
        .target
        .state()
        .or(pair.source.state())
        .map_or("unknown", |state| state.name());
    ImageError::of(
        ErrorKind::MigrationState,
        Errno::EINVAL,
        format!(
            "current migration state of '{}' is '{state}' (should be '{needed}')",
            pair.target.name
        ),
    )
    .hint(format!("run '{next}'"))
}
