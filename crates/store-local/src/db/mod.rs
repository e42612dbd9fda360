//! One SQLite file with many readers and one fair queue of writers.
//!
//! Writers of a process hand closures to one thread, which runs all that are waiting as one transaction (each in its
//! own savepoint), so one sync serves many. Between processes a pair of byte-range locks on a side file stands in
//! front of `BEGIN IMMEDIATE`: nobody sleeps and retries, and whoever just wrote queues behind those who wait.
//!
//! Keeps invariant: a closure's effects are committed when [`Db::write`] returns `Ok`, durably unless it was said to be
//! lazy, and absent when it returns an error. Nothing but SQLite opens a database's file, or SQLite's locks on it were gone ([`raw`]).
//! Does not know any table.

mod checked;
mod error;
pub(crate) mod log;
mod logged;
pub(crate) mod page;
mod raw;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use ferry_store::{Errno, Result, StoreError};
use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, OpenFlags};

pub(crate) use error::SqlContext;

use crate::sys::ofd::{self, Hold};

/// Read connections of one handle.
const READERS_MAX: usize = 8;
/// Closures that may wait for the writer.
const QUEUE_MAX: usize = 128;
/// Closures in one transaction.
const BATCH_MAX: usize = 64;
/// Statements kept prepared per connection.
const STATEMENTS_MAX: usize = 96;
/// Byte of the side file whose holder is next.
const LOCK_NEXT: u64 = 0;
/// Byte of the side file whose holder writes.
const LOCK_WRITER: u64 = 1;

type Finish = Box<dyn FnOnce(Result<(), &StoreError>) + Send>;
type Job = (
    Commit,
    Box<dyn FnOnce(Result<&Connection>) -> (Option<StoreError>, Finish) + Send>,
);

/// Whether a commit must be durable when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Commit {
    /// Durable with the next full commit: survives the process, may be lost (never torn) with the power.
    Lazy,
    /// Durable across power loss.
    Full,
}

/// For how long a database is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// For good: each page of one that is made now has a checksum.
    Forever,
    /// Until the machine goes down, as whom it tells of are gone then: nothing is ever synced. Pages have no checksums:
    /// programs from before there were any write to it too.
    ThisBoot,
}

/// A database shared by processes.
#[derive(Debug)]
pub(crate) struct Db {
    path: PathBuf,
    lifetime: Lifetime,
    readers: Mutex<Readers>,
    returned: Condvar,
    writer: Mutex<Option<Writer>>,
}

#[derive(Debug, Default)]
struct Readers {
    idle: Vec<Connection>,
    open: usize,
}

#[derive(Debug)]
struct Writer {
    jobs: SyncSender<Job>,
    thread: JoinHandle<()>,
}

/// A read connection on loan.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    db: &'a Db,
    connection: Option<Connection>,
}

impl std::ops::Deref for Reader<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("a loan holds its connection until it is dropped"),
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.db.readers.lock().idle.push(connection);
            self.db.returned.notify_one();
        }
    }
}

impl Db {
    /// A database at `path`; `prepare` makes or checks its tables, inside the first transaction of this handle, under
    /// the writers' lock. Blocks.
    pub(crate) fn open(
        path: &Path,
        lifetime: Lifetime,
        prepare: impl FnOnce(&Connection) -> Result<()>,
    ) -> Result<Arc<Self>> {
        let db = Arc::new(Self {
            path: path.to_owned(),
            lifetime,
            readers: Mutex::default(),
            returned: Condvar::new(),
            writer: Mutex::new(None),
        });
        let side = db.side_file()?;
        let locked = db.lock(&side)?;
        let connection = db.set_up(prepare).map_err(|error| match log::damage(path) {
            Ok(Some(what)) => StoreError::new(Errno::EIO, format!("{what}: {}", log::WAY_OUT)),
            _ => error,
        })?;
        drop(locked);
        let mut readers = db.readers.lock();
        readers.idle.push(connection);
        readers.open = 1;
        drop(readers);
        Ok(db)
    }

