//! Many clients in one thread, and a seed that says whose call is next: simulation of a whole system.
//!
//! Every call of a client behind a [`ScheduledStore`] waits for its turn before it is made, and now and then once more before
//! it is answered. [`Schedule::drive`] gives one turn at a time, when everything else has come to rest, to a waiting call that
//! the seed picks; clients have speeds of their own, so that some overtake others by far. A client may be killed, or held: a
//! process that is stopped, or cut off, whose calls reach the store late.
//!
//! Invariant: in a runtime of one thread whose clock is paused, the same seed and the same program give the same turns
//! ([`Schedule::turns`]). A turn takes a millisecond of that clock, so that timers run too.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, oneshot};

use super::{Call, Hook, OpKind, Wrapper};
use crate::Store;
use crate::error::{Errno, Result, StoreError};

/// A store whose calls wait for their turn.
pub type ScheduledStore = Wrapper<Scheduled>;

/// How many times slower than others a client may be.
const SPEEDS: [u32; 4] = [1, 1, 4, 16];
/// Of so many answers, one waits for a turn.
const ANSWERS: u32 = 4;
/// Of so many turns, one is followed by a pause that lets timers run.
const PAUSES: u32 = 200;
/// The longest of those pauses.
const LONGEST_PAUSE_MS: u64 = 400;

/// One turn that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Which client, by the order in which they joined.
    pub client: usize,
    /// What it called.
    pub kind: OpKind,
    /// Whether the call was made before and its answer waited.
    pub is_answer: bool,
    /// How many calls waited.
    pub waiting: usize,
}

/// Why [`Schedule::drive`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// Nobody called anything for that long.
    Idle,
    /// All turns have been given, and there is more to do.
    Endless,
}

/// The scheduler that clients share.
pub struct Schedule {
    state: Mutex<State>,
    arrived: Notify,
}

struct State {
    rng: StdRng,
    clients: Vec<Client>,
    waiting: Vec<Waiting>,
    turns: Vec<Turn>,
    defect: Option<Defect>,
}

