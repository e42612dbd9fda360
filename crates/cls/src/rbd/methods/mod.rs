//! The methods of class `rbd`, for engines without an OSD: what Ceph 16.2.15's do, errno for errno (fact sheet
//! section 3).
//!
//! Visibility: a method reads the object as it was before the operation, so no method here reads back what it wrote, and
//! several changes to one key are made as one. Existence and size are those after earlier steps.
//! A reading method on a missing object is `ENOENT`, as an OSD answers before it even calls the method.

mod data;
mod directory;
mod group;
mod header;
mod header_records;
mod metadata;
mod migration;
mod object_map;
mod parent;
mod snapshots;
mod trash;
mod v1_snapshots;

use ferry_store::Errno;
use ferry_store::class::ClassRegistry;

use super::CLASS;

/// Adds all methods of class `rbd`.
pub fn register(registry: &mut ClassRegistry) {
    macro_rules! reads {
        ($($topic:ident: $($method:ident),*;)*) => {
            $($(registry.register(CLASS, stringify!($method), false, |context, object, input| {
                if !object.exists() {
                    return Err(Errno::ENOENT);
                }
                $topic::$method(context, object, input)
            });)*)*
        };
    }
    macro_rules! writes {
        ($($topic:ident: $($method:ident),*;)*) => {
            $($(registry.register(CLASS, stringify!($method), true, $topic::$method);)*)*
        };
    }
    reads! {
        header: get_size, get_features, get_all_features, get_object_prefix, get_data_pool, get_stripe_unit_count,
            get_create_timestamp, get_access_timestamp, get_modify_timestamp, get_flags, op_features_get;
        snapshots: get_snapcontext, snapshot_get, get_snapshot_name, get_snapshot_timestamp, get_protection_status,
            snapshot_get_limit;
        parent: parent_get, parent_overlap_get, get_parent, children_list, get_children;
        metadata: metadata_list, metadata_get;
        directory: get_id, dir_get_id, dir_get_name, dir_list, dir_state_assert, namespace_list;
        object_map: object_map_load;
        migration: migration_get;
        trash: trash_list, trash_get;
        v1_snapshots: snap_list;
        group: image_group_get, group_image_list, group_dir_list, group_snap_get_by_id, group_snap_list;
    }
    writes! {
        header: create, set_size, set_features, set_stripe_unit_count, set_access_timestamp, set_modify_timestamp,
            set_flags, op_features_set;
        snapshots: snapshot_add, snapshot_remove, snapshot_rename, snapshot_trash_add, set_protection_status,
            snapshot_set_limit;
        parent: parent_attach, parent_detach, set_parent, remove_parent, child_attach, child_detach, add_child,
            remove_child;
        metadata: metadata_set, metadata_remove;
        directory: set_id, dir_add_image, dir_remove_image, dir_rename_image, dir_state_set, namespace_add,
            namespace_remove;
        object_map: object_map_save, object_map_resize, object_map_update, object_map_snap_add,
            object_map_snap_remove;
        data: copyup, sparse_copyup, assert_snapc_seq, sparsify;
        migration: migration_set, migration_set_state, migration_remove;
        trash: trash_add, trash_remove, trash_state_set;
        v1_snapshots: snap_add, snap_remove, snap_rename;
        group: image_group_add, image_group_remove, group_image_set, group_image_remove, group_dir_add,
            group_dir_remove, group_dir_rename, group_snap_set, group_snap_remove;
    }
}
