//! The bodies of the commands: each parses its arguments, calls the library, prints what comes back.
//!
//! [`run`] is the entry ([`run_on`] for who has a store already). It owns the runtime, the store and the signals: a command that is interrupted by `SIGINT` or
//! `SIGTERM` is dropped where it stands, its images are closed and the exit code is 128 + the signal's number; what it
//! had begun can be taken up by running it again. `serve` and `watch` end in their own, orderly way.
//!
//! What it does not know: how any of the operations works.

mod bench;
mod clone;
mod config;
mod copy;
mod create;
mod device;
mod diff;
mod diff_files;
mod error;
mod feature;
mod fsck;
mod group;
mod info;
mod lifecycle;
mod list;
mod locks;
mod meta;
mod migration;
mod namespace;
mod object_map;
mod pool;
mod serve;
mod session;
mod snap;
mod status;
mod transfer;
mod trash;
mod usage;
mod watch;

use std::future::Future;
use std::sync::Arc;

use ferry_nbd::kernel::Link;
use ferry_store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{EIO, Failure};
use crate::grammar::{CommandId, Invocation};
pub use device::Machine;
use session::Session;

/// Runs a command to its end.
///
/// # Errors
/// The [`Failure`] to report and exit with.
pub fn run(invocation: Box<Invocation>) -> Result<(), Failure> {
    start_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::errno("cannot start", error.raw_os_error().unwrap_or(EIO)))?;
    let result = runtime.block_on(in_session(invocation));
    // A thread may be waiting for input that nobody needs any more.
    runtime.shutdown_background();
    result
}

/// Diagnostics on stderr, for who asks for them with `FERRY_LOG` (`debug`, `ferry_image=trace`); errors always.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing_subscriber::filter::LevelFilter::ERROR.into())
        .with_env_var("FERRY_LOG")
        .from_env_lossy();
    // Fails only when a log is set up already, which is as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}

/// Runs a command, other than `serve` and `watch`, on a store that the caller has opened, whatever the command line says
/// of stores: how tests put failing and dying ones under every command. The store is shut down at the end.
///
/// # Errors
/// The [`Failure`] to report and exit with.
pub async fn run_on(invocation: Box<Invocation>, store: Arc<dyn Store>) -> Result<(), Failure> {
    let command = invocation.command;
    let session = Session::on(invocation, store);
    let result = body(&session, command).await;
    let closed = session.close().await;
    result.and(closed)
}

/// Runs `device list`, `map` or `unmap` on another machine than this one, and gives what they print.
///
/// # Errors
/// The [`Failure`] to report and exit with; `EOPNOTSUPP` for other commands.
pub async fn run_device_on<L: Link>(
    invocation: Box<Invocation>,
    machine: &Machine<L>,
) -> Result<String, Failure> {
    let command = invocation.command;
    let session = Session::new(invocation);
    let result = device_body(&session, command, machine).await;
    let closed = session.close().await;
    result.and_then(|said| closed.map(|()| said))
}

async fn device_body<L: Link>(
    session: &Session,
    command: CommandId,
    machine: &Machine<L>,
) -> Result<String, Failure> {
    match command {
        CommandId::DeviceList => device::list(session, machine),
        CommandId::DeviceMap => device::map(session, machine).await,
        CommandId::DeviceUnmap => device::unmap(session, machine).await.map(|()| String::new()),
        _ => Err(Failure::not_supported("this command", "it makes no devices")),
    }
}

/// All images of a store as `rbd serve` shows them, for a server that the caller runs: how tests put failing and dying
/// stores under it.
pub fn exports_of(store: Arc<dyn Store>) -> Arc<dyn ferry_nbd::Exports> {
    serve::exports_of(store)
}

async fn in_session(invocation: Box<Invocation>) -> Result<(), Failure> {
    if let Some(objects) = invocation.config_overrides.concurrent_management_ops() {
        ferry_image::migration::execute::set_concurrent_objects(objects as usize);
    }
    let command = invocation.command;
    let mut signals = Signals::new()?;
    let session = Session::new(invocation);
    let result = match command {
        CommandId::Serve => serve::run(&session, &mut signals).await,
        CommandId::Watch => watch::run(&session, &mut signals).await,
        _ => until_signal(body(&session, command), &mut signals).await,
    };
    let closed = session.close().await;
    result.and(closed)
}

async fn until_signal(
    body: impl Future<Output = Result<(), Failure>>,
    signals: &mut Signals,
) -> Result<(), Failure> {
    tokio::select! {
        result = body => result,
        number = signals.next() => Err(Failure::message(
            "rbd: interrupted; run the command again to go on",
            128 + number,
        )),
    }
}

