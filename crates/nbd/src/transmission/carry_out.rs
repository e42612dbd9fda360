//! Carrying out one request on a device.
//!
//! The promise: [`Session`] is what both transports share, from the agreement of the handshake to the body of a
//! reply. A request is judged by [`validate`] against the device of this moment; whatever a device does, a panic or
//! a wrong length included, becomes one valid reply body.
//!
//! What it doesn't know: sockets, threads, order, bounds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use futures::FutureExt;
use tracing::{debug, error};

use super::hold::HoldingDevice;
use super::{Agreement, Bounds, Hold, MIN_SKIPPED_PAYLOAD_BYTES, TransmissionError};
use crate::device::{BlockDevice, DeviceError, Errno, Extent, Next, QuickRead, ReadExtent};
use crate::proto::{Framing, RequestHeader};
use crate::reply::{Reply, ReplyBody, Tag, put_data_head};
use crate::request::{Command, Limits, Violation, validate};
use crate::steps;
use crate::wire::Batch;

/// Most extents in one block status reply; clients ask again for the rest.
const MAX_STATUS_EXTENTS: usize = 8192;

/// Longest header of a request.
pub(super) const MAX_HEADER_BYTES: usize = RequestHeader::EXTENDED_SIZE_BYTES;

/// What the requests of one connection have in common.
pub(crate) struct Session {
    agreement: Agreement,
    bounds: Bounds,
    hold: Option<Hold>,
}

impl Session {
    /// With `hold`, changes wait for space.
    pub(crate) fn new(agreement: Agreement, bounds: Bounds, hold: Option<Hold>) -> Self {
        Self {
            agreement,
            bounds,
            hold,
        }
    }

