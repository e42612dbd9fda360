//! What is done to every row, and how it is judged.

use std::collections::BTreeSet;

use ferry_cli::exit::Failure;
use ferry_store::Errno;
use ferry_store::wrappers::{CountedFault, Moment};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::rows::Row;
use super::view::{difference, everything, without_leftovers};
use super::world::{Flushed, World, open};

/// More changes than any command makes here; reaching it means that a command does not end.
const STEPS_MAX: u64 = 2_000;
/// Kills of one recovery that are tried.
const KILLS_OF_A_RECOVERY: usize = 8;

/// A row with its store, and what it must leave.
struct Case<'a> {
    row: &'a Row,
    world: World,
    /// After the command.
    done: Vec<String>,
    /// After [`Row::then`].
    ended: Vec<String>,
    /// Calls and changes of the command.
    calls: u64,
    changes: u64,
    _dir: tempfile::TempDir,
}

impl<'a> Case<'a> {
    async fn new(row: &'a Row) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = World::before(row, dir.path()).await;
        let trial = world.fork();
        let client = trial.client();
        let result = trial
            .run_on(client.store.clone(), row.line, &mut Flushed::new())
            .await;
        if let Err(failure) = result {
            panic!("'{}': {}", row.line, failure.text());
        }
        let (calls, changes) = (client.store.hook().calls(), client.store.hook().mutations());
        client.bury();
        assert!(changes > 0, "'{}' changes nothing", row.line);
        let done = everything(&trial.connect(), row.random_bytes_of, row.line).await;
        let mut case = Self {
            row,
            world,
            done,
            ended: Vec::new(),
            calls,
            changes,
            _dir: dir,
        };
        case.ended = case.end(&trial, row.line).await;
        case
    }

    /// Goes on to the end of the story.
    async fn end(&self, trial: &World, when: &str) -> Vec<String> {
        if self.row.then.is_empty() {
            return Vec::new();
        }
        for line in self.row.then {
            if let Err(failure) = trial.run(line).await {
                panic!("{when}, then '{line}': {}", failure.text());
            }
        }
        everything(&trial.connect(), self.row.random_bytes_of, when).await
    }

    /// The command with a client that dies at change `nth`; whether it died.
    async fn killed(&self, trial: &World, nth: u64, moment: Moment, when: &str) -> bool {
        let client = trial.client();
        client.store.hook().kill_at(nth, moment);
        let mut flushed = Flushed::new();
        let result = trial
            .run_on(client.store.clone(), self.row.line, &mut flushed)
            .await;
        let died = client.store.hook().is_dead();
        client.bury();
        match result {
            Ok(()) if died => {
                let found = everything(&trial.connect(), self.row.random_bytes_of, when).await;
                self.judge(&self.done, &found, &format!("{when}: it said that it was done"));
            }
            Err(failure) if !died => panic!("{when}: {}", failure.text()),
            _ => {}
        }
        self.check_flushed(trial, &flushed, when).await;
        died
    }

    /// What a server had flushed is there.
    async fn check_flushed(&self, trial: &World, flushed: &Flushed, when: &str) {
        let Some(image) = self.row.line.strip_prefix("serve ") else {
            return;
        };
        let image = open(&trial.connect(), image, ferry_image::OpenOptions::read_only())
            .await
            .unwrap();
        for (offset, length, byte) in flushed {
            let found = image.read(*offset, *length).await.unwrap();
            assert!(
                found.iter().all(|found| found == byte),
                "{when}: flushed bytes at {offset} are lost"
            );
        }
        image.close().await.unwrap();
    }

    /// Runs the command again, and what is told to be run after it, each with a client of its own; the one that makes change
    /// `kill` of them all dies at it.
    async fn recover(&self, trial: &World, kill: Option<(u64, Moment)>, when: &str) -> Recovery {
        let again = [(self.row.line, self.row.done)];
        let first = self.row.first.iter().map(|line| (*line, &[][..]));
        let mut changes = 0;
        for (line, codes) in first.chain(again).chain(self.row.more.iter().copied()) {
            let client = trial.client();
            if let Some((nth, moment)) = kill {
                client.store.hook().kill_at(nth - changes, moment);
            }
            let result = trial
                .run_on(client.store.clone(), line, &mut Flushed::new())
                .await;
            changes += client.store.hook().mutations();
            let died = client.store.hook().is_dead();
            client.bury();
            if died {
                return Recovery::Died;
            }
            if let Err(failure) = result {
                assert!(
                    codes.contains(&failure.code()),
                    "{when}, then '{line}': {}",
                    failure.text()
                );
            }
        }
        Recovery::Done { changes }
    }

