//! Whether both sides of a migration agree, and what an interrupted verb left, with the verb that ends it.

use ferry_cls::rbd::{MigrationHeaderType, MigrationSpec, MigrationState, ParentImageSpec};

use super::Look;
use super::found::judged;
use super::headers::Known;
use crate::admin::pool;
use crate::error::Result;
use crate::header::HeaderKey;
use crate::layering::links;
use crate::migration::pair::{self, Found, Pair};
use crate::migration::record::{self, Side};

/// What an image is, and what to do.
type Told = (String, String);

/// Whether a target has its name, its links and its clones only in part, as one side says.
fn is_unfinished(pair: &Pair) -> bool {
    let in_steps = |side: &Side| {
        matches!(
            side.state(),
            None | Some(MigrationState::Preparing | MigrationState::Aborting)
        )
    };
    in_steps(&pair.source) || in_steps(&pair.target)
}

async fn told(source: &Side) -> Result<Told> {
    let pool = pool::name_of(source.io.store(), source.io.pool()).await?;
    let name = match source.io.scope().namespace.as_ref() {
        "" => format!("{pool}/{}", source.name),
        namespace => format!("{pool}/{namespace}/{}", source.name),
    };
    Ok((
        format!(
            "the target of a migration of '{name}' that is being prepared or taken back, or was when that was interrupted"
        ),
        format!("'rbd migration abort {name}' takes it back"),
    ))
}

/// Says so of image `id` if it is the target of a migration whose preparation or abort is not finished.
pub(super) async fn unfinished_target(look: &Look, id: &str) -> Result<Option<Told>> {
    match judged(pair::by_key(&look.io, &HeaderKey::from(id), id).await)? {
        Ok(Found::Pair(pair)) if pair.target.id == id && is_unfinished(&pair) => {
            Ok(Some(told(&pair.source).await?))
        }
        _ => Ok(None),
    }
}

/// Says so of image `id`, which has no name, if a source names it as its target, and it does not know that yet.
pub(super) async fn target_of_a_source(look: &Look, id: &str) -> Result<Option<Told>> {
    let own = judged(record::read(&look.io, &HeaderKey::from(id)).await)?;
    if !matches!(own, Ok(Some(None))) {
        return Ok(None);
    }
    let scope = look.io.scope();
    let sources = judged(pair::sources_in_trash(&look.io).await)?.unwrap_or_default();
    let source = sources.into_iter().find(|side| {
        side.spec.as_ref().is_some_and(|spec| {
            spec.header_type == MigrationHeaderType::Source
                && spec.image_id == id
                && spec.pool_id == scope.pool
                && *spec.pool_namespace == *scope.namespace
                && !pair::was_prepared(spec)
        })
    });
    match source {
        Some(source) => Ok(Some(told(&source).await?)),
        None => Ok(None),
    }
}

/// The snapshot that clones of `parent` come from or go to, if it is one of an image that is migrated.
pub(super) async fn twin(look: &Look, parent: &ParentImageSpec) -> Result<Option<ParentImageSpec>> {
    let io = look
        .io
        .with_pool(parent.pool_id)
        .with_namespace(&parent.pool_namespace);
    let found = pair::by_key(&io, &HeaderKey::from(&parent.image_id), &parent.image_id).await;
    let Ok(Found::Pair(pair)) = judged(found)? else {
        return Ok(None);
    };
    let Some(spec) = pair.target.spec.as_ref().filter(|_| !pair.source.is_format_1()) else {
        return Ok(None);
    };
    let mut twins = spec.snap_seqs.iter();
    Ok(match pair.source.id == parent.image_id {
        true => twins
            .find(|(source, _)| **source == parent.snap_id)
            .map(|(_, target)| links::parent_spec(&pair.target.io, &pair.target.id, *target)),
        false => twins
            .find(|(_, target)| **target == parent.snap_id)
            .map(|(source, _)| links::parent_spec(&pair.source.io, &pair.source.id, *source)),
    })
}

pub(super) async fn look(look: &mut Look, known: &Known) -> Result<()> {
    let key = HeaderKey::from(&known.id);
    let spec = known.header.migration.as_ref();
    look_at(look, &key, &known.name, &known.place, spec).await
}

/// Looks at an image whose header has the record `spec`, or none.
pub(super) async fn look_at(
    look: &mut Look,
    key: &HeaderKey,
    name: &str,
    place: &str,
    spec: Option<&MigrationSpec>,
) -> Result<()> {
    let Some(spec) = spec else {
        // Of images without a record only a source may be in the trash of migrations.
        if pair::is_in_migration_trash(&look.io, key.id()).await? {
            let what = "it is in the trash as the source of a migration, and its header knows of none";
            let advice = format!("'rbd migration abort {}/{}' brings it back", look.at, name);
            look.found
                .leftover("migration-half-prepared", place, what, advice);
        }
        return Ok(());
    };
    if !spec.source_spec.is_empty() {
        return Ok(());
    }
    let pair = match judged(pair::by_key(&look.io, key, name).await)? {
        Ok(pair) => pair,
        Err(what) => {
            let advice = "restore the header that is wrong from a backup; neither image is changed till then";
            look.found.damage("migration-records", place, what, advice);
            return Ok(());
        }
    };
    // Each pair is told of once, where its source is, or where its target is if that alone knows of it.
    let Found::Pair(pair) = pair else {
        let what = "it is the source of a migration whose target is an image of its own already";
        let advice = format!("'rbd migration commit {}/{}' removes it", look.at, name);
        look.found
            .leftover("migration-half-committed", place, what, advice);
        return Ok(());
    };
    if pair.source.key() != *key {
        return Ok(());
    }
    let state = match pair.source.state() {
        // Taken back after the target was prepared.
        Some(MigrationState::Preparing) => Some(MigrationState::Preparing),
        source => pair.target.state().or(source),
    };
    let target = format!("'{}' (id {})", pair.target.name, pair.target.id);
    let abort = format!("'rbd migration abort {}/{}' takes it back", look.at, name);
    match state {
        _ if !pair.target_exists || pair.target.spec.is_none() => {
            let what = format!("it is being migrated to {target}, which is not made yet, or no more");
            look.found.leftover("migration-half-prepared", place, what, abort);
        }
        Some(MigrationState::Preparing) => {
            let what = format!("the preparation of its migration to {target} was not finished");
            look.found.leftover("migration-half-prepared", place, what, abort);
        }
        Some(MigrationState::Aborting) => {
            let what = format!("the abort of its migration to {target} was not finished");
            let advice = format!("'rbd migration abort {}/{}' finishes it", look.at, name);
            look.found.leftover("migration-half-aborted", place, what, advice);
        }
        Some(MigrationState::Error) => {
            let what = format!("its migration to {target} failed");
            look.found.leftover("migration-failed", place, what, abort);
        }
        _ => {}
    }
    Ok(())
}
