//! Bytes that librados has read, where it has them: its C interface copies what it read once more, into memory of ours, which for
//! whole objects is a seventh of all that reading them costs.
//!
//! A buffer list of C++ is lent to the C++ step that reads into it, kept for as long as somebody holds the bytes, and emptied
//! by its own methods. Its layout is part of the name of these methods (`v15_2_0`); before the first use one list is filled
//! and emptied, and everything that is relied on looked at ([`works`]). A library that fails that, or lacks the names,
//! is asked by the C interface.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::slice;
use std::sync::OnceLock;

use bytes::Bytes;

use super::cxx::with_cxx;
use super::library::{Functions, RawOp};

/// Shorter reads are copied: a list costs more than that.
pub(super) const LENT_FROM_BYTES: usize = 64 << 10;

/// `ceph::buffer::list`.
#[repr(C)]
struct Raw {
    /// First node; of an empty list, itself.
    next: *mut c_void,
    tail: *mut c_void,
    carriage: *mut c_void,
    length: u32,
    count: u32,
}

/// The methods that are needed.
#[derive(Clone, Copy)]
struct Methods {
    read: unsafe extern "C" fn(*mut c_void, u64, u64, *mut c_void, *mut c_int),
    c_str: unsafe extern "C" fn(*mut c_void) -> *mut u8,
    append: unsafe extern "C" fn(*mut c_void, *const u8, u32),
    substr_of: unsafe extern "C" fn(*mut c_void, *const c_void, u32, u32),
    /// Where the carriage of an empty list stands.
    no_carriage: *mut c_void,
}

impl Methods {
    fn of(functions: &Functions) -> Option<Self> {
        Some(Self {
            read: functions.read_into_list_step?,
            c_str: functions.list_c_str?,
            append: functions.list_append?,
            substr_of: functions.list_substr_of?,
            // The address of a variable, by the one way that the table of symbols has.
            no_carriage: functions.list_no_carriage? as *mut c_void,
        })
    }
}

/// A buffer list.
pub(super) struct BufferList {
    methods: Methods,
    /// The library points into it.
    raw: Box<Raw>,
}

// SAFETY: owned, used by one thread at a time; what it points to is counted atomically.
unsafe impl Send for BufferList {}

impl BufferList {
    /// An empty one; `None`: this library's are not known well enough.
    pub(super) fn new(functions: &Functions) -> Option<Self> {
        static WORKS: OnceLock<bool> = OnceLock::new();
        let methods = Methods::of(functions)?;
        WORKS.get_or_init(|| works(methods)).then(|| Self {
            methods,
            raw: empty(methods, Box::new(Raw::ZERO)),
        })
    }

    /// Adds a step to an operation of the C interface that reads into the list. The list must stay until the operation has
    /// ended.
    pub(super) fn read_into(&mut self, op: RawOp, offset: u64, length_bytes: u64, returned: *mut c_int) {
        let (read, raw) = (self.methods.read, &raw mut *self.raw);
        // SAFETY: an operation, a list and a place for the result, all of which stay, as the caller says.
        with_cxx(op, |operation| unsafe {
            read(operation, offset, length_bytes, raw.cast(), returned);
        });
    }

    /// Another list of the same bytes, which are not copied.
    pub(super) fn share(&self) -> Self {
        let mut raw = empty(self.methods, Box::new(Raw::ZERO));
        let (into, of) = ((&raw mut *raw).cast(), (&raw const *self.raw).cast());
        // SAFETY: two lists; the new one takes shares of what the other rests on, all of it.
        unsafe { (self.methods.substr_of)(into, of, 0, self.raw.length) };
        Self {
            methods: self.methods,
            raw,
        }
    }

    /// The library's list.
    pub(super) fn as_raw(&mut self) -> *mut c_void {
        (&raw mut *self.raw).cast()
    }

