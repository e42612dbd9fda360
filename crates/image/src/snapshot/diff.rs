//! What changed in an object between two snapshots, told by its clones and their overlaps (rbd-format sheet, section 8).
//!
//! Pure arithmetic on a [`SnapSet`]. An engine may report smaller overlaps than there are, or none, so "changed" may say
//! too much, never too little.

use ferry_store::{SnapId, SnapSet};

/// Index of the clone that serves `snap`, if the object exists there.
pub(crate) fn serving(set: &SnapSet, snap: SnapId) -> Option<usize> {
    set.clones.iter().position(|clone| {
        if clone.id.is_head() {
            snap.is_head() || snap.0 > set.seq
        } else {
            clone.snaps.contains(&snap)
        }
    })
}

/// Runs of an object that differ between two snapshots (`before` absent: all of it).
pub(crate) fn changed_runs(
    set: &SnapSet,
    before: Option<SnapId>,
    now: SnapId,
    object_size: u64,
) -> Vec<(u64, u64)> {
    let from = before.and_then(|snap| serving(set, snap));
    let to = serving(set, now);
    match (from, to) {
        (None, None) => Vec::new(),
        (None, Some(to)) => vec![(0, set.clones[to].size_bytes)],
        (Some(from), None) => vec![(0, set.clones[from].size_bytes)],
        (Some(from), Some(to)) if from == to => Vec::new(),
        (Some(from), Some(to)) if from < to => {
            let mut changed = Vec::new();
            for index in from..to {
                let clone = &set.clones[index];
                let end = clone.size_bytes.max(set.clones[index + 1].size_bytes);
                let mut at = 0;
                for same in clone.overlap.iter().flatten() {
                    if same.offset > at {
                        changed.push((at, same.offset));
                    }
                    at = at.max(same.end());
                }
                if at < end {
                    changed.push((at, end));
                }
            }
            merge(changed)
        }
        // Snapshots out of order can't be; take the whole object as changed.
        (Some(_), Some(_)) => vec![(0, object_size)],
    }
}

/// Whether only the bytes tell what of [`changed_runs`] has changed: both versions exist, and the engine does not know what
/// they share.
pub(crate) fn is_guess(set: &SnapSet, before: SnapId, now: SnapId) -> bool {
    match (serving(set, before), serving(set, now)) {
        (Some(from), Some(to)) if from < to => {
            set.clones[from..to].iter().any(|clone| clone.overlap.is_none())
        }
        _ => false,
    }
}

pub(crate) fn merge(mut runs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    runs.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (start, end) in runs {
        match out.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}
