//! What is left when the play is over, or was cut short by the death of all or a power loss: what it must be.

use std::sync::Arc;

use ferry_cls::rbd::ObjectState;
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::object_map::rebuild;
use ferry_image::{ErrorKind, Image, ImageError, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_reference::Version;
use ferry_store::{IoCtx, Store};

use crate::cast::{Finding, Role, Stage, Taken, saw_snapshot};
use crate::worlds::{BLOCK_BYTES, Built};

/// Judges. `whole`: everybody has played to the end; `power_seed`: the power goes first.
pub async fn judge(stage: &Stage, built: &Built, whole: bool, power_seed: Option<u64>) -> Finding {
    if let Some(seed) = power_seed {
        stage.cluster.power_loss(seed);
        stage.history.lock().killed(true);
    }
    let store: Arc<dyn Store> = stage.cluster.connect();
    let ios = [0, 1].map(|n| IoCtx::new(store.clone(), stage.scopes[n].clone()));
    let image = recover(stage, &ios, whole).await?;
    let others = image.other_watchers().await.map_err(told("watchers"))?;
    if whole && !others.is_empty() {
        return Err(format!("at the end there are still watchers: {others:?}"));
    }
    let size = (image.size_bytes() / BLOCK_BYTES) as usize;
    let (expected, sure) = *stage.size.lock();
    if whole && sure && size != expected {
        return Err(format!("the image has {size} blocks, and should have {expected}"));
    }
    see_head(stage, &image, "the head at the end", power_seed.is_some()).await?;
    check_snaps(stage, built, &image, whole, power_seed.is_none()).await?;
    check_map(stage, &image, whole).await?;
    let is_target = image.header().migration_target().is_some();
    let (io, name) = (image.io().clone(), image.name());
    image.close().await.map_err(told("close at the end"))?;
    if is_target {
        check_source(stage, built, &ios[0]).await?;
        match execute(&io, &name, &Progress::silent()).await {
            Err(error) if error.kind != ErrorKind::MigrationState => {
                return Err(format!("execute at the end: {error}"));
            }
            _ => {}
        }
        commit(&io, &name, &Progress::silent())
            .await
            .map_err(told("commit at the end"))?;
        let image = open(&io, &name).await.map_err(told("open after commit"))?;
        // What an interrupted shrink has cut is seen at once, or when it is copied.
        see_head(stage, &image, "the head after commit", power_seed.is_some()).await?;
        check_snaps(stage, built, &image, whole, power_seed.is_none()).await?;
        check_map(stage, &image, whole).await?;
        image.close().await.map_err(told("close after commit"))?;
    }
    match power_seed {
        Some(_) => Ok(()),
        None => stage.history.lock().check_order(),
    }
}

fn told(what: &str) -> impl Fn(ImageError) -> String {
    move |error| format!("{what}: {:?} {error}", error.kind)
}

async fn open(io: &IoCtx, name: &str) -> Result<Image, ImageError> {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write()).await
}

/// Opens what is there; runs a verb again that was cut short.
async fn recover(stage: &Stage, ios: &[IoCtx; 2], whole: bool) -> Result<Image, String> {
    let mut last = String::new();
    for attempt in 0..4 {
        for (scope, name) in stage.names() {
            match open(&ios[*scope], name).await {
                Ok(image) => return Ok(image),
                Err(error) => last = format!("'{name}': {error}"),
            }
        }
        let was_cut = !whole || stage.has(Role::Kills) || stage.has(Role::CutsOff);
        if attempt == 0 && !(stage.has(Role::Aborts) && was_cut) {
            return Err(format!("the image cannot be opened at the end: {last}"));
        }
        let (scope, name) = stage.names()[attempt % stage.names().len()];
        let force = AbortOptions { force: true };
        if let Err(error) = abort(&ios[scope], name, force, &Progress::silent()).await {
            last = format!("{last}; abort of '{name}': {error}");
        }
    }
    Err(format!("the image cannot be recovered: {last}"))
}

