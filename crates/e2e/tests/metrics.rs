//! `rbd serve --metrics`, scraped over HTTP and compared with what was asked of the server.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bytes::Bytes;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::load::connect;
use ferry_e2e::tools::seed;
use ferry_e2e::{Ferry, Served};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const OBJECT_BYTES: u64 = 256 << 10;
const OBJECTS: u64 = 16;

/// One HTTP exchange: status line and headers, body.
fn http(address: &str, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ferry_e2e::process::LIMIT)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn get(address: &str, path: &str) -> (String, String) {
    http(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: ferry\r\nConnection: close\r\n\r\n"),
    )
}

/// Where a server says that its metrics are.
fn address(served: &Served) -> String {
    let said = served.process.stderr();
    let url = said
        .lines()
        .find_map(|line| line.strip_prefix("rbd: metrics on http://"))
        .unwrap_or_else(|| panic!("{said}"));
    url.strip_suffix("/metrics").unwrap().to_owned()
}

/// One look at the metrics.
struct Scrape(String);

impl Scrape {
    fn of(served: &Served) -> Self {
        let (head, body) = get(&address(served), "/metrics");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(body.ends_with("# EOF\n"), "{body}");
        Self(body)
    }

    /// The value of `ferry_<name>`.
    #[track_caller]
    fn server(&self, name: &str) -> u64 {
        self.value(&format!("ferry_{name}"))
    }

    /// The value of `ferry_image_<name>` of an image of the pool `fast`; `kind` for those that have one.
    #[track_caller]
    fn image(&self, name: &str, kind: &str) -> u64 {
        let kind = match kind {
            "" => String::new(),
            kind => format!(",operation=\"{kind}\""),
        };
        self.value(&format!(
            "ferry_image_{name}{{pool=\"fast\",namespace=\"\",image=\"disk\",snapshot=\"\"{kind}}}"
        ))
    }

    #[track_caller]
    fn value(&self, series: &str) -> u64 {
        let prefix = format!("{series} ");
        let found = self.0.lines().find_map(|line| line.strip_prefix(&prefix));
        let text = found.unwrap_or_else(|| panic!("no {series} in\n{}", self.0));
        text.parse().unwrap_or_else(|_| panic!("{series} {text}"))
    }
}

/// A migration from `rbd/disk`, full of data, to `fast/disk`, prepared.
fn prepared() -> Ferry {
    let ferry = Ferry::new();
    ferry.import(
        &vec![7; (OBJECTS * OBJECT_BYTES) as usize],
        "rbd/disk",
        &["--object-size", "256K"],
    );
    ferry.ok(&["migration", "prepare", "rbd/disk", "fast/disk"]);
    ferry
}

#[test]
fn reads_of_a_migration_and_the_copies_that_writes_wait_for_are_counted_exactly() {
    let ferry = prepared();
    let served = ferry.serve(&["--metrics", "0", "fast/disk"]);
    let none = Scrape::of(&served);
    assert_eq!(none.server("connections"), 0);
    assert_eq!(
        none.image("requests_total", "read"),
        0,
        "known before its first client"
    );

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(async {
        let client = connect(&served.socket, "fast/disk").await;
        // Eight objects are read from the source, twice; then three of them are written to, one of them twice.
        for _ in 0..2 {
            for object in 0..8 {
                client.read(object * OBJECT_BYTES, 4096).await.unwrap();
            }
        }
        for object in [0, 1, 2, 2] {
            let data = Bytes::from(vec![9; 512]);
            client
                .write(object * OBJECT_BYTES + 512, data, false)
                .await
                .unwrap();
        }
        client.flush().await.unwrap();
        // Copied by now, so these are reads of the target.
        for object in 0..3 {
            client.read(object * OBJECT_BYTES, 4096).await.unwrap();
        }
        client
    });
    let seen = Scrape::of(&served);
    assert_eq!(seen.server("connections"), 1);
    assert_eq!(seen.server("connections_accepted_total"), 1);
    assert_eq!(seen.image("connections", ""), 1);
    assert_eq!(seen.image("requests_total", "read"), 19);
    assert_eq!(seen.image("read_bytes_total", ""), 19 * 4096);
    assert_eq!(seen.image("requests_total", "write"), 4);
    assert_eq!(seen.image("written_bytes_total", ""), 4 * 512);
    assert_eq!(seen.image("requests_total", "flush"), 1);
    assert_eq!(seen.image("request_errors_total", "write"), 0);
    assert_eq!(seen.image("requests_in_flight", ""), 0);
    assert_eq!(seen.image("source_reads_total", ""), 16);
    assert_eq!(seen.image("source_read_bytes_total", ""), 16 * 4096);
    assert_eq!(seen.image("copied_up_objects_total", ""), 3);
    assert_eq!(seen.image("copied_up_bytes_total", ""), 3 * OBJECT_BYTES);
    assert_eq!(seen.image("copy_up_wait_seconds_count", ""), 3);

    runtime.block_on(client.disconnect()).unwrap();
    wait_until("the connection is gone", || {
        Scrape::of(&served).server("connections") == 0
    });
    let after = Scrape::of(&served);
    assert_eq!(after.image("connections", ""), 0);
    assert_eq!(after.image("connections_accepted_total", ""), 1);
    assert_eq!(after.image("requests_total", "read"), 19, "counters stay");
    served.stop();
}

