//! What is done while no client is connected, or asks nothing: the other verbs of a migration, clones, rollbacks.

use std::sync::Arc;

use ferry_image::admin::remove::remove;
use ferry_image::layering::clone::{self, CloneFormat, CloneOptions};
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use parking_lot::Mutex;
use rand::RngExt as _;

use super::phase::Beside;
use super::world::{LAYOUTS, Outcome, Shown, State, World, failed, once_closed};

const MAX_IMAGES: usize = 3;

impl World {
    /// The next verb of the image's migration.
    pub async fn next_of_migration(&mut self, index: usize) -> Outcome {
        // One image of a family at a time.
        let migrating = self.images.iter().position(|image| image.state != State::Plain);
        let index = migrating.unwrap_or(index);
        match self.images[index].state {
            State::Plain => self.prepare(index).await,
            State::Prepared if self.rng.random_bool(0.2) => self.abort(index).await,
            State::Prepared => self.phase_beside(index, Beside::Execute).await,
            State::Executed if self.rng.random_bool(0.2) => self.abort(index).await,
            State::Executed => self.phase_beside(index, Beside::Commit).await,
        }
    }

    async fn prepare(&mut self, index: usize) -> Outcome {
        self.disconnect(index).await?;
        let image = &self.images[index];
        let (place, name) = (image.place, image.name.clone());
        let is_clone = image.parent.is_some() && !image.flattened;
        let to_place = self.rng.random_range(0..2usize);
        let in_place = to_place == place && self.rng.random_bool(0.5);
        self.names_used += 1;
        let target = match in_place {
            true => name.clone(),
            false => format!("image{}", self.names_used),
        };
        let (order, unit, count) = LAYOUTS[self.rng.random_range(0..LAYOUTS.len())];
        let options = PrepareOptions {
            order: Some(order),
            stripe_unit_bytes: Some(unit).filter(|unit| *unit != 0),
            stripe_count: Some(count).filter(|count| *count != 0),
            flatten: is_clone && self.rng.random_bool(0.3),
            ..PrepareOptions::default()
        };
        let what = format!("prepare of {} to {to_place}/{target} {options:?}", image.export());
        self.trace(|| what.clone());
        let (from, to) = (self.io(place), self.io(to_place));
        once_closed(|| prepare(&from, &name, &to, &target, &options))
            .await
            .map_err(|error| failed(&what, &error))?;
        let image = &mut self.images[index];
        image.history.lock().prepared();
        image.source = Some((place, name, image.flattened));
        image.place = to_place;
        image.name = target;
        image.state = State::Prepared;
        image.flattened |= options.flatten;
        self.stats.prepared += 1;
        match self.rng.random_bool(0.3) {
            true => self.check(index, "after prepare").await,
            false => Ok(()),
        }
    }

    async fn abort(&mut self, index: usize) -> Outcome {
        self.disconnect(index).await?;
        let io = self.io(self.images[index].place);
        let image = &self.images[index];
        let name = image.name.clone();
        let what = format!("abort of {} ({:?})", image.export(), image.state);
        let new = image.history.lock().new_snap_names();
        self.trace(|| format!("{what} with new {new:?}"));
        let silent = Progress::silent();
        let with_clones = new.iter().any(|snap| self.has_clones(index, snap));
        if !new.is_empty() {
            match once_closed(|| abort(&io, &name, AbortOptions::default(), &silent)).await {
                Err(error) if error.kind == ErrorKind::WouldLose => {
                    let unnamed = new.iter().find(|snap| !error.message.contains(*snap));
                    if let Some(snap) = unnamed {
                        return Err(format!("{what} does not name '{snap}': {error}"));
                    }
                }
                Err(error) if error.kind == ErrorKind::HasChildren && with_clones => return Ok(()),
                other => return Err(format!("{what} should have named {new:?}: {other:?}")),
            }
        }
        let options = AbortOptions {
            force: !new.is_empty(),
        };
        match once_closed(|| abort(&io, &name, options, &silent)).await {
            Err(error) if error.kind == ErrorKind::HasChildren && with_clones => return Ok(()),
            done => done.map_err(|error| failed(&what, &error))?,
        }
        let image = &mut self.images[index];
        image.history.lock().aborted_dropping_new_snaps();
        (image.place, image.name, image.flattened) = image.source.take().ok_or("no source")?;
        image.state = State::Plain;
        self.stats.aborts += 1;
        self.check(index, "after abort").await
    }