    /// No more requests come: those that wait for space end.
    pub(super) fn leave(&self) {
        if let Some(hold) = &self.hold {
            hold.leave();
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Bytes of the header that every request of this connection starts with, at most [`MAX_HEADER_BYTES`].
    pub(super) fn header_bytes(&self) -> usize {
        match self.agreement.framing {
            Framing::Simple | Framing::Structured => RequestHeader::SIZE_BYTES,
            Framing::Extended => RequestHeader::EXTENDED_SIZE_BYTES,
        }
    }

    /// Reads a header of [`header_bytes`](Self::header_bytes).
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<RequestHeader, TransmissionError> {
        let framing = self.agreement.framing;
        let header = match framing {
            Framing::Simple | Framing::Structured => {
                let mut fixed = [0; RequestHeader::SIZE_BYTES];
                fixed.copy_from_slice(bytes);
                RequestHeader::decode(&fixed)?
            }
            Framing::Extended => {
                let mut fixed = [0; RequestHeader::EXTENDED_SIZE_BYTES];
                fixed.copy_from_slice(bytes);
                RequestHeader::decode_extended(&fixed)?
            }
        };
        // With compact headers the length is bounded by its 32 bits, and such clients expect an answer.
        let limit = u64::from(self.bounds.payload_bytes).max(MIN_SKIPPED_PAYLOAD_BYTES);
        let length = header.payload_bytes(framing);
        if framing == Framing::Extended && length > limit {
            return Err(TransmissionError::PayloadTooLong { length, limit });
        }
        Ok(header)
    }

    /// Bytes that follow the header.
    pub(super) fn sent_payload_bytes(&self, header: &RequestHeader) -> u64 {
        header.payload_bytes(self.agreement.framing)
    }

    /// What the request asks for, if it may be carried out.
    pub(super) fn judge(&self, header: &RequestHeader) -> Result<Command, Violation> {
        let device = &self.agreement.device;
        let limits = Limits {
            size_bytes: device.size_bytes(),
            read_only: device.read_only(),
            sizes: device.block_sizes().limited_to(self.bounds.payload_bytes),
            framing: self.agreement.framing,
            allocation: self.agreement.allocation,
        };
        validate(header, &limits)
    }

    /// Appends a reply in the form that was agreed on.
    pub(super) fn encode(&self, tag: Tag, body: ReplyBody, batch: &mut Batch) {
        Reply { tag, body }.encode(self.agreement.framing, batch);
    }

    /// Tries to read straight into the batch. `None` when the device would have to wait; nothing was appended then.
    pub(super) fn try_read(
        &self,
        tag: Tag,
        offset: u64,
        length: u32,
        fragment: bool,
        batch: &mut Batch,
    ) -> Option<()> {
        let start = batch.mark();
        put_data_head(self.agreement.framing, tag, offset, length, batch);
        let out = batch.slot(length as usize);
        let tried = catch_unwind(AssertUnwindSafe(|| self.agreement.device.try_read(offset, out)));
        if let Ok(Some(Ok(QuickRead::Data))) = tried {
            return Some(());
        }
        batch.roll_back(start);
        let body = match tried {
            Ok(tried) => tried?.map(|_| ReplyBody::Data {
                offset,
                extents: vec![ReadExtent::Zeroes { length_bytes: length }],
                fragment,
            }),
            Err(_) => Err(panicked("a read")),
        };
        self.encode(tag, body.unwrap_or_else(failed), batch);
        Some(())
    }

    /// Tries to write at once. `None` when the device would have to wait.
    pub(super) fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Option<ReplyBody> {
        let device = &self.agreement.device;
        let written = match catch_unwind(AssertUnwindSafe(|| device.try_write(offset, data, fua))) {
            Ok(tried) => tried?,
            Err(_) => Err(panicked("a write")),
        };
        if self.hold.is_some() && written.as_ref().is_err_and(DeviceError::is_out_of_space) {
            return None;
        }
        Some(written.map_or_else(failed, |()| ReplyBody::Done))
    }

    /// Flushes on this thread. `None` when the device does not do that.
    pub(super) fn flush_here(&self) -> Option<ReplyBody> {
        let device = &self.agreement.device;
        let flushed = match catch_unwind(AssertUnwindSafe(|| device.flush_here())) {
            Ok(tried) => tried?,
            Err(_) => Err(panicked("a flush")),
        };
        if self.hold.is_some() && flushed.as_ref().is_err_and(DeviceError::is_out_of_space) {
            return None;
        }
        Some(flushed.map_or_else(failed, |()| ReplyBody::Done))
    }

    /// Leaves to this thread what a request does next, if the device knows that it has the time.
    pub(super) fn go_on_here(&self, next: Next) -> Result<(), Next> {
        self.agreement.device.go_on_here(next)
    }

    /// Carries out a request that was judged good. `data` is the payload of a write.
    pub(super) async fn carry_out(&self, command: Command, data: Bytes) -> ReplyBody {
        let device = self.agreement.device.as_ref();
        let carried_out = async {
            match &self.hold {
                Some(hold) => carry_out(&HoldingDevice::new(device, hold), command, data).await,
                None => carry_out(device, command, data).await,
            }
        };
        AssertUnwindSafe(carried_out)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(panicked(command)))
            .unwrap_or_else(failed)
    }
}

/// Bytes that a request holds until its reply is sent.
pub(super) fn payload_bytes(command: Command) -> u32 {
    match command {
        Command::Read { length, .. } | Command::Write { length, .. } => length,
        _ => 0,
    }
}

/// The answer to a request that breaks a rule.
pub(super) fn refusal(violation: Violation) -> ReplyBody {
    debug!(%violation, "request refused");
    ReplyBody::Error(DeviceError::new(violation.errno(), violation.to_string()))
}

fn panicked(request: impl std::fmt::Debug) -> DeviceError {
    error!(?request, "the device panicked");
    DeviceError::new(
        Errno::Io,
        "the server met an internal error in this request; its log says more",
    )
}

fn failed(error: DeviceError) -> ReplyBody {
    debug!(%error, "request failed");
    ReplyBody::Error(error)
}

async fn carry_out(
    device: &dyn BlockDevice,
    command: Command,
    data: Bytes,
) -> Result<ReplyBody, DeviceError> {
    match command {
        // An empty range is valid and there is nothing to do.
        Command::Read {
            offset,
            length: 0,
            fragment,
        } => {
            return Ok(ReplyBody::Data {
                offset,
                extents: vec![],
                fragment,
            });
        }
        Command::Write { length: 0, .. } | Command::Trim { length: 0, .. } => {}
        Command::WriteZeroes { length: 0, .. } | Command::Disconnect => {}
        Command::Read {
            offset,
            length,
            fragment,
        } => {
            let extents = device.read_sparse(offset, length).await?;
            let found = extents
                .iter()
                .map(ReadExtent::length_bytes)
                .fold(0, u64::saturating_add);
            if found != u64::from(length) {
                return Err(DeviceError::new(
                    Errno::Io,
                    format!("the device returned {found} bytes for a read of {length} at offset {offset}"),
                ));
            }
            return Ok(ReplyBody::Data {
                offset,
                extents,
                fragment,
            });
        }
        Command::Write { offset, fua, .. } => device.write(offset, data, fua).await?,
        Command::Flush => device.flush().await?,
        Command::Trim { offset, length, fua } => steps::trim(device, offset, length, fua).await?,
        Command::Cache { offset, length } => steps::cache(device, offset, length).await?,
        Command::WriteZeroes {
            offset,
            length,
            no_hole,
            fua,
            fast,
        } => steps::write_zeroes(device, offset, length, (no_hole, fua, fast)).await?,
        Command::BlockStatus { offset, length, one } => {
            let max_extents = if one { 1 } else { MAX_STATUS_EXTENTS };
            let found = device.block_status(offset, length, max_extents).await?;
            let extents = tidy_extents(found, length, max_extents);
            if extents.is_empty() {
                return Err(DeviceError::new(
                    Errno::Io,
                    format!("the device returned no extent at offset {offset}"),
                ));
            }
            return Ok(ReplyBody::Status(extents));
        }
    }
    Ok(ReplyBody::Done)
}

/// The extents as the protocol wants them: none empty, neighbours of the same state joined, nothing beyond the
/// range, not too many.
fn tidy_extents(found: Vec<Extent>, length: u64, max_extents: usize) -> Vec<Extent> {
    let mut left = length;
    let mut tidy: Vec<Extent> = Vec::with_capacity(found.len().min(max_extents));
    for extent in found {
        let length_bytes = extent.length_bytes.min(left);
        if length_bytes == 0 {
            continue;
        }
        let full = tidy.len() == max_extents;
        match tidy.last_mut() {
            Some(last) if (last.hole, last.zero) == (extent.hole, extent.zero) => {
                last.length_bytes += length_bytes;
            }
            _ if full => break,
            _ => tidy.push(Extent {
                length_bytes,
                ..extent
            }),
        }
        left -= length_bytes;
    }
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(length_bytes: u64, hole: bool) -> Extent {
        Extent {
            length_bytes,
            hole,
            zero: hole,
        }
    }

    #[test]
    fn extents_are_joined_cut_and_counted() {
        let found = vec![
            extent(0, true),
            extent(10, false),
            extent(5, false),
            extent(20, true),
            extent(9, false),
        ];
        assert_eq!(
            tidy_extents(found.clone(), 100, 8),
            [extent(15, false), extent(20, true), extent(9, false)]
        );
        assert_eq!(
            tidy_extents(found.clone(), 16, 8),
            [extent(15, false), extent(1, true)]
        );
        assert_eq!(tidy_extents(found, 100, 1), [extent(15, false)]);
        assert_eq!(
            tidy_extents(vec![extent(u64::MAX, true)], 5 << 32, 1),
            [extent(5 << 32, true)]
        );
        assert!(tidy_extents(vec![extent(0, true)], 5, 1).is_empty());
    }
}
