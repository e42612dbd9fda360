//! Throttle, pause and what status shows of them, by the binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod support;

use support::store::TestStore;

/// A prepared migration of a small image.
fn prepared() -> TestStore {
    let store = TestStore::new();
    store.ok("create --size 8M --object-size 1M src");
    store.ok("bench --io-type write --io-size 64K --io-total 4M src");
    store.ok("migration prepare src dst");
    store
}

#[test]
fn limits_are_shown_by_throttle_and_status_and_refused_when_they_make_no_sense() {
    let store = prepared();
    assert_eq!(
        store.ok("migration throttle dst"),
        "max-bytes-per-second: auto, concurrency: auto\n"
    );
    let plain = store.ok("status dst");
    assert!(
        !plain.contains("throttle") && !plain.contains("progress"),
        "{plain}"
    );
    assert_eq!(
        store.ok("migration throttle dst --max-bytes-per-second 8M --concurrency 3"),
        ""
    );
    store.ok("migration pause src");
    assert_eq!(
        store.ok("migration throttle dst"),
        "max-bytes-per-second: 8 MiB, concurrency: 3, paused\n"
    );
    let plain = store.ok("status dst");
    assert!(
        plain.ends_with(
            "\tstate: prepared\n\tthrottle: max-bytes-per-second: 8 MiB, concurrency: 3, paused\n"
        ),
        "{plain}"
    );
    let json = store.ok("status dst --format json");
    assert!(
        json.contains(
            r#""throttle":{"max_bytes_per_second":8388608,"concurrency":3,"paused":true,"zero_detect":false}"#
        ),
        "{json}"
    );
    store.ok("migration throttle dst --max-bytes-per-second none --concurrency auto");
    assert_eq!(
        store.ok("migration throttle dst"),
        "max-bytes-per-second: none, concurrency: auto, paused\n"
    );
    store.ok("migration throttle dst --reserve-bytes 1G --on-enospc fail");
    assert_eq!(
        store.ok("migration throttle dst"),
        "max-bytes-per-second: none, concurrency: auto, reserve-bytes: 1 GiB, on-enospc: fail, paused\n"
    );
    let json = store.ok("status dst --format json");
    assert!(
        json.contains(r#""reserve_bytes":1073741824,"on_enospc":"fail"}"#),
        "{json}"
    );
    store.ok("migration throttle dst --reserve-bytes auto --on-enospc pause");
    assert_eq!(
        store.ok("migration throttle dst"),
        "max-bytes-per-second: none, concurrency: auto, paused\n"
    );
    for (line, option) in [
        ("migration throttle dst --concurrency 0", "concurrency"),
        ("migration throttle dst --concurrency 257", "concurrency"),
        (
            "migration throttle dst --max-bytes-per-second fast",
            "max-bytes-per-second",
        ),
        ("migration throttle dst --on-enospc hope", "on-enospc"),
    ] {
        let said = store.fails(line, 1);
        assert!(said.contains(option) && said.contains("is invalid"), "{said}");
    }
    store.ok("create --size 1M alone");
    let said = store.fails("migration throttle alone", 22);
    assert!(said.contains("takes part in no migration"), "{said}");
}

#[test]
fn a_paused_execute_waits_and_says_so_until_it_is_resumed() {
    let store = prepared();
    store.ok("migration pause dst");
    // Nothing is asserted while the command waits: it would wait for ever.
    let (said, plain, json) = std::thread::scope(|scope| {
        let executing = scope.spawn(|| store.ok("migration execute dst --zero-detect"));
        let mut plain = String::new();
        // The first report may be older than its look at the settings.
        for _ in 0..4800 {
            if executing.is_finished() || plain.contains("left 8 MiB, paused\n") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            plain = store.ok("status dst");
        }
        let json = store.ok("status dst --format json");
        store.ok("migration resume dst");
        (executing.join().unwrap(), plain, json)
    });
    assert!(plain.contains("\tstate: executing"), "{plain}");
    assert!(
        plain.contains("\tprogress: copied 0 B, skipped 0 B, left 8 MiB, paused\n"),
        "{plain}"
    );
    assert!(
        json.contains(r#""bytes_copied":0,"bytes_skipped":0,"bytes_left":8388608"#),
        "{json}"
    );
    assert!(said.contains("the migration is paused"), "{said}");
    assert!(said.contains("100% complete...done."), "{said}");
    let status = store.ok("status dst");
    assert!(
        status.ends_with("\tstate: executed\n"),
        "nothing of Ferry's after the end: {status}"
    );
    store.ok("migration commit dst --no-progress");
}