    /// Its bytes.
    pub(super) fn bytes(&mut self) -> &[u8] {
        let length = self.raw.length as usize;
        if length == 0 {
            return &[];
        }
        // SAFETY: a list that the library has filled; this makes one piece of it if it is not.
        let start = unsafe { (self.methods.c_str)(self.as_raw()) };
        if start.is_null() {
            return &[];
        }
        // SAFETY: as the library said; nobody changes the list while it is borrowed.
        unsafe { slice::from_raw_parts(start, length) }
    }

    /// Its bytes, for as long as they are kept.
    pub(super) fn into_bytes(mut self) -> Bytes {
        let bytes = self.bytes();
        if bytes.is_empty() {
            return Bytes::new();
        }
        Bytes::from_owner(Lent {
            start: bytes.as_ptr(),
            length: bytes.len(),
            _list: self,
        })
    }
}

impl Drop for BufferList {
    fn drop(&mut self) {
        let nothing = empty(self.methods, Box::new(Raw::ZERO));
        // SAFETY: two lists; the operation that had this one has ended. It becomes nothing, and lets go of what it has.
        unsafe {
            (self.methods.substr_of)((&raw mut *self.raw).cast(), (&raw const *nothing).cast(), 0, 0);
        }
    }
}

/// The bytes of a list.
struct Lent {
    start: *const u8,
    length: usize,
    _list: BufferList,
}

// SAFETY: the bytes are never written to any more, and stay until the list goes.
unsafe impl Send for Lent {}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as the library said, and the list is kept.
        unsafe { slice::from_raw_parts(self.start, self.length) }
    }
}

impl Raw {
    const ZERO: Self = Self {
        next: ptr::null_mut(),
        tail: ptr::null_mut(),
        carriage: ptr::null_mut(),
        length: 0,
        count: 0,
    };
}

fn empty(methods: Methods, mut raw: Box<Raw>) -> Box<Raw> {
    let root: *mut c_void = (&raw mut *raw).cast();
    (raw.next, raw.tail, raw.carriage) = (root, root, methods.no_carriage);
    raw
}

/// Whether the library's lists are what this module takes them for: fills one and empties it, with room around it that must
/// stay untouched.
fn works(methods: Methods) -> bool {
    const TOUCHED: u64 = 0x5afe_5afe_5afe_5afe;
    #[repr(C)]
    struct Guarded {
        list: Raw,
        behind: [u64; 16],
    }
    let text = b"what is in a buffer list";
    let mut filled = Box::new(Guarded {
        list: Raw::ZERO,
        behind: [TOUCHED; 16],
    });
    let nothing = empty(methods, Box::new(Raw::ZERO));
    let root: *mut c_void = (&raw mut filled.list).cast();
    (filled.list.next, filled.list.tail, filled.list.carriage) = (root, root, methods.no_carriage);
    // SAFETY: lists as this module knows them, with room behind that a larger one would take; the text is copied.
    unsafe {
        (methods.append)(root, text.as_ptr(), text.len() as u32);
        let is_filled =
            filled.list.length as usize == text.len() && filled.list.count == 1 && filled.list.next != root;
        let start = (methods.c_str)(root);
        let has_text = is_filled && !start.is_null() && slice::from_raw_parts(start, text.len()) == text;
        (methods.substr_of)(root, (&raw const *nothing).cast(), 0, 0);
        let is_empty = filled.list.length == 0
            && filled.list.count == 0
            && filled.list.next == root
            && filled.list.tail == root;
        has_text && is_empty && filled.behind == [TOUCHED; 16]
    }
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Raw>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_library_that_is_installed_are_known_and_give_their_bytes() {
        let Ok(library) = super::super::library::library() else {
            return; // Nothing to look at.
        };
        let methods = Methods::of(&library.functions).expect("librados 16 has them all");
        assert!(works(methods));
        let mut list = BufferList::new(&library.functions).expect("it works");
        // SAFETY: a list, and text that is copied.
        unsafe { (methods.append)((&raw mut *list.raw).cast(), b"abc".as_ptr(), 3) };
        let bytes = list.into_bytes();
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!(&part[..], b"bc");
    }
}
