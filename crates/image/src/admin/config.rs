//! Settings kept with an image, a pool or the store (`rbd config`), for those who open images: only such as Ferry honours.
//!
//! Where Ceph keeps them: metadata `conf_NAME` of the image, or of the object `rbd_info` in the pool's default namespace, or what the
//! engine keeps for all clients ([`Setting`]). The image's comes before the pool's, that before the store's, that before the
//! default. A handle goes by what it found when it was opened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ferry_cls::rbd::client;
use ferry_store::{Errno, IoCtx, Setting, Store};

use super::{metadata, pool};
use crate::error::{ImageError, Result, absent_is_fine, optional};
use crate::image::Image;
use crate::names;

/// Whether what clients read of a parent becomes the clone's own.
pub const CLONE_COPY_ON_READ: &str = "rbd_clone_copy_on_read";

/// The section of all clients.
const GLOBAL: &str = "global";
/// Seconds since 1970 at which a pool's settings changed last.
const POOL_UPDATE: &str = "rbd_config_pool_override_update_timestamp";

/// A setting: its name, and what holds where nobody has set it. All are switches so far.
const SETTINGS: &[(&str, &str)] = &[(CLONE_COPY_ON_READ, "false")];

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The store's settings, or nobody.
    Config,
    /// The pool.
    Pool,
    /// The image.
    Image,
}

impl Source {
    /// As `rbd config * list` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Pool => "pool",
            Self::Image => "image",
        }
    }
}

/// A setting in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Name.
    pub name: &'static str,
    /// Value, as it was set.
    pub value: String,
    /// Who set it.
    pub source: Source,
}

/// Whether Ferry honours a setting of this name.
pub fn is_known(name: &str) -> bool {
    SETTINGS.iter().any(|(known, _)| *known == name)
}

/// The switch that a value stands for; as Ceph reads it, so that both take and refuse the same.
pub(crate) fn switch(value: &str) -> Option<bool> {
    if value.eq_ignore_ascii_case("true") {
        return Some(true);
    }
    if value.eq_ignore_ascii_case("false") {
        return Some(false);
    }
    value.parse().ok().map(|number: i64| number != 0)
}

fn check(name: &str, value: &str) -> Result<()> {
    if !is_known(name) {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!("setting '{name}' is not known"),
        ));
    }
    if switch(value).is_none() {
        return Err(
            ImageError::new(Errno::EINVAL, format!("value '{value}' of {name}")).hint("use true or false"),
        );
    }
    Ok(())
}

fn key(name: &str) -> String {
    format!("conf_{name}")
}

