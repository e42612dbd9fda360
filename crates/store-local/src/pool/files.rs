//! Data files of a pool by name: making, opening, removing, and their sidecar maps.
//!
//! A file is `data/<xx>/<gid>.<n>`: the client that made it and a number of that client, both hexadecimal, `xx` the low
//! byte of the number. Names are never used twice, so an open file found by its name is always the right one.
//!
//! The *sidecar* `<name>.map` of a head's layer, if there is one, says which blocks differ from the parent right now; without
//! one the layer's row does. It is shared through
//! the page cache, survives every process, and is void after the end of the boot that its header names.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferry_store::{Errno, Result, StoreError};
use parking_lot::Mutex;

use super::label::{self, Identity, Label};
use crate::disk::{BootId, Disk, DiskFile};
use crate::object::bitmap::Bitmap;
use crate::object::rows::Layer;

/// Directories that files are spread over.
pub(crate) const FAN_OUT: u64 = 256;
const MAP_MAGIC: &[u8; 8] = b"FERRYMAP";
const MAP_FORMAT: u32 = 1;
/// Header of a sidecar; the bits follow.
const MAP_HEADER_BYTES: usize = 64;
/// Most files kept open for reuse.
const OPEN_MAX: usize = 384;

/// The data directory of one pool.
#[derive(Debug)]
pub(crate) struct Files {
    disk: Arc<dyn Disk>,
    data: PathBuf,
    gid: u64,
    identity: Identity,
    next: AtomicU64,
    open: Mutex<HashMap<String, Open>>,
}

#[derive(Debug)]
struct Open {
    file: Arc<dyn DiskFile>,
    used: bool,
}

impl Files {
    /// Files below `data`, new ones in the name of client `gid`.
    pub(crate) fn new(disk: Arc<dyn Disk>, data: PathBuf, gid: u64, identity: Identity) -> Self {
        Self {
            disk,
            data,
            gid,
            identity,
            next: AtomicU64::new(0),
            open: Mutex::default(),
        }
    }

    /// The disk they are on.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The directory above them.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The directory that file `name` belongs into.
    pub(crate) fn dir_of(&self, name: &str) -> PathBuf {
        let number = name
            .split_once('.')
            .and_then(|(_, number)| u64::from_str_radix(number, 16).ok())
            .unwrap_or(0);
        self.data.join(format!("{:02x}", number % FAN_OUT))
    }

