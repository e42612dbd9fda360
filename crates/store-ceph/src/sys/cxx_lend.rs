//! Bytes of ours that librados sends from where they are: its C interface copies what it is to write once more.
//!
//! A piece of a C++ buffer list can rest on memory of somebody else's, with a *deleter* that is told when the last list, and
//! with it the last message that may still be sent again, has let go of it. Ours keeps a share of the bytes until then, so
//! nobody need know how long that is, and a caller that gave up can't take them away.
//!
//! What is relied on is in the names of the functions (`v15_2_0`) and in the ABI of C++ for x86-64, where an object that is
//! returned, or passed by value and has a destructor, is passed by its address. Before the first use a text is lent and
//! given back ([`works`]). Elsewhere, and with a library that fails that or lacks the names, bytes are copied.
//!
//! The library keeps the checksum of what it has sent beside it. Bytes that are written again and again, as those of a bench
//! or of a pattern, are therefore lent again as what they were lent as before ([`Again`]).

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

use super::cxx::with_cxx;
use super::cxx_buffer::{BufferList, LENT_FROM_BYTES};
use super::library::{Functions, RawOp};

/// `ceph::buffer::ptr`.
#[repr(C)]
struct CxxPointer {
    raw: *mut c_void,
    offset: u32,
    length: u32,
}

/// `deleter::impl`, and what ours keeps.
#[repr(C)]
struct Keeper {
    methods: *const c_void,
    shares: AtomicU32,
    /// The next deleter of a chain: none.
    next: *mut c_void,
    _bytes: Bytes,
}

/// Virtual table of [`Keeper`]: what C++ finds before and behind the address that the object has of it.
#[repr(C)]
struct Table {
    offset_to_top: isize,
    type_info: *const c_void,
    destroy: unsafe extern "C" fn(*mut Keeper),
    delete: unsafe extern "C" fn(*mut Keeper),
}

// SAFETY: constants.
unsafe impl Sync for Table {}

static TABLE: Table = Table {
    offset_to_top: 0,
    type_info: ptr::null(),
    destroy,
    delete,
};

/// The destructor alone. Keepers are only ever deleted.
unsafe extern "C" fn destroy(_keeper: *mut Keeper) {}

/// The destructor, and the memory back.
unsafe extern "C" fn delete(keeper: *mut Keeper) {
    // SAFETY: made by `Box::into_raw` in `lend`, and its last share has gone.
    drop(unsafe { Box::from_raw(keeper) });
}

/// The functions that are needed.
#[derive(Clone, Copy)]
struct Methods {
    /// Where the returned owner goes, length, start, deleter.
    claim: unsafe extern "C" fn(*mut *mut c_void, u32, *mut u8, *mut *mut Keeper),
    append: unsafe extern "C" fn(*mut c_void, *const CxxPointer),
    write: unsafe extern "C" fn(*mut c_void, u64, *const c_void),
    write_full: unsafe extern "C" fn(*mut c_void, *const c_void),
}

impl Methods {
    fn of(functions: &Functions) -> Option<Self> {
        if !cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
            return None;
        }
        let (claim, append) = (functions.claim_buffer?, functions.list_append_pointer?);
        // SAFETY: the same functions; their arguments are named here, and untyped in the table of symbols.
        unsafe {
            Some(Self {
                claim: std::mem::transmute::<
                    unsafe extern "C" fn(*mut c_void, u32, *mut u8, *mut c_void),
                    unsafe extern "C" fn(*mut *mut c_void, u32, *mut u8, *mut *mut Keeper),
                >(claim),
                append: std::mem::transmute::<
                    unsafe extern "C" fn(*mut c_void, *const c_void),
                    unsafe extern "C" fn(*mut c_void, *const CxxPointer),
                >(append),
                write: functions.write_list_step?,
                write_full: functions.write_full_list_step?,
            })
        }
    }
}

/// A buffer list that rests on bytes of ours.
pub(super) struct LentBytes {
    methods: Methods,
    list: BufferList,
}

impl LentBytes {
    /// `None`: they are too short to be worth it, or this library is not known well enough.
    pub(super) fn new(functions: &Functions, bytes: &Bytes) -> Option<Self> {
        static WORKS: OnceLock<bool> = OnceLock::new();
        if bytes.len() < LENT_FROM_BYTES {
            return None;
        }
        let methods = Methods::of(functions)?;
        if !*WORKS.get_or_init(|| works(functions, methods)) {
            return None;
        }
        AGAIN
            .lock()
            .lend(bytes, || lend(functions, methods, bytes.clone()))
    }

    fn share(&self) -> Self {
        Self {
            methods: self.methods,
            list: self.list.share(),
        }
    }

    /// Adds a write of them at this offset to an operation of the C interface, which keeps shares of its own.
    pub(super) fn write_to(&mut self, op: RawOp, offset: u64) {
        let (write, list) = (self.methods.write, self.list.as_raw());
        // SAFETY: an operation and a list, of which the step keeps a copy.
        with_cxx(op, |operation| unsafe { write(operation, offset, list) });
    }

