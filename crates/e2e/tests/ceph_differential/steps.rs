//! The random sequence: what is done next, given what there is.
//!
//! Every name is used once, so that what is known of an image stays true when it is renamed or lies in the trash. In the words
//! of a command, `/NAME` is an image in the pool `rbd`, `+/NAME` one in `other`, `=/NAME` one without a namespace; `>FILE` is a file that the command writes, which
//! must be the same from both sides, `<FILE` one that it reads; `trash:NAME` is the id of an image in the trash;
//! `{force}` is `--force` where that is Ferry's own, `{format-2}` the wish for clones of format 2 where Ferry needs none;
//! `<ferry:FILE` and `<ceph:FILE` are the file of one side for both.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::world::{Image, Kind, Request, World};

/// One step of the sequence.
#[derive(Debug, Clone)]
pub enum Step {
    /// A command of `rbd`.
    Command(String),
    /// Requests of a client.
    Write(String, Vec<Request>),
}

/// What is done next.
pub struct Steps {
    rng: StdRng,
    names: u32,
    /// Files that were written: names and what they hold.
    files: Vec<(String, Holds)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Raw,
    Image,
    Diff,
}

impl Steps {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            names: 0,
            files: Vec::new(),
        }
    }

    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    pub(super) fn one_in(&mut self, times: u32) -> bool {
        self.rng.random_range(0..times) == 0
    }

    pub(super) fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        (!all.is_empty()).then(|| &all[self.rng.random_range(0..all.len())])
    }

    /// A name that was never used.
    fn new_name(&mut self) -> String {
        let sign = self.sign();
        format!("{sign}/i{}", self.number())
    }

    /// Where something new is.
    pub(super) fn sign(&mut self) -> &'static str {
        match self.rng.random_range(0..8) {
            0..4 => "",
            4..6 => "+",
            _ => "=",
        }
    }

    /// A number that was never used.
    pub(super) fn number(&mut self) -> u32 {
        self.names += 1;
        self.names
    }

    /// A name for something new, rarely one that is taken.
    fn target(&mut self, world: &World) -> String {
        if self.one_in(20)
            && let Some(image) = self.of(&world.images)
        {
            return image.name.clone();
        }
        self.new_name()
    }

    fn size(&mut self) -> u64 {
        match self.rng.random_range(0..10) {
            0..4 => self.rng.random_range(1..32) << 16,
            _ => self.rng.random_range(1..2_500_000),
        }
    }

    fn layout(&mut self) -> String {
        let plain = self.one_in(8);
        self.layout_of(plain, false)
    }

    /// A layout for a copy: an object size alone has two meanings (see [`IMPROVEMENTS`](super::improvements::IMPROVEMENTS)).
    fn layout_of_copy(&mut self) -> String {
        let as_it_was = self.one_in(2);
        self.layout_of(as_it_was, true)
    }

    fn layout_of(&mut self, default: bool, in_full: bool) -> String {
        let mut words = String::new();
        if !default {
            let order = self.rng.random_range(14..20);
            words += &format!(" --object-size {}", 1 << order);
            if in_full && !self.one_in(4) {
                words += &format!(" --stripe-unit {} --stripe-count 1", 1 << order);
            } else if in_full || self.one_in(4) {
                let unit = 1u64 << self.rng.random_range(12..=order);
                let count = self.rng.random_range(2..6);
                words += &format!(" --stripe-unit {unit} --stripe-count {count}");
            }
        }
        if self.one_in(6) {
            words += " --data-pool other";
        }
        words
    }

    fn features(&mut self) -> &'static str {
        match self.rng.random_range(0..8) {
            0 => " --image-feature layering",
            1 => " --image-feature layering,exclusive-lock",
            2 => " --image-feature layering,exclusive-lock,object-map",
            3 => " --image-feature layering,exclusive-lock,object-map,fast-diff",
            4 => " --image-feature layering,deep-flatten",
            _ => "",
        }
    }

    /// An image, and what becomes of it if there is none.
    pub(super) fn image<'a>(&mut self, world: &'a World) -> Option<&'a Image> {
        self.of(&world.images)
    }

    fn snap(&mut self, world: &World) -> Option<String> {
        let image = self.image(world)?;
        let snap = self.of(&image.snaps)?;
        Some(format!("{}@{}", image.name, snap.name))
    }

    /// An image or one of its snapshots.
    fn version(&mut self, world: &World) -> Option<String> {
        if self.one_in(2)
            && let Some(snap) = self.snap(world)
        {
            return Some(snap);
        }
        Some(self.image(world)?.name.clone())
    }

    fn file(&mut self, holds: Holds) -> String {
        self.names += 1;
        let name = format!("f{}", self.names);
        self.files.push((name.clone(), holds));
        name
    }

    fn old_file(&mut self, holds: Holds) -> Option<String> {
        let files: Vec<String> = self
            .files
            .iter()
            .filter(|(_, what)| *what == holds)
            .map(|(name, _)| name.clone())
            .collect();
        self.of(&files).cloned()
    }

    /// A command that the sides did not both carry out wrote no file.
    pub fn forget_files(&mut self, step: &Step) {
        if let Step::Command(line) = step {
            self.files
                .retain(|(name, _)| !line.split(' ').any(|word| word == format!(">{name}")));
        }
    }

    /// The next step.
    pub fn next(&mut self, world: &World) -> Step {
        loop {
            if world.images.len() < 2 {
                return Step::Command(self.create());
            }
            if let Some(step) = self.candidate(world) {
                return step;
            }
        }
    }

    fn create(&mut self) -> String {
        if self.one_in(8) {
            let (size, name) = (self.size(), self.number());
            let order = self.rng.random_range(14..20);
            return format!(
                "create --image-format 1 --size {size}B --object-size {} =/i{name}",
                1 << order
            );
        }
        let (size, layout, features, name) = (self.size(), self.layout(), self.features(), self.new_name());
        format!("create --size {size}B{layout}{features} {name}")
    }

    fn candidate(&mut self, world: &World) -> Option<Step> {
        // Few images: they meet more often.
        if world.images.len() > 7 && self.one_in(2) {
            let image = self.image(world)?;
            let name = image.name.clone();
            let verb = if self.one_in(3) {
                "trash mv"
            } else {
                "rm --no-progress"
            };
            if image.migration.is_none() && self.one_in(2) && !image.snaps.is_empty() {
                return Some(Step::Command(format!("snap purge --no-progress {name}")));
            }
            return Some(Step::Command(format!("{verb} {name}")));
        }
        let line = match self.rng.random_range(0..100) {
            0..20 => return self.write(world),
            20..24 => self.create(),
            24..30 => self.of_groups(world)?,
            30..54 => self.of_snapshots(world)?,
            54..64 => self.of_files(world)?,
            64..80 => self.of_migration(world)?,
            80..84 => self.of_trash(world)?,
            _ => self.of_images(world)?,
        };
        Some(Step::Command(line))
    }

    fn write(&mut self, world: &World) -> Option<Step> {
        let image = self.image(world)?;
        let size = image.size;
        let name = image.name.clone();
        let count = self.rng.random_range(1..6);
        let requests: Vec<Request> = (0..count).filter_map(|_| self.request(size)).collect();
        (!requests.is_empty()).then_some(Step::Write(name, requests))
    }

    fn request(&mut self, size: u64) -> Option<Request> {
        if size == 0 {
            return None;
        }
        let (kind, longest) = match self.rng.random_range(0..10) {
            0..6 => (Kind::Write, 100_000),
            6..8 => (Kind::Discard, 800_000),
            _ => (Kind::Zero, 400_000),
        };
        let mut offset = self.rng.random_range(0..size);
        let mut length = self.rng.random_range(1..=longest);
        if self.one_in(2) {
            offset &= !0xffff;
            length = (length + 0xffff) & !0xffff;
        }
        let mut longest = size - offset;
        if kind == Kind::Discard && longest > 1 && !self.one_in(6) {
            longest -= 1;
        }
        if kind == Kind::Zero {
            // In whole granules of librbd's.
            offset &= !0xffff;
            length = (length + 0xffff) & !0xffff;
            longest = (size - offset) & !0xffff;
        }
        if longest == 0 {
            return None;
        }
        Some(Request {
            kind,
            offset,
            length: length.min(longest),
            byte: self.rng.random_range(1..=255),
        })
    }

    fn of_snapshots(&mut self, world: &World) -> Option<String> {
        Some(match self.rng.random_range(0..30) {
            0..9 => {
                let image = self.image(world)?.name.clone();
                self.names += 1;
                format!("snap create --no-progress {image}@s{}", self.names)
            }
            9..12 => format!("snap rm --no-progress {}", self.snap(world)?),
            12..14 => {
                let snap = self.snap(world)?;
                let image = snap.split('@').next()?;
                self.names += 1;
                format!("snap rename {snap} {image}@s{}", self.names)
            }
            14..17 => format!("snap protect {}", self.snap(world)?),
            17..19 => format!("snap unprotect {}", self.snap(world)?),
            19..22 => format!("snap rollback --no-progress {}", self.snap(world)?),
            22 => format!("snap purge --no-progress {}", self.image(world)?.name),
            23 => {
                let limit = self.rng.random_range(0..9);
                format!("snap limit set --limit {limit} {}", self.image(world)?.name)
            }
            24 => format!("snap limit clear {}", self.image(world)?.name),
            _ => {
                let (snap, target) = (self.snap(world)?, self.target(world));
                let format = match self.rng.random_range(0..3) {
                    0 => " --rbd-default-clone-format 1",
                    1 => " --rbd-default-clone-format 2",
                    _ => "",
                };
                let (layout, features) = (self.layout_of_copy(), self.features());
                format!("clone{format}{layout}{features} {snap} {target}")
            }
        })
    }

    fn of_files(&mut self, world: &World) -> Option<String> {
        Some(match self.rng.random_range(0..9) {
            0 => {
                let version = self.version(world)?;
                format!("export --no-progress {version} >{}", self.file(Holds::Raw))
            }
            1 => {
                let image = self.image(world)?.name.clone();
                let file = self.file(Holds::Image);
                format!("export --no-progress --export-format 2 {image} >{file}")
            }
            2 | 3 => {
                let version = self.version(world)?;
                let from = self.start_of_diff(world, &version);
                let whole = if self.one_in(4) { " --whole-object" } else { "" };
                let file = self.file(Holds::Diff);
                format!("export-diff --no-progress{from}{whole} {version} >{file}")
            }
            4 => {
                let (file, layout) = (self.old_file(Holds::Raw)?, self.layout());
                let (features, target) = (self.features(), self.target(world));
                format!("import --no-progress{layout}{features} <{file} {target}")
            }
            5 => {
                let (file, target) = (self.old_file(Holds::Image)?, self.target(world));
                format!("import --no-progress --export-format 2 <{file} {target}")
            }
            6 | 7 => {
                let file = self.old_file(Holds::Diff)?;
                let image = self.image(world)?.name.clone();
                format!("import-diff --no-progress <{file} {image}")
            }
            _ => {
                let (one, two) = (self.old_file(Holds::Diff)?, self.old_file(Holds::Diff)?);
                let file = self.file(Holds::Diff);
                format!("merge-diff --no-progress <{one} <{two} >{file}")
            }
        })
    }

    /// ` --from-snap SNAP`, mostly of a snapshot that there is, or nothing.
    pub fn start_of_diff(&mut self, world: &World, version: &str) -> String {
        let name = version.split('@').next().unwrap_or(version);
        let snaps = world.image(name).map_or(&[][..], |image| &image.snaps);
        match self.rng.random_range(0..8) {
            0..4 => String::new(),
            4 => " --from-snap nosuch".to_owned(),
            _ => match self.of(snaps) {
                Some(snap) => format!(" --from-snap {}", snap.name),
                None => String::new(),
            },
        }
    }

    fn of_migration(&mut self, world: &World) -> Option<String> {
        let moving: Vec<&Image> = world
            .images
            .iter()
            .filter(|image| image.migration.is_some())
            .collect();
        if moving.is_empty() || self.one_in(4) {
            let source = self.image(world)?.name.clone();
            let flatten = if self.one_in(5) { " --flatten" } else { "" };
            let layout = self.layout_of_copy();
            let target = match self.rng.random_range(0..6) {
                0 => String::new(),
                _ => format!(" {}", self.target(world)),
            };
            return Some(format!("migration prepare{flatten}{layout} {source}{target}"));
        }
        let image = self.of(&moving)?;
        let state = image.migration.as_deref()?;
        let name = &image.name;
        let verb = match (state, self.rng.random_range(0..8)) {
            ("prepared", 0..5) => "execute --no-progress",
            ("executed", 0..4) => "commit --no-progress",
            ("executed", 4) => "commit --force --no-progress",
            (_, 5..7) => "abort --no-progress {force}",
            (_, 7) => "execute --no-progress",
            _ => "commit --no-progress",
        };
        Some(format!("migration {verb} {name}"))
    }

    fn of_trash(&mut self, world: &World) -> Option<String> {
        let entry = self.of(&world.trash);
        Some(match self.rng.random_range(0..6) {
            0 => format!("trash mv {}", self.image(world)?.name),
            1 => format!("trash mv --expires-at 2099-01-01 {}", self.image(world)?.name),
            2 => format!("trash restore trash:{}", entry?.image.name),
            3 => {
                let name = format!("i{}", self.number());
                let entry = &entry?.image.name;
                let prefix = if entry.starts_with('=') { "{ns}." } else { "" };
                format!("trash restore --image {prefix}{name} trash:{entry}")
            }
            4 => format!("trash rm --no-progress trash:{}", entry?.image.name),
            _ => format!("trash rm --no-progress --force trash:{}", entry?.image.name),
        })
    }

    fn of_images(&mut self, world: &World) -> Option<String> {
        Some(match self.rng.random_range(0..26) {
            0..3 => {
                let (image, size) = (self.image(world)?.name.clone(), self.size());
                let shrink = if self.one_in(4) { "" } else { " --allow-shrink" };
                format!("resize --no-progress{shrink} --size {size}B {image}")
            }
            3 => {
                let (image, target) = (self.image(world)?.name.clone(), self.target(world));
                format!("mv {image} {target}")
            }
            4..6 => {
                let (version, layout) = (self.version(world)?, self.layout_of_copy());
                let target = self.target(world);
                format!("cp --no-progress{layout} {version} {target}")
            }
            6..9 => {
                let (version, layout) = (self.version(world)?, self.layout_of_copy());
                let flatten = if self.one_in(3) { " --flatten" } else { "" };
                let target = self.target(world);
                format!("deep cp --no-progress{flatten}{layout} {version} {target}")
            }
            9..12 => format!("flatten --no-progress {}", self.image(world)?.name),
            12..16 => {
                let image = self.image(world)?.name.clone();
                let verb = if self.one_in(2) { "enable" } else { "disable" };
                let feature = self.of(&[
                    "object-map",
                    "fast-diff",
                    "exclusive-lock",
                    "deep-flatten",
                    "layering",
                    "object-map fast-diff",
                    "exclusive-lock object-map",
                ])?;
                format!("feature {verb} {image} {feature}")
            }
            16 | 17 => format!("object-map rebuild --no-progress {}", self.version(world)?),
            18 | 19 => format!("sparsify --no-progress {}", self.image(world)?.name),
            20..23 => {
                let image = self.image(world)?.name.clone();
                let key = self.of(&["a", "b", "conf_rbd_cache"])?;
                match self.rng.random_range(0..4) {
                    0 => format!("image-meta get {image} {key}"),
                    1 => format!("image-meta remove {image} {key}"),
                    _ => format!("image-meta set {image} {key} {}", self.rng.random_range(0..2)),
                }
            }
            23 => {
                let image = self.image(world)?.name.clone();
                format!("rm --no-progress {image}")
            }
            _ => {
                let version = self.version(world)?;
                format!("object-map check --no-progress {version}")
            }
        })
    }
}
