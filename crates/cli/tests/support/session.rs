//! Recorded sessions as lists of steps, and a store on which they are taken.
//!
//! Beside the cases of a transcript a session has lines that say what happened in between: `# setup: rbd ...` a command that must
//! succeed, `# file: NAME HEX` a file, `# serve: IMAGE`, `# write` and `# stop` a client that has the image open.

use std::collections::HashMap;
use std::path::Path;

use super::store::{Ran, Served, TestStore};
use super::{Case, nbd, normalise, parse};

/// What a session does next.
#[derive(Debug)]
pub enum Step {
    /// The words of a command behind `rbd`, whose output is nobody's business.
    Setup(Vec<String>),
    /// A file where commands are run.
    File(String, Vec<u8>),
    /// A server of this image.
    Serve(String),
    /// Its client writes something.
    Write,
    /// It ends.
    Stop,
    /// A command as it was recorded.
    Command(Case),
}

/// The steps of `tests/golden/<file>`.
pub fn steps(file: &str) -> Vec<Step> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    let mut pending = String::new();
    let mut steps = Vec::new();
    for (number, line) in (1..).zip(text.split('\n')) {
        if let Some(setup) = line.strip_prefix("# setup: rbd ") {
            steps.push(Step::Setup(words(setup)));
        } else if let Some(file) = line.strip_prefix("# file: ") {
            let (name, hex) = file.split_once(' ').unwrap();
            steps.push(Step::File(name.to_owned(), from_hex(hex)));
        } else if let Some(images) = line.strip_prefix("# serve: ") {
            steps.push(Step::Serve(images.to_owned()));
        } else if line == "# write" {
            steps.push(Step::Write);
        } else if line == "# stop" {
            steps.push(Step::Stop);
        } else {
            pending.push_str(line);
            pending.push('\n');
            if line.starts_with("[rc=") {
                let mut case = parse(&std::mem::take(&mut pending)).remove(0);
                case.line = number;
                steps.push(Step::Command(case));
            }
        }
    }
    steps
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// A session on its way.
#[derive(Debug)]
pub struct Session<'a> {
    store: &'a TestStore,
    /// Image ids that were recorded, and what they are here.
    ids: HashMap<String, String>,
    served: Option<Served>,
}

impl<'a> Session<'a> {
    pub fn new(store: &'a TestStore) -> Self {
        Self {
            store,
            ids: HashMap::new(),
            served: None,
        }
    }

    /// Takes a step; gives what a command said.
    #[track_caller]
    pub fn take(&mut self, step: &Step) -> Option<Ran> {
        match step {
            Step::Setup(words) => {
                self.store.ok(&words.join(" "));
            }
            Step::File(name, bytes) => std::fs::write(self.store.directory().join(name), bytes).unwrap(),
            Step::Serve(images) => self.served = Some(self.store.serve(images)),
            Step::Write => write_something(self.served.as_ref().unwrap()),
            Step::Stop => assert_eq!(self.served.take().unwrap().stop(), (String::new(), 0)),
            Step::Command(case) => return Some(self.command(case)),
        }
        None
    }

    fn command(&mut self, case: &Case) -> Ran {
        let here = format!("{}/", self.store.directory().display());
        let words: Vec<String> = case.words[1..]
            .iter()
            .map(|word| self.ids.get(word).unwrap_or(word).replace("/img/", &here))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut ran = self.store.run(&words);
        ran.output = ran.output.replace(&here, "/img/");
        for (recorded, now) in ids_of(&case.output).into_iter().zip(ids_of(&ran.output)) {
            self.ids.entry(recorded).or_insert(now);
        }
        ran
    }
}

/// Image ids in the order of their appearance.
fn ids_of(output: &str) -> Vec<String> {
    output
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| {
            (10..=14).contains(&word.len())
                && word
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
        .map(str::to_owned)
        .collect()
}

/// What is compared: without the lines that Ferry adds and the speeds of `bench`.
pub fn bare(output: &str) -> String {
    normalise(output)
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("rbd: note: "))
        .map(bench_line)
        .collect()
}

/// How fast a run of `bench` was says nothing about its output.
pub fn bench_line(line: &str) -> String {
    if !["elapsed: ", "read_ops: ", "write_ops: "]
        .iter()
        .any(|start| line.starts_with(start))
    {
        return line.to_owned();
    }
    let counts_differ = !line.starts_with("elapsed: ");
    let fields = line.trim_end().split("   ").map(|field| {
        let (name, value) = field.split_once(": ").unwrap();
        let keep = name == "ops" && !counts_differ;
        format!("{name}: {}", if keep { value } else { "N" })
    });
    format!("{}\n", fields.collect::<Vec<_>>().join("   "))
}

fn write_something(served: &Served) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = nbd::connect(&served.socket, "").await;
        client
            .write(4096, bytes::Bytes::from_static(&[7; 4096]), true)
            .await
            .unwrap();
        client.disconnect().await.unwrap();
    });
}
