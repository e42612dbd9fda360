//! Atomic reads: a list of steps in, what each gave out.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uchar};
use std::ptr;
use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use ferry_store::{Errno, ReadStep};

use super::budget::Share;
use super::completion;
use super::cxx_buffer::{self, BufferList};
use super::ioctx::{Ioctx, Raw};
use super::library::{Functions, RawIter, RawOp};
use super::{errno_of, text};

/// What a step gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StepAnswer {
    /// Nothing but that it holds.
    Done,
    /// Size in bytes and seconds since 1970.
    Stat(u64, i64),
    /// Bytes.
    Data(Bytes),
    /// Pairs, and whether the OSD has more.
    Omap(BTreeMap<Bytes, Bytes>, bool),
    /// All xattrs.
    Xattrs(BTreeMap<String, Bytes>),
}

/// What a read gave.
#[derive(Debug)]
pub(crate) struct ReadAnswer {
    /// Version of the object.
    pub(crate) version: u64,
    /// One answer for each step.
    pub(crate) steps: Vec<StepAnswer>,
}

/// Whether the bytes of large reads may stay the library's ([`cxx_buffer`]), and those of large writes ours
/// ([`cxx_lend`](super::cxx_lend)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lending {
    /// All are copied.
    No,
    /// Large ones stay, where the library is known well enough.
    Large,
}

/// An errno and the step to blame, if that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpError {
    pub(crate) errno: Errno,
    pub(crate) step: Option<usize>,
}

impl From<Errno> for OpError {
    fn from(errno: Errno) -> Self {
        Self { errno, step: None }
    }
}

/// Most bytes of one read step: no object of a cluster is larger (`osd_max_object_size`).
const READ_BYTES_MAX: u64 = 128 << 20;

/// Where the library puts what a step gives. Its address must not change while the operation runs.
enum Slot {
    Nothing,
    Stat {
        size: u64,
        mtime: i64,
    },
    /// Room that the library fills, `got` bytes of it; nothing is in it before.
    Data {
        buffer: Vec<u8>,
        length: usize,
        got: usize,
    },
    /// Data that stay the library's.
    Lent(Option<BufferList>),
    Output {
        bytes: *mut c_char,
        length: usize,
    },
    Omap {
        pairs: RawIter,
        more: c_uchar,
    },
    Xattrs {
        pairs: RawIter,
    },
}

struct State {
    functions: &'static Functions,
    op: RawOp,
    /// What each step returned, and where it puts its answer.
    slots: Box<[(c_int, Slot)]>,
    /// Of what may be under way.
    _share: Option<Share>,
}

// SAFETY: the pointers are owned by the state, and are used by one thread at a time.
unsafe impl Send for State {}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: the operation has ended or was never submitted; each thing is given back once.
        unsafe {
            for (_, slot) in &mut self.slots {
                match slot {
                    Slot::Output { bytes, .. } if !bytes.is_null() => {
                        (self.functions.rados_buffer_free)(*bytes);
                    }
                    Slot::Omap { pairs, .. } if !pairs.is_null() => {
                        (self.functions.rados_omap_get_end)(*pairs)
                    }
                    Slot::Xattrs { pairs } if !pairs.is_null() => {
                        (self.functions.rados_getxattrs_end)(*pairs);
                    }
                    _ => {}
                }
            }
            (self.functions.rados_release_read_op)(self.op);
        }
    }
}

impl Ioctx {
    /// Runs a read.
    pub(crate) async fn read(
        self: &Arc<Self>,
        object: &str,
        steps: &[ReadStep],
        lending: Lending,
    ) -> Result<ReadAnswer, OpError> {
        let object = text(object)?;
        let mut state = State::new(self.functions(), steps, lending)?;
        let (functions, ioctx) = (self.functions(), Raw(self.raw));
        state._share = Some(self.cluster.budget.take(asked_bytes(steps)).await);
        let done = completion::run(functions, Some(self), state, move |state, completion| {
            let ioctx = ioctx;
            // SAFETY: the state is valid until the completion is called; its operation is built; a string, copied.
            unsafe {
                (functions.rados_aio_read_op_operate)((*state).op, ioctx.0, completion, object.as_ptr(), 0)
            }
        });
        let done = done.await?;
        if done.returned < 0 {
            let step = blame(steps, &done.state.slots, done.returned);
            return Err(OpError {
                errno: errno_of(done.returned),
                step,
            });
        }
        let version = done.version;
        let mut state = done.state;
        let mut answers = Vec::with_capacity(steps.len());
        for index in 0..steps.len() {
            answers.push(state.answer(index).map_err(|errno| OpError {
                errno,
                step: Some(index),
            })?);
        }
        Ok(ReadAnswer {
            version,
            steps: answers,
        })
    }
}

