//! The reference: an image is a vector of bytes and some named copies of it.

use std::collections::BTreeMap;

use ferry_image::{Image, ImageKey, OpenOptions, SnapKey};
use ferry_store::IoCtx;

/// What an image must show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reference {
    pub head: Vec<u8>,
    pub snaps: BTreeMap<String, Vec<u8>>,
}

impl Reference {
    pub fn new(size_bytes: u64) -> Self {
        Self {
            head: vec![0; size_bytes as usize],
            snaps: BTreeMap::new(),
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.head[offset as usize..][..data.len()].copy_from_slice(data);
    }

    pub fn zero(&mut self, offset: u64, length_bytes: u64) {
        self.head[offset as usize..][..length_bytes as usize].fill(0);
    }

    pub fn resize(&mut self, size_bytes: u64) {
        self.head.resize(size_bytes as usize, 0);
    }

    pub fn snap(&mut self, name: &str) {
        self.snaps.insert(name.to_owned(), self.head.clone());
    }

    /// Compares the head that an open handle shows.
    pub async fn check_head(&self, image: &Image, when: &str) {
        assert_eq!(image.size_bytes(), self.head.len() as u64, "size {when}");
        compare(image, &self.head, &format!("head {when}")).await;
    }

    /// Compares head and all snapshots through fresh read-only handles.
    pub async fn check_all(&self, io: &IoCtx, name: &str, when: &str) {
        let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_only())
            .await
            .unwrap();
        image.refresh().await.unwrap();
        self.check_head(&image, when).await;
        let names: Vec<String> = image
            .header()
            .user_snaps()
            .map(|snap| snap.name.clone())
            .collect();
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(
            sorted,
            self.snaps.keys().cloned().collect::<Vec<_>>(),
            "snapshots {when}"
        );
        image.close().await.unwrap();
        for (snap, bytes) in &self.snaps {
            let options = OpenOptions::read_only().at(SnapKey::Name(snap.clone()));
            let image = Image::open(io, ImageKey::Name(name), options).await.unwrap();
            assert_eq!(
                image.size_bytes(),
                bytes.len() as u64,
                "size of snapshot {snap} {when}"
            );
            compare(&image, bytes, &format!("snapshot {snap} {when}")).await;
            image.close().await.unwrap();
        }
    }
}

/// Reads the whole handle and compares; a difference is shown by its first offset.
pub async fn compare(image: &Image, expected: &[u8], what: &str) {
    const STEP: usize = 1 << 20;
    for start in (0..expected.len()).step_by(STEP) {
        let wanted = &expected[start..expected.len().min(start + STEP)];
        let got = image.read(start as u64, wanted.len() as u64).await.unwrap();
        if got != wanted {
            let at = got.iter().zip(wanted).position(|(a, b)| a != b).unwrap();
            panic!(
                "{what}: byte {} is {} and should be {}",
                start + at,
                got[at],
                wanted[at]
            );
        }
    }
}
