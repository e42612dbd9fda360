//! Who takes part in a schedule, and what each does. Everybody is a process of its own, with a store that waits for its turns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::{ErrorKind, Image, ImageError, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_reference::History;
use ferry_reference::history::{Taking, Writing};
use ferry_store::memory::MemoryCluster;
use ferry_store::wrappers::{Schedule, ScheduledStore};
use ferry_store::{ClientInstance, Errno, IoCtx, Scope, Store, WriteAround};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::worlds::{BLOCK_BYTES, BLOCKS, Condition};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Writes,
    SecondOpener,
    Discards,
    CopiesUp,
    Snapshots,
    Resizes,
    Executes,
    Commits,
    Aborts,
    Flattens,
    /// Kills one of the others in the middle of something.
    Kills,
    /// Cuts one of the others off until it is taken for dead, and lets it go on.
    CutsOff,
}

pub const ROLES: [Role; 12] = [
    Role::Writes,
    Role::SecondOpener,
    Role::Discards,
    Role::CopiesUp,
    Role::Snapshots,
    Role::Resizes,
    Role::Executes,
    Role::Commits,
    Role::Aborts,
    Role::Flattens,
    Role::Kills,
    Role::CutsOff,
];

impl Role {
    pub fn does_io(self) -> bool {
        matches!(
            self,
            Self::Writes | Self::SecondOpener | Self::Discards | Self::CopiesUp
        )
    }
}

/// What was found.
pub type Finding = Result<(), String>;

/// One process.
pub struct Process {
    pub no: usize,
    pub role: Role,
    pub store: Arc<ScheduledStore>,
    pub instance: ClientInstance,
    /// It was killed, or cut off: what it is told may be an error.
    pub is_victim: AtomicBool,
}

/// What is known of a snapshot that somebody takes.
#[derive(Debug, Default)]
pub struct Taken {
    /// Until it has been taken, or is seen.
    pub taking: Option<Taking>,
    /// Whether that was answered.
    pub is_taken: bool,
    pub may_be_removed: bool,
    pub shown: Option<Vec<u8>>,
}

/// What all share.
pub struct Stage {
    pub condition: Condition,
    pub roles: Vec<Role>,
    pub cluster: MemoryCluster,
    pub schedule: Arc<Schedule>,
    pub history: Mutex<History>,
    pub scopes: [Scope; 2],
    /// Blocks that the image has, and whether that is sure.
    pub size: Mutex<(usize, bool)>,
    pub taken: Mutex<BTreeMap<String, Taken>>,
    pub around: Option<WriteAround>,
    /// Who aborts was killed or cut off: the image cannot be opened until somebody aborts again.
    pub abort_fell: AtomicBool,
}

impl Stage {
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    pub fn enter(&self, no: usize, role: Role) -> Arc<Process> {
        let inner = self.cluster.connect();
        let instance = inner.instance();
        Arc::new(Process {
            no,
            role,
            store: self.schedule.join(inner),
            instance,
            is_victim: AtomicBool::new(false),
        })
    }

