//! A store that fails where it is told to, and a client that dies at a chosen step.
//!
//! Kill points: run a scenario once and ask [`Faults::mutations`]; then run it for each number up to that with
//! [`Faults::kill_at`], once per [`Moment`]. Between two mutating operations a death leaves what a death at either of
//! them leaves, so these are all there are. Failing calls are counted in the same way: [`Faults::calls`] and
//! [`Faults::fail_at`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Call, Hook, OpKind, Wrapper};
use crate::Store;
use crate::error::{Errno, Result, StoreError};
use crate::op::Durability;
use crate::types::Scope;

/// A store with [`Faults`].
pub type FaultyStore = Wrapper<Faults>;

/// Whether a failing operation was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Not made.
    Before,
    /// Made, but answered with the error.
    After,
}

/// One programmed failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    kind: OpKind,
    errno: Errno,
    skip: u64,
    times: u64,
    moment: Moment,
    prefix: String,
}

impl Fault {
    /// Fails the next operation of this kind, before it is made.
    pub fn new(kind: OpKind, errno: Errno) -> Self {
        Self {
            kind,
            errno,
            skip: 0,
            times: 1,
            moment: Moment::Before,
            prefix: String::new(),
        }
    }

    /// Lets `operations` matching ones pass first.
    pub fn skipping(self, operations: u64) -> Self {
        Self {
            skip: operations,
            ..self
        }
    }

    /// Fails so many matching ones in a row; `u64::MAX` for all.
    pub fn times(self, operations: u64) -> Self {
        Self {
            times: operations,
            ..self
        }
    }

    /// Makes the operation, then fails it.
    pub fn after(self) -> Self {
        Self {
            moment: Moment::After,
            ..self
        }
    }

    /// Matches only objects (pools, prefixes) whose name starts with this.
    pub fn on(self, prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            ..self
        }
    }
}

/// A failure that is found by counting, for [`Faults::fail_at`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountedFault {
    /// Which call fails, counted from 1 since the store was wrapped: of those that change what is stored
    /// ([`OpKind::mutates`]) or of all.
    pub nth: u64,
    /// Whether only calls count, and fail, that change what is stored.
    pub changes_only: bool,
    /// What it fails with.
    pub errno: Errno,
    /// Whether the failing call is made.
    pub moment: Moment,
    /// All later ones fail too.
    pub for_ever: bool,
}

impl CountedFault {
    fn strikes(&self, kind: OpKind, calls: u64, mutations: u64) -> bool {
        let at = match self.changes_only {
            true if !kind.mutates() => return false,
            true => mutations,
            false => calls,
        };
        at == self.nth || (self.for_ever && at > self.nth)
    }
}

/// Whether a call can fail for the medium: ending a watch or an instance asks it nothing.
fn can_fail(kind: OpKind) -> bool {
    !matches!(kind, OpKind::Unwatch | OpKind::Shutdown)
}

type OnDeath = Box<dyn Fn() + Send + Sync>;

/// What is to fail. Starts with nothing.
pub struct Faults {
    program: Mutex<Program>,
    on_death: OnDeath,
}

#[derive(Debug, Default)]
struct Program {
    faults: Vec<Fault>,
    kill: Option<(u64, Moment)>,
    counted: Option<CountedFault>,
    swallow: Option<u64>,
    writes: u64,
    calls: u64,
    mutations: u64,
    dead: bool,
    /// Where a flush failed: these objects take no buffered writes any more.
    poisoned: Vec<(Scope, String)>,
}

/// What is to be done after a call that was made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    fail: Option<Errno>,
    die: bool,
}

impl FaultyStore {
    /// Wraps a store. When the client is made to die, the store inside is shut down in the background, which ends its
    /// watches.
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        let store = inner.clone();
        Self::with_death(inner, move || {
            let store = store.clone();
            // Not awaited: the operation that dies may be that of a handler that a shutdown would wait for.
            tokio::spawn(async move { store.shutdown().await });
        })
    }

    /// Wraps a store whose engine has a better way to die than a shutdown (as `MemoryStore::kill`). `on_death` must not use
    /// this wrapper.
    pub fn with_death(inner: Arc<dyn Store>, on_death: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        let faults = Faults {
            program: Mutex::default(),
            on_death: Box::new(on_death),
        };
        Self::with_hook(inner, faults)
    }
}

impl Faults {
    /// Adds a failure. Of several that match, the first added is used.
    pub fn add(&self, fault: Fault) {
        self.program.lock().faults.push(fault);
    }

    /// Forgets all failures and kill points, not what has happened: the dead stay dead, the poisoned poisoned.
    pub fn clear(&self) {
        let mut program = self.program.lock();
        program.faults.clear();
        program.counted = None;
        program.swallow = None;
        program.kill = None;
    }

    /// Fails the call that is found by counting. Failing flushes poison, as by [`Fault`].
    pub fn fail_at(&self, fault: CountedFault) {
        self.program.lock().counted = Some(fault);
    }

