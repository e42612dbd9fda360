//! Where Ferry does otherwise than Ceph on purpose, and what is compared there instead.
//!
//! Each is written down for users, in the words that [`IMPROVEMENTS`] names, and `docs/differential.md` is made of that list; a test
//! looks for both. What depends on the past of an image is remembered by its name, which nothing else ever gets.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Group, Image, World};

/// How two outputs are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// They are the same.
    Same,
    /// As [`Rule::True`], and where it counts from the beginning of the image, Ferry tells of nothing that Ceph's does not tell of;
    /// of whole objects it counts no more.
    Less,
    /// `diff` tells of all bytes that differ, `du` lists the same versions.
    True,
}

/// What is done about a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// `du` and `diff` of an image with such a past are held to [`Rule::Less`] or [`Rule::True`].
    HeldToTruth,
    /// The same, of whole objects only.
    WholeObjects,
    FerryIsToldCephs,
    CephIsToldFerrys,
    FerrysNameForAnId,
    FerrySaysMore,
    BothRefuse,
    LeftOut,
}

impl Treatment {
    pub const ALL: [Self; 8] = [
        Self::HeldToTruth,
        Self::WholeObjects,
        Self::FerryIsToldCephs,
        Self::CephIsToldFerrys,
        Self::FerrysNameForAnId,
        Self::FerrySaysMore,
        Self::BothRefuse,
        Self::LeftOut,
    ];

    /// For `docs/differential.md`.
    pub fn title(self) -> &'static str {
        match self {
            Self::HeldToTruth => {
                "What `du` and `diff` say of an image with such a past: Ferry's `diff` must tell of every byte that differs, and `du` list \
                 the same versions; where all that happened is that something was zeroed or copied back, Ferry must besides tell of \
                 nothing, and count no more, than Ceph's does"
            }
            Self::WholeObjects => "The same, with `--whole-object` only",
            Self::FerryIsToldCephs => "Ferry is told, by an option of its own, to do what Ceph's does",
            Self::CephIsToldFerrys => "Ceph's is told, by an option, to do what Ferry does",
            Self::FerrysNameForAnId => "Ferry's name counts as equal to an id of Ceph's",
            Self::FerrySaysMore => "Both refuse with one code; Ferry's message has one line more",
            Self::BothRefuse => "Both must refuse; with which code is not compared",
            Self::LeftOut => "Such a step is left out of the sequence",
        }
    }
}

/// A documented difference: what is done about it, the document, and words in it.
pub struct Improvement {
    pub treatment: Treatment,
    pub document: &'static str,
    pub words: &'static str,
}

impl Improvement {
    /// The words as a sentence: a row of a table says what, what Ceph's does, what Ferry does.
    pub fn sentence(&self) -> String {
        let Some(row) = self.words.strip_prefix("| ") else {
            return self.words.to_owned();
        };
        let fields: Vec<&str> = row
            .split('|')
            .map(str::trim)
            .filter(|field| !field.is_empty())
            .collect();
        match fields[..] {
            [what, ceph, ferry] => format!("{what}: Ceph's {ceph}; Ferry: {ferry}"),
            [what, ceph] => format!("{what}: Ceph's {ceph}"),
            _ => fields.join(": "),
        }
    }
}

