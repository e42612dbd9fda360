//! Cases: watch, notify, watchers that are slow, gone or dead, and the blocklist.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::fixture::{Fixture, Outcome, ensure, ensure_eq, ensure_errno, eventually, head};
use super::pools::every_operation_is_shut_down;
use crate::error::Errno;
use crate::watch::{Notification, NotifyReply, WatchCookie, WatchHandler, WatchInfo};
use crate::{ClientInstance, IoCtx};

/// Long enough that no answer is late on a busy machine.
const PATIENT_MS: u64 = 60_000;

/// Answers `name:payload`, and notes what came.
struct Listener {
    name: &'static str,
    heard: Mutex<Vec<Notification>>,
    lost: Mutex<Vec<Errno>>,
    running: Mutex<(usize, usize)>,
    gate: Semaphore,
}

impl Listener {
    fn new(name: &'static str) -> Arc<Self> {
        Self::gated(name, Semaphore::MAX_PERMITS)
    }

    /// Answers only the first `permits` notifies, until more are added to the gate.
    fn gated(name: &'static str, permits: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            heard: Mutex::default(),
            lost: Mutex::default(),
            running: Mutex::default(),
            gate: Semaphore::new(permits),
        })
    }

    fn payloads(&self) -> Vec<Bytes> {
        self.heard
            .lock()
            .iter()
            .map(|notification| notification.payload.clone())
            .collect()
    }
}

#[async_trait]
impl WatchHandler for Listener {
    async fn notified(&self, notification: Notification) -> Bytes {
        let answer = [self.name.as_bytes(), b":", &notification.payload].concat();
        {
            let mut running = self.running.lock();
            running.0 += 1;
            running.1 = running.1.max(running.0);
        }
        self.heard.lock().push(notification);
        if let Ok(permit) = self.gate.acquire().await {
            permit.forget();
        }
        tokio::task::yield_now().await;
        self.running.lock().0 -= 1;
        answer.into()
    }

    async fn lost(&self, errno: Errno) {
        self.lost.lock().push(errno);
    }
}

async fn watch(io: &IoCtx, listener: &Arc<Listener>) -> Outcome<WatchCookie> {
    Ok(io.store().watch(io.object("o"), listener.clone()).await?)
}

async fn notify(io: &IoCtx, payload: &'static str, timeout_ms: u64) -> Outcome<NotifyReply> {
    Ok(io
        .store()
        .notify(io.object("o"), payload.into(), timeout_ms)
        .await?)
}

async fn watchers(io: &IoCtx) -> Outcome<Vec<WatchInfo>> {
    Ok(io.store().list_watchers(io.object("o")).await?)
}

fn gid(io: &IoCtx) -> u64 {
    io.store().instance().gid
}

fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort();
    items
}

pub(super) async fn a_notify_reaches_every_watcher_and_brings_back_the_answers(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    let (first, second) = (Listener::new("first"), Listener::new("second"));
    let (first_cookie, second_cookie) = (watch(&t.a, &first).await?, watch(&t.b, &second).await?);
    let reply = notify(&t.a, "hello", PATIENT_MS).await?;
    let expected = vec![
        (gid(&t.a), first_cookie, Bytes::from("first:hello")),
        (gid(&t.b), second_cookie, Bytes::from("second:hello")),
    ];
    ensure_eq!(sorted(reply.acks), sorted(expected), "answers");
    ensure_eq!(reply.timeouts, Vec::new(), "timeouts");
    let heard = [first.heard.lock()[0].clone(), second.heard.lock()[0].clone()];
    ensure_eq!(heard[0].cookie, first_cookie, "cookie that the watcher is told");
    ensure_eq!(
        heard[1].notifier_gid,
        gid(&t.a),
        "notifier that the watcher is told"
    );
    ensure_eq!(
        heard[0].notify_id,
        heard[1].notify_id,
        "id of one notify at two watchers"
    );
    notify(&t.b, "again", PATIENT_MS).await?;
    ensure!(
        first.heard.lock()[1].notify_id != heard[0].notify_id,
        "two notifies have one id"
    );
    Ok(())
}

pub(super) async fn a_notify_without_watchers_returns_empty(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    ensure_eq!(
        notify(&t.a, "anyone?", PATIENT_MS).await?,
        NotifyReply::default(),
        "reply"
    );
    Ok(())
}

