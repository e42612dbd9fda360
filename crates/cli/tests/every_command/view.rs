//! All that can be seen of a store, as lines that are the same for two stores on which the same was done: ids are replaced by
//! the names of what they are of, times are left out. An object that belongs to nothing that has a name shows its id.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use ferry_cls::rbd::{GroupSnapshotState, ObjectState, SnapshotNamespace, feature};
use ferry_image::admin::{config, directory, list, locks, metadata, namespace, status, trash};
use ferry_image::group::{self, Group};
use ferry_image::layering::children::children;
use ferry_image::object_map::rebuild;
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::{IoCtx, Scope, Store};

/// How the lines about flags of object maps go on.
const FLAGS: &str = "flags of object maps ";

/// Names for ids.
type Names = BTreeMap<String, String>;

/// Most objects that a test's store has in one place.
const OBJECTS_MAX: usize = 10_000;

/// Everything. `random_bytes_of` is an image whose bytes are not looked at.
///
/// # Panics
/// If something that is listed cannot be read, or contradicts itself; `when` says where the test is.
pub async fn everything(store: &Arc<dyn Store>, random_bytes_of: &str, when: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut names = Names::new();
    let mut places = Vec::new();
    let mut settings = store.settings().await.unwrap();
    // With it, running clients of Ceph's are told that something changed; it is a time.
    settings.retain(|setting| setting.name != "rbd_config_pool_override_update_timestamp");
    settings.sort_by(|one, other| (&one.section, &one.name).cmp(&(&other.section, &other.name)));
    out.extend(settings.iter().map(|setting| format!("{setting:?}")));
    for pool in store.pool_list().await.unwrap() {
        let io = IoCtx::new(store.clone(), Scope::new(pool.id));
        out.push(format!("pool {}", pool.name));
        for setting in config::list(&io, None).await.unwrap() {
            out.push(format!("pool {}: {setting:?}", pool.name));
        }
        for name in [String::new()]
            .into_iter()
            .chain(namespace::list(&io).await.unwrap())
        {
            out.push(format!("place {}/{name}", pool.name));
            places.push((format!("{}/{name}", pool.name), io.with_namespace(&name)));
        }
    }
    for (place, io) in &places {
        for (name, id) in directory::list(io).await.unwrap() {
            names.insert(id, format!("<{place}{name}>"));
        }
        for (id, entry) in trash::list(io).await.unwrap() {
            out.push(format!(
                "{place} trash: {} {:?} {:?}",
                entry.name, entry.source, entry.state
            ));
            names.insert(id, format!("<trash {place}{}>", entry.name));
        }
        for name in group::list(io).await.unwrap() {
            let group = Group::open(io, &name).await.unwrap();
            names.insert(group.id().to_owned(), format!("<group {name}>"));
        }
    }
    for (place, io) in &places {
        for name in list::names(io).await.unwrap() {
            let at = format!("{place}{name}");
            let skip = at == format!("rbd/{random_bytes_of}");
            image(io, &at, &name, skip, &names, &mut out, when).await;
        }
        groups(io, place, &names, &mut out).await;
        let objects = io
            .store()
            .list_objects(io.scope(), "", "", OBJECTS_MAX)
            .await
            .unwrap();
        for object in objects {
            let shown = without_ids(&object, &names);
            // Maps and groups' headers are made when they are needed, and a snapshot that never came to be may leave a map: of
            // what has a name they are not counted.
            let spare = ["rbd_object_map.<", "rbd_group_header.<"];
            if spare.iter().any(|prefix| shown.starts_with(prefix)) {
                continue;
            }
            out.push(format!("{place} object {shown}"));
        }
    }
    out.sort();
    out
}

fn without_ids(text: &str, names: &Names) -> String {
    let mut text = text.to_owned();
    for (id, name) in names {
        text = text.replace(id, name);
    }
    text
}

fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

