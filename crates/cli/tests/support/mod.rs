//! Golden transcripts: recorded sessions with `rbd`, and what makes two of them comparable.
//!
//! Format of `tests/golden/*.txt`, one case after the other; lines before the first `$` and between cases are comments:
//!
//! ```text
//! $ rbd info nosuch
//! rbd: error opening image nosuch: (2) No such file or directory
//! [rc=2]
//! ```
//!
//! stdout and stderr are merged, blank lines are dropped, and arguments never contain blanks. [`normalise`] replaces
//! what differs from run to run. Not replaced, because they are the same on a fresh store or chosen by the test:
//! names, sizes, counts, snapshot ids.

#![allow(dead_code, reason = "every test binary uses its own part of the support code")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

pub mod differences;
pub mod line;
pub mod nbd;
pub mod session;
pub mod store;

use std::collections::HashMap;
use std::path::Path;

/// One recorded command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The words behind `$`, with `rbd` as the first.
    pub words: Vec<String>,
    /// Merged output; every line ends with a newline.
    pub output: String,
    /// Exit code.
    pub code: i32,
    /// Line of the `$` in the file, for messages.
    pub line: usize,
}

impl Case {
    /// The command as written.
    pub fn command(&self) -> String {
        self.words.join(" ")
    }
}

/// Reads `tests/golden/<name>`.
pub fn load(name: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    parse(&text)
}

/// The only case of `command` in `tests/golden/<name>`.
pub fn load_one(name: &str, command: &str) -> Case {
    let mut cases: Vec<Case> = load(name)
        .into_iter()
        .filter(|case| case.command() == command)
        .collect();
    assert_eq!(cases.len(), 1, "{name}: $ {command}");
    cases.remove(0)
}

/// Takes a transcript apart. Panics on a case without an exit code: a golden file that is cut off proves nothing.
pub fn parse(text: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut open: Option<Case> = None;
    // Not `lines()`, which would take the `\r` of progress lines away.
    for (index, line) in text.split('\n').enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            assert!(
                open.is_none(),
                "line {}: the case before has no [rc=N]",
                index + 1
            );
            let words = command.split_whitespace().map(str::to_owned).collect();
            open = Some(Case {
                words,
                output: String::new(),
                code: 0,
                line: index + 1,
            });
        } else if let Some(code) = line.strip_prefix("[rc=").and_then(|rest| rest.strip_suffix(']')) {
            let mut case = open
                .take()
                .unwrap_or_else(|| panic!("line {}: [rc=N] without a command", index + 1));
            case.code = code
                .parse()
                .unwrap_or_else(|_| panic!("line {}: [rc={code}]", index + 1));
            cases.push(case);
        } else if let Some(case) = &mut open
            && !line.is_empty()
        {
            case.output.push_str(line);
            case.output.push('\n');
        }
    }
    assert!(open.is_none(), "the last case has no [rc=N]");
    cases
}

/// Makes the output of two runs comparable:
///
/// * log lines of librbd (`<date>T<time> <thread> -1 librbd...`) are removed, also where they cut another line in two;
/// * progress is reduced to its end: `Task: 100% complete...done.`;
/// * image ids become `ID1`, `ID2`, ... in the order of their appearance, uuids `UUID`, client addresses `ADDR`,
///   client numbers and cookies `N`; times become the epoch's, in the same width;
/// * runs of blanks shrink to two in lines of tables whose widths depend on what was replaced;
/// * blank lines are dropped.
pub fn normalise(output: &str) -> String {
    // Names of group snapshots hold ids, whose length is as random as they are, and with them the width of their column.
    let narrowed = output.contains(".group.").then(|| single_spaced(output));
    let output = narrowed.as_deref().unwrap_or(output);
    let mut ids = HashMap::new();
    let mut text = String::new();
    for line in without_logs(output).split('\n') {
        let line = progress_end(line);
        if line.trim().is_empty() {
            continue;
        }
        let replaced = replace_tokens(&replace_times(&line), &mut ids);
        let depends =
            replaced != replace_times(&line) || line.starts_with("ID  ") || line.starts_with("Locker  ");
        text.push_str(&if depends && !line.starts_with([' ', '\t']) {
            squeeze(&replaced)
        } else {
            replaced
        });
        text.push('\n');
    }
    text
}

/// Fails with both texts unless they are the same after [`normalise`].
#[track_caller]
pub fn assert_same(expected: &str, actual: &str, what: &str) {
    let (expected, actual) = (normalise(expected), normalise(actual));
    assert!(
        expected == actual,
        "{what}\n--- expected\n{expected}--- actual\n{actual}"
    );
}

fn without_logs(output: &str) -> String {
    let mut text = String::new();
    for line in output.split_inclusive('\n') {
        match log_start(line) {
            // A log line in the middle of another one ate that one's newline: the rest comes with the next line.
            Some(start) => text.push_str(&line[..start]),
            None => text.push_str(line),
        }
    }
    text
}