    /// Answers write `nth`, counted from 1 from now on, as if it had been made, and does not make it. No store does this; it
    /// is for showing that a test would notice.
    pub fn swallow_at(&self, nth: u64) {
        let mut program = self.program.lock();
        program.swallow = Some(nth);
        program.writes = 0;
    }

    /// Whether [`Faults::swallow_at`] has struck.
    pub fn has_swallowed(&self) -> bool {
        let program = self.program.lock();
        program.swallow.is_some_and(|nth| program.writes >= nth)
    }

    /// Calls so far that could have failed for the medium, failed ones included.
    pub fn calls(&self) -> u64 {
        self.program.lock().calls
    }

    /// Dies at mutating operation `nth`, counted from 1 since the store was wrapped: it and all operations later fail
    /// with `ESHUTDOWN`. With [`Moment::After`] that operation is made, unanswered.
    pub fn kill_at(&self, nth: u64, moment: Moment) {
        self.program.lock().kill = Some((nth, moment));
    }

    /// Mutating operations so far ([`OpKind::mutates`]), failed ones included.
    pub fn mutations(&self) -> u64 {
        self.program.lock().mutations
    }

    /// Whether the client has died.
    pub fn is_dead(&self) -> bool {
        self.program.lock().dead
    }

    /// Whoever learns of the death, by an error or by asking, finds it complete: it happens under the lock.
    fn die(&self, program: &mut Program) {
        if !program.dead {
            program.dead = true;
            (self.on_death)();
        }
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faults").field(&*self.program.lock()).finish()
    }
}

impl Program {
    fn matching_fault(&mut self, call: &Call<'_>) -> Option<(Errno, Moment)> {
        let matches = |fault: &Fault| fault.kind == call.kind && call.name.starts_with(&fault.prefix);
        for fault in self.faults.iter_mut().filter(|fault| matches(fault)) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                return Some((fault.errno, fault.moment));
            }
        }
        None
    }

    fn is_poisoned(&self, call: &Call<'_>) -> bool {
        let buffered = call.durability == Some(Durability::Buffered);
        let flush = call.kind == OpKind::Flush;
        self.poisoned.iter().any(|(scope, prefix)| {
            let inside = call.name.starts_with(prefix.as_str());
            let around = prefix.starts_with(call.name);
            call.scope == Some(scope) && ((buffered && inside) || (flush && (inside || around)))
        })
    }

    fn poison(&mut self, call: &Call<'_>) {
        let (OpKind::Flush, Some(scope)) = (call.kind, call.scope) else {
            return;
        };
        self.poisoned.push((scope.clone(), call.name.to_owned()));
    }
}

fn dead(call: &Call<'_>) -> StoreError {
    StoreError::new(
        Errno::ESHUTDOWN,
        format!("{:?} '{}': this client was killed", call.kind, call.name),
    )
}

fn injected(call: &Call<'_>, errno: Errno) -> StoreError {
    StoreError::new(
        errno,
        format!("{:?} '{}': injected failure", call.kind, call.name),
    )
}

#[async_trait]
impl Hook for Faults {
    type Token = Plan;

    fn swallows(&self, call: &Call<'_>) -> bool {
        if call.kind != OpKind::Write {
            return false;
        }
        let mut program = self.program.lock();
        program.writes += 1;
        program.swallow == Some(program.writes)
    }

    async fn before(&self, call: &Call<'_>) -> Result<Plan> {
        let mut program = self.program.lock();
        if program.dead {
            return Err(dead(call));
        }
        let mut plan = Plan {
            fail: None,
            die: false,
        };
        program.calls += u64::from(can_fail(call.kind));
        if call.kind.mutates() {
            program.mutations += 1;
            match program.kill {
                Some((nth, moment)) if program.mutations >= nth => {
                    if moment == Moment::Before {
                        self.die(&mut program);
                        return Err(dead(call));
                    }
                    plan.die = true;
                    return Ok(plan);
                }
                _ => {}
            }
        }
        if program.is_poisoned(call) {
            let what = format!("{:?} '{}': an earlier flush failed", call.kind, call.name);
            return Err(StoreError::new(Errno::EIO, what));
        }
        let counted = program.counted.filter(|fault| {
            can_fail(call.kind) && fault.strikes(call.kind, program.calls, program.mutations)
        });
        let counted = counted.map(|fault| (fault.errno, fault.moment));
        match counted.or_else(|| program.matching_fault(call)) {
            Some((errno, Moment::Before)) => {
                program.poison(call);
                return Err(injected(call, errno));
            }
            Some((errno, Moment::After)) => plan.fail = Some(errno),
            None => {}
        }
        Ok(plan)
    }

    async fn after(&self, call: &Call<'_>, plan: Plan, _: Result<String, &StoreError>) -> Result<()> {
        let mut program = self.program.lock();
        if plan.die {
            self.die(&mut program);
        }
        if program.dead {
            return Err(dead(call));
        }
        match plan.fail {
            Some(errno) => {
                program.poison(call);
                Err(injected(call, errno))
            }
            None => Ok(()),
        }
    }
}