pub(super) async fn watching_and_notifying_a_missing_object_is_enoent(t: Fixture) -> Outcome {
    let listener = Listener::new("x");
    ensure_errno!(t.a.store().watch(t.a.object("o"), listener).await, ENOENT);
    ensure_errno!(
        t.a.store().notify(t.a.object("o"), "x".into(), PATIENT_MS).await,
        ENOENT
    );
    ensure_errno!(t.a.store().list_watchers(t.a.object("o")).await, ENOENT);
    Ok(())
}

pub(super) async fn notifies_of_one_watch_come_one_by_one_in_order(t: Fixture) -> Outcome {
    const NOTIFIES: [&str; 6] = ["0", "1", "2", "3", "4", "5"];
    t.a.write_meta("o", t.op().create(true)).await?;
    let listener = Listener::gated("slow", 0);
    watch(&t.b, &listener).await?;
    let mut sent = Vec::new();
    for payload in NOTIFIES {
        let io = t.a.clone();
        sent.push(tokio::spawn(
            async move { notify(&io, payload, PATIENT_MS).await },
        ));
        if payload == "0" {
            eventually("the first notify arrives", || async {
                Ok(listener.payloads().len() == 1)
            })
            .await?;
        }
    }
    listener.gate.add_permits(NOTIFIES.len());
    for task in sent {
        let reply = task.await.map_err(|error| error.to_string())??;
        ensure_eq!(reply.acks.len(), 1, "answers");
    }
    ensure_eq!(
        sorted(listener.payloads()),
        NOTIFIES.map(Bytes::from).to_vec(),
        "payloads"
    );
    ensure_eq!(listener.running.lock().1, 1, "calls at the same time");
    for payload in NOTIFIES {
        listener.gate.add_permits(1);
        notify(&t.a, payload, PATIENT_MS).await?;
    }
    ensure_eq!(
        listener.payloads()[NOTIFIES.len()..],
        NOTIFIES.map(Bytes::from),
        "payloads sent one after another"
    );
    Ok(())
}

pub(super) async fn a_watcher_that_does_not_answer_in_time_is_named(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    let (prompt, stuck) = (Listener::new("prompt"), Listener::gated("stuck", 0));
    let prompt_cookie = watch(&t.a, &prompt).await?;
    let stuck_cookie = watch(&t.b, &stuck).await?;
    let reply = notify(&t.a, "hurry", 3000).await?;
    ensure_eq!(
        reply.acks,
        vec![(gid(&t.a), prompt_cookie, Bytes::from("prompt:hurry"))],
        "answers"
    );
    ensure_eq!(reply.timeouts, vec![(gid(&t.b), stuck_cookie)], "timeouts");
    stuck.gate.add_permits(100);
    let reply = notify(&t.a, "relaxed", PATIENT_MS).await?;
    ensure_eq!(reply.acks.len(), 2, "answers after the watcher recovered");
    Ok(())
}

pub(super) async fn one_client_may_watch_twice(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    let (first, second) = (Listener::new("first"), Listener::new("second"));
    let (first_cookie, second_cookie) = (watch(&t.a, &first).await?, watch(&t.a, &second).await?);
    ensure!(
        first_cookie != second_cookie,
        "two watches of one instance have one cookie"
    );
    ensure_eq!(notify(&t.b, "x", PATIENT_MS).await?.acks.len(), 2, "answers");
    t.a.store().unwatch(first_cookie).await?;
    let reply = notify(&t.b, "y", PATIENT_MS).await?;
    ensure_eq!(
        reply.acks,
        vec![(gid(&t.a), second_cookie, Bytes::from("second:y"))],
        "answers"
    );
    Ok(())
}

