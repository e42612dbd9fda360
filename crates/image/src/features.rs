//! Switching features of an image on and off: exclusive lock, object map with fast diff, deep flatten (off only).
//!
//! Order that a kill at any point leaves whole: an object map is declared not to be believed before the image has it, and its
//! objects are removed before the image has it no longer, so that nobody ever believes a map that nobody kept. The object map
//! and fast diff go together, as in Ceph, whichever of them is named.

use ferry_cls::rbd::{ObjectState, client, feature, flag};
use ferry_cls::{CallExt as _, rbd::feature::names as feature_names};
use ferry_store::{Errno, SnapId, WriteOp};

use crate::error::{ImageError, Result, absent_is_fine};
use crate::exclusive_lock::Tenure;
use crate::header::Header;
use crate::image::Image;
use crate::names;
use crate::object_map::head;
use crate::progress::Progress;
use crate::watch::messages::Request;

/// The two that go together.
const MAPS: u64 = feature::OBJECT_MAP | feature::FAST_DIFF;
/// What their maps are until they have been rebuilt.
const MAP_FLAGS: u64 = flag::OBJECT_MAP_INVALID | flag::FAST_DIFF_INVALID;

impl Image {
    /// Switches `features` (bits of [`feature`]) on or off, in the owner of the exclusive lock. A new object map is not to be
    /// believed until it has been rebuilt.
    ///
    /// `EINVAL` for no feature at all, for those that can't be switched, for those that are on or off already, and where one
    /// feature needs another; `EOPNOTSUPP` for journaling.
    pub async fn update_features(&self, features: u64, enabled: bool) -> Result<()> {
        let request = Request::UpdateFeatures { features, enabled };
        self.refresh_for_client().await?;
        check(self, &self.header(), features, enabled)?;
        self.maintain(&request, &Progress::silent()).await
    }
}

fn refused(image: &Image, what: impl std::fmt::Display) -> ImageError {
    ImageError::new(Errno::EINVAL, format!("image '{}': {what}", image.name()))
}

/// Refuses what makes no sense. Gives the bits to switch.
fn check(image: &Image, header: &Header, features: u64, enabled: bool) -> Result<u64> {
    let list = |bits: u64| feature_names(bits).join(", ");
    if image.key().is_format_1() {
        return Err(refused(image, "an image of format 1 has no features"));
    }
    if features == 0 {
        return Err(refused(image, "no feature is named"));
    }
    let mut switchable = feature::MUTABLE & !feature::MUTABLE_INTERNAL;
    if !enabled {
        switchable |= feature::DISABLE_ONLY;
    }
    if features & !switchable != 0 {
        let way = if enabled { "on" } else { "off" };
        let which = list(features & !switchable);
        return Err(refused(image, format_args!("{which} can't be switched {way}")));
    }
    if features & feature::JOURNALING != 0 {
        let message = format!("image '{}': journaling", image.name());
        return Err(ImageError::new(Errno::EOPNOTSUPP, message).hint("Ferry keeps no journals"));
    }
    let already = features
        & if enabled {
            header.features
        } else {
            !header.features
        };
    if already != 0 {
        let state = if enabled { "on" } else { "off" };
        let which = list(already);
        return Err(refused(image, format_args!("{which}: already switched {state}")));
    }
    let bits = match features & MAPS {
        0 => features,
        _ => features | MAPS,
    };
    let after = match enabled {
        true => header.features | bits,
        false => header.features & !bits,
    };
    if after & feature::EXCLUSIVE_LOCK == 0 && after & feature::OBJECT_MAP != 0 {
        return Err(refused(image, "object-map needs exclusive-lock"));
    }
    let objects = image.layout().object_count(header.size_bytes);
    if enabled && bits & feature::OBJECT_MAP != 0 && objects > ferry_cls::encoding::MAX_OBJECTS {
        return Err(refused(
            image,
            format_args!("{objects} objects are more than an object map can hold"),
        ));
    }
    Ok(bits)
}

pub(crate) async fn update_here(
    image: &Image,
    features: u64,
    enabled: bool,
    only_in: Option<Tenure>,
) -> Result<()> {
    {
        let _stopped = image.stop_writes(only_in).await?;
        image.refresh_if_needed().await?;
        let header = image.header();
        let bits = check(image, &header, features, enabled)?;
        match enabled {
            true => enable(image, &header, bits).await?,
            false => disable(image, &header, bits).await?,
        }
    }
    if !image.header().needs_lock() {
        // Nobody asks for it any more.
        crate::exclusive_lock::release(image).await?;
    }
    image.header_changed().await
}

/// Versions of the image that have maps: snapshots and the head.
fn versions(header: &Header) -> impl Iterator<Item = (SnapId, u64)> {
    let snaps = header.snaps.values().map(|snap| (snap.id, snap.size_bytes));
    snaps.chain([(SnapId::HEAD, header.size_bytes)])
}

/// The caller holds the gate exclusively.
async fn enable(image: &Image, header: &Header, bits: u64) -> Result<()> {
    let io = image.io();
    let header_object = &image.inner.header_object;
    if bits & feature::OBJECT_MAP != 0 {
        for (snap, _) in versions(header) {
            let call = client::set_flags(MAP_FLAGS, MAP_FLAGS, snap);
            ferry_cls::exec_write(io, header_object, call).await?;
        }
    }
    ferry_cls::exec_write(io, header_object, client::set_features(bits, bits)).await?;
    if bits & feature::OBJECT_MAP != 0 {
        for (snap, size_bytes) in versions(header) {
            let objects = image.layout().object_count(size_bytes);
            let call = client::object_map_resize(objects, ObjectState::Nonexistent);
            let object = names::object_map_object(image.id(), snap);
            io.write_meta(&object, WriteOp::new().class_call(&call)).await?;
        }
    }
    image.refresh().await?;
    if image.owns_lock() {
        head::load_under_lock(image).await?;
    }
    Ok(())
}

/// The caller holds the gate exclusively.
async fn disable(image: &Image, header: &Header, bits: u64) -> Result<()> {
    let io = image.io();
    let header_object = &image.inner.header_object;
    if bits & feature::OBJECT_MAP != 0 {
        // Before they go: a map that is missing, or that is not kept any more, is not to be believed.
        for (snap, _) in versions(header) {
            let call = client::set_flags(MAP_FLAGS, MAP_FLAGS, snap);
            ferry_cls::exec_write(io, header_object, call).await?;
        }
        image.inner.head_map.clear();
        for (snap, _) in versions(header) {
            let object = names::object_map_object(image.id(), snap);
            absent_is_fine(io.write_meta(&object, WriteOp::new().remove()).await.map(|_| ()))?;
        }
    }
    ferry_cls::exec_write(io, header_object, client::set_features(0, bits)).await?;
    if bits & feature::OBJECT_MAP != 0 {
        for (snap, _) in versions(header) {
            let call = client::set_flags(0, MAP_FLAGS, snap);
            ferry_cls::exec_write(io, header_object, call).await?;
        }
    }
    image.refresh().await
}