/// Where `dddd-dd-ddTdd:dd:dd.ddd+dddd <hex> -1 ` starts.
fn log_start(line: &str) -> Option<usize> {
    let bytes = line.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:dd.ddd";
    let matches = |window: &[u8]| {
        window.iter().zip(shape).all(|(byte, wanted)| {
            if *wanted == b'd' {
                byte.is_ascii_digit()
            } else {
                byte == wanted
            }
        })
    };
    let start = bytes.windows(shape.len()).position(matches)?;
    line[start..].contains(" -1 ").then_some(start)
}

/// What is left of a run of progress texts; of other lines, everything.
fn progress_end(line: &str) -> String {
    const MARK: &str = "% complete...";
    let Some(last) = line.rfind(MARK) else {
        return line.to_owned();
    };
    let start = line[..last].rfind("...").map_or(0, |end| end + 3);
    line[start..].trim_start_matches('\r').to_owned()
}

/// `Mon Nov 23 00:41:25 2026` becomes `Thu Jan  1 00:00:00 1970`.
fn replace_times(line: &str) -> String {
    const SHAPE: &[u8] = b"aaa aaa .d dd:dd:dd dddd";
    const EPOCH: &str = "Thu Jan  1 00:00:00 1970";
    let mut text = line.to_owned();
    let mut from = 0;
    while from + SHAPE.len() <= text.len() {
        let window = &text.as_bytes()[from..from + SHAPE.len()];
        let fits = window.iter().zip(SHAPE).all(|(byte, wanted)| match wanted {
            b'a' => byte.is_ascii_alphabetic(),
            b'd' => byte.is_ascii_digit(),
            b'.' => byte.is_ascii_digit() || *byte == b' ',
            other => byte == other,
        });
        if fits {
            text.replace_range(from..from + SHAPE.len(), EPOCH);
            from += SHAPE.len();
        } else {
            from += 1;
        }
    }
    text
}

/// `127.0.0.1:0/3590845170` becomes `ADDR`.
fn replace_addresses(line: &str) -> String {
    let mut text = line.to_owned();
    while let Some(middle) = text.find(":0/") {
        let host = text[..middle]
            .rfind(|c: char| !c.is_ascii_digit() && c != '.')
            .map_or(0, |before| before + 1);
        let nonce = middle + 3;
        let end = text[nonce..]
            .find(|c: char| !c.is_ascii_digit())
            .map_or(text.len(), |length| nonce + length);
        text.replace_range(host..end, "ADDR");
    }
    text
}

fn replace_tokens(line: &str, ids: &mut HashMap<String, String>) -> String {
    let line = replace_addresses(line);
    let mut text = String::new();
    let mut rest = line.as_str();
    while !rest.is_empty() {
        let length = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.')
            .unwrap_or(rest.len());
        let (word, tail) = rest.split_at(length);
        text.push_str(&replace_word(word, &text, ids));
        let Some(separator) = tail.chars().next() else {
            break;
        };
        text.push(separator);
        rest = &tail[separator.len_utf8()..];
    }
    text
}

fn replace_word(word: &str, before: &str, ids: &mut HashMap<String, String>) -> String {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if word.strip_prefix("client.").is_some_and(digits) {
        return "client.N".to_owned();
    }
    let before = before.trim_end_matches(' ');
    let numbered = [
        "cookie=",
        "\"cookie\":",
        "<cookie>",
        "\"client\":",
        "<client>",
        "auto",
    ];
    if digits(word) && numbered.iter().any(|prefix| before.ends_with(prefix)) {
        return "N".to_owned();
    }
    let groups: Vec<usize> = word.split('-').map(str::len).collect();
    if groups == [8, 4, 4, 4, 12] && word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return "UUID".to_owned();
    }
    // Names of data objects hold the id behind a dot. Ids without a letter are only known by what stands before them, which
    // in lists of the trash is nothing.
    let named = ["id:", "id\":\"", "id\": \"", "id>", "(", "_data", "_header"];
    // The same in names of group snapshots: `.group.POOL_GROUP_SNAP`.
    let in_group_name = before
        .rfind(".group.")
        .is_some_and(|at| !before[at..].contains([' ', '"', '<']));
    let named = in_group_name
        || before.is_empty()
        || named.iter().any(|prefix| before.ends_with(prefix))
        || word.starts_with("data.");
    let replace = |part: &str| {
        if is_id(part, named) {
            numbered_id(part, ids)
        } else {
            part.to_owned()
        }
    };
    word.split('.').map(replace).collect::<Vec<_>>().join(".")
}

fn is_id(part: &str, named: bool) -> bool {
    let hex = part
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mixed = part.bytes().any(|b| b.is_ascii_digit()) && part.bytes().any(|b| b.is_ascii_lowercase());
    hex && (10..=14).contains(&part.len()) && (mixed || named)
}

fn numbered_id(id: &str, ids: &mut HashMap<String, String>) -> String {
    let next = format!("ID{}", ids.len() + 1);
    ids.entry(id.to_owned()).or_insert(next).clone()
}

fn squeeze(line: &str) -> String {
    line.split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect::<Vec<_>>()
        .join("  ")
}

/// The text with single spaces and none at the ends of lines.
fn single_spaced(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let words: Vec<&str> = line.split_whitespace().collect();
        out.push_str(&words.join(" "));
        if line.ends_with('\n') {
            out.push('\n');
        }
    }
    out
}
