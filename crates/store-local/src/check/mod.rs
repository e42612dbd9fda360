//! The engine's check of what it keeps: databases, rows against one another, rows against files.
//!
//! Reads only, unless it is told to repair; runs beside other clients: an object is looked at under its slot's shared hold, and
//! what living clients have under way is passed over. A repair adds, renames or corrects what can be derived; it never removes
//! bytes: files that no row names are put aside into `lost+found`. docs/format-local.md, 12 lists the kinds of findings.
//!
//! Reading order: here who is asked what, [`database`] (pages, tables, counters), [`object`] (one object), [`files`] (the data
//! directories). What it does not know: images.

mod database;
mod files;
mod object;

use std::sync::Arc;

use ferry_store::check::{CheckOptions, Finding, Gravity, Report};
use ferry_store::{PoolId, Result};

use crate::client::Client;
use crate::pool::Pool;
use crate::pool::key::ObjectKey;

/// Objects whose keys are read at once.
const BATCH: usize = 256;

/// Where findings of a pool are.
fn place_of(pool: &Pool) -> String {
    format!("pool {}", pool.id)
}

/// Checks a pool, or what is no pool's.
pub(crate) async fn check(
    client: &Arc<Client>,
    pool: Option<PoolId>,
    options: CheckOptions,
) -> Result<Vec<Finding>> {
    let under_way = client.begin().await?;
    let report = match pool {
        Some(id) => check_pool(client, id, options).await?,
        None => {
            let of = client.clone();
            client
                .blocking(move || Ok(database::check_root(&of.root)))
                .await?
        }
    };
    drop(under_way);
    Ok(report.into_findings())
}

async fn check_pool(client: &Arc<Client>, id: PoolId, options: CheckOptions) -> Result<Report> {
    let mut report = Report::default();
    let pool = match client.pool(id).await {
        Ok(pool) => pool,
        Err(error) => {
            let advice = "what of the pool can be read is not known until it can be opened";
            report.note(
                Gravity::Damage,
                "pool-not-opened",
                format!("pool {id}"),
                error.what,
                advice,
            );
            let of = client.clone();
            return client
                .blocking(move || {
                    if let Ok(place) = of.root.pool_place(id) {
                        let (pool, path) = (format!("pool {id}"), place.database());
                        database::check_log(&pool, &path, &mut report);
                        database::check_pages(&pool, &path, &mut report);
                    }
                    Ok(report)
                })
                .await;
        }
    };
    let of = pool.clone();
    report = client
        .blocking(move || {
            let mut report = report;
            database::check_file(&place_of(&of), &of.db, &mut report);
            Ok(report)
        })
        .await?;
    let mut last = 0;
    loop {
        let of = pool.clone();
        let listed = client
            .blocking(move || object::keys_after(&of, last, BATCH))
            .await;
        let keys = match listed {
            Ok(keys) => keys,
            Err(error) => {
                report.note(
                    Gravity::Damage,
                    "database-rows",
                    place_of(&pool),
                    error.what,
                    "the objects behind this one were not looked at",
                );
                break;
            }
        };
        let Some((newest, _)) = keys.last() else { break };
        last = *newest;
        for (_, key) in keys {
            report = check_object(client, &pool, key, options, report).await?;
        }
    }
    let (of, run) = (pool, client.root.run().to_owned());
    client
        .blocking(move || {
            database::check_tables(&of, options, &mut report);
            files::check(&of, &run, options, &mut report);
            Ok(report)
        })
        .await
}

/// Looks at one object, and puts right what can be under the exclusive hold.
async fn check_object(
    client: &Arc<Client>,
    pool: &Arc<Pool>,
    key: ObjectKey,
    options: CheckOptions,
    mut report: Report,
) -> Result<Report> {
    let hold = pool.slots.shared(key.slot()).await?;
    let (of, which) = (pool.clone(), key.clone());
    let (mut report, mends) = client
        .blocking(move || {
            let _hold = hold;
            let mends = object::check(&of, &which, options, &mut report);
            Ok((report, mends))
        })
        .await?;
    if mends.is_empty() {
        return Ok(report);
    }
    if !options.repair {
        mends.into_iter().for_each(|mend| report.add(mend.finding));
        return Ok(report);
    }
    let hold = pool.slots.exclusive(key.slot()).await?;
    let of = pool.clone();
    client
        .blocking(move || {
            let _hold = hold;
            of.slots.bump(key.slot());
            for mend in mends {
                object::mend(&of, mend, &mut report);
            }
            Ok(report)
        })
        .await
}
