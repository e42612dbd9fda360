//! What `rbd serve --metrics` shows: counters of the server and of every image that it serves.
//!
//! Promise: recording is a handful of relaxed additions to counters that a device holds already, without locks and
//! without looking anything up; without `--metrics` no device is wrapped and no clock is read. Counters of an image
//! outlive its connections, so that they only grow; at most [`MAX_IMAGES`] images that nobody uses are remembered.
//!
//! | file | what it holds |
//! |---|---|
//! | `device.rs` | a block device that counts what passes through it |
//! | `render.rs` | all counters as text |
//! | `http.rs` | that text for whoever asks |

mod device;
mod http;
mod render;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferry_image::migration::execution::ExecuteProgress;
use ferry_image::stats::LatencyHistogram;
use ferry_image::{Image, ImageStatsSnapshot};
use ferry_nbd::ServerStats;
use parking_lot::Mutex;

use crate::spec::ImageSpec;
pub(super) use device::MeteredDevice;
pub(super) use http::MetricsServer;

/// Most images without a client whose counters are kept.
const MAX_IMAGES: usize = 256;

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes,
    Cache,
    BlockStatus,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::WriteZeroes,
        Self::Cache,
        Self::BlockStatus,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write_zeroes",
            Self::Cache => "cache",
            Self::BlockStatus => "block_status",
        }
    }
}

/// All counters of one server.
#[derive(Debug, Default)]
pub(super) struct ServeMetrics {
    server: Arc<ServerStats>,
    images: Mutex<BTreeMap<String, Arc<ImageMetrics>>>,
}

impl ServeMetrics {
    /// What the NBD server counts into.
    pub(super) fn server(&self) -> &Arc<ServerStats> {
        &self.server
    }

    /// The counters of an image.
    pub(super) fn image(&self, spec: &ImageSpec) -> Arc<ImageMetrics> {
        let mut images = self.images.lock();
        let name = spec.to_string();
        if !images.contains_key(&name) && images.len() >= MAX_IMAGES {
            let unused = images
                .iter()
                .find(|(_, image)| Arc::strong_count(image) == 1 && !image.layer.lock().is_open())
                .map(|(name, _)| name.clone());
            unused.and_then(|name| images.remove(&name));
        }
        let image = images
            .entry(name)
            .or_insert_with(|| Arc::new(ImageMetrics::new(spec.clone())));
        Arc::clone(image)
    }

    fn images(&self) -> Vec<Arc<ImageMetrics>> {
        self.images.lock().values().cloned().collect()
    }
}

/// Counters of one image or snapshot that is or was served.
#[derive(Debug)]
pub(super) struct ImageMetrics {
    spec: ImageSpec,
    kinds: [KindMetrics; Kind::ALL.len()],
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    in_flight: AtomicU64,
    connections: AtomicU64,
    connections_now: AtomicU64,
    layer: Mutex<Layer>,
}

/// Requests of one kind.
#[derive(Debug, Default)]
struct KindMetrics {
    latency: LatencyHistogram,
    errors: AtomicU64,
}

/// The image layer's counters over all the times that the image was opened.
#[derive(Debug, Default)]
struct Layer {
    past: ImageStatsSnapshot,
    current: Option<Image>,
    /// The last execute that copied in one of these handles.
    execute: Option<ExecuteProgress>,
}

impl Layer {
    fn is_open(&self) -> bool {
        self.current.is_some()
    }

    fn attach(&mut self, image: &Image) {
        match &self.current {
            Some(current) if Arc::ptr_eq(current.stats(), image.stats()) => {}
            _ => {
                self.detach();
                self.current = Some(image.clone());
            }
        }
    }

    fn detach(&mut self) {
        self.execute = self.execute();
        if let Some(ended) = self.current.take() {
            self.past.add(&ended.stats().snapshot());
        }
    }

    fn execute(&self) -> Option<ExecuteProgress> {
        let current = self.current.as_ref().and_then(Image::execute_progress);
        current.or(self.execute)
    }

    fn snapshot(&self) -> ImageStatsSnapshot {
        let mut total = self.past.clone();
        if let Some(current) = &self.current {
            total.add(&current.stats().snapshot());
        }
        total
    }
}

impl ImageMetrics {
    fn new(spec: ImageSpec) -> Self {
        Self {
            spec,
            kinds: Default::default(),
            read_bytes: AtomicU64::default(),
            written_bytes: AtomicU64::default(),
            in_flight: AtomicU64::default(),
            connections: AtomicU64::default(),
            connections_now: AtomicU64::default(),
            layer: Mutex::default(),
        }
    }

    fn kind(&self, kind: Kind) -> &KindMetrics {
        &self.kinds[kind as usize]
    }

    /// From now on, what this handle counts is shown too.
    pub(super) fn attach(&self, image: &Image) {
        self.layer.lock().attach(image);
    }

    /// The handle is closed; what it has counted stays.
    pub(super) fn detach(&self) {
        self.layer.lock().detach();
    }

    /// One more connection uses the image.
    pub(super) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.connections_now.fetch_add(1, Ordering::Relaxed);
    }

    /// One connection less uses it.
    pub(super) fn disconnected(&self) {
        self.connections_now.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(image: &str) -> ImageSpec {
        ImageSpec {
            pool: "rbd".into(),
            namespace: String::new(),
            image: image.into(),
            snap: None,
        }
    }

    #[test]
    fn an_image_that_is_opened_again_goes_on_where_it_was() {
        let metrics = ServeMetrics::default();
        let first = metrics.image(&spec("a"));
        first.connected();
        first.disconnected();
        drop(first);
        let again = metrics.image(&spec("a"));
        again.connected();
        assert_eq!(again.connections.load(Ordering::Relaxed), 2);
        assert_eq!(again.connections_now.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn images_that_nobody_uses_are_forgotten_when_there_are_too_many() {
        let metrics = ServeMetrics::default();
        let in_use = metrics.image(&spec("0"));
        for number in 1..3 * MAX_IMAGES {
            metrics.image(&spec(&number.to_string()));
        }
        let kept = metrics.images();
        assert_eq!(kept.len(), MAX_IMAGES);
        assert!(kept.iter().any(|image| Arc::ptr_eq(image, &in_use)));
    }
}
