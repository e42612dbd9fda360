//! Whole systems in one thread: several clients of one image, the verbs of a migration, clients that die or are cut off, on
//! virtual time, with a seed that says whose call to the store is next. Judged by the reference: at once by what a read may see,
//! at the end by whether there is an order of all that happened to each block.
//!
//! A schedule is a seed: `FERRY_SEED` replays one, `FERRY_SCHEDULES` asks for more. Every pair of roles has its turn.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

#[path = "schedules/cast.rs"]
mod cast;
#[path = "schedules/judge.rs"]
mod judge;
mod support;
#[path = "schedules/worlds.rs"]
mod worlds;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use cast::{Finding, Process, ROLES, Role, Stage};
use ferry_reference::History;
use ferry_store::wrappers::{Call, Defect, OpKind, Schedule, Turn};
use ferry_store::{Scope, Store, WriteAround};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use worlds::{BLOCK_BYTES, BLOCKS, Condition};

/// More turns than any schedule needs; reaching it means that somebody does not end.
const MOST_TURNS: usize = 60_000;
/// Longer than any limit of time in the image layer; waiting so long for nothing is a deadlock.
const IDLE: Duration = Duration::from_secs(600);

/// What a schedule was.
struct Played {
    roles: Vec<Role>,
    turns: Vec<Turn>,
    finding: Finding,
}

/// Pairs of roles, each of which a seed stands for.
fn pairs() -> Vec<(Role, Role)> {
    let mut pairs = Vec::new();
    for (n, one) in ROLES.iter().enumerate() {
        pairs.extend(ROLES[n + 1..].iter().map(|other| (*one, *other)));
    }
    pairs
}

fn cast_of(seed: u64, rng: &mut StdRng) -> Vec<Role> {
    let pairs = pairs();
    let (one, other) = pairs[(seed % pairs.len() as u64) as usize];
    let mut roles = vec![one, other];
    for _ in 0..rng.random_range(0..3u32) {
        let more = ROLES[rng.random_range(0..ROLES.len())];
        if !roles.contains(&more) {
            roles.push(more);
        }
    }
    if !roles.iter().any(|role| role.does_io()) {
        roles.push(Role::Writes);
    }
    roles
}

fn condition_for(roles: &[Role], rng: &mut StdRng) -> Condition {
    let has = |several: &[Role]| several.iter().any(|role| roles.contains(role));
    let targets = [
        Condition::Target,
        Condition::TargetOfClone,
        Condition::TargetFlat,
        Condition::Executed,
    ];
    let all: Vec<Condition> = [Condition::Plain, Condition::Clone]
        .into_iter()
        .chain(targets)
        .collect();
    let fitting: Vec<Condition> = all
        .into_iter()
        .filter(|one| !has(&[Role::Executes, Role::Commits, Role::Aborts]) || one.is_target())
        .filter(|one| !has(&[Role::Flattens, Role::CopiesUp]) || one.is_clone())
        .collect();
    fitting[rng.random_range(0..fitting.len())]
}

/// Whether nobody has any bytes of some objects. Of those in `FOUND` all have some: they are older than such images.
fn has_holes(seed: u64) -> bool {
    FOUND.iter().all(|(found, _)| *found != seed) && StdRng::seed_from_u64(!seed).random_ratio(1, 3)
}

/// Plays one schedule.
fn play(seed: u64, defect: Option<Defect>) -> Played {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(schedule(seed, defect))
}