/// A defect, planted: one of so many such calls is answered, and not made, or not yet.
#[derive(Debug, Clone, Copy)]
pub struct Defect {
    /// Which writes and fences.
    pub which: fn(&Call<'_>) -> bool,
    /// One of so many of them.
    pub one_of: u32,
    /// How long after the answer a write is made; `None`: never.
    pub late: Option<Duration>,
}

struct Client {
    weight: u32,
    held: bool,
    dead: bool,
}

struct Waiting {
    client: usize,
    kind: OpKind,
    is_answer: bool,
    go: oneshot::Sender<()>,
}

/// One client's part in a [`Schedule`].
pub struct Scheduled {
    schedule: Arc<Schedule>,
    client: usize,
}

impl Schedule {
    /// A schedule of no clients.
    pub fn new(seed: u64) -> Arc<Self> {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            clients: Vec::new(),
            waiting: Vec::new(),
            turns: Vec::new(),
            defect: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            arrived: Notify::new(),
        })
    }

    /// One more client, whose calls go to `inner`.
    pub fn join(self: &Arc<Self>, inner: Arc<dyn Store>) -> Arc<ScheduledStore> {
        let mut state = self.state.lock();
        let speed = state.rng.random_range(0..SPEEDS.len());
        let client = state.clients.len();
        state.clients.push(Client {
            weight: 16 / SPEEDS[speed],
            held: false,
            dead: false,
        });
        drop(state);
        let schedule = self.clone();
        Wrapper::with_hook(inner, Scheduled { schedule, client })
    }

    /// Plants a defect.
    pub fn plant(&self, defect: Defect) {
        self.state.lock().defect = Some(defect);
    }

    fn plants(&self, such: impl Fn(&Defect) -> bool) -> bool {
        self.state.lock().defect.as_ref().is_some_and(such)
    }

    /// The defect, if this call is one that has it.
    fn strikes(&self, call: &Call<'_>) -> Option<Defect> {
        let mut state = self.state.lock();
        let defect = state.defect.filter(|defect| (defect.which)(call))?;
        state.rng.random_ratio(1, defect.one_of).then_some(defect)
    }

    /// The turns so far.
    pub fn turns(&self) -> Vec<Turn> {
        self.state.lock().turns.clone()
    }

    /// Gives turns for ever, or until `most_turns` were given, or nobody has called for `idle` (of the runtime's clock). To be run
    /// beside what is simulated, in a runtime of one thread whose clock is paused.
    pub async fn drive(&self, most_turns: usize, idle: Duration) -> Stuck {
        loop {
            // The clock moves when there is nothing else to do: everybody waits for a turn or for the clock.
            tokio::time::sleep(Duration::from_millis(1)).await;
            match self.give_turn() {
                None => {
                    if tokio::time::timeout(idle, self.arrived.notified()).await.is_err() {
                        return Stuck::Idle;
                    }
                }
                Some(pause) => {
                    if self.state.lock().turns.len() >= most_turns {
                        return Stuck::Endless;
                    }
                    if let Some(pause) = pause {
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        }
    }

    /// `None` if nobody waits; else the pause after this turn.
    fn give_turn(&self) -> Option<Option<Duration>> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.waiting.retain(|waiting| !waiting.go.is_closed());
        let weights = |waiting: &Waiting| {
            let client = &state.clients[waiting.client];
            if client.held { 0 } else { client.weight }
        };
        let total: u32 = state.waiting.iter().map(weights).sum();
        if total == 0 {
            return None;
        }
        let mut drawn = state.rng.random_range(0..total);
        let chosen = state.waiting.iter().position(|waiting| {
            let weight = weights(waiting);
            let found = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            found
        })?;
        let waiting = state.waiting.len();
        let Waiting {
            client,
            kind,
            is_answer,
            go,
        } = state.waiting.remove(chosen);
        state.turns.push(Turn {
            client,
            kind,
            is_answer,
            waiting,
        });
        let pause = state.rng.random_ratio(1, PAUSES);
        let pause = pause.then(|| Duration::from_millis(state.rng.random_range(1..=LONGEST_PAUSE_MS)));
        // Nobody else can have dropped it: this is the only thread.
        let _ = go.send(());
        Some(pause)
    }

    fn wait_for_turn(&self, client: usize, kind: OpKind, is_answer: bool) -> Option<oneshot::Receiver<()>> {
        let mut state = self.state.lock();
        if state.clients[client].dead {
            return None;
        }
        let (go, turn) = oneshot::channel();
        state.waiting.push(Waiting {
            client,
            kind,
            is_answer,
            go,
        });
        self.arrived.notify_one();
        Some(turn)
    }
}

impl Scheduled {
    /// Ends the client: calls that wait, and all later ones, fail with `ESHUTDOWN`. The engine has to be told besides.
    pub fn kill(&self) {
        let mut state = self.schedule.state.lock();
        state.clients[self.client].dead = true;
        state.waiting.retain(|waiting| waiting.client != self.client);
    }

    /// Whether it was killed.
    pub fn is_dead(&self) -> bool {
        self.schedule.state.lock().clients[self.client].dead
    }

    /// Gives the client no turns until [`Scheduled::let_go`].
    pub fn hold(&self) {
        self.schedule.state.lock().clients[self.client].held = true;
    }

    /// Gives it turns again.
    pub fn let_go(&self) {
        self.schedule.state.lock().clients[self.client].held = false;
        self.schedule.arrived.notify_one();
    }

    async fn turn(&self, call: &Call<'_>, is_answer: bool) -> Result<()> {
        let turn = self.schedule.wait_for_turn(self.client, call.kind, is_answer);
        let given = match turn {
            Some(turn) => turn.await.is_ok(),
            None => false,
        };
        if given && !self.is_dead() {
            return Ok(());
        }
        let what = format!("{:?} '{}': this client was killed", call.kind, call.name);
        Err(StoreError::new(Errno::ESHUTDOWN, what))
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schedule").finish_non_exhaustive()
    }
}

impl fmt::Debug for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduled")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Hook for Scheduled {
    type Token = ();

    fn swallows(&self, call: &Call<'_>) -> bool {
        let never = |defect: &Defect| defect.late.is_none();
        self.schedule.plants(never) && self.schedule.strikes(call).is_some()
    }

    fn postpones(&self, call: &Call<'_>) -> Option<Duration> {
        let late = |defect: &Defect| defect.late.is_some();
        if !self.schedule.plants(late) {
            return None;
        }
        self.schedule.strikes(call)?.late
    }

    async fn before(&self, call: &Call<'_>) -> Result<()> {
        self.turn(call, false).await
    }

    async fn after(&self, call: &Call<'_>, (): (), _: Result<String, &StoreError>) -> Result<()> {
        if self.is_dead() || self.schedule.state.lock().rng.random_ratio(1, ANSWERS) {
            return self.turn(call, true).await;
        }
        Ok(())
    }
}
