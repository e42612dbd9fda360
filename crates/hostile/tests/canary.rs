//! That the harness notices what it is there to notice.

use ferry_hostile::memory::Counting;
use ferry_hostile::mutate::Mutations;
use ferry_hostile::{Verdict, canary, judge};

#[global_allocator]
static MEMORY: Counting = Counting;

/// One test, for memory is counted for the whole process.
#[test]
fn a_panic_a_busy_loop_and_a_huge_allocation_are_each_noticed() {
    assert_eq!(judge(canary::run, b"harmless"), Verdict::Fine);
    assert_eq!(judge(canary::run, b"crash"), Verdict::Crash);
    assert_eq!(judge(canary::run, b"large"), Verdict::OverMemory);
    assert_eq!(judge(canary::run, b"slow"), Verdict::OverTime);
    assert_eq!(judge(canary::run, b"harmless again"), Verdict::Fine);
}

#[test]
fn mutations_find_a_mistake_near_a_seed_and_are_the_same_for_the_same_seed() {
    let inputs = [b"crasj".to_vec(), b"lar".to_vec()];
    let mut mutations = Mutations::new(&inputs, 7);
    let found = (0..200_000).any(|_| mutations.next_mutant().starts_with(b"crash"));
    assert!(found, "one changed byte is not found");
    let (mut one, mut other) = (Mutations::new(&inputs, 9), Mutations::new(&inputs, 9));
    assert!((0..1000).all(|_| one.next_mutant() == other.next_mutant()));
}
