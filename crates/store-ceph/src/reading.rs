//! Reads: the contract's steps to the library's, and answers back.
//!
//! What librados lacks is made up for here: single xattrs (all are fetched), reads that leave holes out (zeroes are), omap
//! pages that are longer than an OSD gives at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ferry_store::{Errno, ReadOp, ReadReply, ReadResult, ReadStep, Timestamp};

use crate::sys::{Ioctx, Lending, OpError, StepAnswer};

/// How often a listing begins again because the object changed under it.
const RESTARTS_MAX: usize = 100;
/// Zeroes of this length are a hole.
const HOLE_BYTES: usize = 4096;

/// Runs a read.
pub(crate) async fn run(
    ioctx: &Arc<Ioctx>,
    object: &str,
    op: ReadOp,
    lending: Lending,
) -> Result<ReadReply, OpError> {
    if op.steps.is_empty() {
        let answer = ioctx.read(object, &[ReadStep::Stat], lending).await?;
        return Ok(ReadReply {
            results: Vec::new(),
            version: answer.version,
        });
    }
    let steps: Vec<ReadStep> = op.steps.iter().map(sent).collect();
    for _ in 0..RESTARTS_MAX {
        if let Some(reply) = attempt(ioctx, object, &op.steps, &steps, lending).await? {
            return Ok(reply);
        }
    }
    Err(Errno::EAGAIN.into())
}

/// One attempt; `None` if the object changed between two pages of a listing.
async fn attempt(
    ioctx: &Arc<Ioctx>,
    object: &str,
    asked: &[ReadStep],
    steps: &[ReadStep],
    lending: Lending,
) -> Result<Option<ReadReply>, OpError> {
    let answer = ioctx.read(object, steps, lending).await?;
    let mut results = Vec::with_capacity(asked.len());
    for (index, (step, given)) in asked.iter().zip(answer.steps).enumerate() {
        let result = match (step, given) {
            (ReadStep::OmapGetVals { .. }, StepAnswer::Omap(values, more)) => {
                match page(ioctx, object, step, values, more, answer.version).await? {
                    Some(result) => result,
                    None => return Ok(None),
                }
            }
            (step, given) => result(step, given).map_err(|errno| OpError {
                errno,
                step: Some(index),
            })?,
        };
        results.push(result);
    }
    Ok(Some(ReadReply {
        results,
        version: answer.version,
    }))
}

/// What is sent for a step: the library takes the start and the prefix of a listing only up to a NUL byte.
fn sent(step: &ReadStep) -> ReadStep {
    match step {
        ReadStep::OmapGetVals {
            start_after,
            prefix,
            max,
        } => ReadStep::OmapGetVals {
            start_after: until_nul(start_after),
            prefix: until_nul(prefix),
            // One more tells whether more follow, also where our own filter takes some away.
            max: max.saturating_add(1),
        },
        other => other.clone(),
    }
}

fn until_nul(bytes: &Bytes) -> Bytes {
    let end = bytes.iter().position(|byte| *byte == 0);
    bytes.slice(..end.unwrap_or(bytes.len()))
}

/// Makes the answer to a listing out of its first page, and fetches what is missing as long as the version stands.
async fn page(
    ioctx: &Arc<Ioctx>,
    object: &str,
    step: &ReadStep,
    mut fetched: BTreeMap<Bytes, Bytes>,
    mut more: bool,
    version: u64,
) -> Result<Option<ReadResult>, OpError> {
    let ReadStep::OmapGetVals {
        start_after,
        prefix,
        max,
    } = step
    else {
        return Err(Errno::EINVAL.into());
    };
    let mut values: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    loop {
        let last = fetched.keys().next_back().cloned();
        let wanted = fetched
            .into_iter()
            .filter(|(key, _)| key > start_after && key.starts_with(prefix));
        values.extend(wanted);
        if !more || values.len() > *max {
            break;
        }
        let Some(last) = last else { break };
        let from = until_nul(&last);
        if from.len() < last.len() && values.contains_key(&from) {
            // The next page would be this one again.
            return Err(Errno::EOPNOTSUPP.into());
        }
        let next = [
            ReadStep::AssertVersion(version),
            ReadStep::OmapGetVals {
                start_after: from,
                prefix: until_nul(prefix),
                max: max.saturating_add(1),
            },
        ];
        let answer = match ioctx.read(object, &next, Lending::No).await {
            Err(error) if matches!(error.errno, Errno::ERANGE | Errno::EOVERFLOW | Errno::ENOENT) => {
                return Ok(None);
            }
            other => other?,
        };
        let Some(StepAnswer::Omap(next, again)) = answer.steps.into_iter().nth(1) else {
            return Err(Errno::EBADMSG.into());
        };
        if again && next.keys().next_back() == Some(&last) {
            return Err(Errno::EOPNOTSUPP.into());
        }
        (fetched, more) = (next, again);
    }
    let more = values.len() > *max;
    while values.len() > *max {
        values.pop_last();
    }
    Ok(Some(ReadResult::Omap { values, more }))
}