/// How much data is asked for.
fn asked_bytes(steps: &[ReadStep]) -> u64 {
    let of = |step: &ReadStep| match step {
        ReadStep::Read { length_bytes, .. } | ReadStep::SparseRead { length_bytes, .. } => *length_bytes,
        _ => 0,
    };
    steps.iter().map(of).fold(0, u64::saturating_add)
}

/// The first step that returned what the whole did, or that returns nothing and can fail so.
fn blame(steps: &[ReadStep], slots: &[(c_int, Slot)], returned: c_int) -> Option<usize> {
    let errno = errno_of(returned);
    let silent = |step: &ReadStep| match step {
        ReadStep::AssertExists => errno == Errno::ENOENT,
        ReadStep::AssertVersion(_) => matches!(errno, Errno::ERANGE | Errno::EOVERFLOW),
        _ => false,
    };
    (0..steps.len()).find(|&index| slots[index].0 == returned || silent(&steps[index]))
}

impl State {
    fn new(functions: &'static Functions, steps: &[ReadStep], lending: Lending) -> Result<Box<Self>, Errno> {
        // SAFETY: no arguments.
        let op = unsafe { (functions.rados_create_read_op)() };
        let slots = steps
            .iter()
            .map(|step| (0, Slot::of(step, functions, lending)))
            .collect();
        let mut state = Box::new(Self {
            functions,
            op,
            slots,
            _share: None,
        });
        for (index, step) in steps.iter().enumerate() {
            state.add(index, step)?;
        }
        Ok(state)
    }

