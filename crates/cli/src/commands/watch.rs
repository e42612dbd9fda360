//! `rbd watch`: prints every notify on an image's header until enter is pressed, stdin ends or a signal comes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use ferry_image::OpenOptions;
use ferry_image::watch::messages::Message;
use ferry_store::watch::Notification;
use ferry_store::{Errno, WatchHandler};
use tokio::sync::mpsc;

use super::Signals;
use super::error::Explain as _;
use super::session::{Session, say};
use crate::exit::Failure;
use crate::spec::ImageQuery;

/// Lines that wait to be printed; when stdout is slower than that, notifiers wait for their acks.
const MAX_WAITING_LINES: usize = 1024;

pub(super) async fn run(session: &Session, signals: &mut Signals) -> Result<(), Failure> {
    let spec = session.args().image(ImageQuery::source())?;
    session.args().finish()?;
    let image = session
        .image(&spec, OpenOptions::read_only().ignoring_migration())
        .await?;
    let (lines, mut printed) = mpsc::channel(MAX_WAITING_LINES);
    let (broken, mut watch_broke) = mpsc::channel(1);
    let handler = Arc::new(Printer {
        image: spec.image.clone(),
        lines,
        broken,
    });
    let io = image.io();
    let header = image.header_object();
    let cookie = io
        .store()
        .watch(io.object(header), handler)
        .await
        .map_err(|error| error.failed("error watching image"))?;
    say("press enter to exit...\n")?;
    let mut enter = entered();
    let result = loop {
        tokio::select! {
            Some(line) = printed.recv() => {
                if let Err(failure) = say(&line) {
                    break Err(failure);
                }
            }
            Some(errno) = watch_broke.recv() => {
                break Err(Failure::errno("the watch broke", errno));
            }
            _ = &mut enter => break Ok(()),
            _ = signals.next() => break Ok(()),
        }
    };
    let ended = io.store().unwatch(cookie).await;
    while let Ok(line) = printed.try_recv() {
        say(&line)?;
    }
    result.and(ended.map_err(|error| error.failed("error ending the watch")))
}

/// Resolves at a line or the end of stdin. The thread that reads it is left behind when the command ends otherwise.
fn entered() -> tokio::task::JoinHandle<()> {
    tokio::task::spawn_blocking(|| {
        let mut byte = [0];
        loop {
            match std::io::Read::read(&mut std::io::stdin(), &mut byte) {
                Ok(1) if byte != *b"\n" => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    })
}

struct Printer {
    image: String,
    lines: mpsc::Sender<String>,
    broken: mpsc::Sender<i32>,
}

#[async_trait]
impl WatchHandler for Printer {
    async fn notified(&self, notification: Notification) -> Bytes {
        let name = match Message::decode(&notification.payload) {
            Ok(message) => message.name(),
            Err(error) => format!("undecodable ({error})"),
        };
        let line = format!(
            "{} received notification: notify_id={}, cookie={}, notifier_id={}, bl.length={}, notify_op={name}\n",
            self.image,
            notification.notify_id,
            notification.cookie.0,
            notification.notifier_gid,
            notification.payload.len(),
        );
        // Fails only when the command is ending.
        let _ = self.lines.send(line).await;
        Bytes::new()
    }

    async fn lost(&self, errno: Errno) {
        let _ = self.broken.try_send(errno.0);
    }
}