pub(super) async fn watches_are_of_one_object_in_one_place(t: Fixture) -> Outcome {
    let elsewhere = t.a.with_namespace(&format!("{}-elsewhere", t.scope().namespace));
    for io in [&t.a, &elsewhere] {
        io.write_meta("o", t.op().create(true)).await?;
        io.write_meta("o2", t.op().create(true)).await?;
    }
    let listener = Listener::new("x");
    watch(&t.a, &listener).await?;
    for io in [&t.a, &elsewhere] {
        let reply = io.store().notify(io.object("o2"), "x".into(), PATIENT_MS).await?;
        ensure_eq!(reply, NotifyReply::default(), "reply of another object");
    }
    ensure_eq!(
        notify(&elsewhere, "x", PATIENT_MS).await?,
        NotifyReply::default(),
        "reply of another namespace"
    );
    ensure_eq!(
        watchers(&elsewhere).await?,
        Vec::new(),
        "watchers in another namespace"
    );
    ensure_eq!(listener.payloads(), Vec::<Bytes>::new(), "payloads");
    Ok(())
}

pub(super) async fn watchers_are_listed(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    ensure_eq!(watchers(&t.a).await?, Vec::new(), "watchers before");
    let listener = Listener::new("x");
    let mut expected = Vec::new();
    for io in [&t.b, &t.a, &t.b] {
        let cookie = watch(io, &listener).await?;
        let client = io.store().instance();
        expected.push(WatchInfo {
            gid: client.gid,
            addr: (!t.harness.probes()).then_some(client.addr),
            cookie,
        });
    }
    let by_cookie = |mut watchers: Vec<WatchInfo>| {
        watchers.sort_by_key(|watcher| (watcher.gid, watcher.cookie));
        watchers
    };
    ensure_eq!(
        by_cookie(watchers(&t.a).await?),
        by_cookie(expected.clone()),
        "watchers"
    );
    t.a.store().unwatch(expected.remove(1).cookie).await?;
    ensure_eq!(
        by_cookie(watchers(&t.b).await?),
        by_cookie(expected),
        "watchers without the second"
    );
    Ok(())
}

pub(super) async fn unwatch_ends_the_calls_and_forgets_the_cookie(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    let listener = Listener::new("x");
    let cookie = watch(&t.a, &listener).await?;
    notify(&t.b, "before", PATIENT_MS).await?;
    t.a.store().unwatch(cookie).await?;
    ensure_eq!(
        notify(&t.b, "after", PATIENT_MS).await?,
        NotifyReply::default(),
        "reply"
    );
    ensure_eq!(listener.payloads(), vec![Bytes::from("before")], "payloads");
    ensure_errno!(t.a.store().unwatch(cookie).await, ENOENT);
    ensure_errno!(t.b.store().unwatch(WatchCookie(u64::MAX)).await, ENOENT);
    ensure_eq!(
        *listener.lost.lock(),
        Vec::new(),
        "losses told about a watch that was ended"
    );
    Ok(())
}

pub(super) async fn unwatch_waits_for_the_call_that_runs(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    let listener = Listener::gated("slow", 0);
    let cookie = watch(&t.a, &listener).await?;
    let notifier = t.b.clone();
    let sent = tokio::spawn(async move { notify(&notifier, "x", PATIENT_MS).await });
    eventually("the notify arrives", || async {
        Ok(listener.payloads().len() == 1)
    })
    .await?;
    let store = t.a.store().clone();
    let ended = tokio::spawn(async move { store.unwatch(cookie).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    ensure!(
        !ended.is_finished(),
        "unwatch returned while its handler was running"
    );
    listener.gate.add_permits(1);
    ended.await.map_err(|error| error.to_string())??;
    ensure_eq!(listener.running.lock().0, 0, "calls that run after unwatch");
    sent.await.map_err(|error| error.to_string())??;
    Ok(())
}

pub(super) async fn a_watcher_that_shut_down_is_gone(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    let io = t.another().await;
    watch(&io, &Listener::new("leaving")).await?;
    ensure_eq!(watchers(&t.a).await?.len(), 1, "watchers");
    io.store().shutdown().await?;
    ensure_eq!(watchers(&t.a).await?, Vec::new(), "watchers after the shutdown");
    ensure_eq!(
        notify(&t.a, "x", PATIENT_MS).await?,
        NotifyReply::default(),
        "reply"
    );
    Ok(())
}

pub(super) async fn a_killed_watcher_is_not_waited_for(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    let (alive, doomed) = (Listener::new("alive"), Listener::gated("doomed", 0));
    let cookie = watch(&t.b, &alive).await?;
    let io = t.another().await;
    watch(&io, &doomed).await?;
    let notifier = t.a.clone();
    let sent = tokio::spawn(async move { notify(&notifier, "during", PATIENT_MS).await });
    eventually("the doomed client's handler runs", || async {
        Ok(doomed.payloads().len() == 1)
    })
    .await?;
    let store = io.store().clone();
    drop(io);
    if !t.harness.kill(store).await {
        eprintln!("not checked: this harness cannot kill a client");
        doomed.gate.add_permits(1);
        sent.await.map_err(|error| error.to_string())??;
        return Ok(());
    }
    let reply = sent.await.map_err(|error| error.to_string())??;
    ensure_eq!(
        reply.acks,
        vec![(gid(&t.b), cookie, Bytes::from("alive:during"))],
        "answers"
    );
    let reply = notify(&t.a, "after", PATIENT_MS).await?;
    ensure_eq!(reply.acks.len(), 1, "answers");
    ensure_eq!(reply.timeouts, Vec::new(), "timeouts of a dead watcher");
    ensure_eq!(watchers(&t.a).await?.len(), 1, "watchers");
    Ok(())
}

pub(super) async fn a_blocklisted_client_can_do_nothing(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "mine")).await?;
    let io = t.another().await;
    io.write_meta("o", t.op().write(0, "ours")).await?;
    t.a.store().blocklist_add(&io.store().instance()).await?;
    t.a.store().blocklist_add(&io.store().instance()).await?;
    every_operation_is_shut_down(&io).await?;
    ensure_eq!(head(&t.b, "o").await?, "ours", "content");
    t.b.write_meta("o", t.op().write(0, "free")).await?;
    ensure_eq!(head(&t.a, "o").await?, "free", "content after others' writes");
    Ok(())
}

