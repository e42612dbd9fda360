//! [`Call`]: one typed request to an object class, and the helpers that send it.
//!
//! Promise: the payload bytes are exactly Ceph's, and an answer that does not decode is `EIO` naming the method, the
//! field and the byte, never a default. What it does not know: which engine answers.

use std::fmt;

use bytes::Bytes;
use ferry_store::{Errno, IoCtx, ReadOp, ReadReply, Result, SnapId, StoreError, WriteOp};

use crate::encoding::{Decode, DecodeError, Encode, Encoder};

/// A typed class call: what to send, how to read the answer.
pub struct Call<T> {
    /// Class name.
    pub class: &'static str,
    /// Method name.
    pub method: &'static str,
    /// Encoded input.
    pub input: Bytes,
    decode: fn(&[u8]) -> Result<T, DecodeError>,
}

impl<T> Clone for Call<T> {
    fn clone(&self) -> Self {
        Self {
            class: self.class,
            method: self.method,
            input: self.input.clone(),
            decode: self.decode,
        }
    }
}

impl<T> fmt::Debug for Call<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}({} bytes)", self.class, self.method, self.input.len())
    }
}

impl Call<()> {
    /// A call whose answer is empty; whatever comes back is ignored, as Ceph's client does.
    pub(crate) fn unit(class: &'static str, method: &'static str, input: impl FnOnce(&mut Encoder)) -> Self {
        Self::with_decoder(class, method, input, |_| Ok(()))
    }
}

impl<T> Call<T> {
    pub(crate) fn with_decoder(
        class: &'static str,
        method: &'static str,
        input: impl FnOnce(&mut Encoder),
        decode: fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Self {
        let mut encoder = Encoder::new();
        input(&mut encoder);
        Self {
            class,
            method,
            input: encoder.finish(),
            decode,
        }
    }

    /// Reads the method's output; `EIO` naming method, field and byte when it does not decode.
    pub fn decode(&self, out: &[u8]) -> Result<T> {
        self.decode_at(out, "")
    }

    /// Reads the output of step `step` of the read this call was part of. The call must have been added as that step.
    pub fn decode_step(&self, reply: &ReadReply, step: usize) -> Result<T> {
        self.decode(reply.output(step))
    }

    fn decode_at(&self, out: &[u8], place: &str) -> Result<T> {
        (self.decode)(out).map_err(|error| {
            StoreError::new(
                Errno::EIO,
                format!("answer of {}.{}{place}: {error}", self.class, self.method),
            )
        })
    }
}

impl<T: Decode> Call<T> {
    pub(crate) fn new(class: &'static str, method: &'static str, input: impl FnOnce(&mut Encoder)) -> Self {
        Self::with_decoder(class, method, input, T::from_slice)
    }
}

/// Adds typed calls to operations.
pub trait CallExt: Sized {
    /// Adds the call as the next step.
    #[must_use]
    fn class_call<T>(self, call: &Call<T>) -> Self;
}

impl CallExt for ReadOp {
    fn class_call<T>(self, call: &Call<T>) -> Self {
        self.call(call.class, call.method, call.input.clone())
    }
}

impl CallExt for WriteOp {
    fn class_call<T>(self, call: &Call<T>) -> Self {
        self.call(call.class, call.method, call.input.clone())
    }
}

/// Sends one reading call to the head of object `name` and decodes the answer.
pub async fn exec_read<T>(io: &IoCtx, name: &str, call: Call<T>) -> Result<T> {
    let reply = io
        .read(name, SnapId::HEAD, ReadOp::new().class_call(&call))
        .await?;
    call.decode_at(reply.output(0), &format!(" on {}", io.object(name)))
}

/// Sends one writing call to object `name` as a write of metadata: no snapshots, fully durable.
pub async fn exec_write(io: &IoCtx, name: &str, call: Call<()>) -> Result<()> {
    io.write_meta(name, WriteOp::new().class_call(&call))
        .await
        .map(|_| ())
}

/// The same, durable before whatever is done later in the same pool and not sooner ([`ferry_store::Durability::Ordered`]): for what says
/// nothing to anybody after a power loss, as a lock whose owner is gone then.
pub async fn exec_write_ordered(io: &IoCtx, name: &str, call: Call<()>) -> Result<()> {
    io.write_meta(name, WriteOp::ordered().class_call(&call))
        .await
        .map(|_| ())
}

/// The whole value as a payload.
pub(crate) fn payload(value: impl Encode) -> impl FnOnce(&mut Encoder) {
    move |encoder| {
        encoder.put(value);
    }
}
