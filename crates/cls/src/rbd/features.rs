//! Feature, operation-feature and image-flag bits with their names (fact sheet section 7; values as in Ceph's public
//! header `rbd/features.h`).

/// Image features.
pub mod feature {
    /// Clones.
    pub const LAYERING: u64 = 1 << 0;
    /// Striping other than the default.
    pub const STRIPINGV2: u64 = 1 << 1;
    /// Managed exclusive lock.
    pub const EXCLUSIVE_LOCK: u64 = 1 << 2;
    /// Object map.
    pub const OBJECT_MAP: u64 = 1 << 3;
    /// Fast diff (object maps tell what changed since the previous snapshot).
    pub const FAST_DIFF: u64 = 1 << 4;
    /// Flattening detaches snapshots too.
    pub const DEEP_FLATTEN: u64 = 1 << 5;
    /// Journal.
    pub const JOURNALING: u64 = 1 << 6;
    /// Data objects in another pool.
    pub const DATA_POOL: u64 = 1 << 7;
    /// Some operation feature is set.
    pub const OPERATIONS: u64 = 1 << 8;
    /// The header carries a migration record.
    pub const MIGRATING: u64 = 1 << 9;
    /// Mirrored, not primary.
    pub const NON_PRIMARY: u64 = 1 << 10;
    /// A write-back cache may hold newer data.
    pub const DIRTY_CACHE: u64 = 1 << 11;

    /// All bits known.
    pub const ALL: u64 = 0xfff;
    /// A client that does not know such a bit must not open the image.
    pub const INCOMPATIBLE: u64 = LAYERING | STRIPINGV2 | DATA_POOL | DIRTY_CACHE;
    /// A client that does not know such a bit must not write to the image.
    pub const RW_INCOMPATIBLE: u64 = ALL;
    /// May be switched on and off.
    pub const MUTABLE: u64 = EXCLUSIVE_LOCK | OBJECT_MAP | FAST_DIFF | JOURNALING | NON_PRIMARY | DIRTY_CACHE;
    /// Mutable, but not by users.
    pub const MUTABLE_INTERNAL: u64 = NON_PRIMARY | DIRTY_CACHE;
    /// May be switched off only.
    pub const DISABLE_ONLY: u64 = DEEP_FLATTEN;
    /// One writer at a time.
    pub const SINGLE_CLIENT: u64 = EXCLUSIVE_LOCK | OBJECT_MAP | FAST_DIFF | JOURNALING | DIRTY_CACHE;
    /// Never taken over from a parent nor asked for by users.
    pub const IMPLICIT_ENABLE: u64 =
        STRIPINGV2 | DATA_POOL | FAST_DIFF | OPERATIONS | MIGRATING | NON_PRIMARY | DIRTY_CACHE;
    /// Kept by class methods; `set_features` refuses them.
    pub const INTERNAL: u64 = OPERATIONS | MIGRATING;
    /// What a new image gets by default.
    pub const DEFAULT: u64 = LAYERING | EXCLUSIVE_LOCK | OBJECT_MAP | FAST_DIFF | DEEP_FLATTEN;

    /// Bits and names, ascending.
    pub const NAMES: [(u64, &str); 12] = [
        (LAYERING, "layering"),
        (STRIPINGV2, "striping"),
        (EXCLUSIVE_LOCK, "exclusive-lock"),
        (OBJECT_MAP, "object-map"),
        (FAST_DIFF, "fast-diff"),
        (DEEP_FLATTEN, "deep-flatten"),
        (JOURNALING, "journaling"),
        (DATA_POOL, "data-pool"),
        (OPERATIONS, "operations"),
        (MIGRATING, "migrating"),
        (NON_PRIMARY, "non-primary"),
        (DIRTY_CACHE, "dirty-cache"),
    ];

    /// Names of the bits set, ascending; unknown bits have none.
    pub fn names(bits: u64) -> Vec<&'static str> {
        super::names_of(&NAMES, bits)
    }

    /// The bit of a name.
    pub fn from_name(name: &str) -> Option<u64> {
        super::bit_of(&NAMES, name)
    }
}

/// Operation features: set while an image takes part in something.
pub mod op_feature {
    /// Has clone-v2 children.
    pub const CLONE_PARENT: u64 = 1 << 0;
    /// Is a clone-v2 child.
    pub const CLONE_CHILD: u64 = 1 << 1;
    /// Is in a group.
    pub const GROUP: u64 = 1 << 2;
    /// Has snapshots in the trash.
    pub const SNAP_TRASH: u64 = 1 << 3;
    /// All bits known.
    pub const ALL: u64 = CLONE_PARENT | CLONE_CHILD | GROUP | SNAP_TRASH;

    /// Bits and names, ascending.
    pub const NAMES: [(u64, &str); 4] = [
        (CLONE_PARENT, "clone-parent"),
        (CLONE_CHILD, "clone-child"),
        (GROUP, "group"),
        (SNAP_TRASH, "snap-trash"),
    ];

    /// Names of the bits set, ascending; unknown bits have none.
    pub fn names(bits: u64) -> Vec<&'static str> {
        super::names_of(&NAMES, bits)
    }

    /// The bit of a name.
    pub fn from_name(name: &str) -> Option<u64> {
        super::bit_of(&NAMES, name)
    }
}

/// Flags of the head and of snapshots.
pub mod flag {
    /// The object map must be ignored until rebuilt.
    pub const OBJECT_MAP_INVALID: u64 = 1 << 0;
    /// The object map does not tell what changed.
    pub const FAST_DIFF_INVALID: u64 = 1 << 1;

    /// Bits and names, ascending.
    pub const NAMES: [(u64, &str); 2] = [
        (OBJECT_MAP_INVALID, "object map invalid"),
        (FAST_DIFF_INVALID, "fast diff invalid"),
    ];

    /// Names of the bits set, ascending; unknown bits have none.
    pub fn names(bits: u64) -> Vec<&'static str> {
        super::names_of(&NAMES, bits)
    }
}

fn names_of(table: &[(u64, &'static str)], bits: u64) -> Vec<&'static str> {
    let set = table.iter().filter(|(bit, _)| bits & bit != 0);
    set.map(|(_, name)| *name).collect()
}

fn bit_of(table: &[(u64, &'static str)], name: &str) -> Option<u64> {
    let found = table.iter().find(|(_, known)| *known == name)?;
    Some(found.0)
}
