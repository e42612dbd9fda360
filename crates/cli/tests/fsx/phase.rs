//! Clients that overlap, and what another process does to the image beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress};
use ferry_nbd::client::{Client, ClientError};
use ferry_reference::History;
use ferry_store::{Errno, IoCtx};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;

use super::world::{Outcome, State, World, check_snap, failed, size};

/// Most snapshots of an image.
const MAX_SNAPS: usize = 4;
const MAX_REQUEST_BYTES: u64 = 80 << 10;

/// What is done beside the clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beside {
    Nothing,
    Snap(String),
    RemoveSnap(String),
    ReadSnap(String),
    Resize(u64),
    Flatten,
    Execute,
    Commit,
}

/// What the clients of a phase share.
pub struct Load {
    pub history: Arc<Mutex<History>>,
    /// Where no request goes beyond.
    limit_bytes: u64,
    /// Where most requests go.
    hot: [u64; 3],
    /// Requests that were answered.
    pub done: AtomicU64,
    /// Requests of each client; it goes on after them until it is `enough`.
    least: u64,
    enough: AtomicBool,
    trace: bool,
    /// The server is being killed: errors are what must be expected.
    pub dying: AtomicBool,
}

impl Load {
    /// No client goes on after its requests.
    pub fn end_after_least(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}

impl World {
    /// Clients of an image are at work, and something may be done beside them.
    pub async fn phase(&mut self, index: usize) -> Outcome {
        let beside = self.any_beside(index);
        self.phase_beside(index, beside).await
    }

    fn any_beside(&mut self, index: usize) -> Beside {
        let image = &self.images[index];
        let snaps = image.history.lock().snap_names();
        let (state, is_clone) = (image.state, image.parent.is_some() && !image.flattened);
        let any = |rng: &mut StdRng| snaps[rng.random_range(0..snaps.len())].clone();
        match self.rng.random_range(0..20u32) {
            0..=2 if snaps.len() < MAX_SNAPS => {
                self.names_used += 1;
                Beside::Snap(format!("s{}", self.names_used))
            }
            3..=4 if !snaps.is_empty() => {
                let snap = any(&mut self.rng);
                match self.has_clones(index, &snap) {
                    true => Beside::ReadSnap(snap),
                    false => Beside::RemoveSnap(snap),
                }
            }
            5..=6 if !snaps.is_empty() => Beside::ReadSnap(any(&mut self.rng)),
            7..=8 => Beside::Resize(size(&mut self.rng)),
            9 if is_clone && state == State::Plain => Beside::Flatten,
            _ => Beside::Nothing,
        }
    }

    /// Whether an image is, or was, a clone of a snapshot.
    pub fn has_clones(&self, index: usize, snap: &str) -> bool {
        let number = self.images[index].number;
        self.images
            .iter()
            .filter_map(|image| image.parent.as_ref())
            .any(|(parent, of)| *parent == number && of == snap)
    }

    pub async fn phase_beside(&mut self, index: usize, beside: Beside) -> Outcome {
        self.trace(|| format!("{} beside {beside:?}", self.images[index].export()));
        let mut limit_bytes = self.images[index].history.lock().size_bytes();
        if let Beside::Resize(size) = &beside {
            limit_bytes = limit_bytes.min(*size);
        }
        let least = self.rng.random_range(5..60);
        let load = self.load(index, limit_bytes, least);
        if self.plan.one_at_a_time {
            load.end_after_least();
            let clients = self.start_clients(index, &load).await?;
            finish(clients).await?;
            self.beside(index, &beside).await.await?;
        } else {
            let clients = self.start_clients(index, &load).await?;
            let pause = self.rng.random_range(0..2000);
            tokio::time::sleep(std::time::Duration::from_micros(pause)).await;
            let done = tokio::spawn(self.beside(index, &beside).await).await;
            load.enough.store(true, Ordering::Relaxed);
            finish(clients).await?;
            done.map_err(|error| error.to_string())??;
        }
        self.count(&load);
        self.note(index, beside);
        Ok(())
    }

    pub fn count(&self, load: &Load) {
        let done = load.done.load(Ordering::Relaxed);
        self.stats.requests.fetch_add(done, Ordering::Relaxed);
    }

    pub fn load(&mut self, index: usize, limit_bytes: u64, least: u64) -> Arc<Load> {
        let hot = std::array::from_fn(|_| self.rng.random_range(0..limit_bytes));
        Arc::new(Load {
            history: Arc::clone(&self.images[index].history),
            limit_bytes,
            hot,
            done: AtomicU64::new(0),
            least,
            enough: AtomicBool::new(false),
            trace: self.trace,
            dying: AtomicBool::new(false),
        })
    }

