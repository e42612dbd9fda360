//! The recorded sessions on a real cluster: the same commands to Ceph's `rbd` and to ours, each on fresh pools, and both say
//! the same, but for the differences that are listed. When Ceph's command crashes (the `execute` of 16.2.15 does it now and then,
//! by an assertion of its own), it takes the session anew; if it crashes every time, what was recorded of it stands for the rest.
//!
//! `FERRY_TEST_CEPH` says that there may be clusters; this test starts one of its own, as the sessions list whole pools.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use ferry_e2e::ceph::OwnCluster;
use support::Case;
use support::differences::difference;
use support::session::{Session, Step, bare, steps};
use support::store::{Ran, TestStore};

/// How often a session is begun in which Ceph's command crashes, each time elsewhere.
const TRIES: usize = 4;

/// Ceph's own command.
const CEPH_RBD: &str = "/usr/bin/rbd";

/// Makes the named pools anew, and gives up all settings of images.
const FRESH: &str = "
import json, rados, sys
with rados.Rados(conffile=sys.argv[1]) as cluster:
    def ask(**words):
        code, answer, said = cluster.mon_command(json.dumps(words), b'')
        assert code == 0, (words, said)
        return answer
    for pool in sys.argv[2:]:
        if cluster.pool_exists(pool):
            cluster.delete_pool(pool)
        cluster.create_pool(pool)
        ask(prefix='osd pool application enable', pool=pool, app='rbd', yes_i_really_mean_it=True)
    for one in json.loads(ask(prefix='config dump', format='json')):
        if one['name'].startswith('rbd_'):
            ask(prefix='config rm', who=one['section'], name=one['name'])
";

/// The sessions.
const SESSIONS: &[&str] = &[
    "session-1.txt",
    "session-2.txt",
    "session-3.txt",
    "session-4.txt",
    "session-5.txt",
    "session-6.txt",
    "session-7.txt",
    "session-8.txt",
    "session-copy.txt",
    "session-diff.txt",
    "session-files.txt",
    "session-groups.txt",
    "session-locks.txt",
];

/// The pools that a session uses: the first one and those that its preparations make.
fn pools(steps: &[Step]) -> BTreeSet<String> {
    let made = steps.iter().filter_map(|step| match step {
        Step::Setup(words) => match words.as_slice() {
            [pool, create, name] if pool == "pool" && create == "create" => Some(name.clone()),
            _ => None,
        },
        _ => None,
    });
    made.chain(["rbd".to_owned()]).collect()
}

/// What one side says to each command, up to one that crashes: what follows a crash is no longer the session.
fn taken(conf: &Path, program: Option<&Path>, steps: &[Step]) -> Vec<Ran> {
    let pools = pools(steps);
    let mut fresh = Command::new("/usr/bin/python3");
    let made = fresh.args(["-c", FRESH]).arg(conf).args(&pools).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let store = TestStore::on_ceph(conf, program);
    let mut session = Session::new(&store);
    let makes_pool = |step: &Step| matches!(step, Step::Setup(words) if words.starts_with(&["pool".to_owned(), "create".to_owned()]));
    let mut said: Vec<Ran> = Vec::new();
    for step in steps.iter().filter(|step| !makes_pool(step)) {
        said.extend(session.take(step));
        if has_crashed(&said) {
            break;
        }
    }
    said
}

/// Whether a signal ended the last command.
fn has_crashed(said: &[Ran]) -> bool {
    said.last().is_some_and(|ran| ran.code < 0)
}

/// What Ceph's command says, up to where it crashes every time: the longest way that it came in [`TRIES`] tries.
fn taken_of_ceph(file: &str, conf: &Path, steps: &[Step]) -> Vec<Ran> {
    let mut longest: Vec<Ran> = Vec::new();
    for _ in 0..TRIES {
        let mut said = taken(conf, Some(Path::new(CEPH_RBD)), steps);
        if !has_crashed(&said) {
            return said;
        }
        let crashed = said.pop().unwrap();
        eprintln!(
            "{file}: command {} of Ceph's crashed:\n{}",
            said.len() + 1,
            crashed.output
        );
        let is_where_it_did_before = said.len() == longest.len();
        if said.len() > longest.len() {
            longest = said;
        }
        if is_where_it_did_before {
            break;
        }
    }
    longest
}

