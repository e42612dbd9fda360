//! Two diffs that follow each other become one (`rbd merge-diff`).
//!
//! Promises: the second diff wins where both say something; where the image grew or shrank in between, the grown part
//! is zero and the cut part is left out. The result is what Ceph's `rbd` writes, byte for byte. Runs must ascend in both
//! files (`EOPNOTSUPP`). Nothing is kept but one piece of data.

use ferry_store::Errno;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::diff::{DiffHead, DiffReader, Run, RunKind, Version, encode_end, encode_head, encode_run};
use super::input::Input;
use crate::error::{ImageError, Result};
use crate::progress::Progress;

/// Bytes of data copied at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// What went wrong where.
#[derive(Debug)]
pub struct MergeError {
    /// The step.
    pub during: MergeStep,
    /// Why.
    pub error: ImageError,
}

/// Steps of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeStep {
    /// Reading what the first diff says of itself.
    FirstHead,
    /// Reading what the second diff says of itself.
    SecondHead,
    /// The diffs do not follow each other.
    Match,
    /// Writing the result's head or end.
    Write,
    /// Reading a run's record of the first diff.
    FirstRun,
    /// Reading a run's record of the second diff.
    SecondRun,
    /// A run of the first diff that begins before the one before it ends.
    FirstOrder,
    /// The same of the second diff.
    SecondOrder,
    /// Copying a run's data.
    Data,
}

trait During<T> {
    fn during(self, step: MergeStep) -> Result<T, MergeError>;
}

impl<T> During<T> for Result<T> {
    fn during(self, step: MergeStep) -> Result<T, MergeError> {
        self.map_err(|error| MergeError { during: step, error })
    }
}

/// One of the two diffs, and how far it was used.
struct Side<'a, 'b> {
    input: &'a mut Input<'b>,
    reader: DiffReader,
    /// What is left of the current run. After the end of the diff, the range between the two sizes, if this diff's is smaller.
    run: Option<Run>,
    ended: bool,
    /// Where the last run ended.
    at: u64,
    /// How far the image was gone through, for the progress.
    reached: u64,
    steps: (MergeStep, MergeStep),
}

impl<'a, 'b> Side<'a, 'b> {
    async fn begin(
        input: &'a mut Input<'b>,
        head: MergeStep,
        steps: (MergeStep, MergeStep),
    ) -> Result<Self, MergeError> {
        let reader = DiffReader::begin(input, Version::V1).await.during(head)?;
        Ok(Self {
            input,
            reader,
            run: None,
            ended: false,
            at: 0,
            reached: 0,
            steps,
        })
    }

    fn head(&self) -> &DiffHead {
        self.reader.head()
    }

    /// Makes the next run current, if there is none.
    async fn advance(&mut self, other_size_bytes: u64) -> Result<(), MergeError> {
        if self.run.is_some() || self.ended {
            return Ok(());
        }
        let found = self.reader.next_run(self.input).await.during(self.steps.0)?;
        if let Some(run) = found {
            if run.offset < self.at {
                let what = format!(
                    "out-of-order offset from {} diff ({} > {})",
                    if self.steps.1 == MergeStep::FirstOrder {
                        "first"
                    } else {
                        "second"
                    },
                    self.at,
                    run.offset
                );
                return Err(ImageError::new(Errno::EOPNOTSUPP, what)).during(self.steps.1);
            }
            self.run = Some(run);
            self.reached = run.offset;
            return Ok(());
        }
        self.ended = true;
        let size_bytes = self.head().size_bytes;
        self.reached = size_bytes;
        if size_bytes < other_size_bytes {
            self.run = Some(Run {
                kind: RunKind::Zero,
                offset: size_bytes,
                length_bytes: other_size_bytes - size_bytes,
            });
        }
        Ok(())
    }

    /// Uses up some bytes of the current run.
    fn used(&mut self, length_bytes: u64) {
        if let Some(run) = &mut self.run {
            run.offset += length_bytes;
            run.length_bytes -= length_bytes;
            self.at = run.offset;
            self.reached = run.offset;
            if run.length_bytes == 0 {
                self.run = None;
            }
        }
    }

