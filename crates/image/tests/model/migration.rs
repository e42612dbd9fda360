//! The verbs of a migration, with deaths of `execute`.

use super::*;

impl History {
    pub(super) async fn migrate(&mut self) {
        match self.state {
            State::Plain => self.prepare().await,
            State::Prepared if self.rng.random_bool(0.25) => self.abort().await,
            State::Prepared => self.execute().await,
            State::Executed if self.rng.random_bool(0.4) => self.abort().await,
            State::Executed => self.commit().await,
        }
    }

    pub(super) async fn prepare(&mut self) {
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

    pub(super) async fn execute(&mut self) {
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

    pub(super) async fn commit(&mut self) {
        let io = self.io().await;
        commit(&io, &self.name, &Progress::silent()).await.unwrap();
        self.state = State::Plain;
        self.before = None;
        self.children_of_new.clear();
        self.check("after commit").await;
    }

    pub(super) async fn abort(&mut self) {
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
