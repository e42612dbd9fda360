//! What the judge of histories accepts, and what it must not.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ferry_reference::{Clock, Exact, History};

const SIZE: u64 = 64 << 10;

fn written(history: &mut History, offset: u64, length: u64) -> Vec<u8> {
    let write = history.begin_write(offset, length, false);
    let bytes = write.bytes();
    history.end_write(write, false);
    bytes
}

fn reads(history: &mut History, offset: u64, bytes: &[u8]) -> bool {
    let read = history.begin_read(offset, bytes.len() as u64);
    history.end_read(read, bytes).is_ok()
}

#[test]
fn one_wrong_byte_a_lost_write_and_a_misplaced_one_are_noticed() {
    let mut history = History::new(&Clock::default(), SIZE);
    assert!(reads(&mut history, 0, &[0; 8192]));
    let mut bytes = written(&mut history, 1000, 5000);
    assert!(reads(&mut history, 1000, &bytes));
    assert!(reads(&mut history, 2000, &bytes[1000..1500]));
    assert!(!reads(&mut history, 1000, &vec![0; 5000]), "a lost write");
    assert!(!reads(&mut history, 0, &bytes[..1000]), "a misplaced write");
    bytes[4999] ^= 1;
    assert!(!reads(&mut history, 1000, &bytes), "a wrong byte");
}

#[test]
fn a_stale_read_is_noticed_and_its_write_named() {
    let mut history = History::new(&Clock::default(), SIZE);
    let old = written(&mut history, 0, 4096);
    let new = written(&mut history, 0, 4096);
    let read = history.begin_read(0, 4096);
    let violation = history.end_read(read, &old).unwrap_err();
    assert_eq!(violation.offset, 0);
    assert!(
        violation.explanation.contains("they are write 2's"),
        "{violation}"
    );
    assert!(reads(&mut history, 0, &new));
    let zeroes = history.begin_write(100, 50, true);
    history.end_write(zeroes, false);
    assert!(!reads(&mut history, 0, &new), "a lost trim");
}

#[test]
fn a_flush_after_a_loss_of_power_makes_none_of_the_lost_writes_sure() {
    let mut history = History::new(&Clock::default(), SIZE);
    for zeroes in [true, true, false] {
        let write = history.begin_write(0, 512, zeroes);
        history.end_write(write, false);
    }
    history.killed(true);
    // Zeroes from the beginning, or of the two writes of zeroes: who can tell?
    assert!(reads(&mut history, 0, &[0; 512]));
    history.is_durable();
    let flush = history.begin_flush();
    let beside = history.begin_write(0, 512, false);
    history.end_flush(&flush);
    history.end_write(beside, false);
    history.killed(true);
    assert!(reads(&mut history, 0, &[0; 512]));
}

#[test]
fn of_two_hundred_writes_under_way_each_may_be_seen_and_nothing_else() {
    let mut history = History::new(&Clock::default(), SIZE);
    let writes: Vec<_> = (0..200).map(|_| history.begin_write(0, 1000, false)).collect();
    assert!(reads(&mut history, 0, &writes[199].bytes()));
    // A byte that none of them has there.
    let firsts: Vec<u8> = writes.iter().map(|write| write.bytes()[0]).collect();
    let none = (1..=255).find(|byte| !firsts.contains(byte)).unwrap();
    let mut wrong = writes[150].bytes();
    wrong[0] = none;
    assert!(!reads(&mut history, 0, &wrong));
}

#[test]
fn a_read_may_see_any_of_the_writes_that_overlap_it_and_then_no_older_one() {
    let mut history = History::new(&Clock::default(), SIZE);
    let base = written(&mut history, 0, 1000);
    let first = history.begin_write(0, 1000, false);
    // Under way: the old bytes, or the new, or some of both.
    assert!(reads(&mut history, 0, &base));
    let mixed = [&base[..300], &first.bytes()[300..]].concat();
    assert!(reads(&mut history, 0, &mixed));
    // What was seen stays.
    assert!(!reads(&mut history, 0, &base));
    assert!(reads(&mut history, 0, &mixed));
    history.end_write(first, false);
    assert!(!reads(&mut history, 0, &mixed));
    assert!(reads(&mut history, 0, &first.bytes()));

    // Begun after the read, and ended before it.
    let read = history.begin_read(500, 500);
    let second = written(&mut history, 600, 100);
    let bytes = [&first.bytes()[500..600], &second[..50], &first.bytes()[650..1000]].concat();
    assert!(history.end_read(read, &bytes).is_ok());
    assert!(!reads(&mut history, 500, &bytes));
}

