//! The same words for both sides, and what of their outputs must agree.
//!
//! Taken out before two outputs are compared: ids, times, and the names of the namespaces. Lists that are ordered by ids of images
//! are sorted. Nothing else, but for what [`improvements`](super::improvements) lists.

use std::path::PathBuf;

use bytes::Bytes;
use ferry_e2e::ceph::{in_namespace, unique};
use ferry_e2e::load::connect;
use ferry_e2e::{Ferry, Finished, Side};
use serde_json::Value;

use super::improvements::{Known, Rule, is_spec, says_more};
use super::steps::Step;
use super::world::{BLOCK_BYTES, Kind, Reader, Request, World, trash_ids};

/// Both sides, each with a namespace of its own in both pools.
pub struct Sides {
    pub ferry: Ferry,
    reader: Reader,
    namespaces: [String; 2],
}

/// What came of a step.
pub enum Outcome {
    /// Whether both sides succeeded, and how they differ.
    Done(bool, Vec<String>),
    /// Nobody knows what Ceph's would have done, and its side is half done.
    CephDied,
}

impl Sides {
    pub fn new(ferry: Ferry) -> Self {
        let namespaces = Side::BOTH.map(|side| {
            let namespace = unique("differential");
            for pool in ["rbd", "other"] {
                ferry.ok_as(side, &["namespace", "create", &format!("{pool}/{namespace}")]);
            }
            namespace
        });
        Self {
            reader: Reader::new(&ferry),
            namespaces,
            ferry,
        }
    }

    /// What there is on the side of Ceph, and how Ferry's differs.
    pub fn shape(&mut self) -> (Value, Vec<String>) {
        let [ours, theirs] = self.namespaces.clone().map(|name| self.reader.shape(&name));
        let differences = difference("images and trash", &self.plain(&ours), &self.plain(&theirs));
        (theirs, differences)
    }

    /// How the bytes of all versions differ.
    pub fn contents(&mut self) -> Vec<String> {
        let [ours, theirs] = self.namespaces.clone().map(|name| self.reader.contents(&name));
        difference("contents", &self.plain(&ours), &self.plain(&theirs))
    }

    /// Does a step on both sides.
    pub fn step(&mut self, step: &Step, known: &Known, world: &World) -> Outcome {
        match step {
            Step::Command(line) => {
                let [ours, theirs] = self.run(line);
                if died_in_the_middle(&theirs) {
                    println!("{line}: Ceph's rbd died in the middle: {theirs}");
                    return Outcome::CephDied;
                }
                let mut differences = match known.refused_otherwise(line, world) {
                    true if ours.code != 0 && theirs.code != 0 => vec![],
                    // What it has done is seen in what is there now.
                    _ if aborted_at_its_end(&theirs) => {
                        println!("{line}: Ceph's rbd aborted at its end");
                        return Outcome::Done(ours.code == 0, vec![]);
                    }
                    _ => self.ends(line, &ours, &theirs),
                };
                if differences.is_empty() && theirs.code == 0 {
                    differences = self.files(line, known);
                }
                Outcome::Done(ours.code == 0 && theirs.code == 0, differences)
            }
            Step::Write(image, requests) => {
                let [ours, theirs] = [self.write_to_ferry(image, requests), {
                    let namespace = self.namespaces[1].clone();
                    self.reader.write(&namespace, image, requests)
                }];
                let differences = match (&ours, &theirs) {
                    (Ok(()), Ok(())) | (Err(_), Err(_)) => vec![],
                    _ => vec![format!(
                        "writes to {image}:\n  Ferry {ours:?}\n  Ceph  {theirs:?}"
                    )],
                };
                Outcome::Done(ours.is_ok() && theirs.is_ok(), differences)
            }
        }
    }