    /// Names under which the image may be found, in the order in which they are to be tried.
    pub fn names(&self) -> &'static [(usize, &'static str)] {
        match self.condition.is_target() {
            true => &[(1, "moved"), (0, "image")],
            false => &[(0, "image")],
        }
    }

    fn io(&self, process: &Process, scope: usize) -> IoCtx {
        IoCtx::new(process.store.clone(), self.scopes[scope].clone())
    }

    /// `None` for a victim.
    async fn open(&self, process: &Process, options: &OpenOptions) -> Result<Option<Image>, String> {
        let mut last = String::new();
        for _ in 0..300 {
            for (scope, name) in self.names() {
                let io = self.io(process, *scope);
                match Image::open(&io, ImageKey::Name(name), options.clone()).await {
                    Ok(image) => return Ok(Some(image)),
                    Err(_) if process.fell() || self.abort_fell.load(Ordering::SeqCst) => return Ok(None),
                    Err(error) if self.has(Role::Aborts) && is_passing(&error) => last = error.to_string(),
                    Err(error) => return Err(format!("{} cannot open '{name}': {error}", process.told())),
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!(
            "{} cannot open the image for a long time: {last}",
            process.told()
        ))
    }

    /// Opens a snapshot beside an open handle: an abort that is about to find that handle refuses others in the meantime.
    async fn open_snapshot(
        &self,
        process: &Process,
        image: &Image,
        name: &str,
    ) -> Result<Option<Image>, String> {
        let mut last = String::new();
        for _ in 0..300 {
            let at = OpenOptions::read_only().at(SnapKey::Name(name.to_owned()));
            match Image::open(image.io(), ImageKey::Id(image.id()), at).await {
                Ok(shown) => return Ok(Some(shown)),
                Err(_) if process.fell() || self.abort_fell.load(Ordering::SeqCst) => return Ok(None),
                Err(error) if self.has(Role::Aborts) && error.errno == Errno::EROFS => {
                    last = error.to_string()
                }
                Err(error) => return Err(format!("{} cannot open its snapshot: {error}", process.told())),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!(
            "{} cannot open its snapshot for a long time: {last}",
            process.told()
        ))
    }

    /// An abort that was killed, or cut off, between its marks and its look at who has the target open leaves those refused until
    /// somebody aborts again.
    fn is_left_aborting(&self, error: &ImageError) -> bool {
        self.abort_fell.load(Ordering::SeqCst) && error.kind == ErrorKind::Migrating
    }

    fn was_taken(&self, name: &str, taken: &mut Taken) {
        if let Some(taking) = taken.taking.take() {
            self.history.lock().end_snap(taking, name);
        }
    }

    async fn close(&self, process: &Process, image: &Image) -> Finding {
        let flush = self.history.lock().begin_flush_by(process.no);
        match image.close().await {
            Ok(()) => {
                self.history.lock().end_flush(&flush);
                Ok(())
            }
            Err(error) if process.fell() || self.is_left_aborting(&error) => Ok(()),
            Err(error) => Err(format!("{} cannot close: {error}", process.told())),
        }
    }
}

/// What a migration that is aborted just now says to who opens one of its images.
fn is_passing(error: &ImageError) -> bool {
    matches!(
        error.errno,
        Errno::ENOENT | Errno::EBUSY | Errno::EROFS | Errno::EAGAIN
    )
}

impl Process {
    pub fn fell(&self) -> bool {
        self.is_victim.load(Ordering::SeqCst)
    }

    fn told(&self) -> String {
        format!("process {} ({:?})", self.no, self.role)
    }

    fn judge(&self, result: Result<(), ImageError>, tolerated: impl Fn(&ImageError) -> bool) -> Finding {
        match result {
            Ok(()) => Ok(()),
            Err(_) if self.fell() => Ok(()),
            Err(error) if tolerated(&error) => Ok(()),
            Err(error) => Err(format!("{}: {:?} {error}", self.told(), error.kind)),
        }
    }
}

/// One request.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Read,
    Write,
    Discard,
    Zeroes,
    Flush,
}

/// Plays the part of `process`.
pub async fn play(stage: Arc<Stage>, process: Arc<Process>, others: Vec<Arc<Process>>, seed: u64) -> Finding {
    let mut rng = StdRng::seed_from_u64(seed);
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..120))).await;
    match process.role {
        role if role.does_io() => does_io(&stage, &process, &mut rng).await,
        Role::Snapshots => snapshots(&stage, &process, &mut rng).await,
        Role::Resizes => resizes(&stage, &process, &mut rng).await,
        Role::Executes => executes(&stage, &process).await,
        Role::Commits => commits(&stage, &process).await,
        Role::Aborts => aborts(&stage, &process).await,
        Role::Flattens => flattens(&stage, &process).await,
        _ => strikes(&stage, &process, &others, &mut rng).await,
    }
}

async fn does_io(stage: &Stage, process: &Process, rng: &mut StdRng) -> Finding {
    let in_sessions = stage.has(Role::Aborts) || rng.random_ratio(1, 4);
    let mut left = rng.random_range(3..8u32);
    while left > 0 {
        let now = if in_sessions {
            left.min(rng.random_range(1..4))
        } else {
            left
        };
        left -= now;
        let options = OpenOptions::read_write().writing_around(stage.around);
        let Some(image) = stage.open(process, &options).await? else {
            return Ok(());
        };
        for _ in 0..now {
            let size = (image.size_bytes() / BLOCK_BYTES) as usize;
            if size == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let (one, other) = (draw(process.role, rng, size), draw(process.role, rng, size));
            let one = ask(stage, process, &image, one);
            match rng.random_ratio(1, 3) {
                true => {
                    let (a, b) = futures::join!(one, ask(stage, process, &image, other));
                    a.and(b)?;
                }
                false => one.await?,
            }
        }
        stage.close(process, &image).await?;
        if in_sessions {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..100))).await;
        }
    }
    Ok(())
}

fn draw(role: Role, rng: &mut StdRng, size: usize) -> (Asked, usize, usize) {
    let asked = match (role, rng.random_range(0..10u32)) {
        (Role::Discards, 0..5) | (_, 0) => Asked::Discard,
        (_, 1..5) => Asked::Write,
        (_, 5) => Asked::Flush,
        (_, 6) => Asked::Zeroes,
        _ => Asked::Read,
    };
    let most = if role == Role::CopiesUp { 3 } else { 18 };
    let mut first = rng.random_range(0..size);
    let mut blocks = rng.random_range(1..=most.min(size - first));
    if rng.random_ratio(1, 3) {
        // A whole object.
        first -= first % 8;
        blocks = 8.min(size - first);
    }
    (asked, first, blocks)
}

