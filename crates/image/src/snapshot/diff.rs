//! What changed in an object between two snapshots, told by its clones and their overlaps (rbd-format sheet, section 8).
//!
//! Pure arithmetic on a [`SnapSet`]. An engine may report smaller overlaps than there are, or none, so "changed" may say
//! too much, never too little.

use ferry_store::{CloneInfo, SnapId, SnapSet};

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
        (Some(from), Some(to)) if from < to => between(set, from, to),
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

/// What became of an object between two snapshots, as runs of its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    /// Runs that may hold other data than before; ascending.
    pub data: Vec<(u64, u64)>,
    /// Runs that are gone; ascending, disjoint from `data`.
    pub zero: Vec<(u64, u64)>,
}

/// The difference as `rbd diff` tells it: what was changed in any version after `before` counts, also where the last
/// version has been cut off since, unless it held something at `before` already. With `whole_object` an object that changed
/// at all changed everywhere.
pub(crate) fn delta(
    set: &SnapSet,
    before: Option<SnapId>,
    now: SnapId,
    object_size: u64,
    whole_object: bool,
) -> Delta {
    let whole = vec![(0, object_size)];
    if set
        .clones
        .iter()
        .any(|clone| !clone.id.is_head() && clone.snaps.is_empty())
    {
        // Nobody knows which snapshots it serves.
        return Delta {
            data: whole,
            zero: Vec::new(),
        };
    }
    let from = before.and_then(|snap| serving(set, snap));
    let to = serving(set, now);
    let size_before = from.map_or(0, |index| set.clones[index].size_bytes);
    let mut changed = match (from, to) {
        (None, None) => Vec::new(),
        (Some(_), None) => vec![(0, size_before)],
        (Some(from), Some(to)) => between(set, from, to),
        (None, Some(to)) => {
            let first = set
                .clones
                .iter()
                .position(|clone| before.is_none_or(|snap| newest(clone) > snap))
                .unwrap_or(to)
                .min(to);
            let mut runs = between(set, first, to);
            runs.push((0, set.clones[first].size_bytes));
            merge(runs)
        }
    };
    changed.retain(|(start, end)| start < end);
    if changed.is_empty() {
        return Delta::default();
    }
    let Some(to) = to else {
        return Delta {
            data: Vec::new(),
            zero: if whole_object { whole } else { changed },
        };
    };
    if whole_object {
        changed = whole;
    }
    let size_now = set.clones[to].size_bytes;
    if size_now >= size_before {
        return Delta {
            data: changed,
            zero: Vec::new(),
        };
    }
    let gone = (size_now, size_before);
    Delta {
        data: without(&changed, gone),
        zero: vec![gone],
    }
}

/// The newest snapshot that a version serves.
fn newest(clone: &CloneInfo) -> SnapId {
    if clone.id.is_head() {
        SnapId::HEAD
    } else {
        clone.snaps.iter().copied().max().unwrap_or(clone.id)
    }
}

/// What is not known to be the same in the versions from one index to another.
fn between(set: &SnapSet, from: usize, to: usize) -> Vec<(u64, u64)> {
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

/// Runs without what lies in `gone`.
fn without(runs: &[(u64, u64)], gone: (u64, u64)) -> Vec<(u64, u64)> {
    runs.iter()
        .flat_map(|&(start, end)| [(start, end.min(gone.0)), (start.max(gone.1), end)])
        .filter(|(start, end)| start < end)
        .collect()
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

#[cfg(test)]
mod tests {
    use ferry_store::Extent;

    use super::*;

    fn version(id: u64, snaps: &[u64], overlap: &[(u64, u64)], size_bytes: u64) -> CloneInfo {
        CloneInfo {
            id: if id == 0 { SnapId::HEAD } else { SnapId(id) },
            snaps: snaps.iter().map(|id| SnapId(*id)).collect(),
            overlap: Some(
                overlap
                    .iter()
                    .map(|(at, length)| Extent::new(*at, *length))
                    .collect(),
            ),
            size_bytes,
        }
    }

    fn parts(set: &SnapSet, before: u64, now: u64, whole: bool) -> [Vec<(u64, u64)>; 2] {
        let before = (before != 0).then_some(SnapId(before));
        let now = if now == 0 { SnapId::HEAD } else { SnapId(now) };
        let delta = delta(set, before, now, 1 << 20, whole);
        [delta.data, delta.zero]
    }

    /// Snapsets and answers of a real cluster, objects of 1 MiB.
    #[test]
    fn deltas_are_those_that_ceph_s_rbd_tells() {
        let shrunk = SnapSet {
            seq: 13,
            clones: vec![
                version(11, &[11], &[(0, 131_072)], 1_000_000),
                version(12, &[12], &[(0, 131_072)], 131_072),
                version(13, &[13], &[(0, 262_144)], 900_010),
                version(0, &[], &[], 262_144),
            ],
        };
        type Runs<'a> = &'a [(u64, u64)];
        let rows: &[(u64, u64, Runs<'_>, Runs<'_>)] = &[
            (0, 11, &[(0, 1_000_000)], &[]),
            (0, 12, &[(0, 1_000_000)], &[]),
            (0, 0, &[(0, 1_000_000)], &[]),
            (11, 12, &[], &[(131_072, 1_000_000)]),
            (11, 13, &[(131_072, 900_010)], &[(900_010, 1_000_000)]),
            (11, 0, &[(131_072, 262_144)], &[(262_144, 1_000_000)]),
            (12, 0, &[(131_072, 900_010)], &[]),
            (13, 0, &[], &[(262_144, 900_010)]),
        ];
        for &(before, now, data, zero) in rows {
            assert_eq!(
                parts(&shrunk, before, now, false),
                [data, zero],
                "{before} to {now}"
            );
        }
        assert_eq!(
            parts(&shrunk, 11, 12, true),
            [
                vec![(0, 131_072), (1_000_000, 1 << 20)],
                vec![(131_072, 1_000_000)]
            ]
        );
    }

    #[test]
    fn an_object_that_is_gone_is_zero_where_it_was() {
        let removed = SnapSet {
            seq: 13,
            clones: vec![version(13, &[11, 12, 13], &[], 1000)],
        };
        assert_eq!(parts(&removed, 11, 0, false), [vec![], vec![(0, 1000)]]);
        assert_eq!(parts(&removed, 11, 0, true), [vec![], vec![(0, 1 << 20)]]);
        assert_eq!(parts(&removed, 0, 0, false), [vec![], vec![]]);
        assert_eq!(parts(&removed, 11, 13, true), [vec![], vec![]]);
        assert_eq!(parts(&removed, 10, 11, false), [vec![(0, 1000)], vec![]]);
    }

    #[test]
    fn an_object_made_and_removed_in_between_is_no_difference() {
        let set = SnapSet {
            seq: 14,
            clones: vec![version(12, &[12], &[], 500)],
        };
        assert_eq!(parts(&set, 11, 0, true), [vec![], vec![]]);
    }

    #[test]
    fn a_version_that_serves_nobody_makes_all_of_the_object_count() {
        let set = SnapSet {
            seq: 14,
            clones: vec![version(12, &[], &[], 500), version(0, &[], &[], 10)],
        };
        assert_eq!(parts(&set, 13, 0, false), [vec![(0, 1 << 20)], vec![]]);
    }
}
