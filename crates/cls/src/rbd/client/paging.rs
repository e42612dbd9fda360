//! Lists that take several calls. Each asks for pages of a fixed size until one is shorter, and gives up with `EIO` when
//! the store does not move on (a page that starts where the last one did would loop for ever). A missing object is an
//! empty list.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_store::{Errno, IoCtx, PoolId, Result, StoreError};

use crate::call::{Call, exec_read};
use crate::rbd::names;
use crate::rbd::types::{GroupImageSpec, GroupImageStatus, GroupSnapshot, TrashImageSpec};

/// Entries a page of names or trash entries.
pub const PAGE: u64 = 1024;
/// Entries a page of metadata, as librbd asks.
pub const METADATA_PAGE: u64 = 64;

/// All image names and ids of `rbd_directory`.
pub async fn dir_list_all(io: &IoCtx) -> Result<BTreeMap<String, String>> {
    all(io, names::DIRECTORY, PAGE, super::dir_list).await
}

/// All group names and ids of `rbd_group_directory`.
pub async fn group_dir_list_all(io: &IoCtx) -> Result<BTreeMap<String, String>> {
    all(io, names::GROUP_DIRECTORY, PAGE, super::group_dir_list).await
}

/// All images of the group with this header, by pool and id.
pub async fn group_image_list_all(io: &IoCtx, header: &str) -> Result<Vec<GroupImageStatus>> {
    let mut start_after = GroupImageSpec {
        image_id: String::new(),
        pool_id: PoolId(0),
    };
    let mut found = Vec::new();
    loop {
        let page = page(io, header, super::group_image_list(&start_after, PAGE)).await?;
        let full = page.len() as u64 >= PAGE;
        let Some(last) = page.last().map(|image| image.spec.clone()) else {
            return Ok(found);
        };
        if last == start_after {
            return Err(stuck(io, header, &last.image_id));
        }
        start_after = last;
        found.extend(page);
        if !full {
            return Ok(found);
        }
    }
}

/// All snapshots of the group with this header, by id.
pub async fn group_snap_list_all(io: &IoCtx, header: &str) -> Result<Vec<GroupSnapshot>> {
    let mut start_after = String::new();
    let mut found = Vec::new();
    loop {
        let page = page(io, header, super::group_snap_list(&start_after, PAGE)).await?;
        let full = page.len() as u64 >= PAGE;
        let Some(last) = page.last().map(|snapshot| snapshot.id.clone()) else {
            return Ok(found);
        };
        if last <= start_after {
            return Err(stuck(io, header, &start_after));
        }
        start_after = last;
        found.extend(page);
        if !full {
            return Ok(found);
        }
    }
}

/// All entries of `rbd_trash`.
pub async fn trash_list_all(io: &IoCtx) -> Result<BTreeMap<String, TrashImageSpec>> {
    all(io, names::TRASH, PAGE, super::trash_list).await
}

/// All metadata of an object (a header or `rbd_info`).
pub async fn metadata_list_all(io: &IoCtx, object: &str) -> Result<BTreeMap<String, Bytes>> {
    all(io, object, METADATA_PAGE, super::metadata_list).await
}

/// All namespaces of the pool; `io` must be on the default namespace.
pub async fn namespace_list_all(io: &IoCtx) -> Result<Vec<String>> {
    let page = |start: &str, max| {
        let call = super::namespace_list(start, max);
        Call::with_decoder(
            call.class,
            call.method,
            |input| {
                input.put_raw(&call.input);
            },
            |out| {
                use crate::encoding::Decode;
                let names = Vec::<String>::from_slice(out)?;
                Ok(names.into_iter().map(|name| (name, ())).collect())
            },
        )
    };
    let found = all(io, names::NAMESPACE, PAGE, page).await?;
    Ok(found.into_keys().collect())
}

async fn all<V>(
    io: &IoCtx,
    object: &str,
    page: u64,
    call: impl Fn(&str, u64) -> Call<BTreeMap<String, V>>,
) -> Result<BTreeMap<String, V>> {
    let mut found = BTreeMap::new();
    let mut start_after = String::new();
    loop {
        let got = self::page(io, object, call(&start_after, page)).await?;
        let full = got.len() as u64 >= page;
        let Some(last) = got.keys().next_back().cloned() else {
            return Ok(found);
        };
        if last <= start_after {
            return Err(stuck(io, object, &start_after));
        }
        start_after = last;
        found.extend(got);
        if !full {
            return Ok(found);
        }
    }
}

/// One page; empty for a missing object.
async fn page<T: Default>(io: &IoCtx, object: &str, call: Call<T>) -> Result<T> {
    match exec_read(io, object, call).await {
        Err(error) if error.errno == Errno::ENOENT => Ok(T::default()),
        got => got,
    }
}

fn stuck(io: &IoCtx, object: &str, start_after: &str) -> StoreError {
    let what = format!(
        "list of {}: the page after '{start_after}' ends before it",
        io.object(object)
    );
    StoreError::new(Errno::EIO, what)
}