    /// The first connection, which recovers the log if that is necessary. Under the writers' lock.
    fn set_up(&self, prepare: impl FnOnce(&Connection) -> Result<()>) -> Result<Connection> {
        let connection = self.connect()?;
        connection
            .query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))
            .at(&self.path, "set up")?;
        connection
            .execute_batch("BEGIN IMMEDIATE")
            .at(&self.path, "set up")?;
        prepare(&connection)?;
        connection.execute_batch("COMMIT").at(&self.path, "set up")?;
        Ok(connection)
    }

    /// In words: what the log has lost of what was synced into it. Waits for writers. Blocks.
    pub(crate) fn log_damage(&self) -> Result<Option<String>> {
        let side = self.side_file()?;
        let _locked = self.lock(&side)?;
        log::damage(&self.path)
            .map_err(|error| StoreError::io(&error, format!("read the log of {}", self.path.display())))
    }

    /// Whether its pages have checksums. Blocks.
    pub(crate) fn kept(path: &Path) -> Result<page::Kept> {
        page::kept(path).map_err(|error| StoreError::io(&error, format!("read {}", path.display())))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn side_file(&self) -> Result<File> {
        let path = self.path.with_extension("lock");
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| StoreError::io(&error, format!("open {}", path.display())))
    }

    fn connect(&self) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if !checked::register() {
            let what = format!("open {}: SQLite has no files here", self.path.display());
            return Err(StoreError::new(Errno::EIO, what));
        }
        let connection =
            Connection::open_with_flags_and_vfs(&self.path, flags, checked::NAME).at(&self.path, "open")?;
        if self.lifetime == Lifetime::Forever {
            checked::reserve(&connection);
        }
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        // The queue keeps writers apart; this wait is for checkpoints and for the recovery of the log after a kill.
        connection
            .busy_timeout(std::time::Duration::from_secs(30))
            .at(&self.path, "open")?;
        connection
            .execute_batch("PRAGMA foreign_keys=OFF; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-8192")
            .at(&self.path, "open")?;
        let synchronous = match self.lifetime {
            Lifetime::Forever => "PRAGMA synchronous=FULL",
            Lifetime::ThisBoot => "PRAGMA synchronous=OFF",
        };
        connection.execute_batch(synchronous).at(&self.path, "open")?;
        Ok(connection)
    }

    fn lock<'a>(&self, side: &'a File) -> Result<WriterHold<'a>> {
        let failed = |error| {
            StoreError::io(
                &error,
                format!("lock {}", self.path.with_extension("lock").display()),
            )
        };
        // Two locks make the queue fair: whoever lets go of the second must get the first again, which the one who
        // waits for the second holds.
        ofd::lock(side, LOCK_NEXT, Hold::Exclusive).map_err(failed)?;
        let taken = ofd::lock(side, LOCK_WRITER, Hold::Exclusive).map_err(failed);
        ofd::unlock(side, LOCK_NEXT);
        taken.map(|()| WriterHold(side))
    }

    /// Runs `work` on a read connection. Blocks.
    pub(crate) fn reader(&self) -> Result<Reader<'_>> {
        let mut readers = self.readers.lock();
        loop {
            if let Some(connection) = readers.idle.pop() {
                return Ok(Reader {
                    db: self,
                    connection: Some(connection),
                });
            }
            if readers.open < READERS_MAX {
                readers.open += 1;
                drop(readers);
                return match self.connect() {
                    Ok(connection) => Ok(Reader {
                        db: self,
                        connection: Some(connection),
                    }),
                    Err(error) => {
                        self.readers.lock().open -= 1;
                        self.returned.notify_one();
                        Err(error)
                    }
                };
            }
            self.returned.wait(&mut readers);
        }
    }

    /// Runs `work` inside a transaction and commits. Blocks until committed.
    pub(crate) fn write<T: Send + 'static>(
        self: &Arc<Self>,
        commit: Commit,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = sync_channel(1);
        let job: Job = (
            commit,
            Box::new(move |connection| {
                let outcome = connection.and_then(work);
                let failed = outcome.as_ref().err().cloned();
                let finish: Finish = Box::new(move |commit| {
                    let _ = sender.send(match commit {
                        Ok(()) => outcome,
                        Err(error) => outcome.and_then(|_| Err(error.clone())),
                    });
                });
                (failed, finish)
            }),
        );
        let gone = || {
            StoreError::new(
                Errno::EIO,
                format!("{}: the writer has ended", self.path.display()),
            )
        };
        let jobs = self.writer()?;
        jobs.send(job).map_err(|_| gone())?;
        receiver.recv().map_err(|_| gone())?
    }

    fn writer(self: &Arc<Self>) -> Result<SyncSender<Job>> {
        let mut writer = self.writer.lock();
        if let Some(writer) = &*writer {
            return Ok(writer.jobs.clone());
        }
        let (side, connection) = (self.side_file()?, self.connect()?);
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        // The thread must not keep the database alive: it has its own view, good for locking and messages only.
        let view = Db {
            path: self.path.clone(),
            lifetime: self.lifetime,
            readers: Mutex::default(),
            returned: Condvar::new(),
            writer: Mutex::new(None),
        };
        let thread = std::thread::Builder::new()
            .name("ferry-db-writer".to_owned())
            .spawn(move || view.run(&side, &connection, &queue))
            .map_err(|error| StoreError::io(&error, "start the database writer"))?;
        *writer = Some(Writer {
            jobs: jobs.clone(),
            thread,
        });
        Ok(jobs)
    }

    fn run(&self, side: &File, connection: &Connection, queue: &Receiver<Job>) {
        let mut current = None;
        let mut broken: Option<StoreError> = None;
        while let Ok(first) = queue.recv() {
            let hold = self.lock(side);
            // Taken only now: what queued up while waiting for other processes goes into the same transaction.
            let mut batch = vec![first];
            batch.extend(queue.try_iter().take(BATCH_MAX - 1));
            let (finishes, outcome) = match (hold, &broken) {
                (Ok(hold), None) => {
                    let ran = self.run_batch(connection, &mut current, batch);
                    self.note_synced(connection, &ran.1, &hold);
                    ran
                }
                (Ok(_hold), Some(error)) => refuse(batch, error.clone()),
                (Err(error), _) => refuse(batch, error),
            };
            // A log that could not be written or synced may have a hole; what is committed behind it would be lost with it.
            if let Err(error) = &outcome
                && error.errno == Errno::EIO
            {
                broken.get_or_insert_with(|| error.clone());
            }
            for finish in finishes {
                finish(outcome.as_ref().copied());
            }
        }
    }

    /// Notes beside the log what of it cannot be gone, for whoever recovers it.
    fn note_synced(&self, connection: &Connection, outcome: &Result<()>, hold: &WriterHold<'_>) {
        if let Some(synced) = logged::take_synced(connection)
            && outcome.is_ok()
            && self.lifetime == Lifetime::Forever
        {
            // Without the note less is judged, and nothing wrongly.
            let _ = log::Mark::new(synced).note(hold.0);
        }
    }

    fn run_batch(&self, connection: &Connection, current: &mut Option<Commit>, batch: Vec<Job>) -> Ran {
        let at = |result: rusqlite::Result<()>| result.at(&self.path, "write");
        let step = |sql: &str| {
            let prepared = connection.prepare_cached(sql);
            at(prepared
                .and_then(|mut statement| statement.execute([]))
                .map(|_| ()))
        };
        let commit = batch.iter().map(|job| job.0).max().unwrap_or(Commit::Full);
        let begun = if *current == Some(commit) || self.lifetime == Lifetime::ThisBoot {
            Ok(())
        } else {
            at(connection.execute_batch(match commit {
                Commit::Full => "PRAGMA synchronous=FULL",
                Commit::Lazy => "PRAGMA synchronous=NORMAL",
            }))
        };
        if let Err(error) = begun.and_then(|()| step("BEGIN IMMEDIATE")) {
            *current = None;
            return refuse(batch, error);
        }
        *current = Some(commit);
        let mut finishes = Vec::with_capacity(batch.len());
        let mut outcome = Ok(());
        for (_, work) in batch {
            if outcome.is_ok() {
                outcome = step("SAVEPOINT job");
            }
            let (failed, finish) = match &outcome {
                Ok(()) => work(Ok(connection)),
                Err(error) => work(Err(error.clone())),
            };
            finishes.push(finish);
            if outcome.is_ok() {
                outcome = match failed {
                    None => step("RELEASE job"),
                    // SQLite gave the whole transaction up (disk full, I/O error): nothing of the batch will be.
                    Some(error) if connection.is_autocommit() => Err(error),
                    Some(_) => step("ROLLBACK TO job").and_then(|()| step("RELEASE job")),
                };
            }
        }
        let outcome = outcome.and_then(|()| step("COMMIT"));
        if outcome.is_err() && !connection.is_autocommit() {
            let _ = step("ROLLBACK");
        }
        (finishes, outcome)
    }
}

/// What became of a batch: whom to tell, and what.
type Ran = (Vec<Finish>, Result<()>);

fn refuse(batch: Vec<Job>, error: StoreError) -> Ran {
    let finishes = batch.into_iter().map(|(_, work)| work(Err(error.clone())).1);
    (finishes.collect(), Err(error))
}

impl Drop for Db {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.lock().take() {
            drop(writer.jobs);
            if writer.thread.thread().id() != std::thread::current().id() {
                let _ = writer.thread.join();
            }
        }
    }
}

/// The right to write; lets go when dropped.
#[derive(Debug)]
struct WriterHold<'a>(&'a File);

impl Drop for WriterHold<'_> {
    fn drop(&mut self) {
        ofd::unlock(self.0, LOCK_WRITER);
    }
}
