//! A small engine in memory, for tests: exact RADOS semantics, several clients of one state, clients that die and power
//! that goes.
//!
//! [`MemoryCluster::connect`] gives a client instance; as many as there are "processes". [`MemoryStore::kill`] ends one
//! as `SIGKILL` would. [`MemoryCluster::power_loss`] ends all and takes back a random part of what was not flushed.
//!
//! Invariants: all state is behind one lock that is never held across an await, so operations are atomic and totally
//! ordered. What it does not know: images. It keeps nothing on any medium, and is not made for speed with many objects
//! of one pool being snapshotted (trimming looks at all).

mod data;
mod extents;
mod journal;
mod object;
mod ops;
mod store;
mod watches;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;

use crate::class::ClassRegistry;
use crate::error::Errno;
use crate::types::{ClientInstance, EntityAddr, Namespace, PoolId, SnapId};
use crate::watch::WatchCookie;
use crate::{Setting, Space};

use journal::Slot;
use watches::{End, Watches};

/// Largest object, as with an OSD's defaults; what would be larger fails with `EFBIG`.
pub const MAX_OBJECT_BYTES: u64 = 128 << 20;

/// First client id, so that they look like a cluster's.
const FIRST_GID: u64 = 4100;

/// The state that clients share. Cheap to clone.
#[derive(Clone)]
pub struct MemoryCluster {
    shared: Arc<Shared>,
}

/// One client of a [`MemoryCluster`]. Dropping it ends its watches.
pub struct MemoryStore {
    shared: Arc<Shared>,
    client: Arc<Client>,
}

struct Shared {
    classes: ClassRegistry,
    state: Mutex<State>,
}

/// What belongs to one client.
struct Client {
    instance: ClientInstance,
    /// True once it was shut down or killed.
    ended: tokio::sync::watch::Sender<bool>,
    /// Tasks of its watches, until they are unwatched.
    tasks: Mutex<BTreeMap<WatchCookie, JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    pools: BTreeMap<PoolId, Pool>,
    last_pool: i64,
    last_version: u64,
    clients: Vec<Weak<Client>>,
    last_gid: u64,
    blocklist: HashSet<u64>,
    watches: Watches,
    settings: Vec<Setting>,
    /// `None`: without end.
    capacity_bytes: Option<u64>,
}

#[derive(Clone)]
struct Pool {
    name: String,
    last_snap: u64,
    removed_snaps: BTreeSet<SnapId>,
    namespaces: BTreeMap<Namespace, BTreeMap<String, Slot>>,
}

impl MemoryCluster {
    /// An empty store whose objects know `classes`.
    pub fn new(classes: ClassRegistry) -> Self {
        let state = State {
            last_gid: FIRST_GID,
            ..State::default()
        };
        Self {
            shared: Arc::new(Shared {
                classes,
                state: Mutex::new(state),
            }),
        }
    }

    /// A new client instance.
    pub fn connect(&self) -> Arc<MemoryStore> {
        let mut state = self.shared.state.lock();
        state.last_gid += 1;
        let gid = state.last_gid;
        let client = Arc::new(Client {
            instance: ClientInstance {
                gid,
                addr: EntityAddr {
                    ip: [127, 0, 0, 1],
                    port: 0,
                    nonce: (gid as u32).wrapping_mul(0x9e37_79b1),
                },
            },
            ended: tokio::sync::watch::Sender::new(false),
            tasks: Mutex::default(),
        });
        state.clients.retain(|client| client.strong_count() > 0);
        state.clients.push(Arc::downgrade(&client));
        Arc::new(MemoryStore {
            shared: self.shared.clone(),
            client,
        })
    }

    /// Another store with the same content, and without clients. What is done to one is not seen in the other.
    pub fn fork(&self) -> Self {
        let state = self.shared.state.lock();
        let forked = State {
            pools: state.pools.clone(),
            last_pool: state.last_pool,
            last_version: state.last_version,
            last_gid: state.last_gid,
            blocklist: state.blocklist.clone(),
            ..State::default()
        };
        Self {
            shared: Arc::new(Shared {
                classes: self.shared.classes.clone(),
                state: Mutex::new(forked),
            }),
        }
    }

