//! Connections that have not chosen an export yet, and which of them goes when there is no room for one more.
//!
//! The promise: whoever has finished the handshake is never put out. Of the others, the peer that has the most of them loses its
//! oldest: a flood takes room from itself, and a client of another peer has the whole time of a handshake for its own. Among peers
//! that have as many, it is the oldest of all: a flood from many places, too, lets a newcomer begin.
//! A peer is an address (of IPv6 the network of 64 bits) or, on a Unix socket, a process.
//!
//! What it does not know: what a connection says. The cost of each change is the logarithm of their number.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

/// Who is at the other end, as far as it can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Peer {
    Unknown,
    Process(i32),
    V4(Ipv4Addr),
    /// The upper half of the address: who has one address has the network.
    V6(u64),
}

impl Peer {
    pub(crate) fn of_unix(stream: &UnixStream) -> Self {
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        process.map_or(Self::Unknown, Self::Process)
    }

    pub(crate) fn of_tcp(address: SocketAddr) -> Self {
        match address.ip().to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct HalfOpen(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last_number: u64,
    /// Connections that have finished the handshake and have not ended.
    established: usize,
    /// By number, which is by age.
    connections: HashMap<u64, (Peer, Option<AbortHandle>)>,
    peers: BTreeMap<Peer, BTreeSet<u64>>,
    /// How many each peer has, and its oldest: the last is the next to go.
    counts: BTreeSet<(usize, Reverse<u64>, Peer)>,
}

impl State {
    fn change(&mut self, peer: Peer, change: impl FnOnce(&mut BTreeSet<u64>)) {
        let place = |numbers: &BTreeSet<u64>| {
            numbers
                .first()
                .map(|oldest| (numbers.len(), Reverse(*oldest), peer))
        };
        let numbers = self.peers.entry(peer).or_default();
        if let Some(before) = place(numbers) {
            self.counts.remove(&before);
        }
        change(numbers);
        match place(numbers) {
            Some(after) => drop(self.counts.insert(after)),
            None => drop(self.peers.remove(&peer)),
        }
    }

    /// Takes one off; `None` if it is not there.
    fn remove(&mut self, number: u64) -> Option<Option<AbortHandle>> {
        let (peer, task) = self.connections.remove(&number)?;
        self.change(peer, |numbers| {
            numbers.remove(&number);
        });
        Some(task)
    }
}

/// The place of one connection; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    table: Arc<HalfOpen>,
    number: u64,
}

impl HalfOpen {
    /// One more connection begins its handshake.
    pub(crate) fn enter(self: &Arc<Self>, peer: Peer) -> Ticket {
        let mut state = self.0.lock();
        state.last_number += 1;
        let number = state.last_number;
        state.connections.insert(number, (peer, None));
        state.change(peer, |numbers| {
            numbers.insert(number);
        });
        Ticket {
            table: Arc::clone(self),
            number,
        }
    }

    /// How the connection with that ticket's number is ended. Before that it cannot be put out.
    pub(crate) fn started(&self, number: u64, task: AbortHandle) {
        if let Some((_, place)) = self.0.lock().connections.get_mut(&number) {
            *place = Some(task);
        }
    }

    /// Connections that have not ended, and were not put out.
    pub(crate) fn living(&self) -> usize {
        let state = self.0.lock();
        state.connections.len() + state.established
    }

    /// Puts one out; false when there is none. Its task ends soon.
    pub(crate) fn put_one_out(&self) -> bool {
        let mut state = self.0.lock();
        let oldest = state.counts.last().map(|(_, Reverse(oldest), _)| *oldest);
        let Some(task) = oldest.and_then(|number| state.remove(number)).flatten() else {
            return false;
        };
        task.abort();
        true
    }
}

impl Ticket {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The handshake is done; `None` when the connection was put out a moment ago.
    pub(crate) fn finish(self) -> Option<Established> {
        let mut state = self.table.0.lock();
        state.remove(self.number)?;
        state.established += 1;
        drop(state);
        Some(Established(Arc::clone(&self.table)))
    }
}

/// The connection was put out while its handshake was about to end.
#[derive(Debug, thiserror::Error)]
#[error("ended to make room for another connection")]
pub(crate) struct PutOut;

/// What one connection has of the server's room.
#[derive(Debug, Default)]
pub(crate) enum Place {
    /// Nobody else wants it: the server has this one connection.
    #[default]
    Alone,
    /// Others may need it.
    HalfOpen(Ticket),
    /// Until the connection ends.
    Kept(#[expect(dead_code, reason = "counts while it is there")] Established),
}

impl Place {
    /// From here on the connection stays. To be said before its client can know that the handshake is done: a client that has read
    /// the last answer must not be put out by one that comes a moment later.
    ///
    /// # Errors
    /// [`PutOut`], when another one has been given the room already.
    pub(crate) fn keep(&mut self) -> Result<(), PutOut> {
        *self = match std::mem::take(self) {
            Self::HalfOpen(ticket) => Self::Kept(ticket.finish().ok_or(PutOut)?),
            kept => kept,
        };
        Ok(())
    }
}

/// Counts a connection that has finished its handshake, until it is dropped.
#[derive(Debug)]
pub(crate) struct Established(Arc<HalfOpen>);

impl Drop for Established {
    fn drop(&mut self) {
        self.0.0.lock().established -= 1;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.table.0.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn connection(table: &Arc<HalfOpen>, peer: Peer) -> (Ticket, tokio::task::JoinHandle<()>) {
        let ticket = table.enter(peer);
        let task = tokio::spawn(std::future::pending());
        table.started(ticket.number(), task.abort_handle());
        (ticket, task)
    }

    #[tokio::test]
    async fn the_peer_with_the_most_loses_its_oldest() {
        let table = Arc::<HalfOpen>::default();
        let (good, good_task) = connection(&table, Peer::Process(1)).await;
        let mut flood = Vec::new();
        for _ in 0..3 {
            flood.push(connection(&table, Peer::Process(2)).await);
        }
        for (expected, (_, task)) in flood.iter_mut().take(2).enumerate() {
            assert!(table.put_one_out());
            assert!(task.await.unwrap_err().is_cancelled(), "number {expected}");
        }
        assert!(!good_task.is_finished());
        let established = good.finish().expect("the good one was put out");
        let late = flood.remove(0).0;
        assert!(late.finish().is_none(), "it was put out, and went on");
        assert!(table.put_one_out());
        assert!(!table.put_one_out(), "only those in their handshake go");
        assert_eq!(table.living(), 1);
        drop(established);
        assert_eq!(table.living(), 0);
    }

    #[tokio::test]
    async fn of_peers_that_have_as_many_the_one_that_came_first_goes_first() {
        let table = Arc::<HalfOpen>::default();
        let mut came = Vec::new();
        for process in [5, 9, 1, 7] {
            came.push(connection(&table, Peer::Process(process)).await);
        }
        for (_, task) in came {
            assert!(table.put_one_out());
            assert!(task.await.unwrap_err().is_cancelled());
        }
        assert_eq!(table.living(), 0);
    }

    #[test]
    fn addresses_of_one_network_are_one_peer() {
        let peer = |text: &str| Peer::of_tcp(text.parse().unwrap());
        assert_eq!(peer("[2001:db8::1]:10809"), peer("[2001:db8::ffff:2]:1"));
        assert_ne!(peer("[2001:db8::1]:10809"), peer("[2001:db8:0:1::1]:10809"));
        assert_eq!(peer("[::ffff:192.0.2.1]:1"), peer("192.0.2.1:2"));
        assert_ne!(peer("192.0.2.1:1"), peer("192.0.2.2:1"));
    }
}
