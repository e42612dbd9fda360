//! Settings kept with an image, a pool or the store (`rbd config`), for those who open images: only such as Ferry honours.
//!
//! Where Ceph keeps them: metadata `conf_NAME` of the image, or of the object `rbd_info` in the pool's default namespace, or what the
//! engine keeps for all clients ([`Setting`]). The image's comes before the pool's, that before the store's, that before the
//! default. A handle goes by what it found when it was opened.
//!
//! Those of the cache exist where clients of the store have one, which is on a cluster. They say how early writes may be acknowledged,
//! and whether is read ahead; an image or a pool can only narrow what the client's own configuration allows (`io/cache_settings.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
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

/// Whether writes may be acknowledged early.
pub(crate) const CACHE: &str = "rbd_cache";
/// `writethrough` acknowledges none early.
pub(crate) const CACHE_POLICY: &str = "rbd_cache_policy";
/// Bytes that may be acknowledged and on their way.
pub(crate) const CACHE_MAX_DIRTY: &str = "rbd_cache_max_dirty";
/// Whether none is acknowledged early before the first flush.
pub(crate) const CACHE_UNTIL_FLUSH: &str = "rbd_cache_writethrough_until_flush";
/// 0 reads nothing ahead.
pub(crate) const READAHEAD_MAX: &str = "rbd_readahead_max_bytes";

/// What values a setting has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// See [`switch`].
    Switch,
    /// See [`size_bytes`].
    Size,
    /// One of these.
    Choice(&'static [&'static str]),
}

impl Kind {
    fn takes(self, value: &str) -> bool {
        match self {
            Self::Switch => switch(value).is_some(),
            Self::Size => size_bytes(value).is_some(),
            Self::Choice(words) => words.contains(&value),
        }
    }

    fn hint(self) -> String {
        match self {
            Self::Switch => "use true or false".to_owned(),
            Self::Size => "use a number of bytes, or one with K, M, G or T".to_owned(),
            Self::Choice(words) => format!("use one of {}", words.join(", ")),
        }
    }
}

/// A setting that Ferry honours.
struct Known {
    name: &'static str,
    kind: Kind,
    /// What holds where nobody has set it; `None`: as the store says, and where that says nothing there is no such setting.
    default: Option<&'static str>,
}

/// In the order in which they are listed.
const SETTINGS: &[Known] = &[
    Known {
        name: CACHE,
        kind: Kind::Switch,
        default: None,
    },
    Known {
        name: CACHE_MAX_DIRTY,
        kind: Kind::Size,
        default: None,
    },
    Known {
        name: CACHE_POLICY,
        kind: Kind::Choice(&["writethrough", "writeback", "writearound"]),
        default: None,
    },
    Known {
        name: CACHE_UNTIL_FLUSH,
        kind: Kind::Switch,
        default: None,
    },
    Known {
        name: CLONE_COPY_ON_READ,
        kind: Kind::Switch,
        default: Some("false"),
    },
    Known {
        name: READAHEAD_MAX,
        kind: Kind::Size,
        default: None,
    },
];

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

fn known(name: &str) -> Option<&'static Known> {
    SETTINGS.iter().find(|known| known.name == name)
}

/// Whether Ferry honours a setting of this name, on some engine.
pub fn is_known(name: &str) -> bool {
    known(name).is_some()
}

/// The number of bytes that a value stands for, up to 2^63 - 1, as Ceph reads it: digits, and perhaps one of `B`, `K`, `Ki` and so on.
pub(crate) fn size_bytes(value: &str) -> Option<u64> {
    const UNITS: &str = "BKMGTPE";
    let end = value.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = value.split_at(end);
    let letter = unit
        .strip_suffix('i')
        .filter(|letter| *letter != "B")
        .unwrap_or(unit);
    let power = match letter.len() {
        0 if unit.is_empty() => 0,
        1 => UNITS.find(letter)?,
        _ => return None,
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << (10 * power))?;
    (bytes <= i64::MAX as u64).then_some(bytes)
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

async fn check(store: &Arc<dyn Store>, name: &str, value: &str) -> Result<()> {
    let Some(known) = known(name) else {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!("setting '{name}' is not known"),
        ));
    };
    if !known.kind.takes(value) {
        let error = ImageError::new(Errno::EINVAL, format!("value '{value}' of {name}"));
        return Err(error.hint(known.kind.hint()));
    }
    if known.default.is_none() && store.setting(name).await?.is_none() {
        let error = ImageError::new(Errno::EINVAL, format!("setting {name}"));
        return Err(error.hint("clients of this store have no cache; on a Ceph cluster they have one"));
    }
    Ok(())
}

