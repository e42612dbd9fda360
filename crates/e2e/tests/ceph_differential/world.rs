//! What there is on a side, in the eyes of one reader: Ceph's librbd through `tests/python/world.py`.
//!
//! Names of images and groups say their place: `/NAME` is in the pool `rbd`, `+/NAME` in the pool `other`, both in the side's
//! namespace; `=/NAME` is in the pool `rbd` without a namespace (images of format 1 have none), where its name begins with the side's.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ferry_e2e::Ferry;
use serde_json::{Value, json};

/// Unit in which the reader compares versions.
pub const BLOCK_BYTES: u64 = 512;

/// The reader: a process that lives as long as the test.
pub struct Reader {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Reader {
    pub fn new(ferry: &Ferry) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/world.py");
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(ferry.ceph_conf())
            .env_remove("PYTHONPATH")
            .env_remove("PYTHONHOME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn ask(&mut self, question: &Value) -> Result<Value, String> {
        writeln!(self.stdin, "{question}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the reader answered {question} with {line:?}: {error}"));
        match answer[0].as_str() {
            Some("ok") => Ok(answer[1].clone()),
            _ => Err(answer.to_string()),
        }
    }

    /// Images and trash of a namespace.
    pub fn shape(&mut self, namespace: &str) -> Value {
        self.ask(&json!(["shape", namespace])).unwrap()
    }

    /// Digests of every version of every image.
    pub fn contents(&mut self, namespace: &str) -> Value {
        self.ask(&json!(["contents", namespace])).unwrap()
    }

    /// Offsets of the blocks of [`BLOCK_BYTES`] in which two versions of an image differ.
    pub fn changes(
        &mut self,
        namespace: &str,
        image: &str,
        before: Option<&str>,
        now: Option<&str>,
    ) -> Vec<u64> {
        let found = self
            .ask(&json!(["changes", namespace, image, before, now]))
            .unwrap();
        let offsets = found.as_array().unwrap().iter();
        offsets.map(|offset| offset.as_u64().unwrap()).collect()
    }

    /// Writes through librbd.
    pub fn write(&mut self, namespace: &str, image: &str, requests: &[Request]) -> Result<(), String> {
        let requests: Vec<Value> = requests
            .iter()
            .map(|request| json!([request.kind.word(), request.offset, request.length, request.byte]))
            .collect();
        self.ask(&json!(["write", namespace, image, requests])).map(drop)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Write,
    Discard,
    Zero,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Discard => "discard",
            Self::Zero => "zero",
        }
    }
}

/// A request of a client; offsets and lengths in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub kind: Kind,
    pub offset: u64,
    pub length: u64,
    pub byte: u8,
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct Snap {
    pub name: String,
    pub protected: bool,
    pub has_clones: bool,
}

/// A group.
#[derive(Debug, Clone)]
pub struct Group {
    pub name: String,
    pub images: Vec<String>,
    pub snaps: Vec<String>,
}

/// An image that can be opened.
#[derive(Debug, Clone)]
pub struct Image {
    pub name: String,
    pub size: u64,
    pub snaps: Vec<Snap>,
    /// State of its migration.
    pub migration: Option<String>,
    /// Source of its migration.
    pub source: Option<String>,
    /// Image and snapshot that it is a clone of.
    pub parent: Option<(String, String)>,
    /// Whether it is of format 1.
    pub old: bool,
    /// Snapshots of groups, `GROUP@SNAP`, that it has a part of; groups without their places.
    pub group_snaps: Vec<String>,
    /// How many snapshots are not the user's: of groups, or removed ones that clones show.
    pub hidden_snaps: u64,
    /// Keys of its metadata.
    pub metadata: Vec<String>,
}

/// An image in the trash.
#[derive(Debug, Clone)]
pub struct Trashed {
    pub id: String,
    pub image: Image,
}

/// The images and the trash of a side.
#[derive(Debug, Clone)]
pub struct World {
    pub images: Vec<Image>,
    /// Images in the trash that are the user's.
    pub trash: Vec<Trashed>,
    pub groups: Vec<Group>,
}

impl World {
    pub fn new(shape: &Value) -> Self {
        let images = shape["images"].as_object().unwrap();
        let images = images.iter().filter_map(|(name, said)| image(name, said));
        let trash = shape["trash"].as_array().unwrap().iter();
        let trash = trash.filter_map(|entry| {
            let name = format!("{}/{}", word(&entry["pool"]), word(&entry["name"]));
            Some(Trashed {
                id: word(&entry["id"]),
                image: image(&name, entry.get("image")?)?,
            })
        });
        let groups = shape["groups"].as_object().unwrap().iter();
        let groups = groups.map(|(name, said)| Group {
            name: name.clone(),
            images: said["images"].as_array().unwrap().iter().map(word).collect(),
            snaps: said["snaps"]
                .as_array()
                .unwrap()
                .iter()
                .map(|snap| word(&snap[0]))
                .collect(),
        });
        Self {
            images: images.collect(),
            trash: trash.collect(),
            groups: groups.collect(),
        }
    }

    pub fn image(&self, name: &str) -> Option<&Image> {
        self.images.iter().find(|image| image.name == name)
    }

    /// The same, also of an image in the trash.
    pub fn image_anywhere(&self, name: &str) -> Option<&Image> {
        let mut trashed = self.trash.iter().map(|entry| &entry.image);
        self.image(name)
            .or_else(|| trashed.find(|image| image.name == name))
    }

    /// The group that an image is in.
    pub fn group_of(&self, image: &str) -> Option<&Group> {
        self.groups
            .iter()
            .find(|group| group.images.iter().any(|name| name == image))
    }
}

/// What the reader said of an image; `None` where it could not be opened.
fn image(name: &str, said: &Value) -> Option<Image> {
    Some(Image {
        name: name.to_owned(),
        size: said["size"].as_u64()?,
        snaps: said["snaps"].as_array()?.iter().filter_map(snap).collect(),
        migration: said["migration"]["state"].as_str().map(str::to_owned),
        source: said["migration"]["source"].as_str().map(str::to_owned),
        parent: said["parent"]["image"]
            .as_str()
            .map(|image| (image.to_owned(), word(&said["parent"]["snap"]))),
        old: said["old"] == true,
        group_snaps: said["group_snaps"].as_array()?.iter().map(word).collect(),
        hidden_snaps: said["hidden"].as_u64()?,
        metadata: said["metadata"].as_object()?.keys().cloned().collect(),
    })
}

fn word(said: &Value) -> String {
    said.as_str().unwrap_or("").to_owned()
}

fn snap(said: &Value) -> Option<Snap> {
    Some(Snap {
        name: said["name"].as_str()?.to_owned(),
        protected: said["protected"] == true,
        has_clones: said["children"]
            .as_array()
            .is_some_and(|clones| !clones.is_empty()),
    })
}

/// Ids by name of the images in the trash.
pub fn trash_ids(shape: &Value) -> BTreeMap<String, String> {
    let trash = World::new(shape).trash.into_iter();
    trash.map(|entry| (entry.image.name, entry.id)).collect()
}