    /// The head becomes one of its snapshots.
    pub async fn roll_back(&mut self, index: usize) -> Outcome {
        let Some(snap) = self.any_snap(index) else {
            return Ok(());
        };
        let image = &self.images[index];
        let what = format!("rollback of {} ({:?}) to {snap}", image.export(), image.state);
        self.trace(|| what.clone());
        // Settles what the snapshot shows, which is what the head shows then.
        self.check(index, "before a rollback").await?;
        let image = &self.images[index];
        let io = self.io(image.place);
        let flush = {
            let opened = Image::open(&io, ImageKey::Name(&image.name), OpenOptions::read_write()).await;
            let opened = opened.map_err(|error| failed(&what, &error))?;
            let done = async {
                opened.snap_rollback(&snap, &Progress::silent()).await?;
                image.history.lock().roll_back(&snap);
                let flush = image.history.lock().begin_flush();
                opened.flush().await?;
                opened.close().await?;
                Ok(flush)
            };
            done.await.map_err(|error| failed(&what, &error))?
        };
        image.history.lock().end_flush(&flush);
        self.check(index, "after a rollback").await
    }

    fn any_snap(&mut self, index: usize) -> Option<String> {
        let names = self.images[index].history.lock().snap_names();
        match names.len() {
            0 => None,
            count => Some(names[self.rng.random_range(0..count)].clone()),
        }
    }

    /// One more image: a clone of a snapshot.
    pub async fn clone_snap(&mut self, index: usize) -> Outcome {
        if self.images.len() >= MAX_IMAGES {
            return Ok(());
        }
        let Some(snap) = self.any_snap(index) else {
            return Ok(());
        };
        // Settles what the snapshot shows, and makes it durable: the clone does not flush its parent.
        self.check(index, "before a clone").await?;
        let image = &self.images[index];
        let flush = image.history.lock().begin_flush();
        image.clients[0]
            .flush()
            .await
            .map_err(|error| error.to_string())?;
        image.history.lock().end_flush(&flush);
        let what = format!("clone of {}@{snap}", image.export());
        self.trace(|| what.clone());
        let from = self.io(image.place);
        let opened = Image::open(&from, ImageKey::Name(&image.name), OpenOptions::read_write()).await;
        let opened = opened.map_err(|error| failed(&what, &error))?;
        let is_protected = opened.snap_protect(&snap).await;
        opened.close().await.map_err(|error| failed(&what, &error))?;
        match is_protected {
            Err(error) if error.kind != ErrorKind::SnapProtected => return Err(failed(&what, &error)),
            _ => {}
        }
        self.names_used += 1;
        let place = self.rng.random_range(0..2usize);
        let name = format!("clone{}", self.names_used);
        let (order, unit, count) = LAYOUTS[self.rng.random_range(0..LAYOUTS.len())];
        let format = match self.rng.random_bool(0.5) {
            true => CloneFormat::One,
            false => CloneFormat::Two,
        };
        let options = CloneOptions {
            order: Some(order),
            stripe_unit_bytes: Some(unit),
            stripe_count: Some(count),
            format: Some(format),
            ..CloneOptions::default()
        };
        let to = self.io(place);
        let image = &self.images[index];
        let key = SnapKey::Name(snap.clone());
        clone::clone(&from, &image.name, &key, &to, &name, &options)
            .await
            .map_err(|error| failed(&what, &error))?;
        let history = image.history.lock().clone_of(&snap).ok_or("no snapshot")?;
        let clone = Shown {
            number: self.names_used,
            place,
            name,
            state: State::Plain,
            source: None,
            parent: Some((image.number, snap)),
            flattened: false,
            history: Arc::new(Mutex::new(history)),
            clients: Vec::new(),
        };
        self.images.push(clone);
        self.stats.clones += 1;
        self.check(self.images.len() - 1, "a new clone").await
    }

    /// Removes a clone that nothing hangs on.
    pub async fn remove(&mut self, index: usize) -> Outcome {
        let image = &self.images[index];
        let number = image.number;
        let has_clones = self
            .images
            .iter()
            .any(|other| other.parent.as_ref().is_some_and(|(of, _)| *of == number));
        let has_snaps = !image.history.lock().snap_names().is_empty();
        if number == 0 || has_clones || has_snaps || image.state != State::Plain {
            return Ok(());
        }
        self.disconnect(index).await?;
        let image = self.images.swap_remove(index);
        self.trace(|| format!("remove {}", image.export()));
        let io = self.io(image.place);
        let silent = Progress::silent();
        once_closed(|| remove(&io, &image.name, &silent))
            .await
            .map_err(|error| failed(&format!("removing {}", image.export()), &error))
    }
}