    /// The same, of all that the object is to be.
    pub(super) fn write_full_to(&mut self, op: RawOp) {
        let (write_full, list) = (self.methods.write_full, self.list.as_raw());
        // SAFETY: as above.
        with_cxx(op, |operation| unsafe { write_full(operation, list) });
    }
}

static AGAIN: Mutex<Again> = Mutex::new(Again {
    last: (0, 0),
    kept: None,
});

/// What was lent last. Only bytes that come a second time are kept, one run of them, until others do.
struct Again {
    /// Where the last bytes were, and how many.
    last: (usize, usize),
    /// Bytes that came again, and what they are lent as. As they are kept, others cannot be where they are.
    kept: Option<(Bytes, LentBytes)>,
}

impl Again {
    fn lend(&mut self, bytes: &Bytes, anew: impl FnOnce() -> Option<LentBytes>) -> Option<LentBytes> {
        let place = |bytes: &Bytes| (bytes.as_ptr().addr(), bytes.len());
        if let Some((kept, lent)) = &self.kept
            && place(kept) == place(bytes)
        {
            return Some(lent.share());
        }
        let lent = anew()?;
        let comes_again = std::mem::replace(&mut self.last, place(bytes)) == place(bytes);
        self.kept = comes_again.then(|| (bytes.clone(), lent.share()));
        Some(lent)
    }
}

fn lend(functions: &Functions, methods: Methods, bytes: Bytes) -> Option<LentBytes> {
    let length = u32::try_from(bytes.len()).ok()?;
    let mut list = BufferList::new(functions)?;
    // Nobody writes to what is only sent.
    let start = bytes.as_ptr().cast_mut();
    let mut deleter = Box::into_raw(Box::new(Keeper {
        methods: (&raw const TABLE.destroy).cast(),
        shares: AtomicU32::new(1),
        next: ptr::null_mut(),
        _bytes: bytes,
    }));
    let mut owner = ptr::null_mut();
    // SAFETY: memory that stays until the deleter is told; the deleter is moved from and left empty. The list counts the
    // one share of the owner; the pointer itself is not counted, and not used again.
    unsafe {
        (methods.claim)(&mut owner, length, start, &mut deleter);
        let pointer = CxxPointer {
            raw: owner,
            offset: 0,
            length,
        };
        (methods.append)(list.as_raw(), &pointer);
    }
    Some(LentBytes { methods, list })
}

/// Whether bytes that are lent are those of the list, and are given back when the list goes, and not before.
fn works(functions: &Functions, methods: Methods) -> bool {
    struct Text(&'static [u8], Arc<AtomicBool>);
    impl AsRef<[u8]> for Text {
        fn as_ref(&self) -> &[u8] {
            self.0
        }
    }
    impl Drop for Text {
        fn drop(&mut self) {
            self.1.store(true, Ordering::SeqCst);
        }
    }
    let (text, is_back) = (b"what is lent", Arc::new(AtomicBool::new(false)));
    let bytes = Bytes::from_owner(Text(text, is_back.clone()));
    let Some(mut lent) = lend(functions, methods, bytes) else {
        return false;
    };
    let is_shown = lent.list.bytes() == text;
    let was_kept = !is_back.load(Ordering::SeqCst);
    drop(lent);
    is_shown && was_kept && is_back.load(Ordering::SeqCst)
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<CxxPointer>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_lent_to_the_library_that_is_installed_and_come_back() {
        let Ok(library) = super::super::library::library() else {
            return; // Nothing to look at.
        };
        let Some(methods) = Methods::of(&library.functions) else {
            return; // Another machine's ABI.
        };
        assert!(works(&library.functions, methods));
        let bytes = Bytes::from(vec![7; LENT_FROM_BYTES]);
        let lent = LentBytes::new(&library.functions, &bytes).expect("it works");
        assert!(!bytes.is_unique());
        drop(lent);
        assert!(bytes.is_unique());
        assert!(LentBytes::new(&library.functions, &bytes.slice(1..)).is_none());
        // What comes again is kept, as what it was lent as, until something else does.
        let mut again = Again {
            last: (0, 0),
            kept: None,
        };
        let mut lends = 0;
        let mut lend = |again: &mut Again, bytes: &Bytes| {
            let lent = again.lend(bytes, || {
                lends += 1;
                super::lend(&library.functions, methods, bytes.clone())
            });
            assert_eq!(lent.expect("it works").list.bytes(), bytes);
            lends
        };
        let other = Bytes::from(vec![8; LENT_FROM_BYTES]);
        assert_eq!(
            [&bytes, &bytes, &bytes, &bytes].map(|of| lend(&mut again, of)),
            [1, 2, 2, 2]
        );
        assert!(!bytes.is_unique());
        assert_eq!([&other, &bytes, &other].map(|of| lend(&mut again, of)), [3, 4, 5]);
        assert!(bytes.is_unique() && other.is_unique());
    }
}
