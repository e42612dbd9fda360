//! Who is whose child: lists at the parents, of two formats, and how they are kept.
//!
//! A clone of format 2 is listed in its parent's header, wherever it lies. One of format 1 is listed in the object
//! `rbd_children` of its own pool, in the namespace of its parent, which must be its own; the parent's snapshot is protected.
//!
//! Invariant: lists follow the clone's own header. It names the parent before it is listed, and is taken off a list only
//! after it stops naming that parent, or when it is being removed itself; so an entry that the clone does not confirm is a
//! leftover of a kill (or of Ceph's `migration prepare --flatten`), and whoever meets one where it would be in the way
//! drops it.

use std::collections::BTreeSet;

use bytes::Bytes;
use ferry_cls::CallExt as _;
use ferry_cls::encoding::Encode as _;
use ferry_cls::rbd::{ChildImageSpec, ParentImageSpec, SnapshotNamespace, StoredParent, client, op_feature};
use ferry_store::{Errno, IoCtx, ReadOp, SnapId, WriteOp, WriteStep};

use crate::error::{Result, absent_is_fine, optional};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::names;
use crate::progress::Progress;

/// Where a header has its parent (rbd-format sheet, section 2).
const PARENT_KEY: &[u8] = b"parent";

/// How a clone is linked to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneFormat {
    /// Listed in the pool of the clone.
    One,
    /// Listed at the parent.
    Two,
}

/// A clone, as its parent's list names it.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    /// Pool and namespace.
    pub io: IoCtx,
    /// Image id.
    pub id: String,
    /// Which list.
    pub format: CloneFormat,
}

impl Child {
    fn spec(&self) -> ChildImageSpec {
        ChildImageSpec {
            pool_id: self.io.pool(),
            pool_namespace: self.io.scope().namespace.to_string(),
            image_id: self.id.clone(),
        }
    }

    /// Name of the header object.
    pub(crate) fn header_object(&self) -> String {
        names::header_object(&self.id)
    }

    /// The parent that the clone itself names; `None`: it names none, or does not exist.
    pub(crate) async fn names_parent(&self) -> Result<Option<ParentImageSpec>> {
        let call = client::parent_get();
        let op = ReadOp::new().class_call(&call);
        let reply = optional(self.io.read(&self.header_object(), SnapId::HEAD, op).await)?;
        let Some(reply) = reply else { return Ok(None) };
        Ok(Some(call.decode(reply.output(0))?).filter(ParentImageSpec::exists))
    }
}

/// The snapshot of an image as a parent is named.
pub(crate) fn parent_spec(io: &IoCtx, image_id: &str, snap: SnapId) -> ParentImageSpec {
    ParentImageSpec {
        pool_id: io.pool(),
        pool_namespace: io.scope().namespace.to_string(),
        image_id: image_id.to_owned(),
        snap_id: snap,
    }
}

/// All that the lists name for a snapshot, format 2 first, confirmed or not.
pub(crate) async fn listed(io: &IoCtx, image_id: &str, snap: SnapId) -> Result<Vec<Child>> {
    if image_id.is_empty() {
        // Images of format 1 have no id to be named by.
        return Ok(Vec::new());
    }
    let mut out = listed_format_2(io, image_id, snap).await?;
    out.extend(listed_format_1(io, image_id, snap).await?);
    Ok(out)
}

async fn listed_format_2(io: &IoCtx, image_id: &str, snap: SnapId) -> Result<Vec<Child>> {
    let call = client::children_list(snap);
    let found = optional(ferry_cls::exec_read(io, &names::header_object(image_id), call).await)?;
    let child = |spec: ChildImageSpec| Child {
        io: io.with_pool(spec.pool_id).with_namespace(&spec.pool_namespace),
        id: spec.image_id,
        format: CloneFormat::Two,
    };
    Ok(found.unwrap_or_default().into_iter().map(child).collect())
}

/// Looks through every pool and namespace.
async fn listed_format_1(io: &IoCtx, image_id: &str, snap: SnapId) -> Result<Vec<Child>> {
    let mut out = Vec::new();
    for there in places(io).await? {
        let call = client::get_children(io.pool(), image_id, snap);
        let found: Option<BTreeSet<String>> =
            optional(ferry_cls::exec_read(&there, names::CHILDREN, call).await)?;
        out.extend(found.unwrap_or_default().into_iter().map(|id| Child {
            io: there.clone(),
            id,
            format: CloneFormat::One,
        }));
    }
    Ok(out)
}