#[test]
fn a_load_during_execute_is_counted_request_by_request() {
    let mut rng = StdRng::seed_from_u64(seed("metrics under load"));
    let ferry = prepared();
    let served = ferry.serve(&["--metrics", "127.0.0.1:0", "fast/disk"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(connect(&served.socket, "fast/disk"));
    assert!(!Scrape::of(&served).0.contains("ferry_image_execute_objects{"));
    // With the first write the server owns the image's lock, and with it the work of execute.
    runtime
        .block_on(client.write(0, Bytes::from(vec![1; 512]), false))
        .unwrap();
    let execute = ferry.start(&["migration", "execute", "fast/disk", "--no-progress"]);
    let (mut reads, mut writes, mut flushes) = (0, 1, 0);
    let (mut read_bytes, mut written_bytes) = (0, 512);
    for _ in 0..400 {
        let length = rng.random_range(1..=64) * 512;
        let offset = rng.random_range(0..=(OBJECTS * OBJECT_BYTES - length) / 512) * 512;
        match rng.random_range(0..10) {
            0 => {
                flushes += 1;
                runtime.block_on(client.flush()).unwrap();
            }
            1..5 => {
                writes += 1;
                written_bytes += length;
                let data = Bytes::from(vec![1; length as usize]);
                runtime.block_on(client.write(offset, data, false)).unwrap();
            }
            _ => {
                reads += 1;
                read_bytes += length;
                runtime.block_on(client.read(offset, length as u32)).unwrap();
            }
        }
    }
    execute.finish().ok();
    let seen = Scrape::of(&served);
    // Every object was copied once: for a client or by the execute, which the server carried out.
    assert_eq!(
        seen.image("execute_copied_bytes", "") + seen.image("copied_up_bytes_total", ""),
        OBJECTS * OBJECT_BYTES
    );
    assert_eq!(
        seen.image("execute_objects_done", ""),
        seen.image("execute_objects", "")
    );
    assert_eq!(seen.image("execute_left_bytes", ""), 0);
    assert_eq!(seen.image("execute_paused", ""), 0);
    for (kind, count) in [("read", reads), ("write", writes), ("flush", flushes)] {
        assert_eq!(seen.image("requests_total", kind), count, "{kind}");
        assert_eq!(
            seen.image("request_duration_seconds_count", kind),
            count,
            "{kind}"
        );
        assert_eq!(seen.image("request_errors_total", kind), 0, "{kind}");
    }
    assert_eq!(seen.image("read_bytes_total", ""), read_bytes);
    assert_eq!(seen.image("written_bytes_total", ""), written_bytes);
    assert!(seen.image("copied_up_objects_total", "") <= OBJECTS);
    assert_eq!(
        seen.image("copied_up_bytes_total", ""),
        seen.image("copied_up_objects_total", "") * OBJECT_BYTES
    );
    runtime.block_on(client.disconnect()).unwrap();
    served.stop();
    ferry.ok(&["migration", "commit", "fast/disk", "--no-progress"]);
}

#[test]
fn an_image_that_is_opened_and_closed_again_keeps_its_counters() {
    let ferry = prepared();
    let served = ferry.serve(&["--metrics", "0"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for _ in 0..2 {
        runtime.block_on(async {
            let client = connect(&served.socket, "fast/disk").await;
            client.read(0, 4096).await.unwrap();
            client.disconnect().await.unwrap();
        });
        wait_until("the image is closed", || {
            ferry.ok(&["status", "fast/disk"]).starts_with("Watchers: none")
        });
    }
    let seen = Scrape::of(&served);
    assert_eq!(seen.image("connections_accepted_total", ""), 2);
    assert_eq!(seen.image("requests_total", "read"), 2);
    assert_eq!(seen.image("source_reads_total", ""), 2);
    served.stop();
}

#[test]
fn whoever_asks_for_something_else_is_told_so_and_the_server_lives() {
    let ferry = prepared();
    let served = ferry.serve(&["--metrics", "0", "fast/disk"]);
    let address = address(&served);
    assert!(get(&address, "/").0.starts_with("HTTP/1.1 404"));
    let (head, _) = http(
        &address,
        "POST /metrics HTTP/1.1\r\nHost: f\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
    let endless = format!("GET /{} HTTP/1.1\r\nHost: f\r\n\r\n", "x".repeat(1 << 16));
    let mut stream = TcpStream::connect(&address).unwrap();
    // The server may hang up before it has all of it.
    let _ = stream.write_all(endless.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert!(
        get(&address, "/metrics")
            .0
            .contains("application/openmetrics-text")
    );
    served.stop();
}

#[test]
fn reads_that_the_parent_of_a_clone_answers_are_counted() {
    let ferry = Ferry::new();
    ferry.import(
        &vec![7; (OBJECTS * OBJECT_BYTES) as usize],
        "rbd/base",
        &["--object-size", "256K"],
    );
    ferry.ok(&["snap", "create", "--no-progress", "rbd/base@s"]);
    ferry.ok(&["snap", "protect", "rbd/base@s"]);
    ferry.ok(&["clone", "rbd/base@s", "fast/disk"]);
    let served = ferry.serve(&["--metrics", "0", "fast/disk"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = connect(&served.socket, "fast/disk").await;
        for object in 0..4 {
            client.read(object * OBJECT_BYTES, 4096).await.unwrap();
        }
        let data = Bytes::from(vec![9; 512]);
        client.write(0, data, false).await.unwrap();
        // The clone's own by now.
        client.read(0, 4096).await.unwrap();
        client.read(OBJECT_BYTES, 512).await.unwrap();
        client.disconnect().await.unwrap();
    });
    let seen = Scrape::of(&served);
    assert_eq!(seen.image("requests_total", "read"), 6);
    assert_eq!(seen.image("parent_reads_total", ""), 5);
    assert_eq!(seen.image("parent_read_bytes_total", ""), 4 * 4096 + 512);
    assert_eq!(seen.image("source_reads_total", ""), 0);
    served.stop();
}
