//! Atomic writes: a list of steps, all or none.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::Arc;

use bytes::Bytes;
use ferry_store::{Errno, WriteStep};

use super::budget::Share;
use super::completion;
use super::cxx_lend::LentBytes;
use super::given_up::Operation;
use super::ioctx::{Ioctx, Raw};
use super::library::{Functions, RawOp};
use super::read::{Lending, OpError};
use super::{Rc, errno_of, text};

/// `LIBRADOS_OPERATION_FULL_TRY`: a full cluster answers, where the library would wait for room.
const FULL_TRY: c_int = 64;
/// `LIBRADOS_CMPXATTR_OP_EQ`.
const EQUAL: u8 = 1;

pub(super) struct WriteState {
    functions: &'static Functions,
    pub(super) op: RawOp,
    returned: Box<[c_int]>,
    /// How much data is written.
    bytes: u64,
    /// Of what may be under way.
    _share: Option<Share>,
    /// Says that it has ended.
    _operation: Option<Operation>,
}

// SAFETY: the operation is owned by the state and used by one thread at a time.
unsafe impl Send for WriteState {}

impl Drop for WriteState {
    fn drop(&mut self) {
        // SAFETY: the operation has ended or was never submitted.
        unsafe { (self.functions.rados_release_write_op)(self.op) }
    }
}

impl Ioctx {
    /// Runs a write; gives the object's version after it.
    pub(crate) async fn write(
        self: &Arc<Self>,
        object: &str,
        steps: &[WriteStep],
        lending: Lending,
    ) -> Result<u64, OpError> {
        let state = WriteState::with(self.functions(), steps, lending)?;
        self.operate(object, state)
            .await
            .map_err(|error| failed(steps, error))
    }

    /// Submits a built operation. The error is what the library returned, with the state if it was submitted.
    pub(super) async fn operate(
        self: &Arc<Self>,
        object: &str,
        mut state: Box<WriteState>,
    ) -> Result<u64, Failed> {
        let refused = |errno: Errno| (-errno.0, None);
        let object = text(object).map_err(refused)?;
        let (functions, ioctx) = (self.functions(), Raw(self.raw));
        state._share = Some(self.cluster.budget.take(state.bytes).await);
        let (_asker, operation) = self.cluster.given_up.begin();
        state._operation = Some(operation);
        let done = completion::run(functions, Some(self), state, move |state, completion| {
            let ioctx = ioctx;
            // SAFETY: the state is valid until the completion is called; its operation is built; a string, copied.
            unsafe {
                (functions.rados_aio_write_op_operate)(
                    (*state).op,
                    ioctx.0,
                    completion,
                    object.as_ptr(),
                    ptr::null_mut(),
                    FULL_TRY,
                )
            }
        });
        let done = done.await.map_err(refused)?;
        match done.returned {
            0.. => Ok(done.version),
            returned => Err((returned, Some(done.state))),
        }
    }
}

/// What an operation returned that failed, with its state if it was submitted.
pub(super) type Failed = (c_int, Option<Box<WriteState>>);

/// The error that it means.
pub(super) fn failed(steps: &[WriteStep], (returned, state): Failed) -> OpError {
    OpError {
        errno: errno_of(returned),
        step: state.and_then(|state| blame(steps, &state.returned, returned)),
    }
}

/// The step that failed. The library tells it of class calls and comparisons only; of the others, the first that can fail
/// so.
fn blame(steps: &[WriteStep], told: &[c_int], returned: c_int) -> Option<usize> {
    if let Some(index) = told.iter().position(|step| *step == returned) {
        return Some(index);
    }
    let errno = errno_of(returned);
    steps.iter().position(|step| match step {
        WriteStep::Create { exclusive } => *exclusive && errno == Errno::EEXIST,
        WriteStep::AssertVersion(_) => matches!(errno, Errno::ERANGE | Errno::EOVERFLOW),
        WriteStep::AssertExists | WriteStep::Remove | WriteStep::OmapRemove(_) => errno == Errno::ENOENT,
        WriteStep::RemoveXattr(_) => matches!(errno, Errno::ENODATA | Errno::ENOENT),
        WriteStep::CompareExtent { .. } => errno == Errno::EILSEQ,
        WriteStep::OmapCompare { .. } => errno == Errno::ECANCELED,
        WriteStep::Write { .. } | WriteStep::WriteFull { .. } => errno == Errno::EFBIG,
        _ => false,
    })
}

impl WriteState {
    pub(super) fn new(functions: &'static Functions, steps: usize) -> Box<Self> {
        // SAFETY: no arguments.
        let op = unsafe { (functions.rados_create_write_op)() };
        Box::new(Self {
            functions,
            op,
            returned: vec![0; steps].into(),
            bytes: 0,
            _share: None,
            _operation: None,
        })
    }