    /// Where file `name` is.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.dir_of(name).join(name)
    }

    fn failed(&self, error: &io::Error, action: &str, name: &str) -> StoreError {
        let path = self.path_of(name);
        if error.kind() == io::ErrorKind::NotFound {
            // The rows say that it exists: this is damage, not absence.
            return StoreError::new(
                Errno::EIO,
                format!("{action} {}: the data file is missing", path.display()),
            );
        }
        StoreError::io(error, format!("{action} {}", path.display()))
    }

    /// Turns an I/O error on `name` into one that names the file.
    pub(crate) fn at<T>(&self, result: io::Result<T>, action: &str, name: &str) -> Result<T> {
        result.map_err(|error| self.failed(&error, action, name))
    }

    /// Makes a file under a name never used before.
    pub(crate) fn create(&self) -> Result<(String, Arc<dyn DiskFile>)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:x}.{number:x}", self.gid);
        let file = self.at(self.disk.create_new(&self.path_of(&name)), "create", &name)?;
        if let Some(label) = label::encode(&self.identity, &name) {
            self.at(file.set_label(&label), "label", &name)?;
        }
        self.keep(&name, &file);
        Ok((name, file))
    }

    fn keep(&self, name: &str, file: &Arc<dyn DiskFile>) {
        let mut open = self.open.lock();
        if open.len() >= OPEN_MAX {
            open.retain(|_, entry| std::mem::take(&mut entry.used));
            if open.len() >= OPEN_MAX {
                open.clear();
            }
        }
        let entry = Open {
            file: file.clone(),
            used: true,
        };
        open.insert(name.to_owned(), entry);
    }

    /// The open file `name`.
    pub(crate) fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.opened(name) {
            return Ok(file);
        }
        let file = self.at(self.disk.open(&self.path_of(name)), "open", name)?;
        if let Some(found) = self.at(self.label_of(&*file), "read the label of", name)?
            && found != Label::Here(name.to_owned())
        {
            return Err(self.mislabelled(name, &found));
        }
        self.keep(name, &file);
        Ok(file)
    }

    /// What the label of a file says, if it has one.
    pub(crate) fn label_of(&self, file: &dyn DiskFile) -> io::Result<Option<Label>> {
        let label = file.label()?;
        Ok(label.map(|label| label::decode(&self.identity, &label)))
    }

    /// The error of a file in the place of `name` whose label says otherwise.
    pub(crate) fn mislabelled(&self, name: &str, found: &Label) -> StoreError {
        let what = match found {
            Label::Here(other) => format!("by its label it is the file {other}"),
            Label::Elsewhere => "by its label it is a file of another pool or store".to_owned(),
            Label::Damaged => "its label is damaged".to_owned(),
        };
        let path = self.path_of(name);
        StoreError::new(
            Errno::EIO,
            format!("open {}: {what}; 'rbd fsck' looks further", path.display()),
        )
    }

    /// The open file `name`, if it is open already.
    pub(crate) fn opened(&self, name: &str) -> Option<Arc<dyn DiskFile>> {
        self.open.lock().get_mut(name).map(|entry| {
            entry.used = true;
            entry.file.clone()
        })
    }

    /// Closes what was not used since the last call, so that removed files give their room back.
    pub(crate) fn close_idle(&self) {
        let idle: Vec<Open> = {
            let mut open = self.open.lock();
            let names: Vec<String> = open
                .iter_mut()
                .filter_map(|(name, entry)| (!std::mem::take(&mut entry.used)).then(|| name.clone()))
                .collect();
            names.iter().filter_map(|name| open.remove(name)).collect()
        };
        drop(idle);
    }

    /// Removes a file and its sidecar; what is not there is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        for name in [name.to_owned(), sidecar_name(name)] {
            self.open.lock().remove(&name);
            match self.disk.unlink(&self.path_of_any(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed(&error, "remove", &name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Where a file or a sidecar is.
    pub(crate) fn path_of_any(&self, name: &str) -> PathBuf {
        self.dir_of(name.trim_end_matches(".map")).join(name)
    }

    /// Makes the name of `name` durable.
    pub(crate) fn sync_name(&self, name: &str) -> Result<()> {
        self.at(
            self.disk.sync_dir(&self.dir_of(name)),
            "sync the directory of",
            name,
        )
    }

    /// Makes `to`, new and empty, share the bytes of `from`.
    pub(crate) fn share(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.clone_file(&self.path_of(from), &self.path_of(to))
    }

    /// The sidecar of a layer if it is of this boot.
    pub(crate) fn sidecar(&self, layer: &Layer) -> Result<Option<Sidecar>> {
        let name = sidecar_name(&layer.file);
        if let Some(file) = self.opened(&name) {
            return Ok(Some(Sidecar(file)));
        }
        let file = match self.disk.open(&self.path_of_any(&name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(&error, "open", &name)),
        };
        let mut header = [0u8; MAP_HEADER_BYTES];
        let have = self.at(file.read_at(&mut header, 0), "read", &name)?;
        let length_bytes = self.at(file.stat(), "read", &name)?.size_bytes;
        let whole = length_bytes >= (MAP_HEADER_BYTES + layer.map.bytes().len()) as u64;
        if have == MAP_HEADER_BYTES && !is_map_header(&header) {
            let path = self.path_of_any(&name);
            return Err(StoreError::new(
                Errno::EIO,
                format!("read {}: it does not begin like a map", path.display()),
            ));
        }
        if have == MAP_HEADER_BYTES && whole && header == map_header(&self.disk.boot_id()) {
            self.keep(&name, &file);
            return Ok(Some(Sidecar(file)));
        }
        Ok(None)
    }

    /// The sidecar of a layer, if it is open already.
    pub(crate) fn opened_sidecar(&self, layer: &Layer) -> Option<Sidecar> {
        self.opened(&sidecar_name(&layer.file)).map(Sidecar)
    }

    /// Adds blocks to the live map of a layer, growing it as needed. Only under the exclusive hold of the object, and only
    /// blocks that the layer's file already holds: the sidecar stays valid throughout, so whoever comes after a writer
    /// that died here reads right.
    pub(crate) fn extend_sidecar(&self, layer: &Layer, more: &Bitmap) -> Result<()> {
        let Some(sidecar) = self.sidecar(layer)? else {
            return self.make_sidecar(&layer.file, more);
        };
        let live = sidecar.whole(more.bytes().len() as u64 * 8);
        let mut map = self.at(live, "read the map of", &layer.file)?;
        map.merge(more);
        self.at(sidecar.write(0, &map), "write the map of", &layer.file)
    }

    /// Makes the sidecar of a layer anew with these blocks: of a layer that is not live yet, or whose sidecar ended with
    /// its boot. One that is valid and live is never made anew, as dying half-way would void it
    /// ([`Files::extend_sidecar`] instead). Only under the exclusive hold of the object.
    pub(crate) fn make_sidecar(&self, file: &str, map: &Bitmap) -> Result<()> {
        let name = sidecar_name(file);
        self.open.lock().remove(&name);
        let path = self.path_of_any(&name);
        let mut bytes = map_header(&self.disk.boot_id()).to_vec();
        bytes.extend_from_slice(map.bytes());
        let make = || -> io::Result<Arc<dyn DiskFile>> {
            let side = match self.disk.create_new(&path) {
                Ok(side) => {
                    // Cut short, it is too short to count.
                    side.write_at(&bytes, 0)?;
                    return Ok(side);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.disk.open(&path)?,
                Err(error) => return Err(error),
            };
            // The magic comes last: a half-made sidecar is none.
            side.write_at(&[0; 8], 0)?;
            side.truncate(bytes.len() as u64)?;
            side.write_at(&bytes[8..], 8)?;
            side.write_at(&bytes[..8], 0)?;
            Ok(side)
        };
        let side = self.at(make(), "make", &name)?;
        self.keep(&name, &side);
        Ok(())
    }
}

/// Name of the sidecar of a file.
pub(crate) fn sidecar_name(file: &str) -> String {
    format!("{file}.map")
}

fn map_header(boot: &BootId) -> [u8; MAP_HEADER_BYTES] {
    let mut header = [0; MAP_HEADER_BYTES];
    header[..8].copy_from_slice(MAP_MAGIC);
    header[8..12].copy_from_slice(&MAP_FORMAT.to_le_bytes());
    header[16..32].copy_from_slice(boot);
    header
}

/// Whether a sidecar of any boot begins like this, or one that nobody finished, or whose content a power loss took.
fn is_map_header(header: &[u8; MAP_HEADER_BYTES]) -> bool {
    let (magic, rest) = header.split_at(MAP_MAGIC.len());
    let fixed = rest[..4] == MAP_FORMAT.to_le_bytes()
        && rest[4..8] == [0; 4]
        && rest[24..].iter().all(|byte| *byte == 0);
    magic.iter().all(|byte| *byte == 0) || magic == MAP_MAGIC && fixed
}

/// The live map of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Sidecar(Arc<dyn DiskFile>);

impl Sidecar {
    /// The bytes of the map from byte `first`, `count` of them; what is not there reads as 0.
    pub(crate) fn read(&self, first: u64, count: usize) -> io::Result<Bitmap> {
        let mut bytes = vec![0; count];
        self.0.read_at(&mut bytes, MAP_HEADER_BYTES as u64 + first)?;
        Ok(Bitmap::from_bytes(bytes))
    }

    /// As [`Sidecar::read`] if that needs no waiting for the medium.
    pub(crate) fn try_read(&self, first: u64, count: usize) -> io::Result<Option<Bitmap>> {
        let mut bytes = vec![0; count];
        let read = self.0.try_read_at(&mut bytes, MAP_HEADER_BYTES as u64 + first)?;
        // A short count may be one that would have had to wait.
        Ok((read == Some(count)).then(|| Bitmap::from_bytes(bytes)))
    }

    /// Puts bytes of the map back. Only under the exclusive hold of the object.
    pub(crate) fn write(&self, first: u64, map: &Bitmap) -> io::Result<()> {
        self.0.write_at(map.bytes(), MAP_HEADER_BYTES as u64 + first)
    }

    /// The whole map of a layer that covers `blocks`.
    pub(crate) fn whole(&self, blocks: u64) -> io::Result<Bitmap> {
        self.read(0, blocks.div_ceil(8) as usize)
    }
}
