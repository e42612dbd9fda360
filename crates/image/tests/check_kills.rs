//! A repair of images that dies at each of its durable steps: the next one finishes, says what one would have said that was not
//! killed, and the two leave what that one would have left. Time is virtual.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ferry_image::check;
use ferry_store::check::{CheckOptions, Finding};
use ferry_store::memory::MemoryCluster;
use ferry_store::wrappers::{FaultyStore, Moment};
use ferry_store::{IoCtx, PoolId, ReadOp, ReadResult, ReadStep, Scope, SnapId, Store};
use support::damage::{REPAIR, as_text, damage_everything, find, make};
use support::pool;

/// Reaching it means that a repair does not end.
const MAX_STEPS: u64 = 2_000;
/// More than an object of these images has.
const MAX_BYTES: u64 = 1 << 20;
const MAX_KEYS: usize = 1_000;

/// Data and keys of every object, by pool and name.
type Contents = BTreeMap<(i64, String), (Bytes, BTreeMap<Bytes, Bytes>)>;

async fn contents(store: &Arc<dyn Store>) -> Contents {
    let mut contents = Contents::new();
    for of in store.pool_list().await.unwrap() {
        let io = IoCtx::new(store.clone(), Scope::new(of.id));
        for name in store.list_objects(io.scope(), "", "", 10_000).await.unwrap() {
            let op = ReadOp::new().read(0, MAX_BYTES).step(ReadStep::OmapGetVals {
                start_after: Bytes::new(),
                prefix: Bytes::new(),
                max: MAX_KEYS,
            });
            // Maps may say less of what changed than one repair would have; the check compares them with the objects.
            if name.starts_with("rbd_object_map.") {
                continue;
            }
            // Without a head only its clones are left, which no repair touches.
            let Ok(reply) = io.read(&name, SnapId::HEAD, op).await else {
                continue;
            };
            let data = reply.data(0);
            let Some(ReadResult::Omap { mut values, .. }) = reply.results.into_iter().nth(1) else {
                panic!("no keys of {name}");
            };
            // No flags are written as zeroes, or not at all.
            values.retain(|key, value| key != "flags" || value.iter().any(|byte| *byte != 0));
            contents.insert((of.id.0, name), (data, values));
        }
    }
    contents
}

/// Where two stores differ first.
fn difference(found: &Contents, expected: &Contents) -> Option<String> {
    let names = found.keys().chain(expected.keys());
    let mut different = names.filter(|name| found.get(*name) != expected.get(*name));
    different
        .next()
        .map(|name| format!("{name:?}: {:?}, not {:?}", found.get(name), expected.get(name)))
}

/// Repairs the pool with a client that dies after step `nth`; gives the steps that it made.
async fn killed_repair(cluster: &MemoryCluster, in_pool: PoolId, nth: u64) -> u64 {
    let inner = cluster.connect();
    let dying = inner.clone();
    let client = FaultyStore::with_death(inner.clone(), move || dying.kill());
    client.hook().kill_at(nth, Moment::After);
    let store: Arc<dyn Store> = client.clone();
    let pools = store.pool_list().await.unwrap();
    let of = pools.iter().find(|of| of.id == in_pool).unwrap();
    // Whatever it says: it is dead.
    let _ = check::pool(&store, of, REPAIR).await;
    let steps = client.hook().mutations();
    inner.kill();
    steps.min(nth)
}

fn open_ones(found: &[Finding]) -> String {
    let open: Vec<Finding> = found.iter().filter(|found| !found.mended).cloned().collect();
    as_text(&open)
}

#[tokio::test(start_paused = true)]
async fn a_repair_killed_at_each_step_is_finished_by_the_next_which_says_the_same() {
    let cluster = MemoryCluster::new(ferry_cls::registry());
    let store: Arc<dyn Store> = cluster.connect();
    let (io, other) = (pool(&store, "rbd").await, pool(&store, "p2").await);
    make(&io, "sound").await;
    damage_everything(&io, &other).await;
    let in_pool = io.pool();
    let place = |cluster: &MemoryCluster| -> IoCtx {
        let store: Arc<dyn Store> = cluster.connect();
        IoCtx::new(store, Scope::new(in_pool))
    };

    let whole = cluster.fork();
    let unkilled = place(&whole);
    let said = open_ones(&find(&unkilled, REPAIR).await);
    let left = open_ones(&find(&unkilled, CheckOptions::default()).await);
    let expected = contents(unkilled.store()).await;
    let steps = killed_repair(&cluster.fork(), in_pool, u64::MAX).await;
    assert!((20..MAX_STEPS).contains(&steps), "{steps} steps");
    println!("{steps} steps");

    for nth in 1..=steps {
        for power_goes in [false, true] {
            let when = format!("killed after step {nth} of {steps}, power loss: {power_goes}");
            let trial = cluster.fork();
            killed_repair(&trial, in_pool, nth).await;
            if power_goes {
                trial.power_loss(nth);
            }
            let next = place(&trial);
            let repaired = find(&next, REPAIR).await;
            assert_eq!(open_ones(&repaired), said, "{when}");
            assert_eq!(
                open_ones(&find(&next, CheckOptions::default()).await),
                left,
                "{when}"
            );
            if let Some(difference) = difference(&contents(next.store()).await, &expected) {
                panic!("{when}: {difference}");
            }
        }
    }
}