    fn judge(&self, expected: &[String], found: &[String], when: &str) {
        if let Some(difference) = difference(expected, found) {
            panic!("{when}:{difference}");
        }
    }

    /// After a recovery all is as if nothing had happened, and the story has the same end.
    async fn check(&self, trial: &World, when: &str) {
        let found = everything(&trial.connect(), self.row.random_bytes_of, when).await;
        if !self.row.judged_at_the_end {
            self.judge(&self.done, &found, when);
        }
        let ended = self.end(trial, when).await;
        self.judge(&self.ended, &ended, &format!("{when}, at the end"));
    }

    async fn check_but_leftovers(&self, trial: &World, when: &str) {
        let found = everything(&trial.connect(), self.row.random_bytes_of, when).await;
        if !self.row.judged_at_the_end {
            self.judge(&without_leftovers(&self.done), &without_leftovers(&found), when);
        }
        let ended = self.end(trial, when).await;
        let (expected, ended) = (without_leftovers(&self.ended), without_leftovers(&ended));
        self.judge(&expected, &ended, &format!("{when}, at the end"));
    }
}

/// How a recovery went.
enum Recovery {
    Done { changes: u64 },
    Died,
}

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().expect(variable))
}

/// Fixed unless it is said, so that two short runs say the same; campaigns take fresh ones.
fn seed(tool: &str) -> u64 {
    let seed = number("FERRY_SEED", 1);
    println!("{tool}: FERRY_SEED={seed}");
    seed
}

pub async fn kills(group: &str, rows: &[Row]) {
    let mut points = 0;
    for row in rows {
        let case = Case::new(row).await;
        for (moment, power_goes) in [
            (Moment::Before, false),
            (Moment::After, false),
            (Moment::After, true),
        ] {
            for nth in 1.. {
                assert!(nth < STEPS_MAX, "'{}' does not end", row.line);
                let power = if power_goes { " with a power loss" } else { "" };
                let when = format!("'{}' killed {moment:?} change {nth}{power}", row.line);
                let trial = case.world.fork();
                if !case.killed(&trial, nth, moment, &when).await {
                    break;
                }
                points += 1;
                if power_goes {
                    trial.power_loss(nth);
                }
                case.recover(&trial, None, &when).await;
                case.check(&trial, &when).await;
            }
        }
    }
    println!(
        "campaign: kills group={group} rows={} depth1={points}",
        rows.len()
    );
}

pub async fn kills_of_the_recovery(group: &str, rows: &[Row]) {
    let samples = number("FERRY_DEPTH2", 2 * rows.len() as u64);
    let seed = seed("kills of the recovery");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut points = 0;
    let mut cases = Vec::new();
    for row in rows {
        cases.push(Case::new(row).await);
    }
    for sample in 0..samples {
        // Each row in turn, so that a short run has them all.
        let case = &cases[sample as usize % cases.len()];
        let nth = rng.random_range(1..=case.changes);
        let moment = any_moment(&mut rng);
        let when = format!(
            "FERRY_SEED={seed}, sample {sample}: '{}' killed {moment:?} change {nth}",
            case.row.line
        );
        let trial = case.world.fork();
        if !case.killed(&trial, nth, moment, &when).await {
            continue;
        }
        let measured = trial.fork();
        let Recovery::Done { changes } = case.recover(&measured, None, &when).await else {
            continue;
        };
        let mut chosen: Vec<u64> = (1..=changes).collect();
        while chosen.len() > KILLS_OF_A_RECOVERY {
            chosen.swap_remove(rng.random_range(0..chosen.len()));
        }
        for second in chosen {
            let moment = any_moment(&mut rng);
            let power_goes = rng.random_bool(0.5);
            let when = format!("{when}, its recovery {moment:?} change {second}, power loss {power_goes}");
            let trial = trial.fork();
            let recovery = case.recover(&trial, Some((second, moment)), &when).await;
            if matches!(recovery, Recovery::Done { .. }) {
                continue;
            }
            points += 1;
            if power_goes {
                trial.power_loss(seed ^ sample);
            }
            case.recover(&trial, None, &when).await;
            case.check(&trial, &when).await;
        }
    }
    println!("campaign: kills-deep group={group} seed={seed} depth2={points}");
}