async fn body(session: &Session, command: CommandId) -> Result<(), Failure> {
    match command {
        CommandId::Bench => bench::run(session).await,
        CommandId::Children => clone::children(session).await,
        CommandId::Clone => clone::run(session).await,
        CommandId::Copy => copy::run(session, false).await,
        CommandId::Create => create::run(session).await,
        CommandId::DeepCopy => copy::run(session, true).await,
        CommandId::DeviceList | CommandId::DeviceMap | CommandId::DeviceUnmap => {
            session::say(&device_body(session, command, &Machine::this()?).await?)
        }
        CommandId::Diff => diff::run(session).await,
        CommandId::DiskUsage => usage::run(session).await,
        CommandId::Export => transfer::export(session).await,
        CommandId::ExportDiff => diff_files::export(session).await,
        CommandId::FeatureDisable => feature::disable(session).await,
        CommandId::FeatureEnable => feature::enable(session).await,
        CommandId::Fsck => fsck::run(session).await,
        CommandId::Flatten => clone::flatten(session).await,
        CommandId::GroupCreate => group::create(session).await,
        CommandId::GroupImageAdd => group::image_add(session).await,
        CommandId::GroupImageList => group::image_list(session).await,
        CommandId::GroupImageRemove => group::image_remove(session).await,
        CommandId::GroupList => group::list(session).await,
        CommandId::GroupRemove => group::remove(session).await,
        CommandId::GroupRename => group::rename(session).await,
        CommandId::GroupSnapCreate => group::snap_create(session).await,
        CommandId::GroupSnapList => group::snap_list(session).await,
        CommandId::GroupSnapRemove => group::snap_remove(session).await,
        CommandId::GroupSnapRename => group::snap_rename(session).await,
        CommandId::GroupSnapRollback => group::snap_rollback(session).await,
        CommandId::ConfigGlobalGet => config::global_get(session).await,
        CommandId::ConfigGlobalList => config::global_list(session).await,
        CommandId::ConfigGlobalRemove => config::global_remove(session).await,
        CommandId::ConfigGlobalSet => config::global_set(session).await,
        CommandId::ConfigImageGet => config::image_get(session).await,
        CommandId::ConfigImageList => config::image_list(session).await,
        CommandId::ConfigImageRemove => config::image_remove(session).await,
        CommandId::ConfigImageSet => config::image_set(session).await,
        CommandId::ConfigPoolGet => config::pool_get(session).await,
        CommandId::ConfigPoolList => config::pool_list(session).await,
        CommandId::ConfigPoolRemove => config::pool_remove(session).await,
        CommandId::ConfigPoolSet => config::pool_set(session).await,
        CommandId::ImageMetaGet => meta::get(session).await,
        CommandId::ImageMetaList => meta::list(session).await,
        CommandId::ImageMetaRemove => meta::remove(session).await,
        CommandId::ImageMetaSet => meta::set(session).await,
        CommandId::Import => transfer::import(session).await,
        CommandId::ImportDiff => diff_files::import(session).await,
        CommandId::Info => info::run(session).await,
        CommandId::List => list::run(session).await,
        CommandId::LockAdd => locks::add(session).await,
        CommandId::LockList => locks::list(session).await,
        CommandId::LockRemove => locks::remove(session).await,
        CommandId::MergeDiff => diff_files::merge(session).await,
        CommandId::MigrationAbort => migration::abort(session).await,
        CommandId::MigrationCommit => migration::commit(session).await,
        CommandId::MigrationExecute => migration::execute(session).await,
        CommandId::MigrationPause => migration::pause(session, true).await,
        CommandId::MigrationPrepare => migration::prepare(session).await,
        CommandId::MigrationResume => migration::pause(session, false).await,
        CommandId::MigrationThrottle => migration::throttle(session).await,
        CommandId::NamespaceCreate => namespace::create(session).await,
        CommandId::NamespaceList => namespace::list(session).await,
        CommandId::NamespaceRemove => namespace::remove(session).await,
        CommandId::ObjectMapCheck => object_map::check(session).await,
        CommandId::ObjectMapRebuild => object_map::rebuild(session).await,
        CommandId::PoolCreate => pool::create(session).await,
        CommandId::PoolInit => pool::init(session).await,
        CommandId::PoolList => pool::list(session).await,
        CommandId::PoolRemove => pool::remove(session).await,
        CommandId::PoolStats => pool::stats(session).await,
        CommandId::Remove => lifecycle::remove(session).await,
        CommandId::Rename => lifecycle::rename(session).await,
        CommandId::Resize => lifecycle::resize(session).await,
        CommandId::SnapCreate => snap::create(session).await,
        CommandId::SnapLimitClear => snap::limit_clear(session).await,
        CommandId::SnapLimitSet => snap::limit_set(session).await,
        CommandId::SnapList => snap::list(session).await,
        CommandId::SnapProtect => snap::protect(session).await,
        CommandId::SnapPurge => snap::purge(session).await,
        CommandId::SnapRemove => snap::remove(session).await,
        CommandId::SnapRename => snap::rename(session).await,
        CommandId::SnapRollback => snap::rollback(session).await,
        CommandId::SnapUnprotect => snap::unprotect(session).await,
        CommandId::Sparsify => lifecycle::sparsify(session).await,
        CommandId::Status => status::run(session).await,
        CommandId::TrashList => trash::list(session).await,
        CommandId::TrashMove => trash::move_image(session).await,
        CommandId::TrashPurge => trash::purge(session).await,
        CommandId::TrashRemove => trash::remove(session).await,
        CommandId::TrashRestore => trash::restore(session).await,
        // Dispatched above, since they end on their own at a signal.
        CommandId::Serve | CommandId::Watch => Err(Failure::not_supported(
            &command.name(),
            "it ends at a signal only",
        )),
    }
}

/// `SIGINT` and `SIGTERM`, caught from the start so that none is lost.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let catch = |kind| {
            signal(kind)
                .map_err(|error| Failure::errno("cannot catch signals", error.raw_os_error().unwrap_or(EIO)))
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one; gives its number.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
        }
    }
}