    /// Writes the first bytes of the current run as a run of its own.
    async fn copy(&mut self, run: Run, out: &mut (dyn AsyncWrite + Unpin + Send)) -> Result<()> {
        write(out, &encode_run(Version::V1, run)).await?;
        if run.kind == RunKind::Write {
            let mut left = run.length_bytes;
            while left > 0 {
                let data = self.reader.data(self.input, left.min(PIECE_BYTES)).await?;
                write(out, &data).await?;
                left -= data.len() as u64;
            }
        }
        self.used(run.length_bytes);
        Ok(())
    }

    /// Leaves the first bytes of the current run out.
    async fn leave_out(&mut self, kind: RunKind, length_bytes: u64) -> Result<()> {
        if kind == RunKind::Write {
            self.reader.skip_data(self.input, length_bytes).await?;
        }
        self.used(length_bytes);
        Ok(())
    }
}

/// Merges `first` and `second`, both of version 1, into `out`. The step that failed comes with the error: `EINVAL`
/// ([`MergeStep::Match`]) unless the first ends where the second starts.
pub async fn merge(
    first: &mut Input<'_>,
    second: &mut Input<'_>,
    out: &mut (dyn AsyncWrite + Unpin + Send),
    progress: &Progress,
) -> Result<(), MergeError> {
    let steps = (MergeStep::FirstRun, MergeStep::FirstOrder);
    let mut first = Side::begin(first, MergeStep::FirstHead, steps).await?;
    let steps = (MergeStep::SecondRun, MergeStep::SecondOrder);
    let mut second = Side::begin(second, MergeStep::SecondHead, steps).await?;
    if first.head().to != second.head().from {
        let name = |name: &Option<String>| {
            name.as_ref()
                .map_or("no snapshot".into(), |name| format!("'{name}'"))
        };
        let what = format!(
            "the first diff ends with {}, the second starts from {}",
            name(&first.head().to),
            name(&second.head().from)
        );
        return Err(ImageError::new(Errno::EINVAL, what)).during(MergeStep::Match);
    }
    let (first_bytes, second_bytes) = (first.head().size_bytes, second.head().size_bytes);
    let head = DiffHead {
        from: first.head().from.clone(),
        to: second.head().to.clone(),
        protected: false,
        size_bytes: second_bytes,
    };
    write(out, &encode_head(Version::V1, &head))
        .await
        .during(MergeStep::Write)?;
    let total = first_bytes.max(second_bytes).saturating_mul(2).max(1);
    loop {
        progress.update(first.reached.saturating_add(second.reached), total);
        first.advance(second_bytes).await?;
        second.advance(first_bytes).await?;
        // Where the second has nothing more to say, the first counts to its end.
        let limit = second.run.map_or(u64::MAX, |run| run.offset);
        if let Some(run) = first.run
            && run.offset < limit
        {
            let length_bytes = run.length_bytes.min(limit - run.offset);
            let piece = Run { length_bytes, ..run };
            first.copy(piece, out).await.during(MergeStep::Data)?;
            continue;
        }
        let Some(winner) = second.run else { break };
        if let Some(run) = first.run
            && run.offset < winner.end()
        {
            let length_bytes = run.length_bytes.min(winner.end() - run.offset);
            first
                .leave_out(run.kind, length_bytes)
                .await
                .during(MergeStep::Data)?;
            continue;
        }
        if second.ended {
            // What the second has cut off.
            second.used(winner.length_bytes);
        } else {
            second.copy(winner, out).await.during(MergeStep::Data)?;
        }
    }
    write(out, &encode_end()).await.during(MergeStep::Write)?;
    out.flush()
        .await
        .map_err(|error| failed(&error))
        .during(MergeStep::Write)?;
    progress.update(total, total);
    Ok(())
}

async fn write(out: &mut (dyn AsyncWrite + Unpin + Send), data: &[u8]) -> Result<()> {
    out.write_all(data).await.map_err(|error| failed(&error))
}

fn failed(error: &std::io::Error) -> ImageError {
    ImageError::new(Errno::of_io(error), format!("writing the result ({error})"))
}
