//! Links between clones and their parents.

use ferry_store::{PoolId, SnapId};

use crate::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};

/// The snapshot that an image was cloned from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ParentImageSpec {
    /// Pool of the parent.
    pub pool_id: PoolId,
    /// RADOS namespace of the parent.
    pub pool_namespace: String,
    /// Image id of the parent.
    pub image_id: String,
    /// Snapshot of the parent.
    pub snap_id: SnapId,
}

impl ParentImageSpec {
    /// "No parent": pool -1, empty names, the head.
    pub fn none() -> Self {
        Self {
            pool_id: PoolId::NONE,
            pool_namespace: String::new(),
            image_id: String::new(),
            snap_id: SnapId::HEAD,
        }
    }

    /// Whether this names a parent.
    pub fn exists(&self) -> bool {
        self.pool_id.0 >= 0 && !self.image_id.is_empty() && !self.snap_id.is_head()
    }
}

impl Encode for ParentImageSpec {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(self.pool_id)
                .put(&self.pool_namespace)
                .put(&self.image_id)
                .put(self.snap_id);
        });
    }
}

impl Decode for ParentImageSpec {
    const MIN_BYTES: usize = 30;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("parent spec", 1, |_, _, body| {
            Ok(Self {
                pool_id: body.get("parent pool")?,
                pool_namespace: body.get("parent namespace")?,
                image_id: body.get("parent image id")?,
                snap_id: body.get("parent snapshot id")?,
            })
        })
    }
}

/// The `parent` key of a header (`cls_rbd_parent`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredParent {
    /// The parent.
    pub spec: ParentImageSpec,
    /// How many bytes of the head come from the parent where the image has no object; `None` when the head was
    /// detached and only snapshots still have the parent.
    pub head_overlap_bytes: Option<u64>,
}

impl Encode for StoredParent {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(2, 2, |body| {
            body.put(self.spec.pool_id)
                .put(&self.spec.pool_namespace)
                .put(&self.spec.image_id)
                .put(self.spec.snap_id)
                .put(self.head_overlap_bytes);
        });
    }
}

impl Decode for StoredParent {
    const MIN_BYTES: usize = 30;

    /// Takes version 1 too, which had no namespace and always an overlap.
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("parent", 2, |version, _, body| {
            let pool_id = body.get("parent pool")?;
            let pool_namespace = if version >= 2 {
                body.get("parent namespace")?
            } else {
                String::new()
            };
            let image_id = body.get("parent image id")?;
            let snap_id = body.get("parent snapshot id")?;
            let head_overlap_bytes = if version >= 2 {
                body.get("parent head overlap")?
            } else {
                Some(body.get("parent overlap")?)
            };
            Ok(Self {
                spec: ParentImageSpec {
                    pool_id,
                    pool_namespace,
                    image_id,
                    snap_id,
                },
                head_overlap_bytes,
            })
        })
    }
}

/// A clone-v2 child, as its parent's header lists it. Ordered by pool, namespace, image, as Ceph sorts the set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildImageSpec {
    /// Pool of the child.
    pub pool_id: PoolId,
    /// RADOS namespace of the child.
    pub pool_namespace: String,
    /// Image id of the child.
    pub image_id: String,
}

impl Encode for ChildImageSpec {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(2, 1, |body| {
            body.put(self.pool_id)
                .put(&self.image_id)
                .put(&self.pool_namespace);
        });
    }
}

impl Decode for ChildImageSpec {
    const MIN_BYTES: usize = 18;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("child spec", 2, |version, _, body| {
            let pool_id = body.get("child pool")?;
            let image_id = body.get("child image id")?;
            let pool_namespace = if version >= 2 {
                body.get("child namespace")?
            } else {
                String::new()
            };
            Ok(Self {
                pool_id,
                pool_namespace,
                image_id,
            })
        })
    }
}
