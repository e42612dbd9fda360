//! Three steps that librados exports for C++ only: a list of clones, a list of watchers, a rollback.
//!
//! A C++ operation object is a pointer to its virtual table, which these methods don't use, and the very handle that the C
//! interface gives. So an operation is made and submitted by the C interface, and the step alone is added by its C++
//! method, found by its mangled name. What comes back are containers of libstdc++ (cxx11, 64 bit); their layout is checked
//! for what can be checked before anything is followed. A library that lacks the names answers `EOPNOTSUPP`, and the
//! callers have other ways.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::slice;
use std::sync::Arc;

use ferry_store::{CloneInfo, Errno, Extent, SnapId, SnapSet};

use super::ioctx::{Ioctx, Raw};
use super::library::{Functions, RawOp};
use super::write::WriteState;
use super::{Rc, completion, errno_of, text};

/// `librados::ObjectOperation`.
#[repr(C)]
struct CxxOperation {
    _table: *const c_void,
    _operation: RawOp,
}

/// `std::vector`.
#[repr(C)]
struct CxxVector {
    begin: *mut c_void,
    end: *mut c_void,
    capacity: *mut c_void,
}

impl CxxVector {
    const EMPTY: Self = Self {
        begin: ptr::null_mut(),
        end: ptr::null_mut(),
        capacity: ptr::null_mut(),
    };

    /// Its elements.
    ///
    /// # Safety
    /// A vector of `T` that the library made.
    unsafe fn items<T>(&self) -> Rc<&[T]> {
        let bytes = (self.end as usize).wrapping_sub(self.begin as usize);
        match bytes % size_of::<T>() {
            0 if self.begin.is_null() || bytes == 0 => Ok(&[]),
            0 if bytes <= isize::MAX as usize => {
                let count = bytes / size_of::<T>();
                // SAFETY: as the function's.
                Ok(unsafe { slice::from_raw_parts(self.begin.cast(), count) })
            }
            _ => Err(Errno::EBADMSG),
        }
    }
}

/// `librados::clone_info_t`.
#[repr(C)]
struct CxxClone {
    id: u64,
    snaps: CxxVector,
    overlap: CxxVector,
    size: u64,
}

/// `librados::snap_set_t`.
#[repr(C)]
struct CxxSnapSet {
    clones: CxxVector,
    seq: u64,
}

/// Node of a `std::list<obj_watch_t>`; the list itself begins with the same two pointers.
#[repr(C)]
struct CxxWatcher {
    next: *mut CxxWatcher,
    previous: *mut CxxWatcher,
    addr: [u8; 256],
    gid: i64,
    cookie: u64,
    timeout_s: u32,
}

/// `std::list`.
#[repr(C)]
struct CxxList {
    next: *mut CxxWatcher,
    previous: *mut CxxWatcher,
    size: usize,
}

/// Most clones or watchers that are taken from an answer.
const ITEMS_MAX: usize = 1 << 20;

struct ListSnaps {
    functions: &'static Functions,
    delete: unsafe extern "C" fn(*mut c_void),
    op: RawOp,
    result: CxxSnapSet,
    returned: c_int,
}

// SAFETY: owned by the state, used by one thread at a time.
unsafe impl Send for ListSnaps {}

impl Drop for ListSnaps {
    fn drop(&mut self) {
        // SAFETY: the operation has ended; vectors that the library filled are given back as C++ does.
        unsafe {
            if let Ok(clones) = self.result.clones.items::<CxxClone>() {
                for clone in clones {
                    (self.delete)(clone.snaps.begin);
                    (self.delete)(clone.overlap.begin);
                }
                (self.delete)(self.result.clones.begin);
            }
            (self.functions.rados_release_read_op)(self.op);
        }
    }
}

struct ListWatchers {
    functions: &'static Functions,
    delete: unsafe extern "C" fn(*mut c_void),
    op: RawOp,
    result: CxxList,
    returned: c_int,
}

// SAFETY: owned by the state, used by one thread at a time.
unsafe impl Send for ListWatchers {}

impl ListWatchers {
    fn head(&mut self) -> *mut CxxWatcher {
        (&raw mut self.result).cast()
    }
}

impl Drop for ListWatchers {
    fn drop(&mut self) {
        let head = self.head();
        // SAFETY: the operation has ended; each node is read before it is given back as C++ does.
        unsafe {
            let mut node = self.result.next;
            while !node.is_null() && node != head {
                let next = (*node).next;
                (self.delete)(node.cast());
                node = next;
            }
            (self.functions.rados_release_read_op)(self.op);
        }
    }
}

/// A watcher as the OSD names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawWatcher {
    pub(crate) gid: u64,
    pub(crate) cookie: u64,
    pub(crate) addr: String,
}

impl Ioctx {
    /// The clones of an object; the context must read at [`super::ReadAt::SnapDir`]. `EOPNOTSUPP`: this library cannot.
    pub(crate) async fn list_snaps(self: &Arc<Self>, object: &str) -> Rc<SnapSet> {
        let functions = self.functions();
        let (Some(add), Some(delete)) = (functions.list_snaps_step, functions.delete_cxx) else {
            return Err(Errno::EOPNOTSUPP);
        };
        let object = text(object)?;
        let mut state = Box::new(ListSnaps {
            functions,
            delete,
            // SAFETY: no arguments.
            op: unsafe { (functions.rados_create_read_op)() },
            result: CxxSnapSet {
                clones: CxxVector::EMPTY,
                seq: 0,
            },
            returned: 0,
        });
        let operation = state.op;
        // SAFETY: an operation and two places in a box that stays until the operation has ended.
        with_cxx(operation, |operation| unsafe {
            add(operation, (&raw mut state.result).cast(), &mut state.returned);
        });
        let ioctx = Raw(self.raw);
        let done = completion::run(functions, Some(self), state, move |state, completion| {
            let ioctx = ioctx;
            // SAFETY: the state is valid until the completion is called; a string, copied.
            unsafe {
                (functions.rados_aio_read_op_operate)((*state).op, ioctx.0, completion, object.as_ptr(), 0)
            }
        });
        let state = done.await?.ok()?;
        if state.returned < 0 {
            return Err(errno_of(state.returned));
        }
        // SAFETY: the library has filled it.
        unsafe { snap_set(&state.result) }
    }

