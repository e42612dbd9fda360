//! A block device that counts and times what passes through it, and changes nothing. An attempt of a request that is held for
//! want of space is none; the one that succeeds, or fails in another way, is counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use ferry_nbd::{BlockDevice, BlockSizes, DeviceError, Extent, OnNoSpace, QuickRead, ReadExtent};

use super::{ImageMetrics, Kind};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct MeteredDevice<D> {
    inner: Arc<D>,
    metrics: Arc<ImageMetrics>,
    on_no_space: OnNoSpace,
}

impl<D: BlockDevice> MeteredDevice<D> {
    pub(crate) fn new(inner: Arc<D>, metrics: Arc<ImageMetrics>, on_no_space: OnNoSpace) -> Self {
        Self {
            inner,
            metrics,
            on_no_space,
        }
    }

    fn is_held<T>(&self, result: &Result<T, DeviceError>) -> bool {
        self.on_no_space == OnNoSpace::Pause && result.as_ref().is_err_and(DeviceError::is_out_of_space)
    }

    /// Counts a change, unless it will be made again.
    fn changed(
        &self,
        waiting: Waiting<'_>,
        length_bytes: u64,
        result: Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        match self.is_held(&result) {
            true => result,
            false => waiting.ended(length_bytes, result),
        }
    }

    /// Counts a request that may wait; the answer is counted by [`Waiting::ended`].
    fn waiting(&self, kind: Kind) -> Waiting<'_> {
        self.metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        Waiting {
            metrics: &self.metrics,
            kind,
            began: Instant::now(),
        }
    }
}

impl ImageMetrics {
    fn count<T>(&self, kind: Kind, began: Instant, result: &Result<T, DeviceError>, length_bytes: u64) {
        let counters = self.kind(kind);
        counters.latency.record(began.elapsed());
        match (result, kind) {
            (Err(_), _) => {
                counters.errors.fetch_add(1, Ordering::Relaxed);
            }
            (Ok(_), Kind::Read) => {
                self.read_bytes.fetch_add(length_bytes, Ordering::Relaxed);
            }
            (Ok(_), Kind::Write) => {
                self.written_bytes.fetch_add(length_bytes, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// A request under way. One that is dropped was cut off by a shutdown and has no answer to count.
struct Waiting<'a> {
    metrics: &'a ImageMetrics,
    kind: Kind,
    began: Instant,
}

impl Waiting<'_> {
    fn ended<T>(self, length_bytes: u64, result: Result<T, DeviceError>) -> Result<T, DeviceError> {
        self.metrics.count(self.kind, self.began, &result, length_bytes);
        result
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl<D: BlockDevice> BlockDevice for MeteredDevice<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.inner.block_sizes()
    }

    fn can_multi_conn(&self) -> bool {
        self.inner.can_multi_conn()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        let waiting = self.waiting(Kind::Read);
        waiting.ended(length.into(), self.inner.read(offset, length).await)
    }

    async fn read_sparse(&self, offset: u64, length: u32) -> Result<Vec<ReadExtent>, DeviceError> {
        let waiting = self.waiting(Kind::Read);
        waiting.ended(length.into(), self.inner.read_sparse(offset, length).await)
    }

    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<QuickRead, DeviceError>> {
        let began = Instant::now();
        let length_bytes = out.len() as u64;
        let result = self.inner.try_read(offset, out)?;
        self.metrics.count(Kind::Read, began, &result, length_bytes);
        Some(result)
    }

    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Option<Result<(), DeviceError>> {
        let began = Instant::now();
        let result = self.inner.try_write(offset, data, fua)?;
        if self.is_held(&result) {
            return Some(result);
        }
        self.metrics.count(Kind::Write, began, &result, data.len() as u64);
        Some(result)
    }

    fn flush_here(&self) -> Option<Result<(), DeviceError>> {
        let began = Instant::now();
        let result = self.inner.flush_here()?;
        if self.is_held(&result) {
            return Some(result);
        }
        self.metrics.count(Kind::Flush, began, &result, 0);
        Some(result)
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        let waiting = self.waiting(Kind::Write);
        let length_bytes = data.len() as u64;
        let written = self.inner.write(offset, data, fua).await;
        self.changed(waiting, length_bytes, written)
    }

    async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        let waiting = self.waiting(Kind::Trim);
        let trimmed = self.inner.trim(offset, length_bytes, fua).await;
        self.changed(waiting, length_bytes, trimmed)
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        let waiting = self.waiting(Kind::WriteZeroes);
        let zeroed = self.inner.write_zeroes(offset, length_bytes, no_hole, fua).await;
        self.changed(waiting, length_bytes, zeroed)
    }

    fn is_fast_zero(&self, offset: u64, length_bytes: u64, no_hole: bool) -> bool {
        self.inner.is_fast_zero(offset, length_bytes, no_hole)
    }

    async fn cache(&self, offset: u64, length_bytes: u64) -> Result<(), DeviceError> {
        let waiting = self.waiting(Kind::Cache);
        waiting.ended(length_bytes, self.inner.cache(offset, length_bytes).await)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let waiting = self.waiting(Kind::Flush);
        let flushed = self.inner.flush().await;
        self.changed(waiting, 0, flushed)
    }

    async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        let waiting = self.waiting(Kind::BlockStatus);
        let result = self.inner.block_status(offset, length_bytes, max_extents).await;
        waiting.ended(length_bytes, result)
    }
}

#[cfg(test)]
mod tests {
    use ferry_nbd::testing::{Fault, MemoryDevice, Operation};
    use ferry_nbd::{DeviceError, Errno};

