//! Random histories with snapshots, clones and sizes, moved at rest and under a client that goes on with its own.
//!
//! `FERRY_SEED` replays one.

use ferry_reference::seed;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::scene::{Contents, OBJECT_BYTES, Place, SIZE, Scene, everywhere};

const SNAPS: u8 = 4;
const WRITES: usize = 4;

fn range(rng: &mut StdRng, size_bytes: u64) -> (u64, u64) {
    let length = rng.random_range(1..2 * OBJECT_BYTES).min(size_bytes);
    let offset = rng.random_range(0..size_bytes).min(size_bytes - length);
    (offset, length)
}

/// Rounds of writes and discards, each with a snapshot at its end, now and then another size, and, where the image may have
/// children, one that takes its place.
async fn work(scene: &mut Scene, rng: &mut StdRng, snaps: &str, may_clone: bool) {
    for round in 0..SNAPS {
        for _ in 0..WRITES {
            let size_bytes = scene.reference.size_bytes();
            let (offset, length) = range(rng, size_bytes);
            scene.write(offset, length, b'A' + round).await;
            let (offset, length) = range(rng, size_bytes);
            scene.discard(offset, length).await;
        }
        let snap = format!("{snaps}{round}");
        scene.snap(&snap).await;
        if may_clone && rng.random_range(0..4) > 0 {
            scene.become_clone(&snap, &format!("child{round}")).await;
        }
        if rng.random_bool(0.5) {
            scene.resize(SIZE + rng.random_range(0..SIZE)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_moves() {
    let seed = seed();
    everywhere(&[Contents::Nothing], async |scene| {
        let mut rng = StdRng::seed_from_u64(seed);
        work(scene, &mut rng, "s", true).await;
        scene.check("at rest").await;
        scene.migrate(Place::Here).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_goes_on_between_prepare_and_execute() {
    let seed = seed();
    everywhere(&[Contents::Nothing], async |scene| {
        let mut rng = StdRng::seed_from_u64(seed);
        work(scene, &mut rng, "s", true).await;
        scene.prepare(Place::Here).await;
        work(scene, &mut rng, "since", false).await;
        scene.check("before execute").await;
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_goes_on_while_another_process_executes() {
    let seed = seed();
    everywhere(&[Contents::Nothing], async |scene| {
        let mut rng = StdRng::seed_from_u64(seed);
        work(scene, &mut rng, "s", true).await;
        scene.prepare(Place::Here).await;
        scene
            .execute_beside(async |scene| work(scene, &mut rng, "since", false).await)
            .await;
        scene.commit().await;
    })
    .await;
}