async fn schedule(seed: u64, defect: Option<Defect>) -> Played {
    let mut rng = StdRng::seed_from_u64(seed);
    let roles = cast_of(seed, &mut rng);
    let condition = condition_for(&roles, &mut rng);
    let layout = rng.random_range(0..worlds::LAYOUTS.len());
    let built = worlds::world(condition, layout, has_holes(seed)).await;
    let pools = built.cluster.connect().pool_list().await.unwrap();
    let scope = |name: &str| Scope::new(pools.iter().find(|pool| pool.name == name).unwrap().id);
    let io_clients = roles.iter().filter(|role| role.does_io()).count();
    // Everything ends at some moment, for some.
    let end = match rng.random_ratio(1, 4) {
        true => Duration::from_millis(rng.random_range(1..1_500)),
        false => Duration::MAX,
    };
    // What was acknowledged early is lost with its client, and other clients see it after its flush.
    let early = io_clients == 1
        && end == Duration::MAX
        && !roles
            .iter()
            .any(|role| matches!(role, Role::Kills | Role::CutsOff));
    let around = (early && rng.random_bool(0.5)).then_some(WriteAround {
        max_bytes: 16 << 10,
        until_flush: false,
    });
    let schedule = Schedule::new(rng.random());
    if let Some(defect) = defect {
        schedule.plant(defect);
    }
    let stage = Arc::new(Stage {
        condition,
        roles: roles.clone(),
        cluster: built.cluster.clone(),
        schedule: schedule.clone(),
        history: Mutex::new(History::of_blocks(&built.image, BLOCK_BYTES)),
        scopes: [scope("rbd"), scope("p2")],
        size: Mutex::new((BLOCKS, true)),
        taken: Mutex::default(),
        around,
        abort_fell: AtomicBool::new(false),
    });
    if std::env::var_os("FERRY_TRACE").is_some() {
        println!("seed {seed}: {roles:?} on {condition:?}, layout {layout}, around {around:?}");
    }
    let processes: Vec<Arc<Process>> = roles
        .iter()
        .enumerate()
        .map(|(no, role)| stage.enter(no, *role))
        .collect();
    let mut players = JoinSet::new();
    for process in &processes {
        let part = cast::play(stage.clone(), process.clone(), processes.clone(), rng.random());
        players.spawn(part);
    }
    let power_goes = rng.random_bool(0.6);
    let played = async {
        while let Some(part) = players.join_next().await {
            match part {
                Ok(finding) => finding?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        Ok(true)
    };
    let cut = async {
        match end {
            Duration::MAX => std::future::pending::<()>().await,
            end => tokio::time::sleep(end).await,
        }
    };
    let ended: Result<bool, String> = tokio::select! {
        biased;
        played = played => played,
        () = cut => Ok(false),
        stuck = schedule.drive(MOST_TURNS, IDLE) => Err(format!("{stuck:?}: somebody waits for ever")),
    };
    let finding = match ended {
        Err(finding) => Err(finding),
        Ok(whole) => {
            players.abort_all();
            for process in &processes {
                process.store.hook().kill();
                if !whole {
                    stage.cluster.kill(&process.instance);
                }
            }
            let power_seed = (!whole && power_goes).then(|| rng.random());
            let judged = judge::judge(&stage, &built, whole, power_seed);
            match tokio::time::timeout(IDLE, judged).await {
                Ok(finding) => finding,
                Err(_) => Err("what was left cannot be used: somebody waits for ever".to_owned()),
            }
        }
    };
    Played {
        roles,
        turns: schedule.turns(),
        finding,
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Plays a schedule; a panic is a finding too.
fn finding(seed: u64, defect: Option<Defect>) -> (usize, Finding) {
    match catch_unwind(AssertUnwindSafe(|| play(seed, defect))) {
        Ok(played) => (
            played.turns.len(),
            played
                .finding
                .map_err(|error| format!("{:?}: {error}", played.roles)),
        ),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            (
                0,
                Err(format!(
                    "panic: {}",
                    text.unwrap_or_else(|| "without a text".to_owned())
                )),
            )
        }
    }
}

#[test]
fn every_pair_of_roles_in_seeded_schedules_keeps_every_promise() {
    let usual = match std::env::var_os("FERRY_SEED") {
        Some(_) => 1,
        None => 330,
    };
    let schedules = number("FERRY_SCHEDULES", usual);
    let first = number("FERRY_SEED", 1).wrapping_mul(if usual == 1 && schedules > 1 { 1_000_000 } else { 1 });
    let keep_on = std::env::var_os("FERRY_KEEP_ON").is_some();
    let (mut turns, mut failures) = (0, 0);
    let begun = std::time::Instant::now();
    for seed in first..first + schedules {
        let (given, finding) = finding(seed, None);
        turns += given;
        if let Err(error) = finding {
            println!("FERRY_SEED={seed}: {error}");
            failures += 1;
            assert!(keep_on, "FERRY_SEED={seed}: {error}");
        }
    }
    let spent = begun.elapsed();
    println!("campaign: schedules seed={first} sequences={schedules} turns={turns} in {spent:?}");
    assert_eq!(failures, 0);
}

/// Schedules that found something once, with what that was. All objects of their images have bytes ([`has_holes`]).
const FOUND: [(u64, &str); 33] = [
    (
        1_000_584,
        "execute ended with the owner of the lock that closed its handle",
    ),
    (
        1_000_008,
        "a flatten that was done, and whose end nobody heard of, was called impossible",
    ),
    (
        1_000_220,
        "abort and commit at the same time each removed one of the two images",
    ),
    (
        1_000_303,
        "a client was refused while an abort found that it could not be",
    ),
    (
        1_000_228,
        "a handle that was closed while it watched again went on watching",
    ),
    (
        1_000_474,
        "a map did not know of what hid the source in a target that grew during the commit",
    ),
    (
        2_000_252,
        "a read that stood still during a commit showed the parent of the removed source",
    ),
    (
        7_000_488,
        "a write between the removal of its object and the mark of that was denied by the object map",
    ),
    (
        7_000_000_000_512,
        "a discard of an object that another request was just copying was acknowledged and not made",
    ),
    (
        7_100_000_776,
        "who opened an image in the moment of its commit was told that the source does not exist",
    ),
    (
        7_000_000_000_277,
        "the same, with a shrink and a flatten beside it",
    ),
    (
        7_000_091,
        "an abort that was killed between its marks left a client refused, which the tool took for a failure",
    ),
    (
        9_200_000_000_207,
        "an execute was told that the migration was ended when another one had just finished it",
    ),
    (9_200_000_001_092, "the same, with the copying in another process"),
    (
        9_200_000_000_309,
        "a snapshot that was taken while an abort found that it could not be was called one that exists already",
    ),
    (
        9_200_000_002_598,
        "a client that was cut off, and then went on, was told that it had written what an abort had dropped",
    ),
    (
        9_500_001_000_569,
        "a watch that was lost before its beginning was heard of left another one behind, which nobody ended",
    ),
    (
        9_500_000_001_646,
        "a client was refused a snapshot while an abort found that it could not be, which the tool took for a failure",
    ),
    (
        20_001_000_005_983,
        "a commit that had read the target's record before an abort removed both was told of damage",
    ),
    (
        1_554_255_932_290_450_627,
        "who was cut off and read a snapshot of the target alone was shown what an abort had copied back",
    ),
    (
        1_554_255_932_290_459_719,
        "a flatten gave its lock away once for each time that it had been asked, and never came to its end",
    ),
    (
        41_000_000_031_783,
        "a read beside a shrink of a target was shown the source where the map denied what hid it",
    ),
    (
        41_000_000_052_421,
        "an execute that had been cut off wrote over the mark of an abort, and the commit behind it removed the only copy",
    ),
    (
        41_000_000_096_279,
        "a shrink that a commit came into left an empty object that no map knew of",
    ),
    (
        1_554_255_932_290_471_446,
        "what changed at a snapshot whose making was killed before its map was called unchanged once the snapshot was removed",
    ),
    (
        52_000_000_073_883,
        "execute ended with the owner of the lock that had lost its watch",
    ),
    (
        52_000_000_097_499,
        "a snapshot that a killed owner had made unheard was not known to who had asked for it",
    ),
    (52_000_000_097_641, "the same with an owner that was cut off"),
    (
        61_193_789,
        "a snapshot could not be removed in the moment in which an abort found that it could not be",
    ),
    (61_235_059, "the same"),
    (
        61_259_990,
        "an abort ended with a lock that a client of the target had asked for",
    ),
    (61_310_696, "the same"),
    (
        62_056_302,
        "a snapshot was made a second time, after its removal, by a former owner of the lock that had been asked for it",
    ),
];

/// The same of those since some images have objects of which nobody has any bytes.
const FOUND_SINCE: [(u64, &str); 1] = [(
    71_015_739,
    "a snapshot that its owner had made in the moment of an abort's marks was asked for again, and called one that exists",
)];

#[test]
fn what_schedules_found_once_is_not_found_again() {
    for (seed, what) in FOUND.into_iter().chain(FOUND_SINCE) {
        let (_, finding) = finding(seed, None);
        assert_eq!(finding, Ok(()), "FERRY_SEED={seed}, where {what}");
    }
}

#[test]
fn the_same_seed_gives_the_same_turns() {
    let mut turns = 0;
    for seed in 0..132 {
        let (one, other) = (play(seed, None), play(seed, None));
        let differ = one
            .turns
            .iter()
            .zip(&other.turns)
            .position(|(one, other)| one != other);
        assert_eq!(differ, None, "seed {seed}, {:?}", one.roles);
        assert_eq!(one.turns.len(), other.turns.len(), "seed {seed}, {:?}", one.roles);
        turns += one.turns.len();
    }
    assert!(turns > 10_000, "only {turns} turns");
}

/// How many of 60 schedules find something on a store that answers one of four writes of data before it makes it.
fn noticed(late: Option<Duration>) -> usize {
    let defect = Defect {
        which: |call: &Call<'_>| call.kind == OpKind::Write && call.name.starts_with("rbd_data."),
        one_of: 4,
        late,
    };
    (0..60)
        .filter(|seed| finding(*seed, Some(defect)).1.is_err())
        .count()
}

#[test]
fn a_store_that_loses_writes_of_data_is_noticed() {
    let noticed = noticed(None);
    assert!(noticed > 20, "noticed {noticed} times of 60");
}

#[test]
fn a_store_that_puts_writes_of_data_behind_later_ones_is_noticed() {
    let noticed = noticed(Some(Duration::from_millis(100)));
    assert!(noticed > 5, "noticed {noticed} times of 60");
}