    /// With these steps.
    pub(super) fn with(
        functions: &'static Functions,
        steps: &[WriteStep],
        lending: Lending,
    ) -> Rc<Box<Self>> {
        let mut state = Self::new(functions, steps.len());
        for (index, step) in steps.iter().enumerate() {
            if let WriteStep::Write { data, .. } | WriteStep::WriteFull { data } = step {
                state.bytes += data.len() as u64;
            }
            if lending == Lending::No || !state.lend(step) {
                state.add(index, step)?;
            }
        }
        Ok(state)
    }

    /// Adds a step whose bytes are many, without copying them; `false`: it is not one, or this library can't.
    fn lend(&mut self, step: &WriteStep) -> bool {
        let lent = |data| LentBytes::new(self.functions, data);
        match step {
            WriteStep::Write { offset, data } => lent(data).map(|mut data| data.write_to(self.op, *offset)),
            WriteStep::WriteFull { data } => lent(data).map(|mut data| data.write_full_to(self.op)),
            _ => None,
        }
        .is_some()
    }

    /// Adds one step; the library copies what goes in.
    fn add(&mut self, index: usize, step: &WriteStep) -> Rc<()> {
        let (functions, op) = (self.functions, self.op);
        let returned: *mut c_int = &mut self.returned[index];
        // SAFETY: all strings and buffers are valid for the call with the lengths that are named; the place for the result
        // lives in a boxed slice that is neither moved nor dropped before the operation has ended.
        unsafe {
            match step {
                WriteStep::Create { exclusive } => {
                    (functions.rados_write_op_create)(op, c_int::from(*exclusive), ptr::null());
                }
                WriteStep::AssertExists => (functions.rados_write_op_assert_exists)(op),
                WriteStep::AssertVersion(version) => (functions.rados_write_op_assert_version)(op, *version),
                WriteStep::CompareExtent { offset, expected } => (functions.rados_write_op_cmpext)(
                    op,
                    expected.as_ptr().cast(),
                    expected.len(),
                    *offset,
                    returned,
                ),
                WriteStep::AllocHint {
                    object_size_bytes,
                    write_size_bytes,
                } => (functions.rados_write_op_set_alloc_hint)(op, *object_size_bytes, *write_size_bytes),
                WriteStep::Write { offset, data } => {
                    (functions.rados_write_op_write)(op, data.as_ptr().cast(), data.len(), *offset);
                }
                WriteStep::WriteFull { data } => {
                    (functions.rados_write_op_write_full)(op, data.as_ptr().cast(), data.len());
                }
                WriteStep::Zero { offset, length_bytes } => {
                    (functions.rados_write_op_zero)(op, *offset, *length_bytes);
                }
                WriteStep::Truncate { size_bytes } => (functions.rados_write_op_truncate)(op, *size_bytes),
                WriteStep::Remove => (functions.rados_write_op_remove)(op),
                WriteStep::OmapSet(pairs) => {
                    let (keys, key_lengths) = pointers(pairs.keys());
                    let (values, value_lengths) = pointers(pairs.values());
                    (functions.rados_write_op_omap_set2)(
                        op,
                        keys.as_ptr(),
                        values.as_ptr(),
                        key_lengths.as_ptr(),
                        value_lengths.as_ptr(),
                        pairs.len(),
                    );
                }
                WriteStep::OmapRemove(removed) => {
                    let (keys, lengths) = pointers(removed.iter());
                    (functions.rados_write_op_omap_rm_keys2)(
                        op,
                        keys.as_ptr(),
                        lengths.as_ptr(),
                        removed.len(),
                    );
                }
                WriteStep::OmapCompare { key, value } => (functions.rados_write_op_omap_cmp2)(
                    op,
                    key.as_ptr().cast(),
                    EQUAL,
                    value.as_ptr().cast(),
                    key.len(),
                    value.len(),
                    returned,
                ),
                WriteStep::SetXattr { name, value } => {
                    let name = text(name)?;
                    (functions.rados_write_op_setxattr)(
                        op,
                        name.as_ptr(),
                        value.as_ptr().cast(),
                        value.len(),
                    );
                }
                WriteStep::RemoveXattr(name) => {
                    let name = text(name)?;
                    (functions.rados_write_op_rmxattr)(op, name.as_ptr());
                }
                WriteStep::Call { class, method, input } => {
                    let (class, method) = (text(class)?, text(method)?);
                    (functions.rados_write_op_exec)(
                        op,
                        class.as_ptr(),
                        method.as_ptr(),
                        input.as_ptr().cast(),
                        input.len(),
                        returned,
                    );
                }
            }
        }
        Ok(())
    }
}

fn pointers<'a>(items: impl Iterator<Item = &'a Bytes>) -> (Vec<*const c_char>, Vec<usize>) {
    items.map(|item| (item.as_ptr().cast(), item.len())).unzip()
}