fn key(name: &str) -> String {
    format!("conf_{name}")
}

/// What an image and its pool set, read once; the default: nothing.
#[derive(Debug, Default)]
pub(crate) struct Held {
    of_image: BTreeMap<String, Bytes>,
    of_pool: BTreeMap<String, Bytes>,
}

impl Held {
    /// Reads them of the pool of `io`, and of the image of that header. The pool's are asked for as a list, which users may whose
    /// rights end at a namespace.
    pub(crate) async fn read(io: &IoCtx, header_object: Option<&str>) -> Result<Self> {
        let of_image = async {
            match header_object {
                Some(object) => all_of(io, object).await,
                None => Ok(BTreeMap::new()),
            }
        };
        let in_pool = io.with_namespace("");
        let (of_image, of_pool) = futures::try_join!(of_image, all_of(&in_pool, names::INFO))?;
        Ok(Self { of_image, of_pool })
    }

    /// The image's value, else the pool's.
    pub(crate) fn value(&self, name: &str) -> Option<(String, Source)> {
        let key = key(name);
        let of_image = self.of_image.get(&key).map(|value| (value, Source::Image));
        let (value, source) = of_image.or_else(|| Some((self.of_pool.get(&key)?, Source::Pool)))?;
        Some((String::from_utf8_lossy(value).into_owned(), source))
    }
}

async fn all_of(io: &IoCtx, object: &str) -> Result<BTreeMap<String, Bytes>> {
    let listed = client::metadata_list_all(io, object).await;
    Ok(optional(listed)?.unwrap_or_default())
}

/// What the pool of `io` sets; `None`: nothing.
pub async fn of_pool(io: &IoCtx, name: &str) -> Result<Option<String>> {
    let held = Held::read(io, None).await?;
    Ok(held.value(name).map(|(value, _)| value))
}

/// Sets it for the pool. `EINVAL` for an unknown name, or a value that makes no sense.
pub async fn set_of_pool(io: &IoCtx, name: &str, value: &str) -> Result<()> {
    check(io.store(), name, value).await?;
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
    check(image.io().store(), name, value).await?;
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

/// A setting as it is for who holds `held`. `None` where the store does not have it.
async fn effective(store: &Arc<dyn Store>, held: &Held, known: &Known) -> Result<Option<Effective>> {
    let name = known.name;
    let by_store = store.setting(name).await?;
    let Some(by_store) = by_store.or_else(|| known.default.map(str::to_owned)) else {
        return Ok(None);
    };
    let (value, source) = held.value(name).unwrap_or((by_store, Source::Config));
    Ok(Some(Effective { name, value, source }))
}

/// Whether a switch is on for an image. It is off where nobody knows it.
pub(crate) async fn is_on(image: &Image, name: &str) -> Result<bool> {
    let Some(known) = known(name) else {
        return Ok(false);
    };
    let held = Held::read(image.io(), Some(image.header_object())).await?;
    let setting = effective(image.io().store(), &held, known).await?;
    Ok(setting.and_then(|setting| switch(&setting.value)) == Some(true))
}

/// All settings, as they are for a pool, or for an image in it.
pub async fn list(io: &IoCtx, image: Option<&Image>) -> Result<Vec<Effective>> {
    let held = Held::read(io, image.map(Image::header_object)).await?;
    let mut out = Vec::new();
    for known in SETTINGS {
        out.extend(effective(io.store(), &held, known).await?);
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
    check(store, name, value).await?;
    // As the monitors of a cluster keep it.
    let value = match known(name).map(|known| known.kind) {
        Some(Kind::Switch) => switch(value).map(|value| value.to_string()),
        Some(Kind::Size) => size_bytes(value).map(|value| value.to_string()),
        Some(Kind::Choice(_)) | None => None,
    }
    .unwrap_or_else(|| value.to_owned());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_ceph_takes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1K", 1024),
            ("32M", 32 << 20),
            ("32Mi", 32 << 20),
            ("7E", 7 << 60),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(size_bytes(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "i",
            "5i",
            "5Bi",
            "32MiB",
            "32m",
            "1.5M",
            "0x10",
            " 5",
            "5 ",
            "-1",
            "8E",
            "16E",
            "9223372036854775808",
            "99999999999999999999",
            "5é",
        ] {
            assert_eq!(size_bytes(text), None, "{text}");
        }
    }
}