/// Killed at each of its `last` changes; the second run at each of its `first` ones, and then the power goes. What the first
/// had written without a flush, the second finds as it should be.
pub async fn second_run_cut_short(row: &Row, last: u64, first: u64) {
    let case = Case::new(row).await;
    let mut points = 0;
    for nth in case.changes.saturating_sub(last) + 1..=case.changes {
        let when = format!("'{}' killed after change {nth}", row.line);
        let killed = case.world.fork();
        if !case.killed(&killed, nth, Moment::After, &when).await {
            continue;
        }
        for second in 1..=first {
            let when = format!("{when}, its recovery after change {second}, then a power loss");
            let trial = killed.fork();
            let kill = Some((second, Moment::After));
            if matches!(case.recover(&trial, kill, &when).await, Recovery::Done { .. }) {
                break;
            }
            points += 1;
            trial.power_loss(nth);
            case.recover(&trial, None, &when).await;
            case.check(&trial, &when).await;
        }
    }
    assert!(points > 0);
}

fn any_moment(rng: &mut StdRng) -> Moment {
    match rng.random_bool(0.5) {
        true => Moment::Before,
        false => Moment::After,
    }
}

/// The kinds of refusals.
const FAULTS: [(Errno, bool, Moment, bool); 5] = [
    (Errno::EIO, false, Moment::Before, false),
    (Errno::EIO, false, Moment::Before, true),
    (Errno::EIO, true, Moment::After, false),
    (Errno::ENOSPC, true, Moment::Before, false),
    (Errno::ENOSPC, true, Moment::Before, true),
];

pub async fn faults(group: &str, rows: &[Row]) {
    let all = std::env::var("FERRY_FAULTS").is_ok_and(|text| text == "all");
    let samples = number("FERRY_FAULT_SAMPLES", 3);
    let seed = seed("faults");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut points = 0;
    for row in rows {
        let case = Case::new(row).await;
        for (errno, changes_only, moment, for_ever) in FAULTS {
            let last = if changes_only { case.changes } else { case.calls };
            let nths: BTreeSet<u64> = match all {
                true => (1..=last).collect(),
                false => (0..samples).map(|_| rng.random_range(1..=last)).collect(),
            };
            for nth in nths {
                let fault = CountedFault {
                    nth,
                    changes_only,
                    errno,
                    moment,
                    for_ever,
                };
                if refused(&case, fault).await {
                    points += 1;
                }
            }
        }
    }
    println!("campaign: faults group={group} seed={seed} points={points}");
}

/// Whether the fault was met.
async fn refused(case: &Case<'_>, fault: CountedFault) -> bool {
    let when = format!("'{}' with {fault:?}", case.row.line);
    let trial = case.world.fork();
    let client = trial.client();
    client.store.hook().fail_at(fault);
    let mut flushed = Flushed::new();
    let result = trial
        .run_on(client.store.clone(), case.row.line, &mut flushed)
        .await;
    let hook = client.store.hook();
    let reached = if fault.changes_only {
        hook.mutations()
    } else {
        hook.calls()
    };
    client.bury();
    case.check_flushed(&trial, &flushed, &when).await;
    judge_answer(case, &trial, fault, result, &when).await;
    case.recover(&trial, None, &when).await;
    case.check_but_leftovers(&trial, &when).await;
    reached >= fault.nth
}