    /// Starts clients, up to three on each of up to three connections.
    pub async fn start_clients(
        &mut self,
        index: usize,
        load: &Arc<Load>,
    ) -> Outcome<Vec<JoinHandle<Outcome>>> {
        let (connections, workers) = match self.plan.one_at_a_time {
            true => (1, 1),
            false => (self.rng.random_range(1..=3), self.rng.random_range(1..=8)),
        };
        self.clients(index, connections).await?;
        let seeds: Vec<u64> = (0..workers).map(|_| self.rng.random()).collect();
        let clients = &self.images[index].clients;
        Ok(seeds
            .into_iter()
            .enumerate()
            .map(|(worker, seed)| {
                let client = Arc::clone(&clients[worker % clients.len()]);
                tokio::spawn(work(client, Arc::clone(load), seed))
            })
            .collect())
    }

    /// What another process does.
    pub async fn beside(
        &self,
        index: usize,
        beside: &Beside,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let image = &self.images[index];
        let io = self.io(image.place);
        let (name, history) = (image.name.clone(), Arc::clone(&image.history));
        let what = format!("{beside:?} of {} ({:?})", image.export(), image.state);
        let beside = beside.clone();
        async move { do_beside(&io, &name, &history, &beside, &what).await }
    }

    /// Notes what was done.
    fn note(&mut self, index: usize, beside: Beside) {
        let image = &mut self.images[index];
        match beside {
            Beside::Nothing | Beside::ReadSnap(_) => {}
            Beside::Snap(_) => self.stats.snaps += 1,
            Beside::RemoveSnap(name) => image.history.lock().remove_snap(&name),
            Beside::Resize(size) => {
                image.history.lock().resize(size);
                self.stats.resizes += 1;
            }
            Beside::Flatten => image.flattened = true,
            Beside::Execute => image.state = State::Executed,
            Beside::Commit => {
                image.state = State::Plain;
                image.source = None;
                image.history.lock().committed();
                self.stats.migrations += 1;
            }
        }
    }
}

/// Waits for clients.
pub async fn finish(clients: Vec<JoinHandle<Outcome>>) -> Outcome {
    let mut result = Ok(());
    for client in clients {
        let ended = client
            .await
            .map_err(|error| error.to_string())
            .and_then(|done| done);
        result = result.and(ended);
    }
    result
}

async fn do_beside(
    io: &IoCtx,
    name: &str,
    history: &Arc<Mutex<History>>,
    beside: &Beside,
    what: &str,
) -> Outcome {
    let silent = Progress::silent();
    let done = match beside {
        Beside::Nothing => Ok(()),
        Beside::ReadSnap(snap) => return check_snap(io, name, snap, history, what).await,
        Beside::Execute => match execute(io, name, &silent).await {
            // One that was killed had got to its last step.
            Err(error) if error.kind == ErrorKind::MigrationState => Ok(()),
            done => done,
        },
        Beside::Commit => commit(io, name, &silent).await,
        _ => change(io, name, history, beside).await,
    };
    done.map_err(|error| failed(what, &error))
}

/// What is asked of whoever owns the image's lock.
async fn change(
    io: &IoCtx,
    name: &str,
    history: &Arc<Mutex<History>>,
    beside: &Beside,
) -> ferry_image::Result<()> {
    let silent = Progress::silent();
    let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_write()).await?;
    let done = match beside {
        Beside::Snap(snap) => {
            let taking = history.lock().begin_snap();
            let taken = image.snap_create(snap, &silent).await;
            history.lock().end_snap(taking, snap);
            taken
        }
        Beside::RemoveSnap(snap) => match image.snap_unprotect(snap).await {
            Err(error) if error.errno != Errno::EINVAL => Err(error),
            _ => image.snap_remove(snap, &silent).await,
        },
        Beside::Resize(size) => image.resize(*size, true, &silent).await,
        Beside::Flatten => image.flatten(&silent).await,
        _ => Ok(()),
    };
    let closed = image.close().await;
    done.and(closed)
}

