//! Random histories of an image, its clones, its group and its migrations against the byte-exact reference.
//!
//! A history is a seed: `FERRY_SEED=<seed>` replays one, `FERRY_STEPS` and `FERRY_HISTORIES` make runs longer. Every
//! operation is done to the image and to the reference; everything readable is compared again and again, through the
//! writing handle, through a second client, and at every snapshot.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use ferry_cls::rbd::{GroupSnapshot, feature};
use ferry_image::admin::{create, remove};
use ferry_image::group::{self, Group};
use ferry_image::layering::clone::{self, CloneFormat, CloneOptions};
use ferry_image::layout::{ObjectNo, ObjectOffset};
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::object_map::rebuild;
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::wrappers::{FaultyStore, Moment};
use ferry_store::{Errno, IoCtx, Scope, Store};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use support::reference::{Reference, compare};
use support::{Engine, TestLayout};

const MAX_SIZE: u64 = 512 << 10;
const LAYOUTS: [TestLayout; 5] = [
    TestLayout(12, 0, 0),
    TestLayout(15, 0, 0),
    TestLayout(17, 0, 0),
    TestLayout(14, 4096, 3),
    TestLayout(16, 8192, 2),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Plain,
    Prepared,
    Executed,
}

struct History {
    rng: StdRng,
    engine: Engine,
    scopes: [Scope; 2],
    place: usize,
    name: String,
    state: State,
    reference: Reference,
    /// Snapshots at prepare, and where the source was.
    before: Option<(Reference, usize, String)>,
    client: Option<Image>,
    names_used: u32,
    /// Clones of snapshots of the image, and what they must show.
    children: Vec<(String, Reference)>,
    /// Those that were made of snapshots taken since the migration was prepared.
    children_of_new: std::collections::BTreeSet<String>,
    together: Together,
}

/// Group `g`, in which image `peer` is always and the image sometimes.
#[derive(Default)]
struct Together {
    peer: Vec<u8>,
    has_image: bool,
    /// By name: what the peer and, if it was in the group, the image show.
    snaps: BTreeMap<String, (Vec<u8>, Option<Vec<u8>>)>,
}

/// An image with a snapshot to clone, and what that shows.
struct Ancestor {
    name: String,
    snap: String,
    bytes: Vec<u8>,
}

/// Makes an image, or a clone of `below`; writes to it, takes a snapshot, and writes on.
async fn ancestor(rng: &mut StdRng, io: &IoCtx, name: &str, below: Option<&Ancestor>) -> Ancestor {
    let layout = LAYOUTS[rng.random_range(0..LAYOUTS.len())];
    let mut bytes = match below {
        Some(below) => {
            make_clone(rng, io, below, io, name, layout).await;
            below.bytes.clone()
        }
        None => {
            let size = rng.random_range(1..MAX_SIZE);
            create::create(io, name, &layout.create(size)).await.unwrap();
            vec![0; size as usize]
        }
    };
    let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap();
    let writes = rng.random_range(0..6);
    for turn in 0..writes + 2 {
        let size = bytes.len() as u64;
        let offset = rng.random_range(0..=size);
        let length = rng.random_range(0..=(size - offset).min(100_000));
        let byte = rng.random_range(0..=255u8);
        image
            .write(offset, vec![byte; length as usize].into())
            .await
            .unwrap();
        if turn < writes {
            bytes[offset as usize..][..length as usize].fill(byte);
        }
        if turn + 1 == writes && rng.random_bool(0.3) {
            let size = rng.random_range(1..MAX_SIZE);
            image.resize(size, true, &Progress::silent()).await.unwrap();
            bytes.resize(size as usize, 0);
        }
        if turn + 1 == writes.max(1) {
            if writes == 0 {
                bytes[offset as usize..][..length as usize].fill(byte);
            }
            image.snap_create("s", &Progress::silent()).await.unwrap();
            image.snap_protect("s").await.unwrap();
        }
    }
    image.close().await.unwrap();
    Ancestor {
        name: name.to_owned(),
        snap: "s".to_owned(),
        bytes,
    }
}