async fn image(
    io: &IoCtx,
    at: &str,
    name: &str,
    skip_bytes: bool,
    names: &Names,
    out: &mut Vec<String>,
    when: &str,
) {
    let open = async |options| match Image::open(io, ImageKey::Name(name), options).await {
        Ok(image) => image,
        Err(error) => panic!("{at} is listed but does not open: {error}; {when}"),
    };
    let image = open(OpenOptions::read_only()).await;
    let header = image.header();
    let layout = image.layout();
    out.push(format!(
        "{at}: {} bytes, features {:x}, objects of {}, stripes {} x {}, data in {:?}",
        header.size_bytes,
        // Who has clones is told below, by what these say.
        header.features & !feature::OPERATIONS,
        layout.object_size_bytes(),
        layout.stripe_unit_bytes(),
        layout.stripe_count(),
        image.fixed().data_pool,
    ));
    if header.has(feature::OBJECT_MAP) {
        out.push(format!("{at}: {FLAGS}{:x}", header.flags));
    }
    if let Some(parent) = &header.parent {
        out.push(format!(
            "{at}: parent {} overlap {:?}",
            without_ids(&parent.spec.image_id, names),
            parent.head_overlap_bytes
        ));
    }
    let state = status::status(io, ImageKey::Name(name)).await.unwrap();
    if let Some(migration) = state.migration {
        out.push(format!(
            "{at}: migration {:?} from {}/{} to {}/{}, settings {:?}",
            migration.state,
            migration.source.pool_name,
            migration.source.image_name,
            migration.dest.pool_name,
            migration.dest.image_name,
            migration.settings,
        ));
    }
    for (key, value) in metadata::list(&image).await.unwrap() {
        out.push(format!("{at}: metadata {key} = {value:?}"));
    }
    out.push(format!(
        "{at}: limit {}",
        ferry_image::snapshot::get_limit(&image).await.unwrap()
    ));
    // The lock that manages itself comes and goes with its process.
    let lock = locks::list(io, name).await.unwrap();
    let lock = lock.filter(|lock| lock.tag != "internal");
    let is_locked = lock.is_some();
    if let Some(lock) = lock {
        // One that is shared is taken anew by each client.
        let cookies: BTreeSet<_> = lock.lockers.iter().map(|locker| &locker.cookie).collect();
        out.push(format!("{at}: lock {:?} {} {cookies:?}", lock.shape, lock.tag));
    }
    let clones = children(io, image.id(), None).await.unwrap();
    for child in clones {
        out.push(format!(
            "{at}: child {}/{} {}",
            child.pool, child.image, child.trash
        ));
    }
    let of = group::of_image(io, image.id()).await.unwrap();
    out.push(format!("{at}: in group {:?}", of.map(|group| group.name)));
    if !skip_bytes {
        let bytes = image.read(0, header.size_bytes).await;
        let bytes = bytes.unwrap_or_else(|error| panic!("{at}: {error}; {when}"));
        out.push(format!("{at}: bytes {:x}", sum(&bytes)));
    }
    image.close().await.unwrap();
    if header.has(feature::OBJECT_MAP) && header.flags == 0 && !is_locked {
        let owner = open(OpenOptions::read_write()).await;
        let wrong = rebuild::verify(&owner, &Progress::silent()).await.unwrap();
        // A kill may leave an object marked that was about to be made; what is there must be marked, and as changed.
        let lies = wrong.iter().find(|entry| {
            matches!(
                (entry.marked, entry.actual),
                (ObjectState::Nonexistent, _) | (ObjectState::ExistsClean, ObjectState::Exists)
            )
        });
        assert!(lies.is_none(), "{at}: object map {lies:?}; {when}");
        owner.close().await.unwrap();
    }
    for snap in header.snaps.values() {
        let (kind, shown) = match &snap.namespace {
            SnapshotNamespace::User => ("user", snap.name.clone()),
            SnapshotNamespace::Group { .. } => ("group", String::new()),
            SnapshotNamespace::Trash { original_name, .. } => ("trash", original_name.clone()),
            other => panic!("{at}: {other:?}; {when}"),
        };
        let shot = open(OpenOptions::read_only().at(SnapKey::Id(snap.id))).await;
        let bytes = match shot.read(0, snap.size_bytes).await {
            Ok(bytes) => format!("{:x}", sum(&bytes)),
            // On its way out of the trash, where no clone keeps it.
            Err(error) if kind == "trash" && error.kind == ErrorKind::Removed => "removed".to_owned(),
            Err(error) => panic!("{at}: snapshot {shown}: {error}; {when}"),
        };
        shot.close().await.unwrap();
        out.push(format!(
            "{at}: {kind} snapshot {shown}, {} bytes {bytes}, {:?}, overlap {:?}",
            snap.size_bytes, snap.protection, snap.parent_overlap_bytes,
        ));
    }
}

async fn groups(io: &IoCtx, place: &str, names: &Names, out: &mut Vec<String>) {
    for name in group::list(io).await.unwrap() {
        let group = Group::open(io, &name).await.unwrap();
        for image in group.images().await.unwrap() {
            out.push(format!(
                "{place} group {name}: {} {}",
                without_ids(&image.id, names),
                image.is_attached
            ));
        }
        for snapshot in group.snapshots().await.unwrap() {
            let whole = snapshot.state == GroupSnapshotState::Complete;
            out.push(format!(
                "{place} group {name}@{}: whole {whole}, {} parts",
                snapshot.name,
                snapshot.snaps.len()
            ));
        }
    }
}

/// A view of a store that refused something. An object map that could not be read or written may be declared invalid, which
/// is seen, and mended by `object-map rebuild`; a snapshot in the trash that lost its last clone may wait there for the next
/// maintenance of its image.
pub fn without_leftovers(view: &[String]) -> Vec<String> {
    let leftover = |line: &String| line.contains(FLAGS) || line.contains(": trash snapshot ");
    let lines = view.iter().filter(|line| !leftover(line));
    lines.cloned().collect()
}

/// Shows what is only in one of two views.
pub fn difference(expected: &[String], found: &[String]) -> Option<String> {
    if expected == found {
        return None;
    }
    let only = |of: &[String], not_in: &[String]| -> String {
        let count = |view: &[String], line: &String| view.iter().filter(|other| *other == line).count();
        let lines = of.iter().filter(|line| count(of, line) > count(not_in, line));
        lines.map(|line| format!("\n    {line}")).collect()
    };
    Some(format!(
        "\n  missing:{}\n  too much:{}",
        only(expected, found),
        only(found, expected)
    ))
}