#[test]
fn of_two_writes_that_overlapped_the_one_that_was_seen_after_both_stays() {
    let mut history = History::new(&Clock::default(), SIZE);
    let one = history.begin_write(0, 100, false);
    let other = history.begin_write(0, 100, false);
    history.end_write(one, false);
    history.end_write(other, false);
    assert!(!reads(&mut history, 0, &[0; 100]));
    assert!(reads(&mut history, 0, &one.bytes()));
    assert!(!reads(&mut history, 0, &other.bytes()));
    assert!(reads(&mut history, 0, &one.bytes()));
}

#[test]
fn a_snapshot_is_of_one_moment_and_never_changes() {
    let mut history = History::new(&Clock::default(), SIZE);
    let taking = history.begin_snap();
    let first = written(&mut history, 0, 100);
    let second = written(&mut history, 1000, 100);
    history.end_snap(taking, "s");
    let whole = |first: &[u8], second: &[u8]| [first, &[0; 900], second].concat();
    let impossible = whole(&[0; 100], &second);
    assert!(
        history.check_snap("s", 0, &impossible).is_err(),
        "the second write without the first"
    );
    let half = whole(&first, &[0; 100]);
    history.check_snap("s", 0, &half).unwrap();
    let all = whole(&first, &second);
    assert!(history.check_snap("s", 0, &all).is_err(), "it has changed");
    assert!(reads(&mut history, 0, &all));
    assert!(history.check_snap("s", 0, &half).is_ok());
    let mut child = history.clone_of("s").unwrap();
    assert!(reads(&mut child, 0, &half));
    assert!(!reads(&mut child, 0, &all));
}

#[test]
fn what_was_flushed_survives_a_loss_of_power_and_what_was_not_may_go() {
    for fua in [false, true] {
        let mut history = History::new(&Clock::default(), SIZE);
        let before = written(&mut history, 0, 100);
        let write = history.begin_write(0, 100, false);
        let durable = write.bytes();
        history.end_write(write, fua);
        if !fua {
            let flush = history.begin_flush();
            history.end_flush(&flush);
        }
        let loose = written(&mut history, 0, 100);
        history.killed(true);
        assert!(!reads(&mut history, 0, &before), "a flushed write was lost");
        assert!(!reads(&mut history, 0, &[0; 100]), "a flushed write was lost");
        let mixed = [&durable[..40], &loose[40..]].concat();
        assert!(reads(&mut history, 0, &mixed));
        history.is_durable();
        assert!(!reads(&mut history, 0, &loose), "it has changed");
    }
}

#[test]
fn a_flush_counts_for_what_had_ended_before_it_began() {
    let mut history = History::new(&Clock::default(), SIZE);
    let flush = history.begin_flush();
    written(&mut history, 0, 100);
    history.end_flush(&flush);
    history.killed(true);
    assert!(reads(&mut history, 0, &[0; 100]));
}

#[test]
fn what_was_acknowledged_survives_a_kill_and_what_was_under_way_may_be_there_or_not() {
    for applied in [false, true] {
        let mut history = History::new(&Clock::default(), SIZE);
        let done = written(&mut history, 0, 100);
        let cut_off = history.begin_write(0, 100, false);
        history.killed(false);
        assert!(!reads(&mut history, 0, &[0; 100]));
        let bytes = if applied { cut_off.bytes() } else { done };
        assert!(reads(&mut history, 0, &bytes));
        let next = written(&mut history, 0, 100);
        assert!(!reads(&mut history, 0, &cut_off.bytes()));
        assert!(reads(&mut history, 0, &next));
    }
}

#[test]
fn an_abort_keeps_the_head_and_the_old_snapshots_only() {
    let mut history = History::new(&Clock::default(), SIZE);
    for name in ["old", "removed"] {
        let taking = history.begin_snap();
        history.end_snap(taking, name);
    }
    history.prepared();
    let bytes = written(&mut history, 0, 100);
    let taking = history.begin_snap();
    history.end_snap(taking, "new");
    history.remove_snap("removed");
    assert_eq!(history.new_snap_names(), ["new"]);
    history.aborted_dropping_new_snaps();
    assert_eq!(history.snap_names(), ["old", "removed"]);
    assert!(reads(&mut history, 0, &bytes));
    history.check_snap("old", 0, &[0; 100]).unwrap();
}

#[test]
fn what_a_shrink_has_cut_off_is_zero_when_the_image_grows_again() {
    let mut history = History::new(&Clock::default(), SIZE);
    let bytes = written(&mut history, 0, 1000);
    history.resize(500);
    history.resize(SIZE);
    assert!(!reads(&mut history, 0, &bytes));
    assert!(reads(&mut history, 0, &[&bytes[..500], &[0; 500][..]].concat()));
}

