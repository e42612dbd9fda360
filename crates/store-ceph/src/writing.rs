//! Writes: the contract's steps to those that an OSD takes in the same sense.

use std::sync::Arc;

use ferry_store::{Errno, WriteOp, WriteReply, WriteStep};

use crate::sys::{Ioctx, Lending, OpError};

/// How often a write is tried again because the object came or went between two attempts.
const RETRIES_MAX: usize = 16;

type Indexed = Vec<(usize, WriteStep)>;

/// Runs a write.
pub(crate) async fn run(
    ioctx: &Arc<Ioctx>,
    object: &str,
    op: WriteOp,
    lending: Lending,
) -> Result<WriteReply, OpError> {
    // After a removal, a write and a removal in one operation, an OSD (16.2.15) brings the bytes that a snapshot holds back to
    // the head when it is made again.
    let mut removals = (0..op.steps.len()).filter(|&index| op.steps[index] == WriteStep::Remove);
    if let Some(second) = removals.nth(1) {
        return Err(OpError {
            errno: Errno::EOPNOTSUPP,
            step: Some(second),
        });
    }
    let steps = sent(op.steps);
    for _ in 0..RETRIES_MAX {
        let error = match attempt(ioctx, object, &steps, lending).await {
            Err(error) if error.errno == Errno::ENOENT => error,
            other => return other,
        };
        // An OSD compares nothing with an object that is not there, and does not say which step it did not like; to the
        // contract such an object is empty.
        let compares = |(_, step): &(usize, WriteStep)| {
            matches!(
                step,
                WriteStep::CompareExtent { .. } | WriteStep::OmapCompare { .. }
            )
        };
        if error.step.is_some() || !steps.iter().any(compares) {
            return Err(error);
        }
        match on_nothing(&steps, error)? {
            None => return Ok(WriteReply::default()),
            Some(steps) => match attempt(ioctx, object, &steps, lending).await {
                // It is there now, so it is compared.
                Err(error) if error.errno == Errno::EEXIST && error.step.is_none() => {}
                other => return other,
            },
        }
    }
    Err(Errno::EAGAIN.into())
}

/// Index of a step that the caller did not give.
const OURS: usize = usize::MAX;

async fn attempt(
    ioctx: &Arc<Ioctx>,
    object: &str,
    indexed: &Indexed,
    lending: Lending,
) -> Result<WriteReply, OpError> {
    if indexed.is_empty() {
        return Ok(WriteReply::default());
    }
    let steps: Vec<WriteStep> = indexed.iter().map(|(_, step)| step.clone()).collect();
    match ioctx.write(object, &steps, lending).await {
        Ok(version) => Ok(WriteReply { version }),
        Err(error) => Err(OpError {
            errno: error.errno,
            step: error
                .step
                .and_then(|step| indexed.get(step))
                .map(|(index, _)| *index)
                .filter(|index| *index != OURS),
        }),
    }
}

/// The same steps for an object that is not there: comparisons are judged here, and the object is made by a step that fails if
/// it is there after all. `None`: all holds, and nothing is to be done. `error` is what the OSD said.
fn on_nothing(steps: &Indexed, error: OpError) -> Result<Option<Indexed>, OpError> {
    let mut remaining = vec![(OURS, WriteStep::Create { exclusive: true })];
    let mut makes = false;
    for (index, step) in steps {
        let differs = |errno| OpError {
            errno,
            step: Some(*index),
        };
        match step {
            WriteStep::CompareExtent { expected, .. } => {
                if expected.iter().any(|byte| *byte != 0) {
                    return Err(differs(Errno::EILSEQ));
                }
                continue;
            }
            WriteStep::OmapCompare { value, .. } => {
                if !value.is_empty() {
                    return Err(differs(Errno::ECANCELED));
                }
                continue;
            }
            WriteStep::Create { .. } if !makes => {
                makes = true;
                continue;
            }
            WriteStep::AllocHint { .. } => {}
            WriteStep::Zero { .. } | WriteStep::Truncate { .. } if !makes => continue,
            WriteStep::Write { .. }
            | WriteStep::WriteFull { .. }
            | WriteStep::OmapSet(_)
            | WriteStep::SetXattr { .. } => makes = true,
            // These see whether the object is there, which our step would change.
            _ if !makes => return Err(error),
            _ => {}
        }
        remaining.push((*index, step.clone()));
    }
    Ok(makes.then_some(remaining))
}

