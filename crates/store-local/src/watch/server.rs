//! Sockets: each client listens on `run/<gid>.sock`; a notifier connects, sends one request, reads answers to the end.
//!
//! Requests are read one after another in the order of their connections, so notifies that one client sends one after
//! another keep their order. A peer that stalls in the middle of a request is given up.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferry_store::WatchCookie;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::frame::{self, Incoming, Request};
use super::{Answers, Awaited, Watches};
use crate::sys::private;

/// How long a peer may take to send its request.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);
/// How often a request is sent to a peer that hangs up before it has read it.
const ATTEMPTS: u32 = 3;
/// Longest path that a socket's address holds.
const PATH_BYTES_MAX: usize = 100;

/// Where sockets are.
#[derive(Debug)]
pub(crate) struct Sockets {
    run: PathBuf,
    dir: File,
}

impl Sockets {
    /// The sockets in `run`.
    pub(crate) fn new(run: &Path) -> io::Result<Self> {
        Ok(Self {
            run: run.to_owned(),
            dir: File::open(run)?,
        })
    }

    /// Address of a client's socket; of a long path the short way through this process's descriptors.
    fn path_of(&self, gid: u64) -> PathBuf {
        let path = self.run.join(format!("{gid}.sock"));
        match path.as_os_str().len() > PATH_BYTES_MAX {
            true => PathBuf::from(format!("/proc/self/fd/{}/{gid}.sock", self.dir.as_raw_fd())),
            false => path,
        }
    }

    /// Starts to listen.
    pub(crate) fn listen(&self, gid: u64) -> io::Result<UnixListener> {
        let _ = std::fs::remove_file(self.run.join(format!("{gid}.sock")));
        let listener = UnixListener::bind(self.path_of(gid))?;
        private::close_socket(&self.path_of(gid))?;
        Ok(listener)
    }

    /// Stops being found.
    pub(crate) fn remove(&self, gid: u64) {
        let _ = std::fs::remove_file(self.run.join(format!("{gid}.sock")));
    }

    /// Sends a request and collects answers until the peer ends. Never ends by itself when the peer is stopped.
    pub(crate) async fn send(&self, gid: u64, request: &Request, answers: &Mutex<Answers>) {
        let bytes = frame::encode(&Incoming::Notify(request.clone()));
        for _ in 0..ATTEMPTS {
            let mut stream = match UnixStream::connect(self.path_of(gid)).await {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The backlog of a stopped peer is full: it is alive and does not answer.
                    return std::future::pending().await;
                }
                // Nobody listens: it has just ended.
                Err(_) => return answers.lock().end(),
            };
            // Who hangs up with a part of the request unread has ended, or has given us up because we were slow ourselves: then
            // nobody has heard it yet, and whether it is so the next connection tells.
            if stream.write_all(&bytes).await.is_err() {
                continue;
            }
            loop {
                match frame::read_answer(&mut stream).await {
                    Ok((cookie, bytes)) => answers.lock().note(WatchCookie(cookie), bytes),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                    Err(_) => return answers.lock().end(),
                }
            }
        }
    }

    /// Tells a client to look whether it is fenced. What becomes of the hint does not matter.
    pub(crate) async fn hint(&self, gid: u64) {
        let send = async {
            if let Ok(mut stream) = UnixStream::connect(self.path_of(gid)).await {
                let _ = stream.write_all(&frame::encode(&Incoming::Check)).await;
            }
        };
        let _ = tokio::time::timeout(REQUEST_PATIENCE, send).await;
    }
}

/// Serves a client's socket until it is aborted; calls `check` on hints.
pub(crate) async fn serve(listener: UnixListener, watches: Arc<Watches>, check: Arc<dyn Fn() + Send + Sync>) {
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a watch socket does not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let request = tokio::time::timeout(REQUEST_PATIENCE, frame::read_request(&mut stream)).await;
        match request {
            Ok(Ok(Incoming::Notify(request))) => {
                let answers = watches.deliver(&request);
                drop(tokio::spawn(answer(stream, answers)));
            }
            Ok(Ok(Incoming::Check)) => check(),
            Ok(Err(error)) => tracing::debug!(%error, "a request on a watch socket is refused"),
            Err(_) => tracing::debug!("a request on a watch socket stalls and is given up"),
        }
    }
}

async fn answer(mut stream: UnixStream, answers: Vec<Awaited>) {
    let (sender, mut ready) = mpsc::channel(answers.len().max(1));
    for (cookie, answered) in answers {
        let sender = sender.clone();
        tokio::spawn(async move {
            let answer = match answered {
                None => None,
                Some(answered) => match answered.await {
                    Ok(bytes) => Some(bytes),
                    Err(_) => return,
                },
            };
            let _ = sender.send((cookie, answer)).await;
        });
    }
    drop(sender);
    while let Some((cookie, answer)) = ready.recv().await {
        let frame = frame::encode_answer(cookie.0, answer.as_deref());
        if stream.write_all(&frame).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::registry::Target;
    use super::*;

    struct Echo;

    #[async_trait::async_trait]
    impl ferry_store::WatchHandler for Echo {
        async fn notified(&self, notification: ferry_store::watch::Notification) -> Bytes {
            notification.payload
        }
        async fn lost(&self, _errno: ferry_store::Errno) {}
    }

    fn request() -> Request {
        Request {
            notify_id: 1,
            notifier_gid: 2,
            target: Target {
                pool: 3,
                namespace: String::new(),
                name: "o".into(),
            },
            payload: Bytes::from_static(b"hello"),
        }
    }

    #[tokio::test]
    async fn a_living_watcher_that_hung_up_on_a_slow_notifier_hears_it_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(directory.path()).unwrap();
        let watches = Arc::new(Watches::new());
        let cookie = watches.add(request().target, Arc::new(Echo));
        let listener = sockets.listen(7).unwrap();
        let serving = tokio::spawn(async move {
            drop(listener.accept().await.unwrap());
            serve(listener, watches, Arc::new(|| {})).await;
        });
        let answers = Mutex::default();
        sockets.send(7, &request(), &answers).await;
        let answers = answers.into_inner();
        assert_eq!(answers.acks, [(cookie, Bytes::from_static(b"hello"))]);
        assert!(answers.ended);
        serving.abort();
    }

    #[tokio::test]
    async fn who_always_hangs_up_is_alive_and_has_not_answered_and_who_is_gone_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(directory.path()).unwrap();
        let listener = sockets.listen(7).unwrap();
        let serving = tokio::spawn(async move {
            loop {
                drop(listener.accept().await.unwrap());
            }
        });
        let answers = Mutex::default();
        sockets.send(7, &request(), &answers).await;
        assert!(answers.lock().acks.is_empty() && !answers.lock().ended);
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        sockets.send(7, &request(), &answers).await;
        assert!(answers.lock().ended);
    }
}
