//! What clients do: writes, reads, snapshots, resizes; and the comparison of all that can be seen.

use super::*;

impl History {
    pub(super) async fn write(&mut self) {
        let (offset, length) = self.range();
        let data = self.reference.write_tagged(offset, length);
        let client = self.client().await;
        client.write(offset, data.into()).await.unwrap();
        if self.rng.random_bool(0.2) {
            client.flush().await.unwrap();
        }
    }

    /// Requests that follow one another, up to the end or to somewhere before.
    pub(super) async fn read_on(&mut self, mut offset: u64) {
        let size = self.reference.size_bytes();
        let request = self.rng.random_range(500..20_000);
        let client = self.client().await;
        for _ in 0..self.rng.random_range(4..24) {
            let length = request.min(size - offset);
            let got = client.read(offset, length).await.unwrap();
            if let Err(violation) = self.reference.head.check(offset, &got) {
                panic!("read of {length} bytes at {offset} while reading on: {violation}");
            }
            offset += length;
        }
    }

    pub(super) async fn discard(&mut self) {
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

    pub(super) async fn compare_and_write(&mut self) {
        let size = self.reference.size_bytes();
        if size < 512 {
            return;
        }
        let offset = self.rng.random_range(0..size / 512) * 512;
        let mut expected = self.reference.head.bytes_at(offset, 512);
        let client = self.client().await;
        if self.rng.random_bool(0.5) {
            expected[100] ^= 1;
            let error = client
                .compare_and_write(offset, expected.into(), vec![3; 512].into())
                .await
                .unwrap_err();
            assert_eq!(error.errno, Errno::EILSEQ);
        } else {
            let data = self.reference.write_tagged(offset, 512);
            client
                .compare_and_write(offset, expected.into(), data.into())
                .await
                .unwrap();
        }
    }

    pub(super) async fn read(&mut self) {
        let (offset, length) = self.range();
        if self.rng.random_bool(0.5) {
            return self.read_on(offset).await;
        }
        let got = self.client().await.read(offset, length).await.unwrap();
        assert_eq!(got.len() as u64, length);
        if let Err(violation) = self.reference.head.check(offset, &got) {
            panic!("read of {length} bytes at {offset}: {violation}");
        }
    }

    pub(super) async fn snap_create(&mut self) {
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

    pub(super) fn any_snap(&mut self) -> Option<String> {
        let names: Vec<String> = self.reference.snaps.keys().cloned().collect();
        if names.is_empty() {
            None
        } else {
            Some(names[self.rng.random_range(0..names.len())].clone())
        }
    }

    pub(super) async fn snap_remove(&mut self) {
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

    pub(super) async fn rename_snap(&mut self) {
        let Some(name) = self.any_snap() else { return };
        if self.state != State::Plain {
            return;
        }
        self.names_used += 1;
        let new_name = format!("r{}", self.names_used);
        self.client().await.snap_rename(&name, &new_name).await.unwrap();
        let shown = self.reference.snaps.remove(&name).unwrap();
        self.reference.snaps.insert(new_name, shown);
    }

    pub(super) async fn rollback(&mut self) {
        let Some(name) = self.any_snap() else { return };
        self.client()
            .await
            .snap_rollback(&name, &Progress::silent())
            .await
            .unwrap();
        self.reference.head = self.reference.snaps[&name].clone();
    }

    pub(super) async fn resize(&mut self) {
        let size = self.rng.random_range(0..MAX_SIZE);
        self.client()
            .await
            .resize(size, true, &Progress::silent())
            .await
            .unwrap();
        self.reference.resize(size);
    }

    pub(super) async fn check(&mut self, when: &str) {
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
}
