//! Which devices are open, and by how many connections.
//!
//! The promise: every device that [`Exports::open`] returned is flushed and closed exactly once, after the last
//! connection that held it has let go, also when the connection was aborted or gave up during the open. No
//! connection gets a device that is being closed or was closed after its open began.
//!
//! Devices are told apart by the address of their `Arc`; an entry keeps its `Arc` as long as the address matters,
//! so an address never means two devices.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{debug, error};

use crate::device::BlockDevice;
use crate::exports::{ExportInfo, Exports, OpenError, OpenErrorKind};

/// How often an open may meet a device that is just being closed before it is given up.
const OPEN_ATTEMPTS: u32 = 16;

/// The devices that the connections of one server use.
pub(crate) struct Registry {
    exports: Arc<dyn Exports>,
    runtime: tokio::runtime::Handle,
    table: Mutex<Table>,
    /// Changes whenever a close or an open has ended.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Table {
    /// Orders the beginnings of opens and the ends of closes.
    sequence: u64,
    /// Beginnings of the opens under way.
    opening: BTreeSet<u64>,
    entries: HashMap<usize, Entry>,
    failures: CloseFailures,
}

struct Entry {
    /// Held so that the address, which is the key, stays this device's own.
    _device: Arc<dyn BlockDevice>,
    state: State,
}

enum State {
    Live {
        connections: usize,
    },
    Closing,
    /// Kept while an open is under way that began before the close ended, because it may still come back with
    /// this device.
    Closed {
        at: u64,
    },
}

/// Devices whose flush or close failed.
#[derive(Debug, Default, Clone)]
pub(crate) struct CloseFailures {
    pub(crate) count: u64,
    pub(crate) last: Option<String>,
}

enum Joined {
    Open,
    Closing,
    Closed,
}