/// What is compared: pools that were made anew have other ids.
fn said(output: &str, code: i32) -> (String, i32) {
    let mut text = bare(output);
    for (mark, end) in [
        ("rbd_data.", '.'),
        (".group.", '_'),
        ("\"snapshot_id\": ", ','),
        ("<snapshot_id>", '<'),
    ] {
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some(found) = rest.find(mark) {
            let (before, after) = rest.split_at(found + mark.len());
            out.push_str(before);
            let number = after.split(end).next().unwrap_or_default();
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_hexdigit());
            // Pools are in hexadecimal in names of group snapshots. Ids of snapshots are compared, but with what was recorded of another pool.
            let shown = if mark.contains("snapshot_id") { "N" } else { "POOL" };
            out.push_str(if is_number { shown } else { number });
            rest = &after[number.len()..];
        }
        out.push_str(rest);
        text = out;
    }
    (text, code)
}

/// What is wrong with what our command said, if anything.
fn compared(file: &str, case: &Case, theirs: Option<&Ran>, ours: &Ran) -> Option<String> {
    let command = case.command();
    let ours = said(&ours.output, ours.code);
    let allowed = difference(file, &command).map(|one| said(one.output, one.code));
    let (whose, theirs) = match theirs {
        Some(theirs) => ("Ceph's", said(&theirs.output, theirs.code)),
        None => ("as it was recorded", said(&case.output, case.code)),
    };
    if ours == theirs || allowed.as_ref() == Some(&ours) {
        return None;
    }
    let ((theirs, their_code), (ours, our_code)) = (theirs, ours);
    Some(format!(
        "{file}:{} $ {command}\n--- {whose}\n{theirs}[rc={their_code}]\n--- ours\n{ours}[rc={our_code}]",
        case.line
    ))
}

/// How one session went.
#[derive(Debug, Default)]
struct Outcome {
    /// What is different.
    wrong: Vec<String>,
    /// Commands that were compared with Ceph's.
    beside: usize,
    /// Commands that were compared with what was recorded.
    by_recording: usize,
}

/// Takes a session on both sides.
fn compare_session(file: &str, conf: &Path) -> Outcome {
    let steps = steps(file);
    let theirs = taken_of_ceph(file, conf, &steps);
    let ours = taken(conf, None, &steps);
    let cases: Vec<_> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Command(case) => Some(case),
            _ => None,
        })
        .collect();
    // One of ours that crashed ends ours, and reads otherwise than anything of Ceph's.
    let pairs = cases.iter().zip(&ours).enumerate();
    Outcome {
        wrong: pairs
            .filter_map(|(at, (case, ours))| compared(file, case, theirs.get(at), ours))
            .collect(),
        beside: theirs.len(),
        by_recording: cases.len() - theirs.len(),
    }
}

/// The same; where something is different, or a preparation fails, the session is taken once more, and that counts: who watches,
/// waits and times out is up to the machine too.
fn compare_session_twice(file: &str, conf: &Path) -> Outcome {
    match std::panic::catch_unwind(|| compare_session(file, conf)) {
        Ok(first) if first.wrong.is_empty() => return first,
        Ok(first) => eprintln!("{file}: different, taken once more\n{}", first.wrong.join("\n")),
        Err(_) => eprintln!("{file}: broke off, taken once more"),
    }
    compare_session(file, conf)
}

#[test]
fn recorded_sessions_read_the_same_of_ceph_s_command_and_of_ours() {
    if std::env::var_os("FERRY_TEST_CEPH").is_none() || !Path::new(CEPH_RBD).is_file() {
        eprintln!("LEFT OUT: FERRY_TEST_CEPH is not set, or Ceph's rbd is not installed");
        return;
    }
    let cluster = OwnCluster::new();
    let mut all = Outcome::default();
    for file in SESSIONS {
        let one = compare_session_twice(file, &cluster.conf());
        all.wrong.extend(one.wrong);
        all.beside += one.beside;
        all.by_recording += one.by_recording;
    }
    assert!(
        all.wrong.is_empty(),
        "{} commands\n{}",
        all.wrong.len(),
        all.wrong.join("\n")
    );
    assert!(
        all.beside > 350 && all.by_recording < all.beside / 3,
        "{} beside, {} by recording",
        all.beside,
        all.by_recording
    );
}
