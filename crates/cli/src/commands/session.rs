//! What every command body works in: the store, the images it opened, its progress.
//!
//! Invariants: every image opened through a [`Session`] is closed (lock and watch released) when the command ends,
//! whether it succeeded, failed or was interrupted; then the store is shut down. A body that is dropped halfway leaves
//! what a killed process leaves, which every operation of the library can take up again.

use std::sync::Arc;

use ferry_image::migration::execution::ExecuteProgress;
use ferry_image::{ErrorKind, Image, ImageError, ImageKey, OpenOptions, SnapKey, admin};
use ferry_store::{IoCtx, Store};
use ferry_store_ceph::{CephConfig, CephStore};
use ferry_store_local::{LocalOptions, LocalStore};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::error::Explain as _;
use crate::exit::Failure;
use crate::grammar::{Args, CommandId, Engine, Invocation};
use crate::output::{Document, OutputFormat, bytes, emit};
use crate::progress::{ByteDetail, Progress, Unit};
use crate::spec::{ImageRef, ImageSpec, PoolSpec};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Session {
    invocation: Box<Invocation>,
    store: OnceCell<Arc<dyn Store>>,
    opened: Mutex<Vec<Image>>,
}

impl Session {
    /// A session without a store; it is opened when it is needed first, so that a command line that asks for nothing
    /// sensible touches nothing.
    pub(crate) fn new(invocation: Box<Invocation>) -> Self {
        Self {
            invocation,
            store: OnceCell::new(),
            opened: Mutex::default(),
        }
    }

    /// A session on a store that is open.
    pub(crate) fn on(invocation: Box<Invocation>, store: Arc<dyn Store>) -> Self {
        Self {
            store: OnceCell::new_with(Some(store)),
            ..Self::new(invocation)
        }
    }

    /// The store that the command line names. It is made if there is none.
    pub(crate) async fn store(&self) -> Result<&Arc<dyn Store>, Failure> {
        self.store.get_or_try_init(|| self.open_store()).await
    }

    async fn open_store(&self) -> Result<Arc<dyn Store>, Failure> {
        let globals = &self.invocation.globals;
        match globals.engine()? {
            Engine::Local(root) => {
                let options = LocalOptions {
                    registry: ferry_cls::registry(),
                    ..LocalOptions::default()
                };
                let opened = LocalStore::open(&root, options);
                let store = opened.map_err(|error| {
                    error.failed(format_args!("cannot open the store '{}'", root.display()))
                })?;
                Ok(store)
            }
            Engine::Ceph => {
                let config = globals.ceph()?;
                let bound = config.connect_timeout;
                let config = CephConfig {
                    op_timeout: (!waits(self.invocation.command)).then_some(bound),
                    settings: self.invocation.config_overrides.of_the_cluster(),
                    ..config
                };
                let connected = CephStore::connect(config).await;
                let store = connected.map_err(|error| {
                    Failure::message("rbd: couldn't connect to the cluster!", error.errno().0)
                        .with_line(format!("rbd: note: {error}"))
                })?;
                Ok(store)
            }
        }
    }

    /// Closes what is open and ends the store's instance.
    pub(crate) async fn close(&self) -> Result<(), Failure> {
        let mut result = Ok(());
        let opened: Vec<Image> = std::mem::take(&mut *self.opened.lock());
        for image in opened.into_iter().rev() {
            if let Err(error) = image.close().await {
                result = Err(error.failed(format_args!("error closing image {}", image.name())));
            }
        }
        if let Some(store) = self.store.get()
            && let Err(error) = store.shutdown().await
            && result.is_ok()
        {
            result = Err(error.failed("error closing the store"));
        }
        result
    }

    pub(crate) fn invocation(&self) -> &Invocation {
        &self.invocation
    }

    pub(crate) fn args(&self) -> &Args {
        &self.invocation.args
    }

    /// A pool and namespace, with the errors of Ceph's `rbd`.
    pub(crate) async fn place(&self, place: &PoolSpec) -> Result<IoCtx, Failure> {
        admin::pool::open(self.store().await?, &place.pool, &place.namespace)
            .await
            .map_err(|error| match error.kind {
                ErrorKind::NamespaceMissing => {
                    error.said(format!("rbd: namespace '{}' does not exist.", place.namespace))
                }
                _ => error.failed(format_args!("error opening pool '{}'", place.pool)),
            })
    }

    /// Pool and namespace of an image.
    pub(crate) async fn place_of(&self, image: &ImageSpec) -> Result<IoCtx, Failure> {
        self.place(&image.pool_spec()).await
    }

    /// Opens an image that a command works on.
    pub(crate) async fn image(&self, spec: &ImageSpec, options: OpenOptions) -> Result<Image, Failure> {
        let io = self.place_of(spec).await?;
        self.open_image(&io, ImageKey::Name(&spec.image), options).await
    }

    /// Opens an image named either way, at its snapshot if one is named.
    pub(crate) async fn image_ref(&self, image: &ImageRef, options: OpenOptions) -> Result<Image, Failure> {
        let (place, key, snap) = match image {
            ImageRef::Name(spec) => (
                spec.pool_spec(),
                ImageKey::Name(&spec.image),
                spec.snap.as_deref(),
            ),
            ImageRef::Id { place, id, snap } => (place.clone(), ImageKey::Id(id), snap.as_deref()),
        };
        let io = self.place(&place).await?;
        let options = match snap {
            Some(snap) => options.at(SnapKey::Name(snap.to_owned())),
            None => options,
        };
        self.open_image(&io, key, options).await
    }