async fn ask(
    stage: &Stage,
    process: &Process,
    image: &Image,
    (asked, first, blocks): (Asked, usize, usize),
) -> Finding {
    let history = &stage.history;
    let (offset, length) = (first as u64 * BLOCK_BYTES, blocks as u64 * BLOCK_BYTES);
    let changes = |zeroes| history.lock().begin_write_by(process.no, offset, length, zeroes);
    let (begun, result): (Option<Writing>, _) = match asked {
        Asked::Read => {
            // While somebody shrinks the image, not everybody sees at the same time that what is being cut shows less of a clone's
            // parent; but nobody sees the parent again where it was hidden.
            let is_steady = || stage.size.lock().1;
            let (reading, was_steady) = (history.lock().begin_read(offset, length), is_steady());
            let read = image.read(offset, length).await;
            let steady = was_steady && is_steady();
            let mut history = history.lock();
            let judged = match &read {
                Ok(bytes) if steady => history.end_read(reading, bytes),
                Ok(bytes) => history.end_unsettled_read(&reading, bytes),
                Err(_) => {
                    history.forget_read(&reading);
                    Ok(())
                }
            };
            judged.map_err(|wrong| format!("read by {}: {wrong}", process.told()))?;
            (None, read.map(|_| ()))
        }
        Asked::Flush => {
            let flush = history.lock().begin_flush_by(process.no);
            let flushed = image.flush().await;
            if flushed.is_ok() {
                history.lock().end_flush(&flush);
            }
            (None, flushed)
        }
        Asked::Write => {
            let begun = changes(false);
            (Some(begun), image.write(offset, begun.bytes().into()).await)
        }
        Asked::Discard => (Some(changes(true)), image.discard(offset, length).await),
        Asked::Zeroes => {
            let begun = changes(true);
            (
                Some(begun),
                image.write_zeroes(offset, length, blocks.is_multiple_of(2)).await,
            )
        }
    };
    if let (Some(begun), Ok(())) = (begun, &result) {
        history.lock().end_write(begun, false);
    }
    let resizes = stage.has(Role::Resizes);
    process
        .judge(result, |error| {
            resizes && error.errno == Errno::EINVAL || stage.is_left_aborting(error)
        })
        .map_err(|error| format!("{asked:?} of blocks {first}+{blocks} by {error}"))
}

async fn snapshots(stage: &Stage, process: &Process, rng: &mut StdRng) -> Finding {
    let silent = Progress::silent();
    for n in 0..rng.random_range(1..3u32) {
        let Some(image) = stage.open(process, &OpenOptions::read_write()).await? else {
            return Ok(());
        };
        let name = format!("t{n}");
        let taken = Taken {
            taking: Some(stage.history.lock().begin_snap()),
            ..Taken::default()
        };
        stage.taken.lock().insert(name.clone(), taken);
        let created = image.snap_create(&name, &silent).await;
        let is_there = created.is_ok();
        if is_there && let Some(taken) = stage.taken.lock().get_mut(&name) {
            stage.was_taken(&name, taken);
            taken.is_taken = true;
        }
        process
            .judge(created, |error| stage.is_left_aborting(error))
            .map_err(|error| format!("snapshot by {error}"))?;
        if is_there {
            let Some(shown) = stage.open_snapshot(process, &image, &name).await? else {
                return stage.close(process, &image).await;
            };
            for _ in 0..2 {
                match shown.read(0, shown.size_bytes()).await {
                    Ok(bytes) => saw_snapshot(stage, &name, &bytes)?,
                    Err(_) if process.fell() => return stage.close(process, &image).await,
                    Err(error) => {
                        return Err(format!("{} cannot read its snapshot: {error}", process.told()));
                    }
                }
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..60))).await;
            }
            shown.close().await.map_err(|error| error.to_string())?;
        }
        if rng.random_bool(0.5) {
            if let Some(taken) = stage.taken.lock().get_mut(&name) {
                taken.may_be_removed = true;
            }
            let removed = image.snap_remove(&name, &silent).await;
            process.judge(removed, |error| !is_there || stage.is_left_aborting(error))?;
        }
        stage.close(process, &image).await?;
    }
    Ok(())
}