pub const IMPROVEMENTS: &[Improvement] = &[
    Improvement {
        treatment: Treatment::HeldToTruth,
        document: "docs/compatibility.md",
        words: "counts as a write of every object that it puts back",
    },
    Improvement {
        treatment: Treatment::HeldToTruth,
        document: "docs/migration.md",
        words: "| copy-back of abort | writes again all that was written | writes what differs |",
    },
    Improvement {
        treatment: Treatment::HeldToTruth,
        document: "docs/ceph.md",
        words: "so the object map says so (1, not 3) after Ferry's `execute`",
    },
    Improvement {
        treatment: Treatment::HeldToTruth,
        document: "docs/ceph.md",
        words: "A discard makes no object of a target where the source has none",
    },
    Improvement {
        treatment: Treatment::HeldToTruth,
        document: "docs/ceph.md",
        words: "A discard up to the end of an image takes its last object away",
    },
    Improvement {
        treatment: Treatment::HeldToTruth,
        document: "docs/ceph.md",
        words: "what is zeroed behind the end of an object does not lengthen it",
    },
    Improvement {
        treatment: Treatment::HeldToTruth,
        document: "docs/compatibility.md",
        words: "objects are copied as they are, where Ceph's writes whole blocks of 4 KiB",
    },
    Improvement {
        treatment: Treatment::HeldToTruth,
        document: "docs/migration.md",
        words: "| what changed between two snapshots of a target, before `execute` | `diff`, `export-diff` and `export` of format 2 leave it out | is told |",
    },
    Improvement {
        treatment: Treatment::WholeObjects,
        document: "docs/compatibility.md",
        words: "objects that a shrink took away are told too, which Ceph forgets",
    },
    Improvement {
        treatment: Treatment::FerryIsToldCephs,
        document: "docs/compatibility.md",
        words: "snapshots taken on the target are named, and only dropped with `--force`",
    },
    Improvement {
        treatment: Treatment::FerrysNameForAnId,
        document: "docs/compatibility.md",
        words: "a removed snapshot that clones still show has the name that it had",
    },
    Improvement {
        treatment: Treatment::FerrySaysMore,
        document: "docs/compatibility.md",
        words: "of an image in a group it names the group, where Ceph's prints an empty line",
    },
    Improvement {
        treatment: Treatment::BothRefuse,
        document: "docs/migration.md",
        words: "| a clone whose snapshot was removed | refused (22, or 2 if new clones are of format 2) | refused (16), names `--flatten`",
    },
    Improvement {
        treatment: Treatment::CephIsToldFerrys,
        document: "docs/migration.md",
        words: "| clone of format 2 of an unprotected snapshot | refused where new clones are of format 1 | keeps its format |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| `--flatten` | the target is a clone until the end, and stays listed for ever |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| clones of format 1, target in another namespace | are listed by nobody | become clones of format 2 |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| metadata of a clone | the target has the parent's too | as it was |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| `--flatten` of a clone whose snapshot was removed | refused (22) | works |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| abort after a discard on the target | what was discarded is back | it stays zero |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "a new name with a pool but without a namespace is one without a namespace",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "where Ceph's refuses an unprotected snapshot if new clones are of format 1",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "an image of format 1 keeps its metadata",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "shows images in the trash, at which Ceph's list ends",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "changes nothing unless the snapshot is complete and every image has its part",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/ceph.md",
        words: "Zeroes are never written where they can be discarded to the byte",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "an object size alone means default striping",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "an image of no bytes uses none, where Ceph's stops with a failed assertion",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| abort | ignores errors of the copy-back, drops new snapshots silently, loses metadata and new names of snapshots, checks the name last |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| prepare in place, in a namespace | now and then fails (17), or leaves the image without its name |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "of an image that is being migrated is refused (16)",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "refused (16) for a migration target also when it is executed",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/compatibility.md",
        words: "in format 2 also an image with snapshots of groups, or with removed ones that clones still show; they stay behind, where Ceph's is refused (2)",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| limit of snapshots | forgotten | taken along |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| shrink of a target | removes objects |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| rollback of a target before `execute` | keeps what the snapshot lacks and the source's head has |",
    },
    Improvement {
        treatment: Treatment::LeftOut,
        document: "docs/migration.md",
        words: "| removed snapshots of a target | stay in the map |",
    },
];

/// What an image has been through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Past {
    /// Its objects came into being in another way than Ceph's: by a rollback, a migration or a copy.
    Otherwise,
    /// Zeroes were written, or changes of a migration target were copied back, and Ferry's objects may hold less for it.
    Less,
    /// Something was zeroed or removed while it was a migration target.
    Emptied,
    /// It was larger.
    Shrunk,
    /// It had a limit of snapshots, which a migration takes along, unlike Ceph's.
    Limited,
}

/// What is known of the images.
#[derive(Debug, Default)]
pub struct Known {
    pasts: BTreeMap<String, BTreeSet<Past>>,
    /// Files that tell of the same differences in different ways.
    loose_files: BTreeSet<String>,
    /// Those of them that hold whole images, of which Ceph's may lack what changed between two snapshots.
    lacking_files: BTreeSet<String>,
}

impl Known {
    fn has(&self, spec: &str, past: Past) -> bool {
        let name = spec.split('@').next().unwrap_or(spec);
        self.pasts.get(name).is_some_and(|pasts| pasts.contains(&past))
    }