    /// Compares what both print.
    pub fn print(&mut self, line: &str, rule: Rule) -> Vec<String> {
        let [ours, mut theirs] = self.run(line);
        if aborted_at_its_end(&theirs) {
            println!("{line}: Ceph's rbd aborted at its end, and is asked again");
            let words = self.words(Side::Ceph, line);
            theirs = self.ferry.run_as(Side::Ceph, &words);
        }
        let differences = self.ends(line, &ours, &theirs);
        if !differences.is_empty() || theirs.code != 0 {
            return differences;
        }
        let [ours, theirs] = [ours, theirs].map(|finished| {
            let text = &finished.stdout;
            // Nothing at all is what some print of nothing.
            serde_json::from_str::<Value>(text).unwrap_or_else(|_| Value::from(text.as_str()))
        });
        let agree = match rule {
            Rule::Same => return difference(line, &self.listed(line, &ours), &self.listed(line, &theirs)),
            Rule::Less | Rule::True if line.starts_with("du ") => {
                let less = used(&ours)
                    .iter()
                    .zip(used(&theirs))
                    .all(|(our, their)| *our <= their);
                let is_free = rule == Rule::True || line.contains("--exact");
                rows(&self.plain(&ours)) == rows(&self.plain(&theirs)) && (less || is_free)
            }
            Rule::Less | Rule::True => {
                // An object that was not there at the start is told from its first byte on.
                let is_free = rule == Rule::True || line.contains("--from-snap");
                self.tells_changes(line, &ours) && (is_free || is_within(&ours, &theirs))
            }
        };
        match agree {
            true => vec![],
            false => vec![format!("{line} ({rule:?}):\n  Ferry {ours}\n  Ceph  {theirs}")],
        }
    }

