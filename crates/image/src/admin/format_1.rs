//! Images of format 1: their list, creating, renaming and the last steps of removing.
//!
//! The list is the data of `rbd_directory` (format 2 has the omap of the same object); the header's name is the image's. The
//! list comes before the header and goes after it, so that every header is listed; a name in the list without a header was left
//! by a kill, opens as nothing, and goes with the next removal of that name.

use bytes::Bytes;
use ferry_cls::encoding::{Decode as _, Decoder, Encode as _};
use ferry_cls::rbd::v1::{Tmap, V1Header};
use ferry_store::{Errno, IoCtx, ReadOp, ReadResult, ReadStep, SnapId, WriteOp, WriteStep};
use rand::RngExt as _;

use super::directory;
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::header::{self, HeaderKey};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::names;

/// Longest list that is read.
const MAX_LIST_BYTES: u64 = 64 << 20;
/// How often a change of the list is begun anew because another came in between.
const MAX_RACES: usize = 100;
/// Pairs of a header that a rename reads at a time.
const PAIRS_PER_READ: usize = 256;

/// Names of the images of format 1 of the namespace, sorted.
pub async fn list(io: &IoCtx) -> Result<Vec<String>> {
    Ok(read(io).await?.0.entries.into_keys().collect())
}

/// The list and the version of its object; 0: there is none.
async fn read(io: &IoCtx) -> Result<(Tmap, u64)> {
    let op = ReadOp::new().read(0, MAX_LIST_BYTES);
    let Some(reply) = optional(io.read(names::DIRECTORY, SnapId::HEAD, op).await)? else {
        return Ok((Tmap::default(), 0));
    };
    let list = Tmap::decode(&mut Decoder::new(&reply.data(0)))
        .map_err(|error| header::damaged(io, names::DIRECTORY, error))?;
    Ok((list, reply.version))
}

/// Changes the list in one step, against whatever others do to it. `change` says whether it changed anything.
async fn update(io: &IoCtx, change: impl Fn(&mut Tmap) -> bool) -> Result<()> {
    for _ in 0..MAX_RACES {
        let (mut list, version) = read(io).await?;
        if !change(&mut list) {
            return Ok(());
        }
        let op = match version {
            0 => WriteOp::new().create(true),
            version => WriteOp::new().step(WriteStep::AssertVersion(version)),
        };
        match io
            .write_meta(names::DIRECTORY, op.write_full(list.to_bytes()))
            .await
        {
            Ok(_) => return Ok(()),
            Err(error) if raced(error.errno) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ImageError::new(
        Errno::EAGAIN,
        format!("{} changes too often", io.object(names::DIRECTORY)),
    ))
}

fn raced(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ERANGE | Errno::EOVERFLOW | Errno::EEXIST | Errno::ENOENT
    )
}

/// Puts a name on the list. Fine if it is there.
pub(crate) async fn add(io: &IoCtx, name: &str) -> Result<()> {
    let put = |list: &mut Tmap| list.entries.insert(name.to_owned(), Bytes::new()).is_none();
    update(io, put).await
}

/// Takes a name off the list. Fine if it is not there.
pub(crate) async fn remove(io: &IoCtx, name: &str) -> Result<()> {
    update(io, |list| list.entries.remove(name).is_some()).await
}

/// Takes off the list a name without a header, which an interrupted removal or creation left; whether there was one.
pub(crate) async fn remove_leftover(io: &IoCtx, name: &str) -> Result<bool> {
    let listed = read(io).await?.0.entries.contains_key(name);
    if listed {
        remove(io, name).await?;
    }
    Ok(listed)
}

/// Makes an image; the layout was checked. `EEXIST` ([`ErrorKind::ImageExists`]).
pub(super) async fn create(io: &IoCtx, name: &str, size_bytes: u64, order: u8) -> Result<()> {
    let client = io.store().instance().gid;
    let (high, low, random) = (client >> 32, client & 0xffff_ffff, rand::rng().random::<u32>());
    let header = V1Header {
        migrating: false,
        block_name: format!("rb.{high:x}.{low:x}.{random:x}"),
        order,
        image_size_bytes: size_bytes,
        snap_seq: 0,
        snaps: Vec::new(),
    };
    add(io, name).await?;
    let op = WriteOp::new().create(true).write_full(header.to_bytes());
    match io.write_meta(&names::v1_header_object(name), op).await {
        Ok(_) => Ok(()),
        Err(error) if error.errno == Errno::EEXIST => Err(directory::exists(name)),
        Err(error) => Err(error.into()),
    }
}

/// Gives the image another name: the new header, the list, the old header off. A kill leaves both headers; the same rename run
/// again finishes. `EBUSY` ([`ErrorKind::HasWatchers`]) while somebody has it open, who would not hear of the new name.
pub(super) async fn rename(io: &IoCtx, name: &str, new_name: &str) -> Result<()> {
    let image = Image::open(io, ImageKey::Format1(name), OpenOptions::read_write()).await?;
    let renamed = async {
        super::remove::check_no_watchers(&image).await?;
        let new = header::find(io, new_name).await;
        match new {
            Err(error) if error.kind == ErrorKind::ImageMissing => copy_header(io, name, new_name).await?,
            // The same data under both names: a rename that was killed.
            Ok(HeaderKey::Name(_)) if same_data(&image, io, new_name).await? => {}
            Ok(_) => return Err(directory::exists(new_name)),
            Err(error) => return Err(error),
        }
        update(io, |list| {
            let was_there = list.entries.remove(name).is_some();
            list.entries.insert(new_name.to_owned(), Bytes::new()).is_none() || was_there
        })
        .await
    }
    .await;
    let closed = image.close().await;
    renamed?;
    closed?;
    remove_header(io, name).await
}

async fn same_data(image: &Image, io: &IoCtx, other: &str) -> Result<bool> {
    let other = header::load_fixed(io, &HeaderKey::Name(other.to_owned())).await?;
    Ok(other.object_prefix == image.fixed().object_prefix)
}

/// Bytes and omap (metadata, the limit of snapshots), in one step.
async fn copy_header(io: &IoCtx, name: &str, new_name: &str) -> Result<()> {
    let object = names::v1_header_object(name);
    let reply = io
        .read(&object, SnapId::HEAD, ReadOp::new().read(0, MAX_LIST_BYTES))
        .await?;
    let mut op = WriteOp::new().create(true).write_full(reply.data(0));
    let mut after = Bytes::new();
    loop {
        let page = ReadOp::new().step(ReadStep::OmapGetVals {
            start_after: after.clone(),
            prefix: Bytes::new(),
            max: PAIRS_PER_READ,
        });
        let found = io.read(&object, SnapId::HEAD, page).await?;
        let Some(ReadResult::Omap { values, more }) = found.results.into_iter().next() else {
            break;
        };
        let Some(last) = values.keys().next_back().cloned() else {
            break;
        };
        after = last;
        op = op.step(WriteStep::OmapSet(values));
        if !more {
            break;
        }
    }
    match io.write_meta(&names::v1_header_object(new_name), op).await {
        Ok(_) => Ok(()),
        Err(error) if error.errno == Errno::EEXIST => Err(directory::exists(new_name)),
        Err(error) => Err(error.into()),
    }
}

/// Removes a header. Fine if it is gone.
pub(crate) async fn remove_header(io: &IoCtx, name: &str) -> Result<()> {
    let removed = io
        .write_meta(&names::v1_header_object(name), WriteOp::new().remove())
        .await;
    absent_is_fine(removed.map(|_| ()))
}