async fn read(image: &Image, what: &str) -> Result<Vec<u8>, String> {
    let bytes = image.read(0, image.size_bytes()).await.map_err(told(what))?;
    Ok(bytes.to_vec())
}

async fn see_head(stage: &Stage, image: &Image, what: &str, power_lost: bool) -> Finding {
    let reading = stage.history.lock().begin_read(0, image.size_bytes());
    let bytes = read(image, what).await?;
    let mut history = stage.history.lock();
    let judged = match power_lost {
        true => history.end_unsettled_read(&reading, &bytes),
        false => history.end_read(reading, &bytes),
    };
    judged.map_err(|wrong| format!("{what}: {wrong}"))
}

async fn read_snap(image: &Image, name: &str, options: OpenOptions) -> Result<Vec<u8>, String> {
    let what = format!("snapshot '{name}' at the end");
    let at = options.at(SnapKey::Name(name.to_owned()));
    let shown = Image::open(image.io(), ImageKey::Id(image.id()), at)
        .await
        .map_err(told(&what))?;
    let read = read(&shown, &what).await?;
    shown.close().await.map_err(told(&what))?;
    Ok(read)
}

/// What must not change.
fn check(version: &Version, shown: &[u8], what: &str) -> Finding {
    if shown.len() as u64 != version.size_bytes() {
        return Err(format!("{what} has {} bytes", shown.len()));
    }
    version
        .check(0, shown)
        .map_err(|wrong| format!("{what}: {wrong}"))
}

async fn check_snaps(stage: &Stage, built: &Built, image: &Image, whole: bool, exact: bool) -> Finding {
    let names: Vec<String> = image
        .header()
        .user_snaps()
        .map(|snap| snap.name.clone())
        .collect();
    for (name, version) in &built.image.snaps {
        if !names.contains(name) {
            return Err(format!("snapshot '{name}' is gone"));
        }
        let shown = read_snap(image, name, OpenOptions::read_only()).await?;
        check(version, &shown, &format!("snapshot '{name}'"))?;
    }
    let has_to_be = |taken: &Taken| taken.is_taken && !taken.may_be_removed;
    let taken: Vec<(String, bool)> = stage
        .taken
        .lock()
        .iter()
        .map(|(name, taken)| (name.clone(), has_to_be(taken)))
        .collect();
    for (name, has_to_be) in &taken {
        if names.contains(name) {
            let shown = read_snap(image, name, OpenOptions::read_only()).await?;
            if exact {
                saw_snapshot(stage, name, &shown)?;
            }
        } else if *has_to_be && whole && !stage.has(Role::Aborts) {
            return Err(format!("snapshot '{name}' was taken, and is gone"));
        }
    }
    Ok(())
}

async fn check_map(stage: &Stage, image: &Image, whole: bool) -> Finding {
    image.acquire_lock().await.map_err(told("lock at the end"))?;
    let wrong = rebuild::verify(image, &Progress::silent())
        .await
        .map_err(told("verify the maps"))?;
    // Only who dies in the middle of a removal leaves the mark of it, and it counts as that of an object that exists and has
    // changed.
    let died = !whole || stage.has(Role::Kills) || stage.has(Role::CutsOff);
    let wrong: Vec<_> = wrong
        .into_iter()
        .filter(|wrong| !(died && wrong.marked == ObjectState::Pending))
        .collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(format!("object maps: {wrong:?}")),
    }
}

async fn check_source(stage: &Stage, built: &Built, io: &IoCtx) -> Finding {
    let Some(id) = &built.source else { return Ok(()) };
    let options = || OpenOptions::read_only().ignoring_migration();
    let source = Image::open(io, ImageKey::Id(id), options())
        .await
        .map_err(told("open the source"))?;
    let head = read(&source, "the source").await?;
    if !stage.has(Role::Aborts) {
        check(&built.image.head, &head, "the source")?;
    }
    for (name, version) in &built.image.snaps {
        let shown = read_snap(&source, name, options()).await?;
        check(version, &shown, &format!("the source's snapshot '{name}'"))?;
    }
    source.close().await.map_err(told("close the source"))
}
