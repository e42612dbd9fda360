//! Compares what images show with the reference.

use ferry_image::{Image, ImageKey, OpenOptions, SnapKey};
pub use ferry_reference::Exact as Reference;
use ferry_reference::Version;
use ferry_store::IoCtx;

/// Most bytes that are read at once.
const STEP: u64 = 1 << 20;

/// The comparisons of a reference.
pub trait Compared {
    /// Compares the head that an open handle shows.
    async fn check_head(&self, image: &Image, when: &str);

    /// Compares head and all snapshots through fresh read-only handles.
    async fn check_all(&self, io: &IoCtx, name: &str, when: &str);
}

impl Compared for Reference {
    async fn check_head(&self, image: &Image, when: &str) {
        compare_version(image, &self.head, &format!("head {when}")).await;
    }

    async fn check_all(&self, io: &IoCtx, name: &str, when: &str) {
        let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_only())
            .await
            .unwrap();
        image.refresh().await.unwrap();
        self.check_head(&image, when).await;
        let mut names: Vec<String> = image
            .header()
            .user_snaps()
            .map(|snap| snap.name.clone())
            .collect();
        names.sort();
        assert_eq!(
            names,
            self.snaps.keys().cloned().collect::<Vec<_>>(),
            "snapshots {when}"
        );
        image.close().await.unwrap();
        for (snap, version) in &self.snaps {
            let options = OpenOptions::read_only().at(SnapKey::Name(snap.clone()));
            let image = Image::open(io, ImageKey::Name(name), options).await.unwrap();
            compare_version(&image, version, &format!("snapshot {snap} {when}")).await;
            image.close().await.unwrap();
        }
    }
}

/// Reads the whole handle and compares; a difference is shown by its first offset, and whose bytes are there.
pub async fn compare_version(image: &Image, version: &Version, what: &str) {
    let size_bytes = version.size_bytes();
    assert_eq!(image.size_bytes(), size_bytes, "size of {what}");
    for start in (0..size_bytes).step_by(STEP as usize) {
        let length = (size_bytes - start).min(STEP);
        let got = image.read(start, length).await.unwrap();
        if let Err(violation) = version.check(start, &got) {
            panic!("{what}: {violation}");
        }
    }
}

/// The same with bytes that are known.
pub async fn compare(image: &Image, expected: &[u8], what: &str) {
    compare_version(image, &Reference::showing(expected).head, what).await;
}