/// An object of a clone that a snapshot does not have can be made for it later only if nothing newer exists; what the parent
/// shows there would be lost when the clone is cut loose.
async fn check_snapshots_can_be_cut_loose(image: &Image, when: &str) {
    let header = image.header();
    let ids: Vec<_> = header.snaps.keys().copied().collect();
    let layout = *image.layout();
    for (id, snap) in &header.snaps {
        if header.parent_overlap_bytes(*id) == 0 {
            continue;
        }
        let options = OpenOptions::read_only().at(SnapKey::Id(*id));
        let shown = Image::open(image.io(), ImageKey::Id(image.id()), options)
            .await
            .unwrap();
        for n in 0..layout.object_count(snap.size_bytes) {
            let object = format!("{}.{n:016x}", image.fixed().object_prefix);
            let Ok(set) = image.data_io().list_snaps(&object, &ids).await else {
                continue;
            };
            let has_it = set.clones.iter().any(|clone| clone.snaps.contains(id));
            if has_it || set.seq < id.0 {
                continue;
            }
            for run in layout.unmap(ObjectNo(n), ObjectOffset(0), layout.object_size_bytes()) {
                let length = run.length_bytes.min(snap.size_bytes.saturating_sub(run.offset.0));
                if length == 0 {
                    continue;
                }
                let bytes = shown.read(run.offset.0, length).await.unwrap();
                assert!(
                    bytes.iter().all(|byte| *byte == 0),
                    "{when}: snapshot '{}' has object {n} from the parent, which newer versions hide",
                    snap.name
                );
            }
        }
        shown.close().await.unwrap();
    }
}

async fn make_clone(
    rng: &mut StdRng,
    from: &IoCtx,
    of: &Ancestor,
    to: &IoCtx,
    name: &str,
    TestLayout(order, stripe_unit_bytes, stripe_count): TestLayout,
) {
    let format = match rng.random_bool(0.5) {
        true => CloneFormat::One,
        false => CloneFormat::Two,
    };
    let options = CloneOptions {
        order: Some(order),
        stripe_unit_bytes: Some(stripe_unit_bytes),
        stripe_count: Some(stripe_count),
        format: Some(format),
        features: rng.random_bool(0.2).then_some(feature::LAYERING),
        ..CloneOptions::default()
    };
    let snap = SnapKey::Name(of.snap.clone());
    clone::clone(from, &of.name, &snap, to, name, &options)
        .await
        .unwrap();
}

impl Together {
    async fn new(store: Arc<dyn Store>, scopes: &[Scope; 2]) -> Self {
        let io = IoCtx::new(store.clone(), scopes[0].clone());
        let peer_io = IoCtx::new(store, scopes[1].clone());
        let size = 100_000;
        create::create(&peer_io, "peer", &LAYOUTS[1].create(size))
            .await
            .unwrap();
        group::create(&io, "g").await.unwrap();
        let group = Group::open(&io, "g").await.unwrap();
        group.add_image(&peer_io, "peer").await.unwrap();
        Self {
            peer: vec![0; size as usize],
            ..Self::default()
        }
    }
}

/// What an image shows in its part of a group snapshot.
async fn check_part(io: &IoCtx, name: &str, record: &GroupSnapshot, bytes: &[u8], when: &str) {
    let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_only())
        .await
        .unwrap();
    let part = record.snaps.iter().find(|part| part.image_id == image.id());
    let part = part.unwrap_or_else(|| panic!("{when}: '{name}' has no part of '{}'", record.name));
    image.close().await.unwrap();
    let options = OpenOptions::read_only().at(SnapKey::Id(part.snap_id));
    let shown = Image::open(io, ImageKey::Name(name), options).await.unwrap();
    compare(&shown, bytes, &format!("{name} at '{}' {when}", record.name)).await;
    shown.close().await.unwrap();
}