    /// Remembers what an image went through.
    pub fn add(&mut self, spec: &str, past: Past) {
        let name = spec.split('@').next().unwrap_or(spec);
        self.pasts.entry(name.to_owned()).or_default().insert(past);
    }

    fn inherit(&mut self, heir: &str, from: &str) {
        let name = from.split('@').next().unwrap_or(from);
        if let Some(pasts) = self.pasts.get(name).cloned() {
            self.pasts.entry(heir.to_owned()).or_default().extend(pasts);
        }
    }

    /// Both sides have carried this out.
    pub fn done(&mut self, line: &str, world: &World) {
        let words: Vec<&str> = line.split(' ').collect();
        let specs: Vec<&str> = words.iter().copied().filter(|word| is_spec(word)).collect();
        if self.files_may_differ(line) {
            let written = words.iter().filter_map(|word| word.strip_prefix('>'));
            self.loose_files.extend(written.map(str::to_owned));
        }
        if words[0] == "export" && specs.iter().any(|spec| is_not_executed(spec, world)) {
            let written = words.iter().filter_map(|word| word.strip_prefix('>'));
            self.lacking_files.extend(written.map(str::to_owned));
        }
        if self.reads_loose(line) {
            for spec in &specs {
                self.add(spec, Past::Otherwise);
            }
        }
        let empties =
            matches!(words[0], "resize" | "sparsify" | "import-diff") || line.starts_with("snap rollback");
        for spec in specs.iter().filter(|_| empties) {
            let image = world.image(spec.split('@').next().unwrap_or(spec));
            if image.is_some_and(|image| image.migration.is_some()) {
                self.add(spec, Past::Emptied);
            }
        }
        match (words[0], words.get(1).copied().unwrap_or(""), &specs[..]) {
            ("clone", _, [from, to]) => self.inherit(to, from),
            ("snap", "rollback", [spec]) | ("migration", "prepare", [spec]) => {
                self.add(spec, Past::Otherwise)
            }
            ("migration", "abort", [spec]) => {
                if let Some(source) = world.image(spec).and_then(|image| image.source.as_deref()) {
                    self.add(source, Past::Less);
                }
            }
            ("snap", "limit", [spec]) => self.add(spec, Past::Limited),
            ("group", "snap", [spec]) if line.contains(" rollback ") => {
                let name = spec.split('@').next().unwrap_or(spec);
                let group = world.groups.iter().find(|group| group.name == name);
                for image in group.map_or(&[][..], |group| &group.images) {
                    self.add(image, Past::Otherwise);
                }
            }
            ("resize" | "import-diff", ..) => {
                for spec in &specs {
                    self.add(spec, Past::Shrunk);
                }
            }
            ("cp", _, [from, to]) | ("migration", "prepare", [from, to]) => {
                self.inherit(to, from);
                self.add(to, Past::Otherwise);
            }
            ("mv", _, [from, to]) | ("deep", _, [from, to]) => {
                self.inherit(to, from);
                if line.contains("--object-size") {
                    self.add(to, Past::Otherwise);
                }
            }
            ("trash", "restore", _) => {
                let old = words.iter().find_map(|word| word.strip_prefix("trash:"));
                let new = words.iter().skip_while(|word| **word != "--image").nth(1);
                if let (Some(old), Some(new)) = (old, new) {
                    let place = old.split('/').next().unwrap_or("");
                    let new = new.rsplit('.').next().unwrap_or(new);
                    self.inherit(&format!("{place}/{new}"), old);
                }
            }
            _ => {}
        }
    }

    /// How what `line` prints of an image is compared.
    pub fn rule(&self, line: &str, spec: &str) -> Rule {
        let shrunk = self.has(spec, Past::Shrunk) && line.contains("--whole-object");
        match verb(line) {
            "du" | "diff" if self.has(spec, Past::Otherwise) => Rule::True,
            "diff" if shrunk => Rule::True,
            "du" | "diff" if self.has(spec, Past::Less) => Rule::Less,
            _ => Rule::Same,
        }
    }

    /// Whether the files that both write with this command may tell of the same differences in different ways.
    pub fn files_may_differ(&self, line: &str) -> bool {
        let spec = line.split(' ').find(|word| is_spec(word));
        let tells_differences = verb(line) == "export-diff" || line.contains("--export-format 2");
        let as_diff = format!("diff {line}");
        let otherwise = spec.is_some_and(|spec| self.rule(&as_diff, spec) != Rule::Same);
        self.reads_loose(line) || tells_differences && otherwise
    }