/// Somebody has read all of a snapshot.
pub fn saw_snapshot(stage: &Stage, name: &str, shown: &[u8]) -> Finding {
    let mut all = stage.taken.lock();
    let Some(taken) = all.get_mut(name) else {
        return Err(format!("snapshot '{name}' that nobody took"));
    };
    // Of one whose answer was never heard nobody knows more than that it is there now.
    stage.was_taken(name, taken);
    let mut history = stage.history.lock();
    history
        .check_snap(name, 0, shown)
        .map_err(|wrong| format!("snapshot '{name}': {wrong}"))?;
    match &taken.shown {
        Some(before) if before != shown => Err(format!("snapshot '{name}' has changed")),
        Some(_) => Ok(()),
        None => {
            taken.shown = Some(shown.to_vec());
            Ok(())
        }
    }
}

async fn resizes(stage: &Stage, process: &Process, rng: &mut StdRng) -> Finding {
    for _ in 0..rng.random_range(1..4u32) {
        let Some(image) = stage.open(process, &OpenOptions::read_write()).await? else {
            return Ok(());
        };
        let before = stage.size.lock().0;
        let after = rng.random_range(1..=BLOCKS);
        stage.size.lock().1 = false;
        let [kept, cut] = [after.min(before), before.saturating_sub(after)].map(|n| n as u64 * BLOCK_BYTES);
        let shrink = stage.history.lock().begin_write_by(process.no, kept, cut, true);
        let resized = image
            .resize(after as u64 * BLOCK_BYTES, true, &Progress::silent())
            .await;
        if resized.is_ok() {
            stage.history.lock().end_write(shrink, false);
            *stage.size.lock() = (after, true);
        }
        process
            .judge(resized, |error| stage.is_left_aborting(error))
            .map_err(|error| format!("resize {before} to {after} by {error}"))?;
        stage.close(process, &image).await?;
    }
    Ok(())
}

/// What a verb may say when another one was there before it.
fn overtaken(stage: &Stage) -> impl Fn(&ImageError) -> bool {
    let several = [Role::Executes, Role::Commits, Role::Aborts];
    let several = several.iter().filter(|role| stage.has(**role)).count() > 1;
    move |error| {
        several
            && matches!(
                error.errno,
                Errno::EINVAL | Errno::ENOENT | Errno::EBUSY | Errno::EROFS
            )
    }
}

async fn executes(stage: &Stage, process: &Process) -> Finding {
    let executed = execute(&stage.io(process, 1), "moved", &Progress::silent()).await;
    let was_done = stage.condition == Condition::Executed;
    let tolerated = overtaken(stage);
    process
        .judge(executed, |error| {
            tolerated(error) || was_done && error.kind == ErrorKind::MigrationState
        })
        .map_err(|error| format!("execute by {error}"))
}

async fn commits(stage: &Stage, process: &Process) -> Finding {
    executes(stage, process).await?;
    let committed = commit(&stage.io(process, 1), "moved", &Progress::silent()).await;
    process
        .judge(committed, overtaken(stage))
        .map_err(|error| format!("commit by {error}"))
}

async fn aborts(stage: &Stage, process: &Process) -> Finding {
    for _ in 0..60 {
        let force = AbortOptions { force: true };
        match abort(&stage.io(process, 1), "moved", force, &Progress::silent()).await {
            Ok(()) => return Ok(()),
            Err(error) if error.errno == Errno::EBUSY && !process.fell() => {}
            error => {
                return process
                    .judge(error, overtaken(stage))
                    .map_err(|error| format!("abort by {error}"));
            }
        }
        tokio::time::sleep(Duration::from_millis(37)).await;
    }
    Ok(())
}

async fn flattens(stage: &Stage, process: &Process) -> Finding {
    let Some(image) = stage.open(process, &OpenOptions::read_write()).await? else {
        return Ok(());
    };
    let flattened = image.flatten(&Progress::silent()).await;
    let is_target = stage.condition.is_target();
    process
        .judge(flattened, |error| {
            is_target && error.errno == Errno::EBUSY || stage.is_left_aborting(error)
        })
        .map_err(|error| format!("flatten by {error}"))?;
    stage.close(process, &image).await
}

/// Kills one of the others, or cuts it off for a while.
async fn strikes(stage: &Stage, process: &Process, others: &[Arc<Process>], rng: &mut StdRng) -> Finding {
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..400))).await;
    let possible: Vec<_> = others
        .iter()
        .filter(|other| !matches!(other.role, Role::Kills | Role::CutsOff))
        .collect();
    let victim = possible[rng.random_range(0..possible.len())];
    victim.is_victim.store(true, Ordering::SeqCst);
    if victim.role == Role::Aborts {
        stage.abort_fell.store(true, Ordering::SeqCst);
    }
    if process.role == Role::Kills {
        victim.store.hook().kill();
        stage.cluster.kill(&victim.instance);
        return Ok(());
    }
    victim.store.hook().hold();
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..50))).await;
    stage.cluster.lose_watches(&victim.instance);
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..2_000))).await;
    victim.store.hook().let_go();
    Ok(())
}