    /// Adds one step. Inputs are copied by the library; outputs go to the slot, which stays where it is.
    fn add(&mut self, index: usize, step: &ReadStep) -> Result<(), Errno> {
        let (functions, op) = (self.functions, self.op);
        let (returned, slot) = &mut self.slots[index];
        // SAFETY: all strings and buffers are valid for the call with the lengths that are named; the places for results
        // live in a boxed slice that is neither moved nor dropped before the operation has ended.
        unsafe {
            match (step, slot) {
                (ReadStep::AssertExists, _) => (functions.rados_read_op_assert_exists)(op),
                (ReadStep::AssertVersion(version), _) => {
                    (functions.rados_read_op_assert_version)(op, *version);
                }
                (ReadStep::CompareExtent { offset, expected }, _) => {
                    (functions.rados_read_op_cmpext)(
                        op,
                        expected.as_ptr().cast(),
                        expected.len(),
                        *offset,
                        returned,
                    );
                }
                (_, Slot::Stat { size, mtime }) => {
                    (functions.rados_read_op_stat)(op, size, mtime, returned);
                }
                (
                    ReadStep::Read { offset, .. } | ReadStep::SparseRead { offset, .. },
                    Slot::Data { buffer, length, got },
                ) => {
                    (functions.rados_read_op_read)(
                        op,
                        *offset,
                        *length,
                        buffer.as_mut_ptr().cast(),
                        got,
                        returned,
                    );
                }
                (
                    ReadStep::Read { offset, length_bytes } | ReadStep::SparseRead { offset, length_bytes },
                    Slot::Lent(Some(list)),
                ) => list.read_into(op, *offset, *length_bytes, returned),
                (
                    ReadStep::OmapGetVals {
                        start_after,
                        prefix,
                        max,
                    },
                    Slot::Omap { pairs, more },
                ) => {
                    let start_after = std::ffi::CString::new(&start_after[..]).map_err(|_| Errno::EINVAL)?;
                    let prefix = std::ffi::CString::new(&prefix[..]).map_err(|_| Errno::EINVAL)?;
                    (functions.rados_read_op_omap_get_vals2)(
                        op,
                        start_after.as_ptr(),
                        prefix.as_ptr(),
                        *max as u64,
                        pairs,
                        more,
                        returned,
                    );
                }
                (ReadStep::OmapGetValsByKeys(keys), Slot::Omap { pairs, .. }) => {
                    let pointers: Vec<*const c_char> = keys.iter().map(|key| key.as_ptr().cast()).collect();
                    let lengths: Vec<usize> = keys.iter().map(Bytes::len).collect();
                    (functions.rados_read_op_omap_get_vals_by_keys2)(
                        op,
                        pointers.as_ptr(),
                        keys.len(),
                        lengths.as_ptr(),
                        pairs,
                        returned,
                    );
                }
                (_, Slot::Xattrs { pairs }) => (functions.rados_read_op_getxattrs)(op, pairs, returned),
                (ReadStep::Call { class, method, input }, Slot::Output { bytes, length }) => {
                    let (class, method) = (text(class)?, text(method)?);
                    (functions.rados_read_op_exec)(
                        op,
                        class.as_ptr(),
                        method.as_ptr(),
                        input.as_ptr().cast(),
                        input.len(),
                        bytes,
                        length,
                        returned,
                    );
                }
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(())
    }

    /// Takes what a step gave, after the operation has succeeded.
    fn answer(&mut self, index: usize) -> Result<StepAnswer, Errno> {
        let functions = self.functions;
        let (returned, slot) = &mut self.slots[index];
        if *returned < 0 {
            return Err(errno_of(*returned));
        }
        Ok(match slot {
            Slot::Nothing => StepAnswer::Done,
            Slot::Stat { size, mtime } => StepAnswer::Stat(*size, *mtime),
            Slot::Data { buffer, length, got } => {
                let mut data = std::mem::take(buffer);
                // SAFETY: the library says that it has filled so much of it, and there is room for `length`.
                unsafe { data.set_len((*got).min(*length)) };
                StepAnswer::Data(data.into())
            }
            Slot::Lent(list) => StepAnswer::Data(list.take().map_or_else(Bytes::new, BufferList::into_bytes)),
            Slot::Output { bytes, length } if bytes.is_null() || *length == 0 => {
                StepAnswer::Data(Bytes::new())
            }
            Slot::Output { bytes, length } => {
                // SAFETY: the library says that so many bytes are there.
                StepAnswer::Data(Bytes::copy_from_slice(unsafe {
                    slice::from_raw_parts(bytes.cast(), *length)
                }))
            }
            // SAFETY: an iterator of an operation that succeeded.
            Slot::Omap { pairs, more } => unsafe { StepAnswer::Omap(omap(functions, *pairs)?, *more != 0) },
            // SAFETY: as above.
            Slot::Xattrs { pairs } => unsafe { StepAnswer::Xattrs(xattrs(functions, *pairs)?) },
        })
    }
}

impl Slot {
    fn of(step: &ReadStep, functions: &Functions, lending: Lending) -> Self {
        match step {
            ReadStep::AssertExists | ReadStep::AssertVersion(_) | ReadStep::CompareExtent { .. } => {
                Slot::Nothing
            }
            ReadStep::Stat => Slot::Stat { size: 0, mtime: 0 },
            // A read of no bytes asks the OSD for all there are.
            ReadStep::Read { length_bytes: 0, .. } | ReadStep::SparseRead { length_bytes: 0, .. } => {
                Slot::Stat { size: 0, mtime: 0 }
            }
            ReadStep::Read { length_bytes, .. } | ReadStep::SparseRead { length_bytes, .. } => {
                let length = usize::try_from((*length_bytes).min(READ_BYTES_MAX)).unwrap_or(0);
                if lending == Lending::Large
                    && length >= cxx_buffer::LENT_FROM_BYTES
                    && *length_bytes <= READ_BYTES_MAX
                    && let Some(list) = BufferList::new(functions)
                {
                    return Slot::Lent(Some(list));
                }
                Slot::Data {
                    buffer: Vec::with_capacity(length),
                    length,
                    got: 0,
                }
            }
            ReadStep::OmapGetVals { .. } | ReadStep::OmapGetValsByKeys(_) => Slot::Omap {
                pairs: ptr::null_mut(),
                more: 0,
            },
            ReadStep::GetXattr(_) | ReadStep::GetXattrs => Slot::Xattrs {
                pairs: ptr::null_mut(),
            },
            ReadStep::Call { .. } => Slot::Output {
                bytes: ptr::null_mut(),
                length: 0,
            },
        }
    }
}

/// # Safety
/// The iterator is one of an operation that succeeded.
unsafe fn omap(functions: &Functions, pairs: RawIter) -> Result<BTreeMap<Bytes, Bytes>, Errno> {
    let mut values = BTreeMap::new();
    loop {
        let (mut key, mut value) = (ptr::null_mut(), ptr::null_mut());
        let (mut key_length, mut value_length) = (0, 0);
        // SAFETY: four places; what they point to is valid until the next call.
        unsafe {
            let got = (functions.rados_omap_get_next2)(
                pairs,
                &mut key,
                &mut value,
                &mut key_length,
                &mut value_length,
            );
            if got < 0 {
                return Err(errno_of(got));
            }
            if key.is_null() {
                return Ok(values);
            }
            values.insert(copied(key, key_length), copied(value, value_length));
        }
    }
}

/// # Safety
/// The iterator is one of an operation that succeeded.
unsafe fn xattrs(functions: &Functions, pairs: RawIter) -> Result<BTreeMap<String, Bytes>, Errno> {
    let mut values = BTreeMap::new();
    loop {
        let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
        // SAFETY: three places; what they point to is valid until the next call.
        unsafe {
            let got = (functions.rados_getxattrs_next)(pairs, &mut name, &mut value, &mut length);
            if got < 0 {
                return Err(errno_of(got));
            }
            if name.is_null() {
                return Ok(values);
            }
            let name = std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned();
            values.insert(name, copied(value, length));
        }
    }
}

/// # Safety
/// So many bytes are there, if any.
unsafe fn copied(bytes: *const c_char, length: usize) -> Bytes {
    match bytes.is_null() || length == 0 {
        true => Bytes::new(),
        // SAFETY: as the function's.
        false => Bytes::copy_from_slice(unsafe { slice::from_raw_parts(bytes.cast(), length) }),
    }
}