    /// What is asked of both instead, so that both can answer the same.
    pub fn adapted(&self, line: &str, world: &World) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let spec = words.iter().find(|word| is_spec(word));
        let image = spec.and_then(|spec| world.image(spec.split('@').next()?));
        match words[0] {
            "import" if Self::reads(&self.lacking_files, line) => line.replacen('<', "<ferry:", 1),
            // Files that tell of the same differences in different ways change an image that is not the one that they start
            // from in different ways: both read the one or the other.
            "import-diff" if self.reads_loose(line) => {
                // By the number that the file's name ends in.
                let file = words.iter().find_map(|word| word.strip_prefix('<'));
                let from = match file.is_some_and(|file| file.ends_with(['0', '2', '4', '6', '8'])) {
                    true => "ferry",
                    false => "ceph",
                };
                line.replacen('<', &format!("<{from}:"), 1)
            }
            // Ceph's clone of a clone of format 2 is of format 1, which an unprotected snapshot has not.
            "deep" | "migration"
                if image.is_some_and(|image| parent_is(image, world) == Parent::Unprotected) =>
            {
                // Ceph's prepare makes a clone also where it is to be flattened.
                let is_clone = words[1] == "prepare" || words[0] == "deep" && !line.contains("--flatten");
                format!("{line}{}", if is_clone { " {format-2}" } else { "" })
            }
            _ => line.to_owned(),
        }
    }

    /// Whether both may refuse this with different codes.
    pub fn refused_otherwise(&self, line: &str, world: &World) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        let spec = words.iter().find(|word| is_spec(word));
        let image = spec.and_then(|spec| world.image(spec.split('@').next()?));
        let copies = words[0] == "deep" || line.starts_with("migration prepare");
        copies && image.is_some_and(|image| parent_is(image, world) == Parent::Removed)
    }

    fn reads_loose(&self, line: &str) -> bool {
        Self::reads(&self.loose_files, line)
    }

    fn reads(files: &BTreeSet<String>, line: &str) -> bool {
        line.split(' ')
            .filter_map(|word| word.strip_prefix('<'))
            .any(|file| files.contains(file))
    }

    /// Whether a step is left out.
    pub fn is_left_out(&self, line: &str, world: &World) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        let spec = words.iter().find(|word| is_spec(word));
        let image = spec.and_then(|spec| world.image(spec.split('@').next()?));
        let state = image.and_then(|image| image.migration.as_deref());
        let specs: Vec<&str> = words.iter().copied().filter(|word| is_spec(word)).collect();
        let to = specs.get(1).or(specs.first()).copied().unwrap_or("");
        let in_group = image.and_then(|image| world.group_of(&image.name));
        let without_namespace = |name: &str| name.starts_with("=/");
        match (words[0], words.get(1).copied().unwrap_or("")) {
            // Ceph's new clone has its parent's too.
            ("deep", _) | ("migration", "prepare")
                if image.is_some_and(|image| lacks_metadata(image, world)) =>
            {
                true
            }
            // Ceph's forgets clones of format 1, which only protected snapshots have.
            ("migration", "prepare")
                if without_namespace(to) != without_namespace(specs[0])
                    && image.is_some_and(|image| {
                        image.snaps.iter().any(|snap| snap.protected && snap.has_clones)
                    }) =>
            {
                true
            }
            // Ceph's refuses, or lists the target as a clone for ever.
            ("migration", "prepare")
                if line.contains("--flatten")
                    && image.is_some_and(|image| parent_is(image, world) != Parent::Protected) =>
            {
                true
            }
            // Ceph's crashes.
            ("migration", "prepare")
                if in_group.is_some_and(|group| without_namespace(&group.name) != without_namespace(to)) =>
            {
                true
            }
            // Ceph's loses its metadata, and its limit of snapshots.
            ("mv", _)
                if image.is_some_and(|image| {
                    image.old && (!image.metadata.is_empty() || self.has(&image.name, Past::Limited))
                }) =>
            {
                true
            }
            ("mv", _)
                if specs
                    .iter()
                    .any(|name| without_namespace(name) != without_namespace(to)) =>
            {
                true
            }
            ("migration", "abort") if spec.is_some_and(|spec| self.has(spec, Past::Emptied)) => true,
            // Ceph's looks for every snapshot by its name, and these have none that can be looked for.
            ("export", _)
                if line.contains("--export-format 2")
                    && image.is_some_and(|image| image.hidden_snaps > 0) =>
            {
                true
            }
            ("group", _) => Self::is_left_out_of_groups(line, &specs, world),
            // Ceph's abort loses it.
            ("image-meta", "set" | "remove") | ("snap", "rename") => state.is_some(),
            ("flatten", _) => state.is_some(),
            ("trash", "mv") => state == Some("executed"),
            ("migration", "prepare") => {
                // In place.
                let in_place = specs.len() == 1 || specs[0] == to;
                in_place && !without_namespace(to)
                    || state.is_some()
                    || spec.is_some_and(|spec| self.has(spec, Past::Limited))
            }
            ("snap", "limit") => state.is_some(),
            // Ceph's execute crashes.
            ("snap", "rm" | "purge") => matches!(state, Some("prepared" | "executing")),
            // Ceph's shows what the source has and the snapshot has not.
            ("snap", "rollback") => matches!(state, Some("prepared" | "executing")),
            // Ceph shows old bytes when it grows again.
            ("resize", _) => matches!(state, Some("prepared" | "executing")),
            _ => false,
        }
    }
    fn is_left_out_of_groups(line: &str, specs: &[&str], world: &World) -> bool {
        let name = specs[0].split('@').next().unwrap_or(specs[0]);
        let place = |name: &str| name.split('/').next() == Some("=");
        match specs {
            // Two namespaces.
            [group, image] if line.contains(" add ") => place(group) != place(image),
            // Ceph's rolls back those that have a part.
            [spec] if line.contains(" rollback ") => {
                let snap = spec.split_once('/').map_or("", |(_, snap)| snap);
                let has_part = |image: &&Image| image.group_snaps.iter().any(|part| part == snap);
                let trashed = world.trash.iter().map(|entry| &entry.image);
                let mut parts: Vec<&str> = world
                    .images
                    .iter()
                    .chain(trashed)
                    .filter(has_part)
                    .map(|image| &*image.name)
                    .collect();
                parts.sort_unstable();
                // Nor is one of a target, see above.
                let is_complete = |group: &Group| {
                    let state =
                        |name: &String| world.image(name).and_then(|image| image.migration.as_deref());
                    let half_copied = |name| matches!(state(name), Some("prepared" | "executing"));
                    group.name == name && group.images == parts && !group.images.iter().any(half_copied)
                };
                !world.groups.iter().any(is_complete)
            }
            _ => false,
        }
    }
}