/// Success means that all is done; an error names what happened.
async fn judge_answer(
    case: &Case<'_>,
    trial: &World,
    fault: CountedFault,
    result: Result<(), Failure>,
    when: &str,
) {
    match result {
        Ok(()) => {
            let found = everything(&trial.connect(), case.row.random_bytes_of, when).await;
            let (done, found) = (without_leftovers(&case.done), without_leftovers(&found));
            case.judge(&done, &found, &format!("{when}: it said that it was done"));
        }
        Err(failure) => {
            let code = i32::from(failure.code());
            assert_eq!(code, fault.errno.0, "{when}: {}", failure.text());
            // An empty text: it has been said on stderr before.
            let said = failure.text();
            assert!(said.is_empty() || said.len() > 10, "{when}: '{said}'");
        }
    }
}

/// A store that answers one write of a command without making it. Not all are seen: some are repeated, some only move a time.
pub async fn canary_of_a_lost_step(rows: &[Row]) {
    for row in rows.iter().take(4) {
        let case = Case::new(row).await;
        let (mut tried, mut noticed) = (0, 0);
        for nth in 1..=case.changes {
            let trial = case.world.fork();
            let client = trial.client();
            client.store.hook().swallow_at(nth);
            let result = trial
                .run_on(client.store.clone(), row.line, &mut Flushed::new())
                .await;
            let struck = client.store.hook().has_swallowed();
            client.bury();
            if !struck {
                break;
            }
            tried += 1;
            noticed += u64::from(result.is_err() || looks_wrong(&case, trial).await);
        }
        println!("canary: '{}': {noticed} of {tried} lost steps noticed", row.line);
        assert!(tried > 0 && noticed * 2 > tried, "'{}'", row.line);
    }
}

/// Whether the judge finds fault with a store. In a task of its own, since it does so by panicking.
async fn looks_wrong(case: &Case<'_>, trial: World) -> bool {
    let (store, line) = (trial.connect(), case.row.line);
    let random_bytes_of = case.row.random_bytes_of;
    let view = tokio::spawn(async move { everything(&store, random_bytes_of, line).await });
    match view.await {
        Ok(found) => difference(&case.done, &found).is_some(),
        Err(panicked) => panicked.is_panic(),
    }
}

/// Commands that are killed and not run again.
pub async fn canary_without_recovery(rows: &[Row]) {
    for row in rows.iter().take(4) {
        let case = Case::new(row).await;
        let mut noticed = 0;
        for nth in 1..=case.changes {
            let trial = case.world.fork();
            let died = case.killed(&trial, nth, Moment::Before, row.line).await;
            noticed += u64::from(died && looks_wrong(&case, trial).await);
        }
        assert!(noticed > 0, "'{}'", row.line);
    }
}

/// Commands that are killed, and whose second run is killed too, and that nobody finishes.
pub async fn canary_without_a_third_run(rows: &[Row]) {
    for row in rows.iter().take(4) {
        let case = Case::new(row).await;
        let (mut tried, mut noticed) = (0, 0);
        for nth in 1..=case.changes {
            let killed = case.world.fork();
            if !case.killed(&killed, nth, Moment::After, row.line).await {
                break;
            }
            for second in 1..STEPS_MAX {
                let trial = killed.fork();
                let kill = Some((second, Moment::Before));
                match case.recover(&trial, kill, row.line).await {
                    Recovery::Done { .. } => break,
                    Recovery::Died => {
                        tried += 1;
                        noticed += u64::from(looks_wrong(&case, trial).await);
                    }
                }
            }
        }
        println!(
            "canary: '{}': {noticed} of {tried} unfinished recoveries noticed",
            row.line
        );
        assert!(noticed > 0, "'{}'", row.line);
    }
}

/// A command that says that it is done although one of its changes was refused.
pub async fn canary_of_a_swallowed_error(rows: &[Row]) {
    let case = Case::new(&rows[0]).await;
    let mut noticed = 0;
    for nth in 1..=case.changes {
        let fault = CountedFault {
            nth,
            changes_only: true,
            errno: Errno::EIO,
            moment: Moment::Before,
            for_ever: true,
        };
        let trial = case.world.fork();
        let client = trial.client();
        client.store.hook().fail_at(fault);
        let _ = trial
            .run_on(client.store.clone(), case.row.line, &mut Flushed::new())
            .await;
        client.bury();
        noticed += u64::from(looks_wrong(&case, trial).await);
    }
    assert!(noticed > 0);
}