    /// Whether every byte that differs lies in an extent that Ferry told of.
    fn tells_changes(&mut self, line: &str, told: &Value) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        let before = words.iter().skip_while(|word| **word != "--from-snap").nth(1);
        let spec = words.iter().find(|word| is_spec(word)).unwrap();
        let (image, now) = spec
            .split_once('@')
            .map_or((*spec, None), |(image, snap)| (image, Some(snap)));
        let namespace = self.namespaces[0].clone();
        let changed = self.reader.changes(&namespace, image, before.copied(), now);
        let number = |extent: &Value, key: &str| extent[key].as_u64().unwrap_or(0);
        changed.into_iter().all(|start| {
            told.as_array().is_some_and(|extents| {
                extents.iter().any(|extent| {
                    let offset = number(extent, "offset");
                    offset < start + BLOCK_BYTES && start < offset + number(extent, "length")
                })
            })
        })
    }

    /// Both sides at the same time: they have nothing in common.
    fn run(&mut self, line: &str) -> [Finished; 2] {
        let words = Side::BOTH.map(|side| self.words(side, line));
        let ferry = &self.ferry;
        std::thread::scope(|scope| {
            let threads = [(Side::Ferry, &words[0]), (Side::Ceph, &words[1])]
                .map(|(side, words)| scope.spawn(move || ferry.run_as(side, words)));
            threads.map(|thread| thread.join().unwrap())
        })
    }

    fn words(&mut self, side: Side, line: &str) -> Vec<String> {
        let namespace = self.namespaces[side as usize].clone();
        let mut ids = None;
        let line = line
            .replace("{ns}", &namespace)
            .replace(" =/", &format!(" rbd/{namespace}."));
        in_namespace(&line, &namespace)
            .into_iter()
            .filter_map(|word| {
                if let Some(name) = word.strip_prefix("trash:") {
                    let ids = ids.get_or_insert_with(|| trash_ids(&self.reader.shape(&namespace)));
                    let id = ids.get(name).map_or("0123456789", String::as_str);
                    return Some(match &name[..1] {
                        "=" => format!("rbd/{id}"),
                        "+" => format!("other/{namespace}/{id}"),
                        _ => format!("rbd/{namespace}/{id}"),
                    });
                }
                match word.as_str() {
                    "{force}" => return (side == Side::Ferry).then(|| "--force".to_owned()),
                    "{format-2}" => {
                        return (side == Side::Ceph).then(|| "--rbd-default-clone-format=2".to_owned());
                    }
                    _ => {}
                }
                // One file for both.
                let of = match (word.strip_prefix("<ferry:"), word.strip_prefix("<ceph:")) {
                    (Some(file), _) => Some((Side::Ferry, file)),
                    (_, Some(file)) => Some((Side::Ceph, file)),
                    _ => word.strip_prefix(['<', '>']).map(|file| (side, file)),
                };
                match of {
                    Some((side, file)) => Some(self.file(side, file).to_string_lossy().into_owned()),
                    None => Some(word),
                }
            })
            .collect()
    }

    fn file(&self, side: Side, name: &str) -> PathBuf {
        self.ferry.path(&format!("{side:?}-{name}"))
    }

    fn write_to_ferry(&self, image: &str, requests: &[Request]) -> Result<(), String> {
        let namespace = &self.namespaces[0];
        let spec = match image.strip_prefix("=/") {
            Some(name) => format!("rbd/{namespace}.{name}"),
            None => in_namespace(image, namespace).remove(0),
        };
        let served = self.ferry.try_serve(&[&spec])?;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let written = runtime.block_on(async {
            let client = connect(&served.socket, &spec).await;
            for request in requests {
                let Request { offset, length, .. } = *request;
                match request.kind {
                    Kind::Write => {
                        let data = Bytes::from(vec![request.byte; length as usize]);
                        client.write(offset, data, false).await
                    }
                    Kind::Discard => client.trim(offset, length, false).await,
                    Kind::Zero => client.write_zeroes(offset, length, false, false).await,
                }
                .map_err(|error| error.to_string())?;
            }
            client.flush().await.map_err(|error| error.to_string())?;
            client.disconnect().await.map_err(|error| error.to_string())
        });
        served.stop();
        written
    }

    /// How two ends differ: the exit codes, and the messages.
    fn ends(&self, line: &str, ours: &Finished, theirs: &Finished) -> Vec<String> {
        // Ceph's prints some errors on stdout.
        let said = |finished: &Finished| match finished.stdout.contains("rbd: ") {
            true => self.messages(&format!("{}{}", finished.stdout, finished.stderr)),
            false => self.messages(&finished.stderr),
        };
        let (mut our, their) = (said(ours), said(theirs));
        our.retain(|said| !says_more(line, said));
        if (ours.code, &our) == (theirs.code, &their) {
            return vec![];
        }
        vec![format!("{line}:\n  Ferry {ours}\n  Ceph  {theirs}")]
    }

    /// What a command says on stderr, without librbd's log and Ferry's notes.
    fn messages(&self, stderr: &str) -> Vec<String> {
        let lines = stderr.lines().filter(|line| {
            let log = line.starts_with("20") && line.contains(" -1 ");
            !log && !line.starts_with("rbd: note: ") && !line.trim().is_empty()
        });
        lines
            .map(|line| without_trash_id(&self.without_namespace(line)))
            .collect()
    }

    fn without_namespace(&self, text: &str) -> String {
        let [ours, theirs] = &self.namespaces;
        text.replace(ours, "<ns>").replace(theirs, "<ns>")
    }

    /// Both files of a command that writes one.
    fn files(&self, line: &str, known: &Known) -> Vec<String> {
        let Some(name) = line.split(' ').find_map(|word| word.strip_prefix('>')) else {
            return vec![];
        };
        let [ours, theirs] = Side::BOTH.map(|side| std::fs::read(self.file(side, name)).unwrap());
        if ours == theirs || known.files_may_differ(line) {
            return vec![];
        }
        let at = ours.iter().zip(&theirs).position(|(our, their)| our != their);
        vec![format!(
            "{line}: the files differ at {at:?}; {} and {} bytes",
            ours.len(),
            theirs.len()
        )]
    }

    /// A document without what differs between two namespaces.
    fn plain(&self, value: &Value) -> Value {
        const DIFFER: &[&str] = &[
            "id",
            "snapshot_id",
            "timestamp",
            "create_timestamp",
            "access_timestamp",
            "modify_timestamp",
            "deleted_at",
            "block_name_prefix",
            "source_image_id",
            "dest_image_id",
            "image_id",
        ];
        match value {
            Value::Object(fields) => fields
                .iter()
                .map(|(key, value)| {
                    let value = match (DIFFER.contains(&key.as_str()), key.as_str(), value) {
                        (true, ..) => Value::from("<differs>"),
                        // Ends in a time.
                        (_, "status", Value::String(text)) if text.contains(' ') => {
                            Value::from(text.split(' ').next())
                        }
                        _ => self.plain(value),
                    };
                    (key.clone(), value)
                })
                .collect(),
            Value::Array(values) => values.iter().map(|value| self.plain(value)).collect(),
            Value::String(text) if is_uuid(text) => Value::from("<uuid>"),
            Value::String(text) if text.starts_with(".group.") => Value::from("<part of a group snapshot>"),
            Value::String(text) => Value::from(self.without_namespace(text)),
            other => other.clone(),
        }
    }

    fn listed(&self, line: &str, value: &Value) -> Value {
        let mut value = self.plain(value);
        let by_id = ["children ", "trash ls "]
            .iter()
            .any(|verb| line.starts_with(verb));
        if let Value::Array(values) = &mut value
            && by_id
        {
            values.sort_by_key(Value::to_string);
        }
        value
    }
}