/// Every pool and namespace of the store.
async fn places(io: &IoCtx) -> Result<Vec<IoCtx>> {
    let mut out = Vec::new();
    for pool in io.store().pool_list().await? {
        let default = io.with_pool(pool.id).with_namespace("");
        let namespaces = client::namespace_list_all(&default).await?;
        out.extend(namespaces.iter().map(|name| default.with_namespace(name)));
        out.push(default);
    }
    Ok(out)
}

/// Clones of a snapshot: those listed that name it themselves.
pub(crate) async fn children(io: &IoCtx, image_id: &str, snap: SnapId) -> Result<Vec<Child>> {
    let parent = parent_spec(io, image_id, snap);
    let mut out: Vec<Child> = Vec::new();
    for child in listed(io, image_id, snap).await? {
        let twice = |other: &Child| other.id == child.id && other.io.scope() == child.io.scope();
        if !out.iter().any(twice) && child.names_parent().await?.as_ref() == Some(&parent) {
            out.push(child);
        }
    }
    Ok(out)
}

/// Clones of format 1 of a snapshot, after entries that no clone confirms were dropped from the lists.
pub(crate) async fn settled_format_1(io: &IoCtx, image_id: &str, snap: SnapId) -> Result<Vec<Child>> {
    settle(io, image_id, snap, listed_format_1(io, image_id, snap).await?).await
}

/// The same for clones of format 2: the only ones that a snapshot which is not protected may have.
pub(crate) async fn settled_format_2(io: &IoCtx, image_id: &str, snap: SnapId) -> Result<Vec<Child>> {
    if image_id.is_empty() {
        return Ok(Vec::new());
    }
    settle(io, image_id, snap, listed_format_2(io, image_id, snap).await?).await
}

async fn settle(io: &IoCtx, image_id: &str, snap: SnapId, listed: Vec<Child>) -> Result<Vec<Child>> {
    let parent = parent_spec(io, image_id, snap);
    let mut out = Vec::new();
    for child in listed {
        if child.names_parent().await?.as_ref() == Some(&parent) {
            out.push(child);
            continue;
        }
        tracing::info!(
            parent = image_id,
            child = child.id,
            "dropping the entry of a clone that is none"
        );
        take_off_list(&parent, &child).await?;
    }
    Ok(out)
}

/// Makes the clone name its parent. The first step of a link. `reattach`: it may name another one so far.
pub(crate) async fn name_parent(
    child: &Child,
    parent: &ParentImageSpec,
    overlap_bytes: u64,
    reattach: bool,
) -> Result<()> {
    let mut op = WriteOp::new().class_call(&client::parent_attach(parent, overlap_bytes, reattach));
    if child.format == CloneFormat::Two {
        let clone_child = op_feature::CLONE_CHILD;
        op = op.class_call(&client::op_features_set(clone_child, clone_child));
    }
    child.io.write_meta(&child.header_object(), op).await?;
    Ok(())
}

/// Makes a clone that names `old` name `new` instead, with all its overlaps as they are. Other changes of its header do not
/// come in between (`ECANCELED`).
pub(crate) async fn name_other_parent(
    child: &Child,
    old: &ParentImageSpec,
    new: &ParentImageSpec,
) -> Result<()> {
    let call = client::parent_overlap_get(SnapId::HEAD);
    let overlap = ferry_cls::exec_read(&child.io, &child.header_object(), call).await?;
    if let Some(overlap_bytes @ 1..) = overlap {
        return name_parent(child, new, overlap_bytes, true).await;
    }
    // No class method names a parent whose head shows nothing of it. Snapshots do.
    let stored = |spec: &ParentImageSpec| StoredParent {
        spec: spec.clone(),
        head_overlap_bytes: overlap,
    };
    let key = Bytes::from_static(PARENT_KEY);
    let mut op = WriteOp::new()
        .step(WriteStep::OmapCompare {
            key: key.clone(),
            value: stored(old).to_bytes(),
        })
        .step(WriteStep::OmapSet([(key, stored(new).to_bytes())].into()));
    if child.format == CloneFormat::Two {
        let clone_child = op_feature::CLONE_CHILD;
        op = op.class_call(&client::op_features_set(clone_child, clone_child));
    }
    child.io.write_meta(&child.header_object(), op).await?;
    Ok(())
}

