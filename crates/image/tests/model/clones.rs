//! Clones: the ancestors that the image may have, and the children of its snapshots.

use super::*;

/// An image with a snapshot to clone, and what that shows.
pub(super) struct Ancestor {
    pub(super) name: String,
    pub(super) snap: String,
    pub(super) shown: Version,
}

/// Makes an image, or a clone of `below`; writes to it, takes a snapshot, and writes on.
pub(super) async fn ancestor(rng: &mut StdRng, io: &IoCtx, name: &str, below: Option<&Ancestor>) -> Ancestor {
    let layout = LAYOUTS[rng.random_range(0..LAYOUTS.len())];
    let mut reference = match below {
        Some(below) => {
            make_clone(rng, io, below, io, name, layout).await;
            Reference::of(&below.shown)
        }
        None => {
            let size = rng.random_range(1..MAX_SIZE);
            create::create(io, name, &layout.create(size)).await.unwrap();
            Reference::new(size)
        }
    };
    let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap();
    let writes = rng.random_range(0..6);
    let mut shown = None;
    for turn in 0..writes + 2 {
        let size = reference.size_bytes();
        let offset = rng.random_range(0..=size);
        let length = rng.random_range(0..=(size - offset).min(100_000));
        let data = reference.write_tagged(offset, length);
        image.write(offset, data.into()).await.unwrap();
        if turn + 1 == writes && rng.random_bool(0.3) {
            let size = rng.random_range(1..MAX_SIZE);
            image.resize(size, true, &Progress::silent()).await.unwrap();
            reference.resize(size);
        }
        if turn + 1 == writes.max(1) {
            image.snap_create("s", &Progress::silent()).await.unwrap();
            image.snap_protect("s").await.unwrap();
            shown = Some(reference.head.clone());
        }
    }
    image.close().await.unwrap();
    Ancestor {
        name: name.to_owned(),
        snap: "s".to_owned(),
        shown: shown.expect("a snapshot"),
    }
}

/// An object of a clone that a snapshot does not have can be made for it later only if nothing newer exists; what the parent
/// shows there would be lost when the clone is cut loose.
pub(super) async fn check_snapshots_can_be_cut_loose(image: &Image, when: &str) {
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

pub(super) async fn make_clone(
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

impl History {
    pub(super) async fn is_clone(&mut self) -> bool {
        let client = self.client().await;
        client.refresh().await.unwrap();
        client.header().parent.is_some()
    }

    pub(super) async fn flatten(&mut self) {
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

    pub(super) async fn clone_snap(&mut self) {
        let Some(snap) = self.any_snap() else { return };
        let shown = self.reference.snaps[&snap].clone();
        if self.children.len() >= 3 || shown.size_bytes() == 0 {
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
            shown,
        };
        let layout = LAYOUTS[self.rng.random_range(0..LAYOUTS.len())];
        make_clone(&mut self.rng, &io, &of, &to, &name, layout).await;
        let is_new = |before: &(Reference, usize, String)| !before.0.snaps.contains_key(&of.snap);
        if self.before.as_ref().is_some_and(is_new) {
            self.children_of_new.insert(name.clone());
        }
        let child = Reference::of(&of.shown);
        self.children.push((name, child));
        self.check_children("new clone").await;
    }

    /// Writes to a clone, cuts it loose, or removes it.
    pub(super) async fn use_child(&mut self) {
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
        let size = child.size_bytes();
        let offset = self.rng.random_range(0..size);
        let length = self.rng.random_range(0..=(size - offset).min(60_000));
        let data = child.write_tagged(offset, length);
        image.write(offset, data.into()).await.unwrap();
        if self.rng.random_bool(0.3) && image.header().parent.is_some() {
            image.flatten(&Progress::silent()).await.unwrap();
            self.children_of_new.remove(&name);
        }
        image.close().await.unwrap();
        self.children.push((name, child));
        self.check_children("used clone").await;
    }

    pub(super) async fn check_children(&self, when: &str) {
        let store = self.engine.connect().await;
        let io = IoCtx::new(store, self.scopes[0].clone());
        for (name, child) in &self.children {
            child.check_all(&io, name, &format!("{when} {name}")).await;
        }
    }
}