    pub(crate) async fn open_image(
        &self,
        io: &IoCtx,
        key: ImageKey<'_>,
        options: OpenOptions,
    ) -> Result<Image, Failure> {
        let name = match key {
            ImageKey::Name(name) | ImageKey::Format1(name) => name,
            ImageKey::Id(id) => id,
        };
        let image = Image::open(io, key, options)
            .await
            .map_err(|error| open_failed(error, name))?;
        self.opened.lock().push(image.clone());
        Ok(image)
    }

    /// Prints a document, or for plain output the text that `plain` makes.
    pub(crate) fn print(
        &self,
        format: OutputFormat,
        plain: impl FnOnce() -> String,
        document: impl FnOnce() -> Document,
    ) -> Result<(), Failure> {
        say(&match format {
            OutputFormat::Plain => plain(),
            machine => document().render(machine),
        })
    }

    /// Starts to show the progress of `task`.
    pub(crate) fn task(&self, task: &str) -> Task {
        Task {
            shown: Arc::new(Progress::new(task, self.args().progress_options(Unit::Items))),
        }
    }

    /// The same for work that is counted in bytes.
    pub(crate) fn bytes_task(&self, task: &str) -> Task {
        Task {
            shown: Arc::new(Progress::new(task, self.args().progress_options(Unit::Bytes))),
        }
    }
}

/// Whether a command waits for OSDs that are down for as long as it takes: those that serve, and those that move or remove much
/// data and would have to be begun again. Any other tells after a while that nobody answers.
fn waits(command: CommandId) -> bool {
    matches!(
        command,
        CommandId::Bench
            | CommandId::Copy
            | CommandId::DeepCopy
            | CommandId::Export
            | CommandId::ExportDiff
            | CommandId::Flatten
            | CommandId::Fsck
            | CommandId::GroupRemove
            | CommandId::GroupSnapRemove
            | CommandId::GroupSnapRollback
            | CommandId::Import
            | CommandId::ImportDiff
            | CommandId::MigrationAbort
            | CommandId::MigrationCommit
            | CommandId::MigrationExecute
            | CommandId::ObjectMapCheck
            | CommandId::ObjectMapRebuild
            | CommandId::Remove
            | CommandId::Resize
            | CommandId::Serve
            | CommandId::SnapPurge
            | CommandId::SnapRemove
            | CommandId::SnapRollback
            | CommandId::TrashPurge
            | CommandId::TrashRemove
            | CommandId::Watch
    )
}

/// The error of an image that cannot be opened, as Ceph words it.
pub(crate) fn open_failed(error: ImageError, name: &str) -> Failure {
    match error.kind {
        ErrorKind::SnapMissing => {
            let note = error.note();
            let failure = Failure::errno_bare("error setting snapshot context", error.errno.0);
            note.map_or(failure.clone(), |note| failure.with_line(note))
        }
        _ => error.failed(format_args!("error opening image {name}")),
    }
}

/// How an execute stands, in one line: what is copied, skipped and left, at which rate, and how long it will take.
pub(crate) fn execute_text(progress: &ExecuteProgress) -> String {
    let mut text = format!(
        "copied {}, skipped {}, left {}",
        bytes(progress.bytes_copied),
        bytes(progress.bytes_skipped),
        bytes(progress.bytes_left)
    );
    if progress.paused {
        text.push_str(", paused");
        return text;
    }
    if progress.no_space {
        text.push_str(", paused: no space");
        return text;
    }
    if progress.bytes_per_second > 0 {
        text.push_str(&format!(", {}/s", bytes(progress.bytes_per_second)));
    }
    if let Some(seconds) = progress.seconds_left {
        let (minutes, seconds) = (seconds / 60, seconds % 60);
        text.push_str(&format!(
            ", {}:{:02}:{seconds:02} left",
            minutes / 60,
            minutes % 60
        ));
    }
    if progress.yielding {
        text.push_str(", yielding to clients");
    }
    text
}

/// Writes results to stdout.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    emit(text).map_err(|error| Failure::errno("writing the output", error.raw_os_error().unwrap_or(5)))
}

/// Progress of one piece of work; counts as failed unless [`Task::end`] saw it succeed.
#[derive(Debug)]
pub(crate) struct Task {
    shown: Arc<Progress>,
}

impl Task {
    /// What the library reports to.
    pub(crate) fn library(&self) -> ferry_image::Progress {
        let shown = Arc::clone(&self.shown);
        ferry_image::Progress::new(move |done, total| shown.update(done, total))
    }

    /// What an execute of a migration reports to; `seen` hears of its details too.
    pub(crate) fn library_of_execute(
        &self,
        seen: impl Fn(&ExecuteProgress) + Send + Sync + 'static,
    ) -> ferry_image::Progress {
        let shown = Arc::clone(&self.shown);
        self.library().with_execute(move |progress| {
            shown.detail(&ByteDetail {
                done: progress.bytes_copied.saturating_add(progress.bytes_skipped),
                left: progress.bytes_left,
                text: execute_text(progress),
            });
            seen(progress);
        })
    }

    /// Reports directly.
    pub(crate) fn update(&self, done: u64, total: u64) {
        self.shown.update(done, total);
    }

    /// Ends the progress as the result says, and gives the result back.
    pub(crate) fn end<T, E>(self, result: Result<T, E>) -> Result<T, E> {
        match &result {
            Ok(_) => self.shown.finish(),
            Err(_) => self.shown.fail(),
        }
        result
    }

    /// Ends it without a line: the work never began.
    pub(crate) fn forget(self) {
        self.shown.abandon();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // The library may hold on to its callback for longer than the work lasts.
        self.shown.fail();
    }
}