impl History {
    async fn new(engine: Engine, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let store = engine.connect().await;
        let scopes = [
            engine.place(&store, "rbd").await.scope().clone(),
            engine.place(&store, "p2").await.scope().clone(),
        ];
        let size = rng.random_range(1..MAX_SIZE);
        let layout = LAYOUTS[rng.random_range(0..LAYOUTS.len())];
        let io = IoCtx::new(store.clone(), scopes[0].clone());
        let mut options = layout.create(size);
        if rng.random_bool(0.2) {
            options.features = Some(ferry_cls::rbd::feature::LAYERING);
        }
        if rng.random_bool(0.2) {
            options.data_pool = Some("p2".to_owned());
        }
        let reference = if rng.random_bool(0.5) {
            let p2 = IoCtx::new(store.clone(), scopes[1].clone());
            let mut of = ancestor(&mut rng, &p2, "base", None).await;
            for n in 0..rng.random_range(0..3) {
                of = ancestor(&mut rng, &p2, &format!("mid{n}"), Some(&of)).await;
            }
            make_clone(&mut rng, &p2, &of, &io, "image", layout).await;
            Reference {
                head: of.bytes,
                ..Reference::default()
            }
        } else {
            create::create(&io, "image", &options).await.unwrap();
            Reference::new(size)
        };
        let together = Together::new(store, &scopes).await;
        Self {
            rng,
            engine,
            scopes,
            place: 0,
            name: "image".to_owned(),
            state: State::Plain,
            reference,
            before: None,
            client: None,
            names_used: 0,
            children: Vec::new(),
            children_of_new: Default::default(),
            together,
        }
    }

    async fn io(&self) -> IoCtx {
        IoCtx::new(self.engine.connect().await, self.scopes[self.place].clone())
    }

    async fn client(&mut self) -> Image {
        if self.client.is_none() {
            let io = self.io().await;
            let key = ImageKey::Name(&self.name);
            let around = self.rng.random_bool(0.5).then(|| ferry_store::WriteAround {
                max_bytes: 256 << 10,
                until_flush: self.rng.random(),
            });
            let ahead = self.rng.random_bool(0.5).then_some(true);
            let options = OpenOptions::read_write()
                .writing_around(around)
                .reading_ahead(ahead);
            self.client = Some(Image::open(&io, key, options).await.unwrap());
        }
        self.client.clone().unwrap()
    }

    async fn close(&mut self) {
        if let Some(client) = self.client.take() {
            client.close().await.unwrap();
        }
    }

    fn range(&mut self) -> (u64, u64) {
        let size = self.reference.head.len() as u64;
        let offset = self.rng.random_range(0..=size);
        let most = if self.rng.random_bool(0.3) {
            size - offset
        } else {
            (size - offset).min(20_000)
        };
        (offset, self.rng.random_range(0..=most))
    }

    fn data(&mut self, length: u64) -> Vec<u8> {
        let byte = self.rng.random_range(1..=255u8);
        let step = self.rng.random_range(0..7u8);
        (0..length)
            .map(|i| byte.wrapping_add((i as u8).wrapping_mul(step)))
            .collect()
    }

    async fn step(&mut self) {
        let choice = self.rng.random_range(0..100u32);
        if std::env::var_os("FERRY_TRACE").is_some() {
            println!("  choice {choice}, snapshots {:?}", self.reference.snaps.keys());
        }
        match choice {
            0..=24 => self.write().await,
            25..=29 => self.group().await,
            30..=39 => self.discard().await,
            40..=44 => self.compare_and_write().await,
            45..=54 => self.read().await,
            55..=61 => self.snap_create().await,
            62..=64 => self.snap_remove().await,
            65..=67 => self.rollback().await,
            68..=73 => self.resize().await,
            74..=77 => self.close().await,
            78..=83 => self.check("now and then").await,
            84 => self.rename_snap().await,
            85 => self.flatten().await,
            86 => self.clone_snap().await,
            87 => self.use_child().await,
            _ => self.migrate().await,
        }
    }