/// A line that names an image in the trash by its id too, without that.
fn without_trash_id(line: &str) -> String {
    let parts = line.split_once(" (trash ").and_then(|(before, rest)| {
        let (id, after) = rest.split_once(')')?;
        let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| format!("{before} (trash <id>){after}"))
    });
    parts.unwrap_or_else(|| line.to_owned())
}

/// Ceph's 16.2.15 does that now and then, when it has printed everything and disconnects.
fn aborted_at_its_end(theirs: &Finished) -> bool {
    theirs.stderr.contains("std::system_error") && theirs.stderr.contains("Caught signal (Aborted)")
}

/// Of a fault in its own code, with the work half done.
fn died_in_the_middle(theirs: &Finished) -> bool {
    theirs.stderr.contains("*** Caught signal (") && !aborted_at_its_end(theirs)
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    groups == [8, 4, 4, 4, 12] && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Where two documents differ.
fn difference(what: &str, ours: &Value, theirs: &Value) -> Vec<String> {
    if ours == theirs {
        return vec![];
    }
    let mut found = Vec::new();
    differ(what, ours, theirs, &mut found);
    found
}

fn differ(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(our), Value::Object(their)) if our.keys().eq(their.keys()) => {
            for (key, value) in our {
                differ(&format!("{path}: {key}"), value, &their[key], found);
            }
        }
        (Value::Array(our), Value::Array(their)) if our.len() == their.len() && our.len() < 20 => {
            for (number, (our, their)) in our.iter().zip(their).enumerate() {
                differ(&format!("{path}: {number}"), our, their, found);
            }
        }
        _ if ours == theirs => {}
        // A removed snapshot: Ferry says what it was called.
        (Value::String(_), Value::String(their))
            if path.ends_with("parent: snapshot") && their == "<uuid>" => {}
        _ => found.push(format!("{path}:\n  Ferry {ours}\n  Ceph  {theirs}")),
    }
}

/// Which versions are listed, and how large they are.
fn rows(said: &Value) -> Vec<[Value; 3]> {
    let images = said["images"].as_array().cloned().unwrap_or_default();
    let row = |row: &Value| ["name", "snapshot", "provisioned_size"].map(|key| row[key].clone());
    images.iter().map(row).collect()
}

/// How much each of them uses, in bytes.
fn used(said: &Value) -> Vec<Option<u64>> {
    let images = said["images"].as_array().cloned().unwrap_or_default();
    images.iter().map(|row| row["used_size"].as_u64()).collect()
}

/// Whether a difference tells of nothing but what another one tells of.
fn is_within(one: &Value, other: &Value) -> bool {
    let [mut one, other] = [one, other].map(|extents| {
        let number = |extent: &Value, key: &str| extent[key].as_u64().unwrap_or(0);
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for extent in extents.as_array().into_iter().flatten() {
            let start = number(extent, "offset");
            let end = start + number(extent, "length");
            match joined.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => joined.push((start, end)),
            }
        }
        joined.into_iter()
    });
    one.all(|(start, end)| other.clone().any(|(from, to)| from <= start && end <= to))
}