fn result(step: &ReadStep, given: StepAnswer) -> Result<ReadResult, Errno> {
    Ok(match (step, given) {
        (_, StepAnswer::Done) => ReadResult::Done,
        (ReadStep::Read { .. }, StepAnswer::Stat(..)) => ReadResult::Data(Bytes::new()),
        (ReadStep::SparseRead { .. }, StepAnswer::Stat(..)) => ReadResult::Sparse(Vec::new()),
        (_, StepAnswer::Stat(size_bytes, seconds)) => ReadResult::Stat {
            size_bytes,
            mtime: Timestamp {
                seconds: u32::try_from(seconds).unwrap_or(0),
                nanoseconds: 0,
            },
        },
        (ReadStep::SparseRead { offset, .. }, StepAnswer::Data(data)) => {
            ReadResult::Sparse(runs(*offset, &data))
        }
        (ReadStep::Call { .. }, StepAnswer::Data(data)) => ReadResult::Output(data),
        (_, StepAnswer::Data(data)) => ReadResult::Data(data),
        (_, StepAnswer::Omap(values, more)) => ReadResult::Omap { values, more },
        (ReadStep::GetXattr(name), StepAnswer::Xattrs(mut values)) => {
            ReadResult::Xattr(values.remove(name).ok_or(Errno::ENODATA)?)
        }
        (_, StepAnswer::Xattrs(values)) => ReadResult::Xattrs(values),
    })
}

/// The parts of `data` that are not whole blocks of zeroes.
fn runs(offset: u64, data: &Bytes) -> Vec<(u64, Bytes)> {
    let mut runs = Vec::new();
    let mut begin = None;
    for at in (0..data.len()).step_by(HOLE_BYTES) {
        let block = &data[at..data.len().min(at + HOLE_BYTES)];
        let empty = block.iter().all(|byte| *byte == 0);
        match (begin, empty) {
            (None, false) => begin = Some(at),
            (Some(from), true) => {
                runs.push((offset + from as u64, data.slice(from..at)));
                begin = None;
            }
            _ => {}
        }
    }
    if let Some(from) = begin {
        runs.push((offset + from as u64, data.slice(from..)));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_leave_out_whole_blocks_of_zeroes_and_nothing_else() {
        let mut data = vec![0u8; 5 * HOLE_BYTES + 10];
        assert_eq!(runs(7, &data.clone().into()), []);
        data[HOLE_BYTES] = 1;
        data[3 * HOLE_BYTES - 1] = 2;
        data[5 * HOLE_BYTES + 9] = 3;
        let data = Bytes::from(data);
        let expected = [
            (7 + HOLE_BYTES as u64, data.slice(HOLE_BYTES..3 * HOLE_BYTES)),
            (7 + 5 * HOLE_BYTES as u64, data.slice(5 * HOLE_BYTES..)),
        ];
        assert_eq!(runs(7, &data), expected);
    }

    #[test]
    fn listings_are_asked_for_up_to_a_nul_byte() {
        assert_eq!(until_nul(&Bytes::from_static(b"ab\0cd")), "ab");
        assert_eq!(until_nul(&Bytes::from_static(b"ab")), "ab");
    }
}
