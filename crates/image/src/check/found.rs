//! What one look finds, each with what would mend it, and which errors are findings.
//!
//! Keeps invariant: bounded ([`Report::MAX`]).

use std::collections::HashSet;

use ferry_store::Errno;
use ferry_store::check::{Finding, Gravity, Report};

use super::mend::Mend;
use crate::error::{ImageError, Result};

/// A finding, and what mends it.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) finding: Finding,
    pub(super) mend: Option<Mend>,
}

/// The findings of a look.
#[derive(Debug, Default)]
pub(super) struct Found {
    items: Vec<Item>,
    left_out: usize,
}

impl Found {
    fn add(
        &mut self,
        gravity: Gravity,
        kind: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        advice: impl Into<String>,
        mend: Option<Mend>,
    ) {
        if self.items.len() >= Report::MAX {
            self.left_out += 1;
            return;
        }
        let finding = Finding {
            gravity,
            kind,
            place: place.into(),
            what: what.into(),
            advice: advice.into(),
            mended: false,
        };
        self.items.push(Item { finding, mend });
    }

    /// Something is not what it should be.
    pub(super) fn damage(
        &mut self,
        kind: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(Gravity::Damage, kind, place, what, advice, None);
    }

    /// Something is there that harms nobody.
    pub(super) fn leftover(
        &mut self,
        kind: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(Gravity::Leftover, kind, place, what, advice, None);
    }

    /// Something was not looked at.
    pub(super) fn unjudged(
        &mut self,
        kind: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(Gravity::Unjudged, kind, place, what, advice, None);
    }

    /// Something that a repair puts right.
    pub(super) fn mendable(
        &mut self,
        gravity: Gravity,
        kind: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        mend: Mend,
    ) {
        let advice = "'rbd fsck --repair' puts it right";
        self.add(gravity, kind, place, what, advice, Some(mend));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.left_out == 0
    }

    /// Leaves what `other` has too.
    pub(super) fn also_in(mut self, other: &Self) -> Self {
        let key = |item: &Item| {
            (
                item.finding.kind,
                item.finding.place.clone(),
                item.finding.what.clone(),
            )
        };
        let known: HashSet<_> = other.items.iter().map(key).collect();
        self.items.retain(|item| known.contains(&key(item)));
        self.left_out = self.left_out.min(other.left_out);
        self
    }

    /// The findings, and how many more there were.
    pub(super) fn into_items(self) -> (Vec<Item>, usize) {
        (self.items, self.left_out)
    }
}

/// Takes apart what an error says of the metadata (`Err` inside: a finding) and what it says of the store or of the one who
/// asks, which ends the check.
pub(super) fn judged<T, E: Into<ImageError>>(result: Result<T, E>) -> Result<Result<T, String>> {
    match result.map_err(Into::into) {
        Ok(value) => Ok(Ok(value)),
        Err(error) if is_verdict(error.errno) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

fn is_verdict(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EIO
            | Errno::EINVAL
            | Errno::ENOENT
            | Errno::EAGAIN
            | Errno::ENXIO
            | Errno::EILSEQ
            | Errno::ERANGE
    )
}