pub(super) async fn a_blocklisted_watcher_is_told_and_not_waited_for(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    let io = t.another().await;
    // Where watchers are counted by a notify, one that never answers hears of nothing behind it.
    let listener = match t.harness.probes() {
        true => Listener::new("fenced"),
        false => Listener::gated("fenced", 0),
    };
    watch(&io, &listener).await?;
    t.a.store().blocklist_add(&io.store().instance()).await?;
    eventually("the fenced watch leaves the list", || async {
        Ok(watchers(&t.a).await?.is_empty())
    })
    .await?;
    eventually("the handler hears of the loss", || async {
        Ok(listener.lost.lock().len() == 1)
    })
    .await?;
    let reply = notify(&t.b, "x", PATIENT_MS).await?;
    ensure_eq!(reply, NotifyReply::default(), "reply");
    ensure!(
        !listener.payloads().contains(&"x".into()),
        "the fenced watcher was notified"
    );
    Ok(())
}

pub(super) async fn blocklisting_someone_unknown_harms_nobody(t: Fixture) -> Outcome {
    let mut addr = t.a.store().instance().addr;
    addr.nonce ^= 0x5555_aaaa;
    let stranger = ClientInstance {
        gid: u64::MAX >> 2,
        addr,
    };
    t.a.store().blocklist_add(&stranger).await?;
    t.a.write_meta("o", t.op().write(0, "fine")).await?;
    ensure_eq!(head(&t.b, "o").await?, "fine", "content");
    Ok(())
}

pub(super) async fn handlers_may_use_the_store(t: Fixture) -> Outcome {
    struct Writer(IoCtx);
    #[async_trait]
    impl WatchHandler for Writer {
        async fn notified(&self, notification: Notification) -> Bytes {
            let op = crate::WriteOp::new().write_full(notification.payload);
            match self.0.write_meta("o", op).await {
                Ok(_) => "written".into(),
                Err(error) => error.to_string().into(),
            }
        }
        async fn lost(&self, _: Errno) {}
    }
    t.a.write_meta("o", t.op().create(true)).await?;
    t.a.store()
        .watch(t.a.object("o"), Arc::new(Writer(t.a.clone())))
        .await?;
    for payload in ["from another", "from the other again"] {
        let reply = notify(&t.b, payload, PATIENT_MS).await?;
        ensure_eq!(
            reply.acks.first().map(|ack| ack.2.clone()),
            Some("written".into()),
            "answer"
        );
        ensure_eq!(head(&t.b, "o").await?, payload, "content");
    }
    Ok(())
}
