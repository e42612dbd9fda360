//! File systems on a served image: `nbdfuse` makes the export a file, a loop device makes it a disk.
//!
//! Invariant: dropping a [`Mounted`] unmounts, detaches and ends everything that it started, in this order.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ferry::{Served, wait_until};
use crate::process::{Background, run, run_ok};

/// An export as a loop device, and, once mounted, as a directory.
#[derive(Debug)]
pub struct Mounted {
    fuse: PathBuf,
    nbdfuse: Option<Background>,
    device: Option<String>,
    mounted_at: Option<PathBuf>,
}

impl Mounted {
    /// Attaches an export; `directory` must exist and be empty or not used by another.
    ///
    /// # Panics
    /// If it can't be attached.
    #[track_caller]
    pub fn attach(served: &Served, export: &str, directory: &Path) -> Self {
        let fuse = directory.join("fuse");
        std::fs::create_dir_all(&fuse).expect("a directory for FUSE");
        let disk = fuse.join("disk");
        let mut nbdfuse = Background::start(
            Command::new("nbdfuse").arg(&disk).arg(served.uri(export)),
            directory,
            "nbdfuse",
        );
        wait_until("nbdfuse shows the export", || {
            assert!(nbdfuse.is_running(), "nbdfuse: {}", nbdfuse.stderr());
            disk.exists()
        });
        let mut attached = Self {
            fuse,
            nbdfuse: Some(nbdfuse),
            device: None,
            mounted_at: None,
        };
        let device = run_ok("losetup", &["--find", "--show", &disk.to_string_lossy()]);
        attached.device = Some(device.trim().to_owned());
        attached
    }

    /// The loop device.
    ///
    /// # Panics
    /// Never: it has one from the start.
    pub fn device(&self) -> &str {
        self.device.as_deref().expect("an attached device")
    }

    /// Mounts the file system that is on it, and gives its place.
    ///
    /// # Panics
    /// If it can't be mounted.
    #[track_caller]
    pub fn mount(&mut self) -> PathBuf {
        let place = self.fuse.with_file_name("mnt");
        std::fs::create_dir_all(&place).expect("a directory to mount on");
        run_ok("mount", &[self.device(), &place.to_string_lossy()]);
        self.mounted_at = Some(place.clone());
        place
    }

    /// Unmounts and detaches, all of which must succeed.
    ///
    /// # Panics
    /// If it doesn't.
    #[track_caller]
    pub fn detach(mut self) {
        if let Some(place) = self.mounted_at.take() {
            run_ok("umount", &[&place.to_string_lossy()]);
        }
        if let Some(device) = self.device.take() {
            run_ok("losetup", &["--detach", &device]);
        }
        run_ok("umount", &[&self.fuse.to_string_lossy()]);
        if let Some(nbdfuse) = self.nbdfuse.take() {
            nbdfuse.finish().ok();
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(place) = self.mounted_at.take() {
            run(Command::new("umount").arg("--lazy").arg(&place));
        }
        if let Some(device) = self.device.take() {
            run(Command::new("losetup").arg("--detach").arg(&device));
        }
        if self.nbdfuse.take().is_some() {
            run(Command::new("umount").arg("--lazy").arg(&self.fuse));
        }
    }
}