/// Puts the clone on the list that its format says. Fine if it is there. `ENOENT` when the parent's snapshot is gone or in
/// the trash.
pub(crate) async fn put_on_list(parent: &ParentImageSpec, child: &Child) -> Result<()> {
    let put = match child.format {
        CloneFormat::One => {
            let call = client::add_child(parent, &child.id);
            ferry_cls::exec_write(&child.io, names::CHILDREN, call).await
        }
        CloneFormat::Two => {
            let (io, header) = parent_header(parent, child);
            let call = client::child_attach(parent.snap_id, &child.spec());
            ferry_cls::exec_write(&io, &header, call).await
        }
    };
    match put {
        Err(error) if error.errno == Errno::EEXIST => Ok(()),
        put => Ok(put?),
    }
}

fn parent_header(parent: &ParentImageSpec, child: &Child) -> (IoCtx, String) {
    let io = child
        .io
        .with_pool(parent.pool_id)
        .with_namespace(&parent.pool_namespace);
    (io, names::header_object(&parent.image_id))
}

/// Takes the clone off the list that names it. Fine if it is off.
pub(crate) async fn take_off_list(parent: &ParentImageSpec, child: &Child) -> Result<()> {
    match child.format {
        CloneFormat::One => {
            let call = client::remove_child(parent, &child.id);
            absent_is_fine(ferry_cls::exec_write(&child.io, names::CHILDREN, call).await)
        }
        CloneFormat::Two => {
            let (io, header) = parent_header(parent, child);
            let call = client::child_detach(parent.snap_id, &child.spec());
            absent_is_fine(ferry_cls::exec_write(&io, &header, call).await)
        }
    }
}

/// Takes image `id` off both lists, and removes the parent's snapshot if only clones kept it, and this was the last one.
pub(crate) async fn forget(io: &IoCtx, id: &str, parent: &ParentImageSpec) -> Result<()> {
    for format in [CloneFormat::One, CloneFormat::Two] {
        let child = Child {
            io: io.clone(),
            id: id.to_owned(),
            format,
        };
        take_off_list(parent, &child).await?;
    }
    sweep(io, parent).await;
    Ok(())
}

/// Removes a snapshot that is in the trash and that no clone needs any more. What cannot be done now is done by the next
/// maintenance of the parent.
pub(crate) async fn sweep(io: &IoCtx, parent: &ParentImageSpec) {
    let io = io
        .with_pool(parent.pool_id)
        .with_namespace(&parent.pool_namespace);
    if let Err(error) = try_sweep(&io, parent).await {
        tracing::warn!(
            image = parent.image_id,
            snap = parent.snap_id.0,
            %error,
            "a snapshot in the trash that no clone needs any more stays for now"
        );
    }
}

async fn try_sweep(io: &IoCtx, parent: &ParentImageSpec) -> Result<()> {
    let call = client::snapshot_get(parent.snap_id);
    let op = ReadOp::new().class_call(&call);
    let header = names::header_object(&parent.image_id);
    let Some(reply) = optional(io.read(&header, SnapId::HEAD, op).await)? else {
        return Ok(());
    };
    let info = call.decode(reply.output(0))?;
    if info.child_count > 0 || !matches!(info.namespace, SnapshotNamespace::Trash { .. }) {
        return Ok(());
    }
    let options = OpenOptions::read_write().ignoring_migration().ignoring_parent();
    let image = Image::open(io, ImageKey::Id(&parent.image_id), options).await?;
    // The snapshots of a migration's source stay as they are.
    let removed = match image.header().migration_source() {
        Some(_) => Ok(()),
        None => {
            let silent = Progress::silent();
            Box::pin(image.snap_remove_by_id(parent.snap_id, &silent)).await
        }
    };
    removed.and(image.close().await)
}