    use super::super::ServeMetrics;
    use super::super::render::render;
    use super::*;
    use crate::spec::ImageSpec;

    /// The value of a series in the text.
    fn value(metrics: &Arc<ServeMetrics>, series: &str) -> Option<f64> {
        let text = render(metrics).unwrap();
        assert!(text.ends_with("# EOF\n"), "{text}");
        let line = text.lines().find_map(|line| line.strip_prefix(series))?;
        Some(line.trim().parse().unwrap())
    }

    #[tokio::test]
    async fn every_request_is_counted_once_with_its_bytes_and_its_failure() {
        let metrics = Arc::<ServeMetrics>::default();
        let spec = ImageSpec {
            pool: "p".into(),
            namespace: "n".into(),
            image: "a \"b\"".into(),
            snap: None,
        };
        let memory = Arc::new(MemoryDevice::new(1 << 20));
        let device = MeteredDevice::new(Arc::clone(&memory), metrics.image(&spec), OnNoSpace::Fail);
        device.read_sparse(0, 4096).await.unwrap();
        device.read(0, 1024).await.unwrap();
        device
            .write(0, Bytes::from_static(&[1; 512]), false)
            .await
            .unwrap();
        device.flush().await.unwrap();
        device.trim(0, 512, false).await.unwrap();
        device.write_zeroes(0, 512, false, false).await.unwrap();
        device.cache(0, 4096).await.unwrap();
        device.block_status(0, 4096, 8).await.unwrap();
        memory.inject(
            Operation::Read,
            Fault::Error(DeviceError::new(Errno::Io, "as ordered")),
        );
        device.read_sparse(0, 4096).await.unwrap_err();

        let image = r#"pool="p",namespace="n",image="a \"b\"",snapshot="""#;
        let of_image = |name: &str| value(&metrics, &format!("ferry_image_{name}{{{image}}}"));
        let of_kind = |name: &str, kind: &str| {
            value(
                &metrics,
                &format!("ferry_image_{name}{{{image},operation=\"{kind}\"}}"),
            )
        };
        assert_eq!(of_kind("requests_total", "read"), Some(3.0));
        assert_eq!(of_kind("request_errors_total", "read"), Some(1.0));
        assert_eq!(of_kind("request_duration_seconds_count", "read"), Some(3.0));
        for kind in ["write", "flush", "trim", "write_zeroes", "cache", "block_status"] {
            assert_eq!(of_kind("requests_total", kind), Some(1.0), "{kind}");
            assert_eq!(of_kind("request_errors_total", kind), Some(0.0), "{kind}");
        }
        assert_eq!(
            of_image("read_bytes_total"),
            Some(5120.0),
            "failed reads gave none"
        );
        assert_eq!(of_image("written_bytes_total"), Some(512.0));
        assert_eq!(of_image("requests_in_flight"), Some(0.0));
        assert_eq!(of_image("source_reads_total"), Some(0.0));
        // All of a histogram is in its last bucket.
        let last =
            format!("ferry_image_request_duration_seconds_bucket{{le=\"+Inf\",{image},operation=\"read\"}}");
        assert_eq!(value(&metrics, &last), Some(3.0));
    }

    #[tokio::test]
    async fn attempts_of_a_request_that_is_held_are_no_failed_requests() {
        let metrics = Arc::<ServeMetrics>::default();
        let spec = ImageSpec {
            pool: "p".into(),
            namespace: String::new(),
            image: "a".into(),
            snap: None,
        };
        let series = r#"ferry_image_request_errors_total{pool="p",namespace="",image="a",snapshot="",operation="write"}"#;
        for (on_no_space, errors) in [(OnNoSpace::Pause, 0.0), (OnNoSpace::Fail, 1.0)] {
            let memory = Arc::new(MemoryDevice::new(4096));
            let device = MeteredDevice::new(Arc::clone(&memory), metrics.image(&spec), on_no_space);
            memory.inject(
                Operation::Write,
                Fault::Error(DeviceError::out_of_space("as ordered")),
            );
            device
                .write(0, Bytes::from_static(&[1; 512]), false)
                .await
                .unwrap_err();
            assert_eq!(value(&metrics, series), Some(errors), "{on_no_space:?}");
        }
    }

    #[tokio::test]
    async fn a_request_under_way_is_in_flight_until_it_ends_or_is_dropped() {
        let metrics = Arc::<ServeMetrics>::default();
        let spec = ImageSpec {
            pool: "p".into(),
            namespace: String::new(),
            image: "a".into(),
            snap: None,
        };
        let memory = Arc::new(MemoryDevice::new(4096));
        let device = MeteredDevice::new(memory, metrics.image(&spec), OnNoSpace::Fail);
        let waiting = device.waiting(Kind::Flush);
        let series = r#"ferry_image_requests_in_flight{pool="p",namespace="",image="a",snapshot=""}"#;
        assert_eq!(value(&metrics, series), Some(1.0));
        drop(waiting);
        assert_eq!(value(&metrics, series), Some(0.0));
    }
}
