//! Two more things that librados exports for C++ only: where an object has data, and a copy that the OSDs make themselves.
//!
//! As in [`super::cxx`], the C++ objects that they take are lent: an I/O context of C++ is a pointer to what the handle of
//! the C interface points to, a string is three fields, and a map is a tree whose layout libstdc++ (cxx11, 64 bit) has kept. A
//! library that lacks the names answers `EOPNOTSUPP`; callers read and write then.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::{offset_of, size_of};
use std::ptr;
use std::sync::Arc;

use ferry_store::{Errno, Extent, WriteStep};

use super::cxx::with_cxx;
use super::ioctx::Ioctx;
use super::library::RawIoctx;
use super::read::{Lending, OpError};
use super::write::WriteState;
use super::{Rc, check, text};

/// `std::string`; the bytes are somebody else's, which only a constant one may be.
#[repr(C)]
struct CxxString {
    bytes: *const u8,
    length: usize,
    _short: [u8; 16],
}

impl CxxString {
    /// Lends bytes that end with a NUL, which does not count.
    fn lend(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.as_ptr(),
            length: bytes.len() - 1,
            _short: [0; 16],
        }
    }
}

/// `librados::IoCtx`.
#[repr(C)]
struct CxxIoctx {
    _raw: RawIoctx,
}

/// Node of a `std::map<uint64_t, uint64_t>`; the map's own has no pair behind it.
#[repr(C)]
struct CxxNode {
    color: c_int,
    parent: *mut CxxNode,
    left: *mut CxxNode,
    right: *mut CxxNode,
    key: u64,
    value: u64,
}

/// `std::map<uint64_t, uint64_t>`.
#[repr(C)]
struct CxxMap {
    _compare: u64,
    color: c_int,
    parent: *mut CxxNode,
    left: *mut CxxNode,
    right: *mut CxxNode,
    count: usize,
}

/// `LIBRADOS_OP_FLAG_FADVISE_SEQUENTIAL | LIBRADOS_OP_FLAG_FADVISE_NOCACHE`: what is copied is read once. An OSD that keeps it
/// takes room from what its clients read, and fills new memory for every object.
const READ_ONCE: u32 = 0x8 | 0x40;

/// Most extents that are taken from an answer.
const EXTENTS_MAX: usize = 1 << 20;

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<CxxString>() == 32 && size_of::<CxxMap>() == 48 && size_of::<CxxNode>() == 48);
    assert!(offset_of!(CxxMap, color) == 8 && offset_of!(CxxNode, key) == 32);
};

impl Ioctx {
    /// The parts of an object's first `length_bytes` that have data, ascending. Blocks. `EOPNOTSUPP`: this library cannot.
    pub(crate) fn data_extents(&self, object: &str, length_bytes: u64) -> Rc<Vec<Extent>> {
        let functions = self.functions();
        let (Some(mapext), Some(delete)) = (functions.mapext, functions.delete_cxx) else {
            return Err(Errno::EOPNOTSUPP);
        };
        let object = text(object)?;
        let name = CxxString::lend(object.as_bytes_with_nul());
        let mut ioctx = CxxIoctx { _raw: self.raw };
        // On the heap: the library ties nodes to the place of the map.
        let mut map = Box::new(CxxMap {
            _compare: 0,
            color: 0,
            parent: ptr::null_mut(),
            left: ptr::null_mut(),
            right: ptr::null_mut(),
            count: 0,
        });
        // An empty tree is a ring of its head alone.
        let head: *mut CxxNode = (&raw mut map.color).cast();
        (map.left, map.right) = (head, head);
        // SAFETY: a context, a string and a map, all as C++ has them, for the time of the call.
        let returned = unsafe {
            mapext(
                (&raw mut ioctx).cast(),
                (&raw const name).cast(),
                0,
                usize::try_from(length_bytes).map_err(|_| Errno::EFBIG)?,
                (&raw mut *map).cast(),
            )
        };
        // SAFETY: the library has filled it; its nodes are taken once.
        let extents = unsafe { take_nodes(&map, delete) };
        check(returned)?;
        extents
    }

    /// Runs `steps`, and behind them makes the object a copy of another: the whole of `source` as `from` reads it, but for
    /// `holes`, which are zeroed. Gives the object's version after it. `EOPNOTSUPP`: this library cannot.
    pub(crate) async fn copy_from(
        self: &Arc<Self>,
        object: &str,
        steps: &[WriteStep],
        from: &Arc<Ioctx>,
        source: &str,
        holes: &[Extent],
    ) -> Result<u64, OpError> {
        let state = self.copying(steps, from, source, holes)?;
        self.operate(object, state)
            .await
            .map_err(|error| super::write::failed(steps, error))
    }

    fn copying(
        &self,
        steps: &[WriteStep],
        from: &Ioctx,
        source: &str,
        holes: &[Extent],
    ) -> Rc<Box<WriteState>> {
        let functions = self.functions();
        let add = functions.copy_from_step.ok_or(Errno::EOPNOTSUPP)?;
        let source = text(source)?;
        let name = CxxString::lend(source.as_bytes_with_nul());
        let mut ioctx = CxxIoctx { _raw: from.raw };
        let state = WriteState::with(functions, steps, Lending::No)?;
        // SAFETY: an operation of the C interface; a string and a context as C++ has them, which the step copies.
        // Version 0 is any.
        with_cxx(state.op, |operation| unsafe {
            add(
                operation,
                (&raw const name).cast(),
                (&raw mut ioctx).cast(),
                0,
                READ_ONCE,
            );
        });
        for hole in holes {
            // SAFETY: an operation of the C interface.
            unsafe { (functions.rados_write_op_zero)(state.op, hole.offset, hole.length_bytes) };
        }
        Ok(state)
    }
}

/// Takes the pairs out of a map, in order, and gives its nodes back as C++ does.
///
/// # Safety
/// A map that the library has filled, which is not used any more.
unsafe fn take_nodes(map: &CxxMap, delete: unsafe extern "C" fn(*mut c_void)) -> Rc<Vec<Extent>> {
    let mut extents = Vec::new();
    // Nodes whose left side is done with; each is visited once.
    let mut waiting: Vec<*mut CxxNode> = Vec::new();
    let mut node = map.parent;
    let mut many = false;
    loop {
        while !node.is_null() {
            waiting.push(node);
            // SAFETY: a node of the tree, not given back yet.
            node = unsafe { (*node).left };
        }
        let Some(next) = waiting.pop() else { break };
        // SAFETY: as above; after this nothing refers to it.
        unsafe {
            if extents.len() < EXTENTS_MAX {
                extents.push(Extent::new((*next).key, (*next).value));
            } else {
                many = true;
            }
            node = (*next).right;
            delete(next.cast());
        }
    }
    match many {
        true => Err(Errno::E2BIG),
        false => Ok(extents),
    }
}