/// One client: a request, its answer, the next request.
async fn work(client: Arc<Client>, load: Arc<Load>, seed: u64) -> Outcome {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut done = 0;
    while done < load.least || !load.enough.load(Ordering::Relaxed) {
        let result = request(&client, &load, &mut rng).await;
        if load.dying.load(Ordering::Relaxed) && !matches!(result, Err(Problem::Wrong(_))) {
            return Ok(());
        }
        match result {
            Ok(()) => done += 1,
            Err(Problem::Failed(what, error)) => return Err(format!("{what}: {error}")),
            Err(Problem::Wrong(what)) => return Err(what),
        }
        load.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

enum Problem {
    /// An error was answered, or nothing.
    Failed(String, ClientError),
    /// A wrong answer.
    Wrong(String),
}

async fn request(client: &Client, load: &Load, rng: &mut StdRng) -> Result<(), Problem> {
    let (offset, length) = range(load, rng);
    let history = &load.history;
    let fua = rng.random_bool(0.08);
    let choice = rng.random_range(0..100u32);
    if load.trace {
        let moment = history.lock().moment();
        println!("    at {moment}: request {choice} of {length} at {offset}, fua {fua}");
    }
    match choice {
        0..=39 => {
            let write = history.lock().begin_write(offset, length, false);
            let data = Bytes::from(write.bytes());
            let done = client.write(offset, data, fua).await;
            answered("write", offset, length, done)?;
            history.lock().end_write(write, fua);
        }
        40..=55 => {
            let write = history.lock().begin_write(offset, length, true);
            let done = match rng.random_range(0..3u32) {
                0 => client.trim(offset, length, fua).await,
                1 => client.write_zeroes(offset, length, true, fua).await,
                _ => client.write_zeroes(offset, length, false, fua).await,
            };
            answered("zeroes", offset, length, done)?;
            history.lock().end_write(write, fua);
        }
        56..=92 => {
            let reading = history.lock().begin_read(offset, length);
            match client.read(offset, length as u32).await {
                Ok(bytes) => {
                    let judged = history.lock().end_read(reading, &bytes);
                    judged.map_err(|violation| {
                        Problem::Wrong(format!("read of {length} at {offset}: {violation}"))
                    })?;
                }
                Err(error) => {
                    history.lock().forget_read(&reading);
                    answered("read", offset, length, Err(error))?;
                }
            }
        }
        93..=94 if client.has_block_status() => holes(client, load, offset, length).await?,
        95 => answered("cache", offset, length, client.cache(offset, length).await)?,
        _ => {
            let flush = history.lock().begin_flush();
            answered("flush", 0, 0, client.flush().await)?;
            history.lock().end_flush(&flush);
        }
    }
    Ok(())
}

fn answered(what: &str, offset: u64, length: u64, done: Result<(), ClientError>) -> Result<(), Problem> {
    done.map_err(|error| Problem::Failed(format!("{what} of {length} at {offset}"), error))
}

/// What block status calls zeroes is judged as a read of zeroes.
async fn holes(client: &Client, load: &Load, offset: u64, length: u64) -> Result<(), Problem> {
    let history = &load.history;
    let reading = history.lock().begin_read(offset, length);
    let extents = match client.block_status(offset, length, true).await {
        Ok(extents) => extents,
        Err(error) => {
            history.lock().forget_read(&reading);
            return answered("block status", offset, length, Err(error));
        }
    };
    let zeroes = match extents.first() {
        Some(first) if first.zero => first.length_bytes.min(length),
        _ => 0,
    };
    let judged = history.lock().end_read(reading, &vec![0; zeroes as usize]);
    judged.map_err(|violation| {
        Problem::Wrong(format!(
            "block status of {length} at {offset} calls {zeroes} bytes zeroes: {violation}"
        ))
    })
}

fn range(load: &Load, rng: &mut StdRng) -> (u64, u64) {
    let limit = load.limit_bytes;
    let near = load.hot[rng.random_range(0..load.hot.len())];
    let mut offset = match rng.random_bool(0.6) {
        true => near.saturating_sub(rng.random_range(0..6000)),
        false => rng.random_range(0..limit),
    };
    let most = 1u64 << rng.random_range(4..15u32);
    let most = if rng.random_bool(0.03) {
        MAX_REQUEST_BYTES
    } else {
        most
    };
    let mut length = rng.random_range(1..=most);
    match rng.random_range(0..4u32) {
        0 => {}
        1 | 2 => {
            offset &= !511;
            length = length.next_multiple_of(512);
        }
        _ => {
            offset &= !4095;
            length = length.next_multiple_of(4096);
        }
    }
    let offset = offset.min(limit - 1);
    (offset, length.min(limit - offset))
}