/// The steps to send, each with its index in the operation.
///
/// To an OSD, a hint makes the object. So hints go next to the first step that makes it anyway: behind a creation, which
/// may be exclusive, before the write of data, which they speak of; and nowhere if no step makes it.
/// Comparisons of bytes go first: they see the object as it was before the operation wherever they stand, and an OSD never
/// answers an operation that has one behind a write (16.2.15).
/// A range of no bytes is not sent: an OSD takes zero for "to the end", or not at all.
fn sent(steps: Vec<WriteStep>) -> Indexed {
    let mut hints = Vec::new();
    let compares = |(_, step): &(usize, WriteStep)| matches!(step, WriteStep::CompareExtent { .. });
    let (mut sent, others): (Indexed, Indexed) = steps.into_iter().enumerate().partition(compares);
    for (index, step) in others {
        match step {
            WriteStep::AllocHint { .. } => hints.push((index, step)),
            WriteStep::Zero { length_bytes: 0, .. } => {}
            WriteStep::Create { .. } => {
                sent.push((index, step));
                sent.append(&mut hints);
            }
            WriteStep::Write { .. } | WriteStep::WriteFull { .. } => {
                sent.append(&mut hints);
                sent.push((index, step));
            }
            _ => sent.push((index, step)),
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(op: WriteOp) -> Vec<usize> {
        sent(op.steps).into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn a_hint_goes_where_the_object_is_made_anyway() {
        assert_eq!(order(WriteOp::new().alloc_hint(1).write(0, "x")), [0, 1]);
        assert_eq!(
            order(WriteOp::new().alloc_hint(1).create(true).write(0, "x")),
            [1, 0, 2]
        );
        let guarded = WriteOp::new()
            .alloc_hint(1)
            .step(WriteStep::AssertExists)
            .write(0, "x");
        assert_eq!(order(guarded), [1, 0, 2]);
    }

    #[test]
    fn comparisons_of_bytes_go_first() {
        let op = WriteOp::new().write(0, "new").step(compare(b"old")).write(3, "x");
        assert_eq!(order(op), [1, 0, 2]);
    }

    fn judged(op: WriteOp) -> Result<Option<Vec<usize>>, OpError> {
        let steps = on_nothing(&sent(op.steps), Errno::ENOENT.into())?;
        Ok(steps.map(|steps| steps.into_iter().map(|(index, _)| index).collect()))
    }

    fn compare(expected: &'static [u8]) -> WriteStep {
        WriteStep::CompareExtent {
            offset: 0,
            expected: expected.into(),
        }
    }

    #[test]
    fn what_is_not_there_compares_as_empty() {
        let op = WriteOp::new().step(compare(b"\0\0")).write(0, "x");
        assert_eq!(judged(op), Ok(Some(vec![OURS, 1])));
        let op = WriteOp::new().create(true).step(compare(b"\0")).write(0, "x");
        assert_eq!(judged(op), Ok(Some(vec![OURS, 2])));
        assert_eq!(judged(WriteOp::new().step(compare(b"\0"))), Ok(None));
        let differs = OpError {
            errno: Errno::EILSEQ,
            step: Some(0),
        };
        assert_eq!(
            judged(WriteOp::new().step(compare(b"a")).write(0, "x")),
            Err(differs)
        );
        let op = WriteOp::new().step(compare(b"\0")).remove();
        assert_eq!(judged(op), Err(Errno::ENOENT.into()));
    }

    #[test]
    fn a_hint_makes_nothing_by_itself() {
        assert_eq!(order(WriteOp::new().alloc_hint(1).truncate(3).zero(0, 0)), [1]);
        assert_eq!(order(WriteOp::new().alloc_hint(1)), [] as [usize; 0]);
    }
}