/// The snapshot that an image is a clone of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// There is none, or it is protected.
    Protected,
    Unprotected,
    /// Only its clones still show it.
    Removed,
}

fn parent_is(image: &Image, world: &World) -> Parent {
    let Some((name, snap)) = &image.parent else {
        return Parent::Protected;
    };
    let parent = world.image_anywhere(name);
    let found = parent.and_then(|parent| parent.snaps.iter().find(|found| found.name == *snap));
    match found {
        Some(found) if found.protected => Parent::Protected,
        Some(_) => Parent::Unprotected,
        None => Parent::Removed,
    }
}

/// Whether an image or snapshot is one of a target from which nothing was copied yet, or not all.
fn is_not_executed(spec: &str, world: &World) -> bool {
    let image = world.image(spec.split('@').next().unwrap_or(spec));
    let state = image.and_then(|image| image.migration.as_deref());
    matches!(state, Some("prepared" | "executing"))
}

/// Whether the parent of an image has metadata now that the image has not.
fn lacks_metadata(image: &Image, world: &World) -> bool {
    let parent = image.parent.as_ref();
    parent
        .and_then(|(name, _)| world.image_anywhere(name))
        .is_some_and(|parent| parent.metadata.iter().any(|key| !image.metadata.contains(key)))
}

/// Whether a line of Ferry's message is one that Ceph's does not have.
pub fn says_more(line: &str, said: &str) -> bool {
    line.starts_with("trash rm ") && said.starts_with("rbd: error: image belongs to a group ")
}

/// Whether a word names an image or snapshot.
pub fn is_spec(word: &str) -> bool {
    ["/", "+/", "=/"].iter().any(|place| word.starts_with(place))
}

fn verb(line: &str) -> &str {
    line.split(' ').next().unwrap_or("")
}