impl Registry {
    /// A registry on the current runtime, where it will run opens and closes.
    pub(crate) fn new(exports: Arc<dyn Exports>) -> Arc<Self> {
        Arc::new(Self {
            exports,
            runtime: tokio::runtime::Handle::current(),
            table: Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    pub(crate) async fn list(&self) -> Result<Vec<ExportInfo>, OpenError> {
        AssertUnwindSafe(self.exports.list())
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(OpenError::new(OpenErrorKind::Io, "listing the exports panicked")))
    }

    /// Opens an export for one connection. Dropping the future leaves the open running; what it opens is closed.
    pub(crate) async fn open(self: &Arc<Self>, name: &str) -> Result<OpenExport, OpenError> {
        let registry = Arc::clone(self);
        let name = name.to_owned();
        let opening = self
            .runtime
            .spawn(async move { registry.open_to_the_end(&name).await });
        opening.await.unwrap_or_else(|failure| {
            error!(%failure, "opening an export ended abnormally");
            Err(OpenError::new(
                OpenErrorKind::Io,
                "opening the export ended abnormally",
            ))
        })
    }

    async fn open_to_the_end(self: Arc<Self>, name: &str) -> Result<OpenExport, OpenError> {
        for _ in 0..OPEN_ATTEMPTS {
            let mut changed = self.changed.subscribe();
            let ticket = OpenTicket::new(&self);
            let device = self.exports.open(name).await?;
            match self.join(&device, ticket.began) {
                Joined::Open => {
                    return Ok(OpenExport {
                        registry: Arc::clone(&self),
                        device,
                    });
                }
                Joined::Closed => {}
                Joined::Closing => {
                    // While this open counts as under way the entry would stay, so it ends first.
                    drop(ticket);
                    let key = key(&device);
                    drop(device);
                    while matches!(
                        self.table.lock().entries.get(&key),
                        Some(Entry {
                            state: State::Closing,
                            ..
                        })
                    ) {
                        if changed.changed().await.is_err() {
                            break;
                        }
                    }
                }
            }
        }
        Err(OpenError::new(
            OpenErrorKind::Io,
            "the export is closed again and again while it is opened: try again later",
        ))
    }

    fn join(&self, device: &Arc<dyn BlockDevice>, began: u64) -> Joined {
        let mut table = self.table.lock();
        let entry = table.entries.entry(key(device)).or_insert_with(|| Entry {
            _device: Arc::clone(device),
            state: State::Live { connections: 0 },
        });
        match &mut entry.state {
            State::Live { connections } => *connections += 1,
            State::Closing => return Joined::Closing,
            State::Closed { at } if began < *at => return Joined::Closed,
            // Opened anew after the close: the implementation uses the same `Arc` again.
            State::Closed { .. } => entry.state = State::Live { connections: 1 },
        }
        self.exports.connected(device);
        Joined::Open
    }

    fn leave(self: &Arc<Self>, device: &Arc<dyn BlockDevice>) {
        let mut table = self.table.lock();
        let Some(entry) = table.entries.get_mut(&key(device)) else {
            return;
        };
        if let State::Live { connections } = &mut entry.state {
            *connections -= 1;
            self.exports.disconnected(device);
            if *connections == 0 {
                entry.state = State::Closing;
                let registry = Arc::clone(self);
                let device = Arc::clone(device);
                self.runtime.spawn(async move { registry.close(device).await });
            }
        }
    }

    async fn close(&self, device: Arc<dyn BlockDevice>) {
        let mut failures = Vec::new();
        let flush = async {
            if device.read_only() {
                Ok(())
            } else {
                device.flush().await
            }
        };
        for (step, result) in [
            ("flush", AssertUnwindSafe(flush).catch_unwind().await),
            (
                "close",
                AssertUnwindSafe(self.exports.close(Arc::clone(&device)))
                    .catch_unwind()
                    .await,
            ),
        ] {
            match result {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => failures.push(format!("{step} of a device failed: {failure}")),
                Err(_) => failures.push(format!("{step} of a device panicked")),
            }
        }
        for failure in &failures {
            error!("{failure}");
        }
        let mut table = self.table.lock();
        if let Some(failure) = failures.pop() {
            table.failures.count += 1;
            table.failures.last = Some(failure);
        }
        table.sequence += 1;
        let at = table.sequence;
        if let Some(entry) = table.entries.get_mut(&key(&device)) {
            entry.state = State::Closed { at };
        }
        table.forget_closed();
        drop(table);
        debug!("device closed");
        self.changed.send_modify(|version| *version += 1);
    }

    /// Returns once no device is open and no open is under way. Without a limit: a caller sets one.
    pub(crate) async fn idle(&self) {
        let mut changed = self.changed.subscribe();
        while !self.table.lock().is_idle() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Devices that are open or being closed.
    pub(crate) fn open_devices(&self) -> usize {
        let table = self.table.lock();
        table
            .entries
            .values()
            .filter(|entry| !matches!(entry.state, State::Closed { .. }))
            .count()
    }

    pub(crate) fn close_failures(&self) -> CloseFailures {
        self.table.lock().failures.clone()
    }
}

impl Table {
    fn forget_closed(&mut self) {
        let oldest = self.opening.first().copied().unwrap_or(u64::MAX);
        self.entries
            .retain(|_, entry| !matches!(entry.state, State::Closed { at } if at < oldest));
    }

    fn is_idle(&self) -> bool {
        self.opening.is_empty() && self.entries.is_empty()
    }
}

fn key(device: &Arc<dyn BlockDevice>) -> usize {
    Arc::as_ptr(device).cast::<()>() as usize
}

/// An open under way.
struct OpenTicket<'a> {
    registry: &'a Registry,
    began: u64,
}

impl<'a> OpenTicket<'a> {
    fn new(registry: &'a Registry) -> Self {
        let mut table = registry.table.lock();
        table.sequence += 1;
        let began = table.sequence;
        table.opening.insert(began);
        Self { registry, began }
    }
}

impl Drop for OpenTicket<'_> {
    fn drop(&mut self) {
        let mut table = self.registry.table.lock();
        table.opening.remove(&self.began);
        table.forget_closed();
        drop(table);
        self.registry.changed.send_modify(|version| *version += 1);
    }
}

/// One connection's hold on a device; dropping it lets go.
pub(crate) struct OpenExport {
    registry: Arc<Registry>,
    device: Arc<dyn BlockDevice>,
}

impl OpenExport {
    pub(crate) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }
}