    async fn write(&mut self) {
        let (offset, length) = self.range();
        let data = self.data(length);
        let client = self.client().await;
        client.write(offset, data.clone().into()).await.unwrap();
        self.reference.write(offset, &data);
        if self.rng.random_bool(0.2) {
            client.flush().await.unwrap();
        }
    }

    /// Requests that follow one another, up to the end or to somewhere before.
    async fn read_on(&mut self, mut offset: u64) {
        let size = self.reference.head.len() as u64;
        let request = self.rng.random_range(500..20_000);
        let client = self.client().await;
        for _ in 0..self.rng.random_range(4..24) {
            let length = request.min(size - offset);
            let got = client.read(offset, length).await.unwrap();
            let expected = &self.reference.head[offset as usize..][..length as usize];
            assert!(
                got == expected,
                "read of {length} bytes at {offset} while reading on"
            );
            offset += length;
        }
    }

    async fn discard(&mut self) {
        let (offset, length) = self.range();
        let client = self.client().await;
        if self.rng.random_bool(0.5) {
            client.discard(offset, length).await.unwrap();
        } else {
            let no_hole = self.rng.random_bool(0.5);
            client.write_zeroes(offset, length, no_hole).await.unwrap();
        }
        self.reference.zero(offset, length);
    }

    async fn compare_and_write(&mut self) {
        let size = self.reference.head.len() as u64;
        if size < 512 {
            return;
        }
        let offset = self.rng.random_range(0..size / 512) * 512;
        let data = self.data(512);
        let mut expected = self.reference.head[offset as usize..][..512].to_vec();
        let client = self.client().await;
        if self.rng.random_bool(0.5) {
            expected[100] ^= 1;
            let error = client
                .compare_and_write(offset, expected.into(), data.into())
                .await
                .unwrap_err();
            assert_eq!(error.errno, Errno::EILSEQ);
        } else {
            client
                .compare_and_write(offset, expected.into(), data.clone().into())
                .await
                .unwrap();
            self.reference.write(offset, &data);
        }
    }

    async fn read(&mut self) {
        let (offset, length) = self.range();
        if self.rng.random_bool(0.5) {
            return self.read_on(offset).await;
        }
        let got = self.client().await.read(offset, length).await.unwrap();
        assert_eq!(got, self.reference.head[offset as usize..][..length as usize]);
    }

    async fn snap_create(&mut self) {
        if self.reference.snaps.len() >= 6 {
            return;
        }
        self.names_used += 1;
        let name = format!("s{}", self.names_used);
        if self.rng.random_bool(0.5) {
            self.client()
                .await
                .snap_create(&name, &Progress::silent())
                .await
                .unwrap();
        } else {
            // From another client: forwarded to the owner, or done there.
            let io = self.io().await;
            let key = ImageKey::Name(&self.name);
            let image = Image::open(&io, key, OpenOptions::read_write()).await.unwrap();
            image.snap_create(&name, &Progress::silent()).await.unwrap();
            image.close().await.unwrap();
        }
        self.reference.snap(&name);
    }

    fn any_snap(&mut self) -> Option<String> {
        let names: Vec<String> = self.reference.snaps.keys().cloned().collect();
        if names.is_empty() {
            None
        } else {
            Some(names[self.rng.random_range(0..names.len())].clone())
        }
    }

    async fn snap_remove(&mut self) {
        let Some(name) = self.any_snap() else { return };
        match self.client().await.snap_unprotect(&name).await {
            Ok(()) => {}
            // Clones of format 1 keep it.
            Err(error) if error.kind == ErrorKind::HasChildren => return,
            Err(error) => assert_eq!(error.errno, Errno::EINVAL, "{error}"),
        }
        self.client()
            .await
            .snap_remove(&name, &Progress::silent())
            .await
            .unwrap();
        self.reference.snaps.remove(&name);
    }

