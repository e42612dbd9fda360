//! Typed requests of class `rbd`, one function a method, named as Ceph's methods (fact sheet sections 3.1 to 3.12).
//!
//! Each function tells the object it is for and the errnos that mean something to a caller. Every method besides gives
//! `EINVAL` for a payload that does not decode, `EIO` for a damaged stored value and, unless said otherwise, `ENOENT`
//! for a missing object. [`paging`] has the lists that take several calls.

mod data;
mod directory;
mod group;
mod header;
mod migration;
mod object_map;
pub mod paging;
mod parent;
mod snapshots;
mod trash;
mod v1_snapshots;

pub use data::*;
pub use directory::*;
pub use group::*;
pub use header::*;
pub use migration::*;
pub use object_map::*;
pub use paging::{
    dir_list_all, group_dir_list_all, group_image_list_all, group_snap_list_all, metadata_list_all,
    namespace_list_all, trash_list_all,
};
pub use parent::*;
pub use snapshots::*;
pub use trash::*;
pub use v1_snapshots::*;

use crate::call::Call;
use crate::encoding::{Decode, Encoder};

fn get<T: Decode>(method: &'static str, input: impl FnOnce(&mut Encoder)) -> Call<T> {
    Call::new(super::CLASS, method, input)
}

fn set(method: &'static str, input: impl FnOnce(&mut Encoder)) -> Call<()> {
    Call::unit(super::CLASS, method, input)
}

fn nothing(_: &mut Encoder) {}