#[test]
fn of_an_exact_image_a_lost_a_stale_and_a_misplaced_write_are_named() {
    let mut image = Exact::new(SIZE);
    let old = image.write_tagged(0, 4096);
    image.snap("s");
    let new = image.write_tagged(0, 4096);
    let elsewhere = image.write_tagged(20_000, 512);
    image.write(30_000, &[7; 100]);
    image.zero(1000, 24);
    let told = |offset, bytes: &[u8]| image.head.check(offset, bytes).unwrap_err().to_string();
    assert!(image.head.check(0, &new[..1000]).is_ok());
    assert!(image.head.check(1000, &[0; 24]).is_ok());
    assert!(image.head.check(29_999, &[0, 7, 7]).is_ok());
    assert!(told(0, &old).contains("they are write 2's"), "{}", told(0, &old));
    assert!(told(0, &[0; 64]).contains("zeroes"));
    let misplaced = told(40_000, &elsewhere);
    assert!(misplaced.contains("put at 20000"), "{misplaced}");
    assert!(told(30_000, &[7, 7, 8]).contains("byte 30002"));
    let bytes = image.head.bytes();
    assert_eq!(bytes.len() as u64, SIZE);
    assert!(image.head.check(0, &bytes).is_ok());
    assert!(image.snaps["s"].check(0, &old).is_ok());
    assert!(image.snaps["s"].check(0, &new).is_err());
    let mut child = Exact::of(&image.snaps["s"]);
    child.write(10, &[9; 5]);
    child.resize(2000);
    child.resize(5000);
    let expected = [&old[..10], &[9; 5], &old[15..2000], &[0; 3000]].concat();
    assert_eq!(child.head.bytes(), expected);
    assert!(
        image.snaps["s"].check(0, &old).is_ok(),
        "a clone wrote to its parent"
    );
}

/// Both writes have ended; one read sees the first, the other, which overlaps it, the second.
fn contradicting_reads(history: &mut History) -> bool {
    let (first, second) = (
        history.begin_write(512, 512, false),
        history.begin_write(512, 512, false),
    );
    history.end_write(first, false);
    history.end_write(second, false);
    let (one, other) = (history.begin_read(512, 512), history.begin_read(512, 512));
    let one = history.end_read(one, &first.bytes());
    one.and(history.end_read(other, &second.bytes())).is_ok()
}

#[test]
fn reads_that_overlap_and_contradict_each_other_have_no_order() {
    let mut blocks = History::of_blocks(&Exact::new(2048), 512);
    assert!(contradicting_reads(&mut blocks), "noticed by chance, and at once");
    let told = blocks.check_order().unwrap_err();
    assert!(told.starts_with("block 1 "), "{told}");
    let mut blocks = History::of_blocks(&Exact::new(2048), 512);
    let bytes = written(&mut blocks, 512, 1024);
    assert!(reads(&mut blocks, 0, &[&[0; 512], &bytes[..512]].concat()));
    assert_eq!(blocks.check_order(), Ok(()));
}

#[test]
fn a_block_that_is_of_two_writes_is_noticed() {
    let mut blocks = History::of_blocks(&Exact::new(2048), 512);
    let (first, second) = (
        blocks.begin_write(0, 512, false),
        blocks.begin_write(0, 512, false),
    );
    let torn = [&first.bytes()[..100], &second.bytes()[100..]].concat();
    assert!(!reads(&mut blocks, 0, &torn));
    assert!(reads(&mut blocks, 0, &first.bytes()));
    let read = blocks.begin_read(0, 512);
    assert!(blocks.end_unsettled_read(&read, &torn).is_err());
}

#[test]
fn what_a_snapshot_shows_was_there_and_what_it_hides_is_gone() {
    let mut blocks = History::of_blocks(&Exact::new(2048), 512);
    let (first, second) = (
        blocks.begin_write(0, 512, false),
        blocks.begin_write(0, 512, false),
    );
    blocks.end_write(first, false);
    blocks.end_write(second, false);
    let taking = blocks.begin_snap();
    blocks.end_snap(taking, "s");
    assert!(blocks.check_snap("s", 0, &second.bytes()).is_ok());
    assert!(blocks.check_snap("s", 0, &first.bytes()).is_err());
    assert!(!reads(&mut blocks, 0, &first.bytes()), "the head shows another");
    assert!(reads(&mut blocks, 0, &second.bytes()));
    assert_eq!(blocks.check_order(), Ok(()));
}

#[test]
fn a_flush_of_one_client_keeps_nothing_of_another() {
    let image = Exact::new(2048);
    let lost = |flushing: usize| {
        let mut blocks = History::of_blocks(&image, 512);
        for client in [1, 2] {
            let write = blocks.begin_write_by(client, client as u64 * 512, 512, false);
            blocks.end_write(write, false);
        }
        let flush = blocks.begin_flush_by(flushing);
        blocks.end_flush(&flush);
        blocks.killed(true);
        [1, 2].map(|client| {
            let read = blocks.begin_read(client * 512, 512);
            blocks.end_unsettled_read(&read, &[0; 512]).is_ok()
        })
    };
    assert_eq!(lost(1), [false, true]);
    assert_eq!(lost(2), [true, false]);
    assert_eq!(lost(3), [true, true]);
}
