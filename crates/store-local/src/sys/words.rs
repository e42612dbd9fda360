//! A file of 64-bit words that several processes map at once.
//!
//! Keeps invariant: the mapping is never longer than the file was when it was mapped, and every word is only touched
//! atomically. The files are volatile state: after a power loss they are made anew. Does not know what words mean.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};

/// The mapped words.
#[derive(Debug)]
pub(crate) struct SharedWords {
    map: MmapRaw,
    words: usize,
}

impl SharedWords {
    /// Fills the file up with zeros to `words` words, so that no touch of a word can fail for space. Callers exclude
    /// each other.
    pub(crate) fn fill(file: &File, words: usize) -> io::Result<()> {
        let have = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        match (words * 8).checked_sub(have) {
            Some(missing) => file.write_all_at(&vec![0; missing], have as u64),
            None => Ok(()),
        }
    }

    /// Maps the first `words` words of a filled file; `None` when it is shorter.
    pub(crate) fn map(file: &File, words: usize) -> io::Result<Option<Self>> {
        let length_bytes = words * 8;
        if file.metadata()?.len() < length_bytes as u64 {
            return Ok(None);
        }
        let map = MmapOptions::new().len(length_bytes).map_raw(file)?;
        Ok(Some(Self { map, words }))
    }

    /// Word `index`.
    ///
    /// # Panics
    /// When `index` is outside the mapping: an error of this crate, indexes never come from outside.
    #[allow(unsafe_code)]
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "word {index} of {}", self.words);
        // SAFETY: the mapping is `words * 8` bytes long, page-aligned (so each word is aligned), lives as long as
        // `self`, and is only ever accessed through atomics, here and in every other process.
        unsafe { &*self.map.as_mut_ptr().cast::<AtomicU64>().add(index) }
    }
}