    async fn rename_snap(&mut self) {
        let Some(name) = self.any_snap() else { return };
        if self.state != State::Plain {
            return;
        }
        self.names_used += 1;
        let new_name = format!("r{}", self.names_used);
        self.client().await.snap_rename(&name, &new_name).await.unwrap();
        let bytes = self.reference.snaps.remove(&name).unwrap();
        self.reference.snaps.insert(new_name, bytes);
    }

    async fn is_clone(&mut self) -> bool {
        let client = self.client().await;
        client.refresh().await.unwrap();
        client.header().parent.is_some()
    }

    async fn flatten(&mut self) {
        if self.state != State::Plain || !self.is_clone().await {
            return;
        }
        let client = self.client().await;
        if client
            .header()
            .parent
            .as_ref()
            .unwrap()
            .head_overlap_bytes
            .is_some()
        {
            client.flatten(&Progress::silent()).await.unwrap();
        } else {
            let error = client.flatten(&Progress::silent()).await.unwrap_err();
            assert_eq!(error.errno, Errno::EINVAL, "{error}");
        }
        self.check("after flatten").await;
    }

    async fn clone_snap(&mut self) {
        let Some(snap) = self.any_snap() else { return };
        let bytes = self.reference.snaps[&snap].clone();
        if self.children.len() >= 3 || bytes.is_empty() {
            return;
        }
        let client = self.client().await;
        match client.snap_protect(&snap).await {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind, ErrorKind::SnapProtected, "{error}"),
        }
        self.names_used += 1;
        let name = format!("child{}", self.names_used);
        let io = self.io().await;
        let to = IoCtx::new(io.store().clone(), self.scopes[0].clone());
        let of = Ancestor {
            name: self.name.clone(),
            snap,
            bytes,
        };
        let layout = LAYOUTS[self.rng.random_range(0..LAYOUTS.len())];
        make_clone(&mut self.rng, &io, &of, &to, &name, layout).await;
        let is_new = |before: &(Reference, usize, String)| !before.0.snaps.contains_key(&of.snap);
        if self.before.as_ref().is_some_and(is_new) {
            self.children_of_new.insert(name.clone());
        }
        let child = Reference {
            head: of.bytes,
            ..Reference::default()
        };
        self.children.push((name, child));
        self.check_children("new clone").await;
    }

    /// Writes to a clone, cuts it loose, or removes it.
    async fn use_child(&mut self) {
        if self.children.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.children.len());
        let (name, mut child) = self.children.swap_remove(index);
        let store = self.engine.connect().await;
        let io = IoCtx::new(store, self.scopes[0].clone());
        if self.rng.random_bool(0.3) {
            remove::remove(&io, &name, &Progress::silent()).await.unwrap();
            self.children_of_new.remove(&name);
            self.check("after a clone was removed").await;
            return;
        }
        let image = Image::open(&io, ImageKey::Name(&name), OpenOptions::read_write())
            .await
            .unwrap();
        let size = child.head.len() as u64;
        let offset = self.rng.random_range(0..size);
        let length = self.rng.random_range(0..=(size - offset).min(60_000));
        image
            .write(offset, vec![77; length as usize].into())
            .await
            .unwrap();
        child.write(offset, &vec![77; length as usize]);
        if self.rng.random_bool(0.3) && image.header().parent.is_some() {
            image.flatten(&Progress::silent()).await.unwrap();
            self.children_of_new.remove(&name);
        }
        image.close().await.unwrap();
        self.children.push((name, child));
        self.check_children("used clone").await;
    }

    async fn check_children(&self, when: &str) {
        let store = self.engine.connect().await;
        let io = IoCtx::new(store, self.scopes[0].clone());
        for (name, child) in &self.children {
            child.check_all(&io, name, &format!("{when} {name}")).await;
        }
    }

    /// Group `g`, as another client has it.
    async fn other_client_s_group(&self) -> Group {
        let store = self.engine.connect().await;
        let io = IoCtx::new(store, self.scopes[0].clone());
        Group::open(&io, "g").await.unwrap()
    }

    async fn group(&mut self) {
        let group = self.other_client_s_group().await;
        let silent = Progress::silent();
        let names: Vec<String> = self.together.snaps.keys().cloned().collect();
        match self.rng.random_range(0..10u32) {
            0..=2 => {
                let io = self.io().await;
                match self.together.has_image {
                    true => group.remove_image(&io, &self.name).await.unwrap(),
                    false => group.add_image(&io, &self.name).await.unwrap(),
                }
                self.together.has_image ^= true;
            }
            3..=4 => self.write_to_peer().await,
            5..=7 if names.len() < 3 => {
                self.names_used += 1;
                let name = format!("g{}", self.names_used);
                group
                    .create_snapshot(&name, self.rng.random_bool(0.5))
                    .await
                    .unwrap();
                let image = self.together.has_image.then(|| self.reference.head.clone());
                self.together
                    .snaps
                    .insert(name, (self.together.peer.clone(), image));
            }
            8 if !names.is_empty() => {
                let name = &names[self.rng.random_range(0..names.len())];
                group.roll_back(name, &silent).await.unwrap();
                let (peer, image) = self.together.snaps[name].clone();
                self.together.peer = peer;
                if let Some(image) = image {
                    self.reference.head = image;
                }
            }
            _ if !names.is_empty() => {
                let name = &names[self.rng.random_range(0..names.len())];
                let record = group.snapshot(name).await.unwrap();
                group.remove_snapshot(&record).await.unwrap();
                self.together.snaps.remove(name);
            }
            _ => {}
        }
        self.check_group("after a step of the group").await;
    }

    async fn write_to_peer(&mut self) {
        let store = self.engine.connect().await;
        let io = IoCtx::new(store, self.scopes[1].clone());
        let peer = Image::open(&io, ImageKey::Name("peer"), OpenOptions::read_write())
            .await
            .unwrap();
        let size = self.together.peer.len();
        let offset = self.rng.random_range(0..size);
        let length = self.rng.random_range(0..=(size - offset).min(9_000));
        let data = self.data(length as u64);
        peer.write(offset as u64, data.clone().into()).await.unwrap();
        peer.close().await.unwrap();
        self.together.peer[offset..][..data.len()].copy_from_slice(&data);
    }

    /// The members of the group, and what every part of its snapshots shows.
    async fn check_group(&self, when: &str) {
        let group = self.other_client_s_group().await;
        let mut names: Vec<_> = group.images().await.unwrap();
        assert!(names.iter().all(|image| image.is_attached), "{when}: {names:?}");
        names.retain(|image| image.name != "peer");
        let names: Vec<String> = names.into_iter().map(|image| image.name).collect();
        let expected: Vec<String> = self
            .together
            .has_image
            .then(|| self.name.clone())
            .into_iter()
            .collect();
        assert_eq!(names, expected, "{when}");
        let peer = IoCtx::new(self.engine.connect().await, self.scopes[1].clone());
        let image = self.io().await;
        for (name, (of_peer, of_image)) in &self.together.snaps {
            let record = group.snapshot(name).await.unwrap();
            assert_eq!(
                record.snaps.len(),
                1 + usize::from(of_image.is_some()),
                "{when}: {name}"
            );
            check_part(&peer, "peer", &record, of_peer, when).await;
            if let Some(bytes) = of_image {
                check_part(&image, &self.name, &record, bytes, when).await;
            }
        }
    }

    async fn rollback(&mut self) {
        let Some(name) = self.any_snap() else { return };
        self.client()
            .await
            .snap_rollback(&name, &Progress::silent())
            .await
            .unwrap();
        self.reference.head = self.reference.snaps[&name].clone();
    }

    async fn resize(&mut self) {
        let size = self.rng.random_range(0..MAX_SIZE);
        self.client()
            .await
            .resize(size, true, &Progress::silent())
            .await
            .unwrap();
        self.reference.resize(size);
    }

    async fn check(&mut self, when: &str) {
        let when = format!("{when} ({:?}, '{}')", self.state, self.name);
        if let Some(client) = &self.client {
            self.reference.check_head(client, &when).await;
        }
        let io = self.io().await;
        self.reference.check_all(&io, &self.name, &when).await;
        let client = self.client().await;
        if client.header().has(ferry_cls::rbd::feature::OBJECT_MAP) {
            let wrong = rebuild::verify(&client, &Progress::silent()).await.unwrap();
            assert!(wrong.is_empty(), "object map {when}: {wrong:?}");
        }
        if self.state != State::Prepared {
            check_snapshots_can_be_cut_loose(&client, &when).await;
        }
        self.check_children(&when).await;
        self.check_group(&when).await;
    }

    async fn migrate(&mut self) {
        match self.state {
            State::Plain => self.prepare().await,
            State::Prepared if self.rng.random_bool(0.25) => self.abort().await,
            State::Prepared => self.execute().await,
            State::Executed if self.rng.random_bool(0.4) => self.abort().await,
            State::Executed => self.commit().await,
        }
    }

    async fn prepare(&mut self) {
        let is_clone = self.is_clone().await;
        let client = self.client().await;
        let header = client.header();
        self.close().await;
        let from = self.io().await;
        if header.snaps.len() > header.user_snaps().count() {
            // Parts of group snapshots, or removed snapshots that clones show.
            if self.together.snaps.values().any(|(_, image)| image.is_some()) {
                let target = format!("refused{}", self.names_used);
                let error = prepare(&from, &self.name, &from, &target, &PrepareOptions::default())
                    .await
                    .unwrap_err();
                assert_eq!(error.errno, Errno::EBUSY, "{error}");
            }
            return;
        }
        let to_place = self.rng.random_range(0..2usize);
        let to = IoCtx::new(from.store().clone(), self.scopes[to_place].clone());
        self.names_used += 1;
        let in_place = to_place == self.place && self.rng.random_bool(0.5);
        let target = if in_place {
            self.name.clone()
        } else {
            format!("image{}", self.names_used)
        };
        let layout = LAYOUTS[self.rng.random_range(0..LAYOUTS.len())];
        let options = PrepareOptions {
            order: Some(layout.0),
            stripe_unit_bytes: Some(layout.1).filter(|unit| *unit != 0),
            stripe_count: Some(layout.2).filter(|count| *count != 0),
            flatten: is_clone && self.rng.random_bool(0.4),
            ..PrepareOptions::default()
        };
        if std::env::var_os("FERRY_TRACE").is_some() {
            println!("  prepare {options:?}, clone {is_clone}");
        }
        prepare(&from, &self.name, &to, &target, &options).await.unwrap();
        self.before = Some((self.reference.clone(), self.place, self.name.clone()));
        self.place = to_place;
        self.name = target;
        self.state = State::Prepared;
        self.check("after prepare").await;
    }

    async fn execute(&mut self) {
        let io = self.io().await;
        if self.rng.random_bool(0.5) {
            // Killed somewhere in the middle.
            let doomed = FaultyStore::new(self.engine.connect().await);
            doomed.hook().kill_at(self.rng.random_range(3..60), Moment::After);
            let dying_io = IoCtx::new(doomed, io.scope().clone());
            if execute(&dying_io, &self.name, &Progress::silent()).await.is_ok() {
                self.state = State::Executed;
            }
            self.check("after a killed execute").await;
            return;
        }
        match execute(&io, &self.name, &Progress::silent()).await {
            Ok(()) => {}
            // The killed one had got to its last step.
            Err(error) => assert_eq!(error.kind, ErrorKind::MigrationState, "{error}"),
        }
        self.state = State::Executed;
        self.check("after execute").await;
    }

    async fn commit(&mut self) {
        let io = self.io().await;
        commit(&io, &self.name, &Progress::silent()).await.unwrap();
        self.state = State::Plain;
        self.before = None;
        self.children_of_new.clear();
        self.check("after commit").await;
    }

    async fn abort(&mut self) {
        self.close().await;
        let io = self.io().await;
        let (before, place, name) = self.before.clone().unwrap();
        let new: Vec<String> = self
            .reference
            .snaps
            .keys()
            .filter(|snap| !before.snaps.contains_key(*snap))
            .cloned()
            .collect();
        let silent = Progress::silent();
        if !self.children_of_new.is_empty() {
            let force = AbortOptions { force: true };
            let error = abort(&io, &self.name, force, &silent).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::HasChildren, "{error}");
            self.check("after a refused abort").await;
            return;
        }
        // Those with a part of the image were taken since, too: they would have blocked the prepare.
        let group = self.other_client_s_group().await;
        let of_group: Vec<String> = self.together.snaps.keys().cloned().collect();
        for name in of_group {
            if self.together.snaps[&name].1.is_none() {
                continue;
            }
            let error = abort(&io, &self.name, AbortOptions::default(), &silent)
                .await
                .unwrap_err();
            assert_eq!(error.kind, ErrorKind::WouldLose, "{error}");
            let record = group.snapshot(&name).await.unwrap();
            group.remove_snapshot(&record).await.unwrap();
            self.together.snaps.remove(&name);
        }
        if !new.is_empty() {
            let error = abort(&io, &self.name, AbortOptions::default(), &silent)
                .await
                .unwrap_err();
            assert_eq!(error.kind, ErrorKind::WouldLose, "{error}");
            for snap in &new {
                assert!(
                    error.message.contains(snap.as_str()),
                    "{error} does not name {snap}"
                );
            }
        }
        abort(
            &io,
            &self.name,
            AbortOptions {
                force: !new.is_empty(),
            },
            &silent,
        )
        .await
        .unwrap();
        self.place = place;
        self.name = name;
        self.state = State::Plain;
        self.reference.snaps = before.snaps;
        self.before = None;
        self.check("after abort").await;
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