/// What the pool of `io` sets; `None`: nothing.
pub async fn of_pool(io: &IoCtx, name: &str) -> Result<Option<String>> {
    let call = client::metadata_get(&key(name));
    let found = optional(ferry_cls::exec_read(&io.with_namespace(""), names::INFO, call).await)?;
    Ok(found.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// Sets it for the pool. `EINVAL` for an unknown name, or a value that makes no sense.
pub async fn set_of_pool(io: &IoCtx, name: &str, value: &str) -> Result<()> {
    check(name, value)?;
    let io = io.with_namespace("");
    pool::validate(&io).await?;
    let pairs = BTreeMap::from([(key(name), value.to_owned().into())]);
    ferry_cls::exec_write(&io, names::INFO, client::metadata_set(&pairs)).await?;
    tell_running_clients(&io).await;
    Ok(())
}

/// Ceph's running clients read the settings of pools again when this setting changes; a user who may not set it may well set
/// those of pools.
async fn tell_running_clients(io: &IoCtx) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let setting = Setting {
        section: GLOBAL.to_owned(),
        name: POOL_UPDATE.to_owned(),
        value: now.as_secs().to_string(),
    };
    if let Err(error) = io.store().setting_set(&setting).await {
        tracing::debug!(%error, "running clients are not told of a pool's settings");
    }
}

/// Takes the pool's value away; whether there was one.
pub async fn remove_of_pool(io: &IoCtx, name: &str) -> Result<bool> {
    let was_set = of_pool(io, name).await?.is_some();
    let call = client::metadata_remove(&key(name));
    if was_set {
        absent_is_fine(ferry_cls::exec_write(&io.with_namespace(""), names::INFO, call).await)?;
    }
    // Also where there is none: who took it away may have been killed before this.
    tell_running_clients(io).await;
    Ok(was_set)
}

/// What the image itself sets; `None`: nothing.
pub async fn of_image(image: &Image, name: &str) -> Result<Option<String>> {
    let call = client::metadata_get(&key(name));
    let found = optional(ferry_cls::exec_read(image.io(), image.header_object(), call).await)?;
    Ok(found.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// Sets it for the image. Errors as [`set_of_pool`].
pub async fn set_of_image(image: &Image, name: &str, value: &str) -> Result<()> {
    check(name, value)?;
    metadata::set(image, &key(name), value.to_owned().into()).await
}

/// Takes the image's value away; whether there was one.
pub async fn remove_of_image(image: &Image, name: &str) -> Result<bool> {
    match metadata::remove(image, &key(name)).await {
        Ok(()) => Ok(true),
        Err(error) if error.errno == Errno::ENOENT => Ok(false),
        Err(error) => Err(error),
    }
}

/// A setting as it is for a pool, or for an image in it. `None` for an unknown name.
pub(crate) async fn effective(io: &IoCtx, image: Option<&Image>, name: &str) -> Result<Option<Effective>> {
    let Some((name, default)) = SETTINGS.iter().find(|(known, _)| *known == name) else {
        return Ok(None);
    };
    let by_image = match image {
        Some(image) => of_image(image, name).await?,
        None => None,
    };
    let (value, source) = match by_image {
        Some(value) => (value, Source::Image),
        None => match of_pool(io, name).await? {
            Some(value) => (value, Source::Pool),
            None => {
                let by_store = io.store().setting(name).await?;
                (by_store.unwrap_or_else(|| (*default).to_owned()), Source::Config)
            }
        },
    };
    Ok(Some(Effective { name, value, source }))
}

/// All settings, as they are for a pool, or for an image in it.
pub async fn list(io: &IoCtx, image: Option<&Image>) -> Result<Vec<Effective>> {
    let mut out = Vec::new();
    for (name, _) in SETTINGS {
        out.extend(effective(io, image, name).await?);
    }
    Ok(out)
}

/// What the store keeps for the client `entity` (`global`, `client` or `client.ID`), of all settings of images, honoured or not:
/// for each name the one that holds for it, sorted by name.
pub async fn list_of_store(store: &Arc<dyn Store>, entity: &str) -> Result<Vec<Setting>> {
    let rank = |section: &str| match section {
        GLOBAL => Some(0),
        "client" if entity != GLOBAL => Some(1),
        _ if section == entity => Some(2),
        _ => None,
    };
    let mut held: BTreeMap<String, (u8, Setting)> = BTreeMap::new();
    for setting in store.settings().await? {
        let Some(rank) = rank(&setting.section).filter(|_| setting.name.starts_with("rbd_")) else {
            continue;
        };
        let is_nearer = held.get(&setting.name).is_none_or(|(other, _)| *other < rank);
        if is_nearer {
            held.insert(setting.name.clone(), (rank, setting));
        }
    }
    Ok(held.into_values().map(|(_, setting)| setting).collect())
}

/// What the store keeps for exactly this section; `None`: nothing.
pub async fn of_store(store: &Arc<dyn Store>, section: &str, name: &str) -> Result<Option<String>> {
    let settings = store.settings().await?;
    let found = settings
        .into_iter()
        .find(|one| one.section == section && one.name == name);
    Ok(found.map(|one| one.value))
}

/// Sets it for a section. Errors as [`set_of_pool`].
pub async fn set_of_store(store: &Arc<dyn Store>, section: &str, name: &str, value: &str) -> Result<()> {
    check(name, value)?;
    let value = switch(value).map_or_else(|| value.to_owned(), |value| value.to_string());
    let setting = Setting {
        section: section.to_owned(),
        name: name.to_owned(),
        value,
    };
    Ok(store.setting_set(&setting).await?)
}

/// Takes a section's value away; nothing if there was none.
pub async fn remove_of_store(store: &Arc<dyn Store>, section: &str, name: &str) -> Result<()> {
    Ok(store.setting_remove(section, name).await?)
}