    /// Gives the store an end: writes that bring more bytes than are free fail with `ENOSPC`, whether or not there was
    /// something in their place. `None`: without end.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.state.lock().capacity_bytes = bytes;
    }

    /// Bytes that all objects of all pools take up.
    pub fn used_bytes(&self) -> u64 {
        self.shared.state.lock().used_bytes()
    }

    /// Ends a client as [`MemoryStore::kill`] does, by its instance. Unknown ones are fine.
    pub fn kill(&self, instance: &ClientInstance) {
        let client = self.shared.state.lock().client(instance.gid);
        if let Some(client) = client {
            self.shared.end(&client);
        }
    }

    /// Ends the watches of a client as the store does that has not heard of it for too long. The client goes on, and is told.
    pub fn lose_watches(&self, instance: &ClientInstance) {
        let mut state = self.shared.state.lock();
        state
            .watches
            .end(End::Lost(Errno::ENOTCONN), |_, info| info.gid == instance.gid);
    }

    /// Ends all clients, then takes back a random part of what was not flushed: bytes of buffered writes, in sectors, or
    /// whole buffered operations. Full ones stay. The same history and seed leave the same.
    pub fn power_loss(&self, seed: u64) {
        let clients: Vec<_> = self
            .shared
            .state
            .lock()
            .clients
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for client in clients {
            self.shared.end(&client);
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let mut guard = self.shared.state.lock();
        let State {
            pools, last_version, ..
        } = &mut *guard;
        for pool in pools.values_mut() {
            for objects in pool.namespaces.values_mut() {
                for slot in objects.values_mut() {
                    slot.lose_power(&pool.removed_snaps, &mut rng, || {
                        *last_version += 1;
                        *last_version
                    });
                }
                objects.retain(|_, slot| !slot.is_void());
            }
        }
    }
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCluster").finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// Ends the client abruptly, as the death of its process would: its watches vanish without a call, handlers that run
    /// are cut off, notifies to them stay unanswered, and every later operation fails with `ESHUTDOWN`.
    pub fn kill(&self) {
        self.shared.end(&self.client);
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({})", self.client.instance)
    }
}

impl Shared {
    fn end(&self, client: &Client) {
        // Under the lock from the first to the last: whoever is told that the client has ended finds no watch of it.
        let mut state = self.state.lock();
        client.ended.send_replace(true);
        let gid = client.instance.gid;
        // Abort first: a task that sees its watch end might still call the handler.
        for (_, task) in std::mem::take(&mut *client.tasks.lock()) {
            task.abort();
        }
        state.watches.end(End::Unwatched, |_, info| info.gid == gid);
    }
}

impl State {
    fn client(&self, gid: u64) -> Option<Arc<Client>> {
        let mut living = self.clients.iter().filter_map(Weak::upgrade);
        living.find(|client| client.instance.gid == gid)
    }

    fn used_bytes(&self) -> u64 {
        let namespaces = self.pools.values().flat_map(|pool| pool.namespaces.values());
        let slots = namespaces.flat_map(|objects| objects.values());
        slots.map(|slot| slot.object().allocated_bytes()).sum()
    }

    fn space(&self) -> Option<Space> {
        let total_bytes = self.capacity_bytes?;
        Some(Space {
            free_bytes: total_bytes.saturating_sub(self.used_bytes()),
            total_bytes,
        })
    }

    fn room_for(&self, bytes: u64) -> Result<(), Errno> {
        match self.space() {
            Some(space) if space.free_bytes < bytes => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    fn pool(&mut self, id: PoolId) -> Result<&mut Pool, Errno> {
        self.pools.get_mut(&id).ok_or(Errno::ENOENT)
    }
}
