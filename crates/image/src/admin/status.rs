//! What `rbd status` shows: who has an image open, and the migration it takes part in.
//!
//! Reads one header and opens nothing: it answers when the other side cannot be reached, and does not show itself.

use ferry_cls::rbd::{MigrationHeaderType, MigrationSpec, MigrationState};
use ferry_store::{IoCtx, PoolId, WatchInfo};

use super::{directory, pool, trash};
use crate::error::{Result, optional};
use crate::header;
use crate::image::ImageKey;
use crate::migration::execution::{self, ExecuteProgress};
use crate::migration::settings::ExecuteSettings;

/// One image of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationImage {
    /// Pool name; empty for a source that is no image.
    pub pool_name: String,
    /// Namespace; empty for the default one.
    pub pool_namespace: String,
    /// Image name.
    pub image_name: String,
    /// Image id; empty for a format-1 source.
    pub image_id: String,
}

/// A migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationStatus {
    /// Where the data comes from.
    pub source: MigrationImage,
    /// JSON text that names a source that is no image of the store; empty otherwise.
    pub source_spec: String,
    /// Where it goes.
    pub dest: MigrationImage,
    /// How far it is.
    pub state: MigrationState,
    /// Progress: empty or `NN% complete`.
    pub state_description: String,
    /// What an execute is to observe; `None` in states in which nothing is to be copied, and when it cannot be read.
    pub settings: Option<ExecuteSettings>,
    /// How far an execute is, or was when it was interrupted; `None` unless executing.
    pub progress: Option<ExecuteProgress>,
}

/// Status of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Everybody who has the image open for writing, oldest first.
    pub watchers: Vec<WatchInfo>,
    /// The migration it takes part in.
    pub migration: Option<MigrationStatus>,
}

/// Status of an image. `ENOENT` ([`crate::ErrorKind::ImageMissing`]).
pub async fn status(io: &IoCtx, key: ImageKey<'_>) -> Result<Status> {
    let (key, name) = key.resolve(io).await?;
    let object = key.object();
    let watchers = optional(io.store().list_watchers(io.object(&object)).await)?
        .ok_or_else(|| directory::missing(&name))?;
    let header = header::load(io, &key, true).await?;
    let migration = match &header.migration {
        Some(spec) => Some(migration(io, &name, key.id(), spec).await?),
        None => None,
    };
    Ok(Status { watchers, migration })
}

async fn migration(io: &IoCtx, name: &str, id: &str, spec: &MigrationSpec) -> Result<MigrationStatus> {
    let this = MigrationImage {
        pool_name: pool::name_of(io.store(), io.pool()).await?,
        pool_namespace: io.scope().namespace.to_string(),
        image_name: name.to_owned(),
        image_id: id.to_owned(),
    };
    let other = other_side(io, spec).await?;
    let (source, dest) = match spec.header_type {
        MigrationHeaderType::Source => (this, other),
        MigrationHeaderType::Destination => (other, this),
    };
    let (settings, progress) = match spec.state {
        MigrationState::Prepared | MigrationState::Executing => {
            // The other side may be out of reach.
            let seen = execution::look(io, id, spec).await;
            seen.inspect_err(|error| tracing::debug!(%error, "cannot read how the execute stands"))
                .map_or((None, None), |(settings, progress)| (Some(settings), progress))
        }
        _ => (None, None),
    };
    Ok(MigrationStatus {
        source,
        source_spec: spec.source_spec.clone(),
        dest,
        state: spec.state,
        state_description: spec.state_description.clone(),
        settings,
        progress: progress.filter(|_| spec.state == MigrationState::Executing),
    })
}

async fn other_side(io: &IoCtx, spec: &MigrationSpec) -> Result<MigrationImage> {
    let has_pool = spec.pool_id != PoolId::NONE;
    let pool_name = if has_pool {
        pool::name_of(io.store(), spec.pool_id).await?
    } else {
        String::new()
    };
    let mut image_name = spec.image_name.clone();
    if image_name.is_empty() && has_pool && !spec.image_id.is_empty() {
        // Records written before Pacific do not name the source.
        let there = io.with_pool(spec.pool_id).with_namespace(&spec.pool_namespace);
        image_name = trash::find(&there, &spec.image_id)
            .await?
            .map(|entry| entry.name)
            .unwrap_or_default();
    }
    Ok(MigrationImage {
        pool_name,
        pool_namespace: spec.pool_namespace.clone(),
        image_name,
        image_id: spec.image_id.clone(),
    })
}
