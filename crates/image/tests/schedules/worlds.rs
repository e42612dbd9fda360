//! What a schedule begins with: a store with one image in one of several conditions, made once and forked for each schedule.

use std::collections::HashMap;
use std::sync::Arc;

use ferry_image::admin::create;
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_reference::Exact;
use ferry_store::memory::MemoryCluster;
use ferry_store::{IoCtx, Store};
use parking_lot::Mutex;

use crate::support::{TestLayout, pool};

/// What requests are multiples of.
pub const BLOCK_BYTES: u64 = 512;
/// Size of the image: six objects of 4 KiB.
pub const BLOCKS: usize = 48;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    Plain,
    Clone,
    /// Target of a prepared migration.
    Target,
    /// The same, of a clone, which it stays.
    TargetOfClone,
    /// The same, cut loose from the parent.
    TargetFlat,
    /// Target of an executed migration.
    Executed,
}

impl Condition {
    pub fn is_target(self) -> bool {
        !matches!(self, Self::Plain | Self::Clone)
    }

    pub fn is_clone(self) -> bool {
        matches!(self, Self::Clone | Self::TargetOfClone)
    }
}

/// Layouts of targets; the other images have objects of 4 KiB.
pub const LAYOUTS: [TestLayout; 3] = [
    TestLayout(12, 0, 0),
    TestLayout(13, 0, 0),
    TestLayout(13, 1024, 2),
];

/// Such a store, and what is in it.
#[derive(Clone)]
pub struct Built {
    pub cluster: MemoryCluster,
    /// What the image shows.
    pub image: Exact,
    /// Of a migration: the source's id.
    pub source: Option<String>,
}

/// Where bytes are in an image: first block and number of blocks.
struct Spread {
    parent: &'static [(usize, usize)],
    /// Those of the image itself, and the snapshot behind each.
    image: &'static [(usize, usize, &'static str)],
}

/// Every object has bytes, in the image or in its parent.
const EVERYWHERE: Spread = Spread {
    parent: &[(2, 20), (30, 14)],
    image: &[(0, 11, "s1"), (5, 2, "s2"), (9, 1, ""), (36, 5, "")],
};
/// Of objects 3 and 5 nobody has any.
const WITH_HOLES: Spread = Spread {
    parent: &[(2, 20), (36, 3)],
    image: &[(0, 11, "s1"), (5, 2, "s2"), (9, 1, ""), (33, 3, "")],
};

type Made = HashMap<(Condition, usize, bool), Built>;
static MADE: Mutex<Option<Made>> = Mutex::new(None);

/// A store of its own in this condition.
pub async fn world(condition: Condition, layout: usize, has_holes: bool) -> Built {
    let known = MADE
        .lock()
        .get_or_insert_default()
        .get(&(condition, layout, has_holes))
        .cloned();
    let built = match known {
        Some(built) => built,
        None => {
            let spread = match has_holes {
                true => WITH_HOLES,
                false => EVERYWHERE,
            };
            let built = build(condition, LAYOUTS[layout], &spread).await;
            MADE.lock()
                .get_or_insert_default()
                .entry((condition, layout, has_holes))
                .or_insert(built)
                .clone()
        }
    };
    Built {
        cluster: built.cluster.fork(),
        ..built
    }
}

async fn write(image: &Image, reference: &mut Exact, first: usize, blocks: usize) {
    let offset = first as u64 * BLOCK_BYTES;
    let bytes = reference.write_tagged(offset, blocks as u64 * BLOCK_BYTES);
    image.write(offset, bytes.into()).await.unwrap();
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

async fn build(condition: Condition, layout: TestLayout, spread: &Spread) -> Built {
    let cluster = MemoryCluster::new(ferry_cls::registry());
    let store: Arc<dyn Store> = cluster.connect();
    let io = pool(&store, "rbd").await;
    let other = pool(&store, "p2").await;
    let silent = Progress::silent();
    let size = BLOCKS as u64 * BLOCK_BYTES;
    let mut reference = Exact::new(size);
    let has_parent = matches!(
        condition,
        Condition::Clone | Condition::TargetOfClone | Condition::TargetFlat
    );
    let plain = TestLayout(12, 0, 0).create(size);
    if has_parent {
        create::create(&io, "base", &plain).await.unwrap();
        let base = open(&io, "base").await;
        for &(first, blocks) in spread.parent {
            write(&base, &mut reference, first, blocks).await;
        }
        base.snap_create("s", &silent).await.unwrap();
        base.close().await.unwrap();
        let snap = SnapKey::Name("s".to_owned());
        let options = CloneOptions {
            format: Some(CloneFormat::Two),
            ..CloneOptions::default()
        };
        clone(&io, "base", &snap, &io, "image", &options).await.unwrap();
    } else {
        create::create(&io, "image", &plain).await.unwrap();
    }
    let image = open(&io, "image").await;
    for &(first, blocks, snap) in spread.image {
        write(&image, &mut reference, first, blocks).await;
        if !snap.is_empty() {
            image.snap_create(snap, &silent).await.unwrap();
            reference.snap(snap);
        }
    }
    let id = image.id().to_owned();
    image.close().await.unwrap();
    if condition.is_target() {
        let options = PrepareOptions {
            order: Some(layout.0),
            stripe_unit_bytes: Some(layout.1).filter(|unit| *unit != 0),
            stripe_count: Some(layout.2).filter(|count| *count != 0),
            flatten: condition == Condition::TargetFlat,
            ..PrepareOptions::default()
        };
        prepare(&io, "image", &other, "moved", &options).await.unwrap();
    }
    if condition == Condition::Executed {
        execute(&other, "moved", &silent).await.unwrap();
    }
    store.shutdown().await.unwrap();
    Built {
        cluster,
        image: reference,
        source: condition.is_target().then_some(id),
    }
}
