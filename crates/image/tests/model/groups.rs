//! The group, in which another image always is, and its snapshots.

use super::*;

/// Group `g`, in which image `peer` is always and the image sometimes.
pub(super) struct Together {
    pub(super) peer: Reference,
    pub(super) has_image: bool,
    /// By name: what the peer and, if it was in the group, the image show.
    pub(super) snaps: BTreeMap<String, (Version, Option<Version>)>,
}

impl Together {
    pub(super) async fn new(store: Arc<dyn Store>, scopes: &[Scope; 2]) -> Self {
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
            peer: Reference::new(size),
            has_image: false,
            snaps: BTreeMap::new(),
        }
    }
}

/// What an image shows in its part of a group snapshot.
pub(super) async fn check_part(
    io: &IoCtx,
    name: &str,
    record: &GroupSnapshot,
    version: &Version,
    when: &str,
) {
    let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_only())
        .await
        .unwrap();
    let part = record.snaps.iter().find(|part| part.image_id == image.id());
    let part = part.unwrap_or_else(|| panic!("{when}: '{name}' has no part of '{}'", record.name));
    image.close().await.unwrap();
    let options = OpenOptions::read_only().at(SnapKey::Id(part.snap_id));
    let shown = Image::open(io, ImageKey::Name(name), options).await.unwrap();
    compare_version(&shown, version, &format!("{name} at '{}' {when}", record.name)).await;
    shown.close().await.unwrap();
}

impl History {
    /// Group `g`, as another client has it.
    pub(super) async fn other_client_s_group(&self) -> Group {
        let store = self.engine.connect().await;
        let io = IoCtx::new(store, self.scopes[0].clone());
        Group::open(&io, "g").await.unwrap()
    }

    pub(super) async fn group(&mut self) {
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
                    .insert(name, (self.together.peer.head.clone(), image));
            }
            8 if !names.is_empty() => {
                let name = &names[self.rng.random_range(0..names.len())];
                group.roll_back(name, &silent).await.unwrap();
                let (peer, image) = self.together.snaps[name].clone();
                self.together.peer.head = peer;
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

    pub(super) async fn write_to_peer(&mut self) {
        let store = self.engine.connect().await;
        let io = IoCtx::new(store, self.scopes[1].clone());
        let peer = Image::open(&io, ImageKey::Name("peer"), OpenOptions::read_write())
            .await
            .unwrap();
        let size = self.together.peer.size_bytes();
        let offset = self.rng.random_range(0..size);
        let length = self.rng.random_range(0..=(size - offset).min(9_000));
        let data = self.together.peer.write_tagged(offset, length);
        peer.write(offset, data.into()).await.unwrap();
        peer.close().await.unwrap();
    }

    /// The members of the group, and what every part of its snapshots shows.
    pub(super) async fn check_group(&self, when: &str) {
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
            if let Some(version) = of_image {
                check_part(&image, &self.name, &record, version, when).await;
            }
        }
    }
}
