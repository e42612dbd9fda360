//! Discards of ranges that no list of objects could hold: they cost what exists in them, whatever it lies over, and leave what a
//! discard of each single object would. An image of 2^60 bytes has 2^35 of the largest objects.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use ferry_cls::rbd::feature;
use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::admin::import_diff::import_diff;
use ferry_image::export_format::{DiffHead, Input, Run, RunKind, Version, diff};
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::wrappers::{FaultyStore, Moment};
use ferry_store::{IoCtx, Scope, Store};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use support::reference::{Compared as _, Reference};
use support::{Engine, TestLayout, pool};

const SIZE: u64 = 1 << 60;
/// Where the wide images have bytes, [`BYTES`] at each place.
const PLACES: [u64; 5] = [0, (1 << 26) - 9, (1 << 40) + 5, (1 << 59) + 77, SIZE - BYTES];
const BYTES: u64 = 4096;
/// What is discarded leaves so many bytes at either end.
const LEFT: u64 = 100;
/// No test here needs a minute; one object after the other would need years.
const PATIENCE: Duration = Duration::from_secs(600);
/// Calls of the store that are not many.
const FEW: u64 = 3_000;

const LARGE: TestLayout = TestLayout(25, 0, 0);
const STRIPED: TestLayout = TestLayout(24, 1 << 20, 3);

fn silent() -> Progress {
    Progress::silent()
}

