//! The check of images, above the store's contract, so on every engine: whether what names images, what their headers say and
//! the objects that they consist of agree.
//!
//! Reads only, unless it is told to repair, and runs beside clients. Each place is looked at twice, [`PAUSE`] apart, and only what both
//! looks show is told: what clients have half done in between is no damage. The object maps of an image that somebody has
//! open are not compared with its objects, and that is said. A repair corrects what can be derived from the rest (a missing entry of
//! a list, an entry that leads nowhere, an object map); it never removes headers or data.
//!
//! Reading order: here who is asked what, [`found`] (what a look gathers), [`names`] (directory, ids, trash), [`headers`],
//! [`maps`] and [`data`] (objects), [`links`] (clones), [`groups`], [`migrations`], [`format_1`]; [`mend`] is all that writes. What it
//! does not know: what an engine keeps below the contract ([`Store::check`] does), the command line.

mod data;
mod format_1;
mod found;
mod groups;
mod headers;
mod links;
mod maps;
mod mend;
mod migrations;
mod names;

use std::sync::Arc;
use std::time::Duration;

use ferry_cls::rbd::client;
use ferry_store::check::{CheckOptions, Finding, Gravity, Report};
use ferry_store::{IoCtx, PoolInfo, Scope, Store};

use crate::admin::{directory, namespace, pool, trash};
use crate::error::{ErrorKind, Result};
use found::{Found, judged};
use headers::Known;

/// How long after a first look that finds something the second is made.
const PAUSE: Duration = Duration::from_millis(1_000);
/// Names of objects that are listed at a time. A cluster goes through the whole pool for each page.
const NAMES_PER_PAGE: usize = 32_768;

/// What is looked at, and what is found there.
struct Look {
    io: IoCtx,
    /// `POOL` or `POOL/NAMESPACE`.
    at: String,
    found: Found,
}

impl Look {
    async fn new(io: &IoCtx) -> Result<Self> {
        let pool = pool::name_of(io.store(), io.pool()).await?;
        let namespace = &io.scope().namespace;
        let at = match namespace.is_empty() {
            true => pool,
            false => format!("{pool}/{namespace}"),
        };
        Ok(Self {
            io: io.clone(),
            at,
            found: Found::default(),
        })
    }

    /// The place of findings that are no image's.
    fn here(&self) -> String {
        match self.io.scope().namespace.is_empty() {
            true => format!("pool '{}'", self.at),
            false => format!("namespace '{}'", self.at),
        }
    }

    fn image(&self, name: &str) -> String {
        format!("image '{}/{name}'", self.at)
    }
}

/// Checks all images of a pool, in all its namespaces.
pub async fn pool(store: &Arc<dyn Store>, of: &PoolInfo, options: CheckOptions) -> Result<Vec<Finding>> {
    let io = IoCtx::new(store.clone(), Scope::new(of.id));
    let mut report = Report::default();
    let namespaces = match judged(client::namespace_list_all(&io).await)? {
        Ok(namespaces) => namespaces,
        Err(what) => {
            let advice = "the images of its namespaces were not looked at";
            let place = format!("pool '{}'", of.name);
            report.note(Gravity::Damage, "namespace-list", place, what, advice);
            Vec::new()
        }
    };
    for name in std::iter::once(String::new()).chain(namespaces) {
        let inside = io.with_namespace(&name);
        let look = async || look_at_all(&inside).await;
        look_twice(&inside, options, look, &mut report).await?;
    }
    Ok(report.into_findings())
}

/// The same of a store that nobody else uses, with one look.
pub async fn pool_at_rest(
    store: &Arc<dyn Store>,
    of: &PoolInfo,
    options: CheckOptions,
) -> Result<Vec<Finding>> {
    let io = IoCtx::new(store.clone(), Scope::new(of.id));
    let mut report = Report::default();
    for name in std::iter::once(String::new()).chain(client::namespace_list_all(&io).await?) {
        let inside = io.with_namespace(&name);
        let found = look_at_all(&inside).await?;
        mend::tell(&inside, found, options.repair, &mut report).await;
    }
    Ok(report.into_findings())
}

/// Checks the image `name` of the namespace of `io`, and nothing else. `ENOENT` ([`ErrorKind::ImageMissing`]).
pub async fn image(io: &IoCtx, name: &str, options: CheckOptions) -> Result<Vec<Finding>> {
    let mut report = Report::default();
    let look = async || look_at_one(io, name).await;
    look_twice(io, options, look, &mut report).await?;
    Ok(report.into_findings())
}

/// Tells what both of two looks show, and mends it if that is wanted.
async fn look_twice(
    io: &IoCtx,
    options: CheckOptions,
    look: impl AsyncFn() -> Result<Found>,
    report: &mut Report,
) -> Result<()> {
    let first = look().await?;
    if first.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(PAUSE).await;
    let both = look().await?.also_in(&first);
    mend::tell(io, both, options.repair, report).await;
    Ok(())
}

async fn look_at_all(io: &IoCtx) -> Result<Found> {
    let mut look = Look::new(io).await?;
    if let Err(error) = namespace::check(io).await {
        if error.kind != ErrorKind::NamespaceMissing {
            return Err(error);
        }
        let name = &io.scope().namespace;
        let advice =
            format!("'rbd namespace create' of '{name}' finishes it, 'rbd namespace remove' takes it away");
        look.found.leftover(
            "namespace-half-made",
            look.here(),
            "it is listed, and takes no images",
            advice,
        );
        return Ok(look.found);
    }
    let images = names::look(&mut look).await?;
    let mut data_pools = Vec::new();
    for (id, name) in &images {
        let Some(known) = headers::look(&mut look, id, name).await? else {
            continue;
        };
        look_inside(&mut look, &known).await?;
        data_pools.extend(known.fixed.data_pool);
    }
    format_1::look(&mut look).await?;
    links::look_at_registry(&mut look).await?;
    groups::look(&mut look).await?;
    data_pools.sort_unstable();
    data_pools.dedup();
    data::look_at_all(&mut look, &data_pools).await?;
    maps::look_for_strays(&mut look).await?;
    Ok(look.found)
}

async fn look_at_one(io: &IoCtx, name: &str) -> Result<Found> {
    let mut look = Look::new(io).await?;
    let id = match directory::listed_id(io, name).await? {
        Some(id) => {
            names::look_at_name(&mut look, name, &id).await?;
            id
        }
        None => match directory::id_of_name(io, name).await? {
            Some(id) if trash::find(io, &id).await?.is_none() => {
                names::look_at_unlisted(&mut look, name).await?;
                id
            }
            _ if format_1::look_at_one(&mut look, name).await? => return Ok(look.found),
            _ => return Err(directory::missing(name)),
        },
    };
    if let Some(known) = headers::look(&mut look, &id, name).await? {
        look_inside(&mut look, &known).await?;
        data::look_at_one(&mut look, &known).await?;
    }
    Ok(look.found)
}

/// What can be seen from one header.
async fn look_inside(look: &mut Look, known: &Known) -> Result<()> {
    migrations::look(look, known).await?;
    links::look(look, known).await?;
    groups::look_at_image(look, known).await?;
    maps::look(look, known).await
}