async fn histories(engine: &str, histories: u64) {
    let steps = number("FERRY_STEPS", 80);
    // Few histories fit on a cluster: the same ones each time; FERRY_HISTORIES and FERRY_SEED ask for others.
    let usual = match engine {
        "ceph" if histories == number("FERRY_HISTORIES", histories) => 313_958_928,
        _ => rand::rng().random::<u32>().into(),
    };
    let first = number("FERRY_SEED", usual);
    let usual = match std::env::var_os("FERRY_SEED") {
        Some(_) => 1,
        None => histories,
    };
    let histories = number("FERRY_HISTORIES", usual);
    for seed in first..first + histories {
        println!("engine {engine}, FERRY_SEED={seed} FERRY_STEPS={steps}");
        let mut history = History::new(Engine::named(engine), seed).await;
        for step in 0..steps {
            if std::env::var_os("FERRY_TRACE").is_some() {
                println!(
                    "step {step}: {:?} '{}' {} bytes",
                    history.state,
                    history.name,
                    history.reference.head.len()
                );
            }
            history.step().await;
            if std::env::var_os("FERRY_CHECK_EACH").is_some() {
                history.check("after a step").await;
            }
        }
        history.check("at the end").await;
        history.close().await;
    }
    println!("campaign: model engine={engine} seed={first} histories={histories}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_equal_the_reference_on_the_memory_engine() {
    histories("memory", 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_equal_the_reference_on_an_engine_without_a_list_of_clones() {
    histories("probing", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_equal_the_reference_on_the_local_engine() {
    histories("local", 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_equal_the_reference_on_a_real_cluster() {
    if Engine::ceph().is_some() {
        histories("ceph", 2).await;
    }
}