    /// The watchers of an object, in the order the OSD gives. `EOPNOTSUPP`: this library cannot.
    pub(crate) async fn list_watchers(self: &Arc<Self>, object: &str) -> Rc<Vec<RawWatcher>> {
        let functions = self.functions();
        let (Some(add), Some(delete)) = (functions.list_watchers_step, functions.delete_cxx) else {
            return Err(Errno::EOPNOTSUPP);
        };
        let object = text(object)?;
        let mut state = Box::new(ListWatchers {
            functions,
            delete,
            // SAFETY: no arguments.
            op: unsafe { (functions.rados_create_read_op)() },
            result: CxxList {
                next: ptr::null_mut(),
                previous: ptr::null_mut(),
                size: 0,
            },
            returned: 0,
        });
        with_cxx(state.op, |operation| {
            // An empty list is a ring of its head alone.
            let head = state.head();
            (state.result.next, state.result.previous) = (head, head);
            // SAFETY: an operation and two places in a box that stays until the operation has ended.
            unsafe { add(operation, head.cast(), &mut state.returned) };
        });
        let ioctx = Raw(self.raw);
        let done = completion::run(functions, Some(self), state, move |state, completion| {
            let ioctx = ioctx;
            // SAFETY: the state is valid until the completion is called; a string, copied.
            unsafe {
                (functions.rados_aio_read_op_operate)((*state).op, ioctx.0, completion, object.as_ptr(), 0)
            }
        });
        let mut state = done.await?.ok()?;
        if state.returned < 0 {
            return Err(errno_of(state.returned));
        }
        // SAFETY: the library has filled it.
        unsafe { watchers(&mut state) }
    }

    /// Rolls the head back to a snapshot under the context's own. `EOPNOTSUPP`: this library cannot without blocking.
    pub(crate) async fn rollback(self: &Arc<Self>, object: &str, snap: SnapId) -> Rc<()> {
        let Some(add) = self.functions().rollback_step else {
            return Err(Errno::EOPNOTSUPP);
        };
        let state = WriteState::new(self.functions(), 0);
        // SAFETY: an operation of the C interface.
        with_cxx(state.op, |operation| unsafe { add(operation, snap.0) });
        match self.operate(object, state).await {
            Ok(_) => Ok(()),
            Err((returned, _)) => Err(errno_of(returned)),
        }
    }
}

/// Lends an operation of the C interface as one of C++.
pub(super) fn with_cxx(operation: RawOp, add: impl FnOnce(*mut c_void)) {
    let mut lent = CxxOperation {
        _table: ptr::null(),
        _operation: operation,
    };
    add((&raw mut lent).cast());
}

/// # Safety
/// A list that the library has filled.
unsafe fn watchers(state: &mut ListWatchers) -> Rc<Vec<RawWatcher>> {
    let head = state.head();
    let mut watchers = Vec::new();
    let mut node = state.result.next;
    while !node.is_null() && node != head {
        if watchers.len() >= ITEMS_MAX {
            return Err(Errno::E2BIG);
        }
        // SAFETY: a node of the list.
        let watcher = unsafe { &*node };
        let addr = CStr::from_bytes_until_nul(&watcher.addr).map_err(|_| Errno::EBADMSG)?;
        watchers.push(RawWatcher {
            gid: u64::try_from(watcher.gid).map_err(|_| Errno::EBADMSG)?,
            cookie: watcher.cookie,
            addr: addr.to_string_lossy().into_owned(),
        });
        node = watcher.next;
    }
    Ok(watchers)
}

/// # Safety
/// A set that the library has filled.
unsafe fn snap_set(raw: &CxxSnapSet) -> Rc<SnapSet> {
    // SAFETY: as the function's.
    let clones = unsafe { raw.clones.items::<CxxClone>()? };
    if clones.len() > ITEMS_MAX {
        return Err(Errno::E2BIG);
    }
    let mut set = SnapSet {
        seq: raw.seq,
        clones: Vec::with_capacity(clones.len()),
    };
    for clone in clones {
        // SAFETY: as the function's.
        let (snaps, overlap) = unsafe { (clone.snaps.items::<u64>()?, clone.overlap.items::<[u64; 2]>()?) };
        let id = SnapId(clone.id);
        set.clones.push(CloneInfo {
            id,
            snaps: match id.is_head() {
                true => Vec::new(),
                false => snaps.iter().copied().map(SnapId).collect(),
            },
            overlap: match id.is_head() {
                true => None,
                false => {
                    let extents = overlap.iter();
                    let extents = extents.map(|[offset, length_bytes]| Extent::new(*offset, *length_bytes));
                    Some(extents.collect())
                }
            },
            size_bytes: clone.size,
        });
    }
    Ok(set)
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<CxxClone>() == 64 && size_of::<CxxSnapSet>() == 32);
    assert!(std::mem::offset_of!(CxxWatcher, gid) == 272 && size_of::<c_char>() == 1);
};