impl Drop for OpenExport {
    fn drop(&mut self) {
        self.registry.leave(&self.device);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::device::DeviceError;
    use crate::testing::MemoryDevice;

    /// Exports with one shared device and gates that hold an open or a close.
    #[derive(Default)]
    struct Gated {
        shared: Mutex<Option<Arc<dyn BlockDevice>>>,
        hold_open: AtomicBool,
        hold_close: AtomicBool,
        open_reached: Notify,
        close_reached: Notify,
        release: Notify,
        log: Mutex<Vec<(&'static str, usize)>>,
        connections: AtomicUsize,
    }

    #[async_trait::async_trait]
    impl Exports for Gated {
        async fn list(&self) -> Result<Vec<ExportInfo>, OpenError> {
            Ok(vec![])
        }
        async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, OpenError> {
            assert_ne!(name, "panic", "as ordered");
            let fresh = || Arc::new(MemoryDevice::new(4096)) as Arc<dyn BlockDevice>;
            let device = self.shared.lock().get_or_insert_with(fresh).clone();
            if self.hold_open.swap(false, Ordering::SeqCst) {
                self.open_reached.notify_one();
                self.release.notified().await;
            }
            self.log.lock().push(("open", key(&device)));
            Ok(device)
        }
        async fn close(&self, device: Arc<dyn BlockDevice>) -> Result<(), DeviceError> {
            if self.hold_close.swap(false, Ordering::SeqCst) {
                self.close_reached.notify_one();
                self.release.notified().await;
            }
            *self.shared.lock() = None;
            self.log.lock().push(("close", key(&device)));
            Ok(())
        }
        fn connected(&self, _: &Arc<dyn BlockDevice>) {
            self.connections.fetch_add(1, Ordering::SeqCst);
        }
        fn disconnected(&self, _: &Arc<dyn BlockDevice>) {
            self.connections.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn steps(exports: &Gated) -> Vec<&'static str> {
        exports.log.lock().iter().map(|(step, _)| *step).collect()
    }

    #[tokio::test]
    async fn a_shared_device_is_closed_once_after_its_last_connection() {
        let exports = Arc::new(Gated::default());
        let registry = Registry::new(exports.clone());
        let first = registry.open("a").await.unwrap();
        let second = registry.open("a").await.unwrap();
        assert!(Arc::ptr_eq(first.device(), second.device()));
        assert_eq!(exports.connections.load(Ordering::SeqCst), 2);
        drop(first);
        assert_eq!(exports.connections.load(Ordering::SeqCst), 1);
        tokio::task::yield_now().await;
        assert_eq!(steps(&exports), ["open", "open"]);
        drop(second);
        registry.idle().await;
        assert_eq!(steps(&exports), ["open", "open", "close"]);
        assert_eq!(registry.open_devices(), 0);
    }

    #[tokio::test]
    async fn an_open_that_meets_a_closing_device_waits_and_gets_a_fresh_one() {
        let exports = Arc::new(Gated::default());
        let registry = Registry::new(exports.clone());
        let first = registry.open("a").await.unwrap();
        exports.hold_close.store(true, Ordering::SeqCst);
        drop(first);
        exports.close_reached.notified().await;
        let opening = tokio::spawn({
            let registry = registry.clone();
            async move { registry.open("a").await }
        });
        while steps(&exports).len() < 2 {
            tokio::task::yield_now().await;
        }
        exports.release.notify_one();
        let second = opening.await.unwrap().unwrap();
        assert_eq!(steps(&exports), ["open", "open", "close", "open"]);
        assert_eq!(key(second.device()), exports.log.lock()[3].1);
        assert!(
            exports.shared.lock().is_some(),
            "the device in use was not closed"
        );
    }

    #[tokio::test]
    async fn an_open_that_returns_a_device_closed_meanwhile_is_asked_again() {
        let exports = Arc::new(Gated::default());
        let registry = Registry::new(exports.clone());
        let first = registry.open("a").await.unwrap();
        // Kept, so that its address stays its own.
        let closed = Arc::clone(first.device());
        exports.hold_open.store(true, Ordering::SeqCst);
        let opening = tokio::spawn({
            let registry = registry.clone();
            async move { registry.open("a").await }
        });
        exports.open_reached.notified().await;
        drop(first);
        while registry.open_devices() > 0 {
            tokio::task::yield_now().await;
        }
        exports.release.notify_one();
        let second = opening.await.unwrap().unwrap();
        assert_eq!(steps(&exports), ["open", "close", "open", "open"]);
        assert!(!Arc::ptr_eq(second.device(), &closed));
        assert_eq!(exports.connections.load(Ordering::SeqCst), 1);
        drop(second);
        registry.idle().await;
        assert_eq!(exports.connections.load(Ordering::SeqCst), 0);
        assert_eq!(steps(&exports).last(), Some(&"close"));
    }

    #[tokio::test]
    async fn a_device_opened_for_a_client_that_gave_up_is_closed() {
        let exports = Arc::new(Gated::default());
        let registry = Registry::new(exports.clone());
        exports.hold_open.store(true, Ordering::SeqCst);
        let opening = tokio::spawn({
            let registry = registry.clone();
            async move { registry.open("a").await.map(drop) }
        });
        exports.open_reached.notified().await;
        opening.abort();
        assert!(opening.await.unwrap_err().is_cancelled());
        exports.release.notify_one();
        registry.idle().await;
        assert_eq!(steps(&exports), ["open", "close"]);
    }

    #[tokio::test]
    async fn a_panic_in_open_is_an_error_and_leaves_nothing_under_way() {
        let registry = Registry::new(Arc::new(Gated::default()));
        let error = registry.open("panic").await.map(drop).unwrap_err();
        assert_eq!(error.kind, OpenErrorKind::Io);
        registry.idle().await;
    }
}
