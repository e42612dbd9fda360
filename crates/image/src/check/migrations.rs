//! Whether both sides of a migration agree, and what an interrupted verb left, with the verb that ends it.

use ferry_cls::rbd::MigrationState;

use super::Look;
use super::found::judged;
use super::headers::Known;
use crate::error::Result;
use crate::header::HeaderKey;
use crate::migration::pair::{self, Found};

pub(super) async fn look(look: &mut Look, known: &Known) -> Result<()> {
    let key = HeaderKey::from(&known.id);
    let place = known.place.clone();
    let Some(spec) = &known.header.migration else {
        // Of images without a record only a source may be in the trash of migrations.
        if pair::is_in_migration_trash(&look.io, &known.id).await? {
            let what = "it is in the trash as the source of a migration, and its header knows of none";
            let advice = format!("'rbd migration abort {}/{}' brings it back", look.at, known.name);
            look.found
                .leftover("migration-half-prepared", place, what, advice);
        }
        return Ok(());
    };
    if !spec.source_spec.is_empty() {
        return Ok(());
    }
    let pair = match judged(pair::by_key(&look.io, &key, &known.name).await)? {
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
        let advice = format!("'rbd migration commit {}/{}' removes it", look.at, known.name);
        look.found
            .leftover("migration-half-committed", place, what, advice);
        return Ok(());
    };
    if pair.source.id != known.id {
        return Ok(());
    }
    let state = pair.target.state().or(pair.source.state());
    let target = format!("'{}' (id {})", pair.target.name, pair.target.id);
    let abort = format!("'rbd migration abort {}/{}' takes it back", look.at, known.name);
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
            let advice = format!("'rbd migration abort {}/{}' finishes it", look.at, known.name);
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
