//! Listing the objects of a pool's namespace.

#![allow(unsafe_code)]

use std::ptr;
use std::slice;

use ferry_store::Errno;

use super::ioctx::Ioctx;
use super::{Rc, check};

impl Ioctx {
    /// Hands every object name of the context's namespace to `visit`, in the order of the cluster's hash. Names that are
    /// not UTF-8 are left out: none of ours is. Blocks.
    pub(crate) fn list(&self, visit: &mut dyn FnMut(&str)) -> Rc<()> {
        let functions = self.functions();
        let mut list = ptr::null_mut();
        // SAFETY: a place for the handle.
        check(unsafe { (functions.rados_nobjects_list_open)(self.raw, &mut list) })?;
        let listed = loop {
            let (mut name, mut key, mut namespace) = (ptr::null(), ptr::null(), ptr::null());
            let (mut name_length, mut key_length, mut namespace_length) = (0, 0, 0);
            // SAFETY: an open list and six places; what they point to is valid until the next call.
            let got = unsafe {
                (functions.rados_nobjects_list_next2)(
                    list,
                    &mut name,
                    &mut key,
                    &mut namespace,
                    &mut name_length,
                    &mut key_length,
                    &mut namespace_length,
                )
            };
            match check(got) {
                Err(Errno::ENOENT) => break Ok(()),
                Err(errno) => break Err(errno),
                Ok(_) if name.is_null() => continue,
                Ok(_) => {
                    // SAFETY: the library says that so many bytes are there.
                    let name = unsafe { slice::from_raw_parts(name.cast(), name_length) };
                    if let Ok(name) = std::str::from_utf8(name) {
                        visit(name);
                    }
                }
            }
        };
        // SAFETY: open until here.
        unsafe { (functions.rados_nobjects_list_close)(list) };
        listed
    }
}