async fn in_time<F: Future>(work: F) -> F::Output {
    // Boxed: the futures of a whole test are large.
    let ended = tokio::time::timeout(PATIENCE, Box::pin(work)).await;
    ended.expect("it does not end: it goes through objects that do not exist")
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

/// An image of 2^60 bytes, too large for an object map, with `tag` at all places; and its snapshot `s`.
async fn wide(io: &IoCtx, name: &str, layout: TestLayout, tag: u8) {
    let options = CreateOptions {
        features: Some(feature::LAYERING | feature::EXCLUSIVE_LOCK | feature::STRIPINGV2),
        ..layout.create(SIZE)
    };
    create::create(io, name, &options).await.unwrap();
    write_places(io, name, &PLACES, tag).await;
}

async fn write_places(io: &IoCtx, name: &str, places: &[u64], tag: u8) {
    let image = open(io, name).await;
    for place in places {
        image
            .write(*place, vec![tag; BYTES as usize].into())
            .await
            .unwrap();
    }
    image.snap_create("s", &silent()).await.unwrap();
    image.snap_protect("s").await.unwrap();
    image.close().await.unwrap();
}

async fn clone_of(io: &IoCtx, parent: &str, child: &str, order: u8) {
    let options = CloneOptions {
        order: Some(order),
        stripe_unit_bytes: Some(1 << order),
        stripe_count: Some(1),
        format: Some(CloneFormat::Two),
        ..CloneOptions::default()
    };
    let snap = SnapKey::Name("s".to_owned());
    clone(io, parent, &snap, io, child, &options).await.unwrap();
}

/// What an image shows at all places, each by its first and last [`LEFT`] bytes and what lies between.
async fn seen(io: &IoCtx, name: &str, snap: Option<&str>) -> Vec<[u8; 3]> {
    let options = match snap {
        None => OpenOptions::read_only(),
        Some(snap) => OpenOptions::read_only().at(SnapKey::Name(snap.to_owned())),
    };
    let image = Image::open(io, ImageKey::Name(name), options).await.unwrap();
    let mut seen = Vec::new();
    for place in PLACES {
        let bytes = image.read(place, BYTES).await.unwrap();
        let (first, rest) = bytes.split_at(LEFT as usize);
        let (middle, last) = rest.split_at(rest.len() - LEFT as usize);
        let parts = [first, middle, last];
        for part in parts {
            assert!(part.iter().all(|byte| *byte == part[0]), "at {place}");
        }
        seen.push(parts.map(|part| part[0]));
    }
    image.close().await.unwrap();
    seen
}

/// All places with `tag`.
fn whole(tag: u8) -> Vec<[u8; 3]> {
    vec![[tag; 3]; PLACES.len()]
}

/// After a discard of all but the ends, by what was there at the ends.
fn discarded(first: u8, last: u8) -> Vec<[u8; 3]> {
    let mut seen = whole(0);
    seen[0][0] = first;
    seen[PLACES.len() - 1][2] = last;
    seen
}

/// A client whose calls are counted.
async fn counted(engine: &Engine, name: &str) -> (Arc<FaultyStore>, IoCtx) {
    let client = engine.doomed(u64::MAX, Moment::Before).await.store;
    let store: Arc<dyn Store> = client.clone();
    let id = pool(&store, name).await.pool();
    (client.clone(), IoCtx::new(store, Scope::new(id)))
}

async fn discard_all_but_the_ends(engine: &Engine, name: &str) {
    let (client, io) = counted(engine, "rbd").await;
    let image = open(&io, name).await;
    image.discard(LEFT, SIZE - 2 * LEFT).await.unwrap();
    image.flush().await.unwrap();
    image.close().await.unwrap();
    let calls = client.hook().calls();
    assert!(calls < FEW, "{calls} calls");
}

async fn plain(engine: Engine) {
    let store = engine.connect().await;
    let io = pool(&store, "rbd").await;
    for (name, layout) in [("large", LARGE), ("striped", STRIPED)] {
        wide(&io, name, layout, 7).await;
        discard_all_but_the_ends(&engine, name).await;
        assert_eq!(seen(&io, name, None).await, discarded(7, 7), "{name}");
        assert_eq!(seen(&io, name, Some("s")).await, whole(7), "{name}");
        // The whole of it, and once more where nothing is.
        let image = open(&io, name).await;
        image.discard(0, SIZE).await.unwrap();
        image.discard(0, SIZE).await.unwrap();
        image.sparsify(4096, &silent()).await.unwrap();
        image.close().await.unwrap();
        assert_eq!(seen(&io, name, None).await, whole(0), "{name}");
        assert_eq!(seen(&io, name, Some("s")).await, whole(7), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exabyte_is_discarded_at_the_cost_of_what_it_holds() {
    in_time(plain(Engine::memory())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exabyte_is_discarded_at_the_cost_of_what_it_holds_on_the_local_engine() {
    in_time(plain(Engine::local())).await;
}

/// Three generations; the middle one has smaller objects.
async fn clones(engine: Engine) {
    let store = engine.connect().await;
    let io = pool(&store, "rbd").await;
    wide(&io, "grand", LARGE, 1).await;
    clone_of(&io, "grand", "mid", 20).await;
    write_places(&io, "mid", &PLACES[2..3], 2).await;
    let mut mid = whole(1);
    mid[2] = [2; 3];
    for has_snapshot in [false, true] {
        let name = format!("child-{has_snapshot}");
        clone_of(&io, "mid", &name, 25).await;
        if has_snapshot {
            let image = open(&io, &name).await;
            image.snap_create("before", &silent()).await.unwrap();
            image.close().await.unwrap();
        }
        assert_eq!(seen(&io, &name, None).await, mid, "{name}");
        discard_all_but_the_ends(&engine, &name).await;
        assert_eq!(seen(&io, &name, None).await, discarded(1, 1), "{name}");
        if has_snapshot {
            assert_eq!(seen(&io, &name, Some("before")).await, mid, "{name}");
        }
    }
    assert_eq!(seen(&io, "mid", None).await, mid);
    assert_eq!(seen(&io, "grand", None).await, whole(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discard_of_an_exabyte_hides_what_parents_have_and_snapshots_keep_it() {
    in_time(clones(Engine::memory())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discard_of_an_exabyte_hides_what_parents_have_on_the_local_engine() {
    in_time(clones(Engine::local())).await;
}

async fn migrated(engine: Engine) {
    let store = engine.connect().await;
    let io = pool(&store, "rbd").await;
    wide(&io, "source", LARGE, 3).await;
    let options = PrepareOptions {
        order: Some(23),
        ..PrepareOptions::default()
    };
    prepare(&io, "source", &io, "target", &options).await.unwrap();
    assert_eq!(seen(&io, "target", None).await, whole(3));
    discard_all_but_the_ends(&engine, "target").await;
    let check = async |when| {
        assert_eq!(seen(&io, "target", None).await, discarded(3, 3), "{when}");
        assert_eq!(seen(&io, "target", Some("s")).await, whole(3), "{when}");
    };
    check("prepared").await;
    execute(&io, "target", &silent()).await.unwrap();
    check("executed").await;
    commit(&io, "target", &silent()).await.unwrap();
    check("committed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discard_of_an_exabyte_hides_the_source_of_a_migration() {
    in_time(migrated(Engine::memory())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discard_of_an_exabyte_hides_the_source_of_a_migration_on_the_local_engine() {
    in_time(migrated(Engine::local())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diff_that_zeroes_an_exabyte_is_imported() {
    let work = async {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        wide(&io, "image", LARGE, 9).await;
        let head = DiffHead {
            from: Some("s".to_owned()),
            to: Some("t".to_owned()),
            protected: false,
            size_bytes: SIZE,
        };
        let zero = Run {
            kind: RunKind::Zero,
            offset: LEFT,
            length_bytes: SIZE - 2 * LEFT,
        };
        let mut bytes = diff::encode_head(Version::V1, &head);
        bytes.extend(diff::encode_run(Version::V1, zero));
        bytes.extend(diff::encode_end());
        let image = open(&io, "image").await;
        let mut file = Cursor::new(bytes);
        import_diff(&image, &mut Input::file(&mut file), 4096, &silent())
            .await
            .unwrap();
        image.close().await.unwrap();
        assert_eq!(seen(&io, "image", None).await, discarded(9, 9));
        assert_eq!(seen(&io, "image", Some("t")).await, discarded(9, 9));
        assert_eq!(seen(&io, "image", Some("s")).await, whole(9));
    };
    in_time(work).await;
}

/// Of what is wide enough not to be discarded object by object, and small enough for a copy to compare with.
const COMPARED: u64 = 24 << 20;

/// What the discarded image is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    WithMap,
    WithoutMap,
    Clone,
    Target,
}

async fn random_discards(kind: Kind, layout: TestLayout, rng: &mut StdRng) {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let mut reference = Reference::new(COMPARED);
    let has_first = matches!(kind, Kind::Clone | Kind::Target);
    let first = TestLayout(layout.0 + u8::from(has_first), layout.1, layout.2);
    let options = CreateOptions {
        features: (kind == Kind::WithoutMap).then_some(feature::LAYERING | feature::STRIPINGV2),
        ..first.create(COMPARED)
    };
    create::create(&io, "first", &options).await.unwrap();
    let mut image = open(&io, "first").await;
    let mut snaps = 0;
    for step in 0..40 {
        if step == 15 && has_first {
            image.snap_create("s", &silent()).await.unwrap();
            image.snap_protect("s").await.unwrap();
            image.close().await.unwrap();
            if kind == Kind::Clone {
                clone_of(&io, "first", "last", layout.0).await;
                reference.snaps.clear();
            } else {
                let options = PrepareOptions {
                    order: Some(layout.0),
                    ..PrepareOptions::default()
                };
                prepare(&io, "first", &io, "last", &options).await.unwrap();
                reference.snap("s");
            }
            image = open(&io, "last").await;
        }
        match rng.random_range(0..10) {
            0 => {
                snaps += 1;
                let name = format!("r{snaps}");
                image.snap_create(&name, &silent()).await.unwrap();
                reference.snap(&name);
            }
            1..=6 => {
                let length = rng.random_range(1..40_000);
                let offset = rng.random_range(0..COMPARED - length);
                let data = vec![rng.random_range(1..=255u8); length as usize];
                reference.write(offset, &data);
                image.write(offset, data.into()).await.unwrap();
            }
            _ => {
                let offset = rng.random_range(0..COMPARED / 8);
                let end = rng.random_range(COMPARED / 8 * 7..=COMPARED);
                reference.zero(offset, end - offset);
                image.discard(offset, end - offset).await.unwrap();
            }
        }
    }
    let name = image.name().to_owned();
    image.close().await.unwrap();
    let when = format!("{kind:?} {layout:?}");
    reference.check_all(&io, &name, &when).await;
    support::sound(io.store(), &when).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_wide_discards_leave_what_a_reference_says() {
    let seed = ferry_reference::seed();
    println!("FERRY_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    // Objects of 4 KiB are too many here to be visited one by one.
    for layout in [TestLayout(12, 0, 0), TestLayout(12, 1024, 3)] {
        for kind in [Kind::WithMap, Kind::WithoutMap, Kind::Clone, Kind::Target] {
            random_discards(kind, layout, &mut rng).await;
        }
    }
}
