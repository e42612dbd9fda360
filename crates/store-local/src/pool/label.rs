//! The label of a data file: which file of which pool of which store it is, kept as an extended attribute, so that a file in
//! another's place is noticed when it is opened.
//!
//! Keeps invariant: a label is written once, when the file is made, and moves with the file, not with its name. A file without one
//! (of an older program, of a file system or a copying tool that drops attributes) is taken for what its name says.
//! Does not know layers.

/// Name of the attribute.
pub(crate) const ATTRIBUTE: &str = "user.ferry.file";
const MAGIC: &[u8; 4] = b"FFL1";
/// Bytes of a label: short enough to lie in the inode.
const BYTES: usize = 44;

/// A pool of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The store's uuid.
    pub(crate) store: u128,
    /// The pool's id.
    pub(crate) pool: i64,
}

/// What a label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Label {
    /// The file is that one of this pool.
    Here(String),
    /// It is of another pool or store.
    Elsewhere,
    /// It is no label.
    Damaged,
}

/// The label of file `name`, which has the form of one; `None`: it has not.
pub(crate) fn encode(identity: &Identity, name: &str) -> Option<[u8; BYTES]> {
    let (gid, number) = name.split_once('.')?;
    let numbers = [
        u64::from_str_radix(gid, 16).ok()?,
        u64::from_str_radix(number, 16).ok()?,
    ];
    let mut label = [0; BYTES];
    label[..4].copy_from_slice(MAGIC);
    label[4..20].copy_from_slice(&identity.store.to_be_bytes());
    label[20..28].copy_from_slice(&identity.pool.to_le_bytes());
    label[28..36].copy_from_slice(&numbers[0].to_le_bytes());
    label[36..44].copy_from_slice(&numbers[1].to_le_bytes());
    Some(label)
}

/// What a label says to the pool `identity`.
pub(crate) fn decode(identity: &Identity, label: &[u8]) -> Label {
    let word = |at: usize| label.get(at..at + 8)?.first_chunk::<8>().copied();
    let (Some(gid), Some(number), true) = (
        word(28).map(u64::from_le_bytes),
        word(36).map(u64::from_le_bytes),
        label.len() == BYTES && label.starts_with(MAGIC),
    ) else {
        return Label::Damaged;
    };
    let name = format!("{gid:x}.{number:x}");
    match encode(identity, &name) {
        Some(same) if same == label => Label::Here(name),
        _ => Label::Elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_which_file_of_which_pool_of_which_store_it_is() {
        let here = Identity {
            store: 0x1234_5678_9abc_def0_0fed_cba9_8765_4321,
            pool: 3,
        };
        let label = encode(&here, "1004.1f").unwrap();
        assert_eq!(decode(&here, &label), Label::Here("1004.1f".to_owned()));
        let other = |identity| decode(&identity, &label);
        assert_eq!(other(Identity { pool: 4, ..here }), Label::Elsewhere);
        assert_eq!(other(Identity { store: 5, ..here }), Label::Elsewhere);
        assert_eq!(decode(&here, &label[..BYTES - 1]), Label::Damaged);
        assert_eq!(decode(&here, &[0; BYTES]), Label::Damaged);
        assert_eq!(encode(&here, "junk"), None);
        for at in 0..BYTES {
            let mut flipped = label;
            flipped[at] ^= 1;
            assert_ne!(
                decode(&here, &flipped),
                Label::Here("1004.1f".to_owned()),
                "byte {at}"
            );
        }
    }
}
