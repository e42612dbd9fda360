//! All counters as OpenMetrics text, which every Prometheus takes.
//!
//! Every series of an image carries its pool, namespace, image and snapshot; namespace and snapshot are empty for most.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferry_image::ImageStatsSnapshot;
use ferry_image::migration::execution::ExecuteProgress;
use ferry_image::stats::LatencySnapshot;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{ImageMetrics, Kind, ServeMetrics};
use crate::VERSION;

/// The media type of [`render`]'s text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const NS_PER_SECOND: f64 = 1e9;

/// All counters now.
///
/// # Errors
/// None that is known: the text grows in memory.
pub(super) fn render(metrics: &Arc<ServeMetrics>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(Arc::clone(metrics))));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// One look at everything.
#[derive(Debug)]
struct Scrape(Arc<ServeMetrics>);

type ImageLabels<'a> = [(&'static str, &'a str); 4];
type OperationLabels<'a> = [(&'static str, &'a str); 5];

/// Takes one figure out of the progress of an execute.
type ExecuteFigure = fn(&ExecuteProgress) -> u64;

fn labels(image: &ImageMetrics) -> ImageLabels<'_> {
    let spec = &image.spec;
    [
        ("pool", &spec.pool),
        ("namespace", &spec.namespace),
        ("image", &spec.image),
        ("snapshot", spec.snap.as_deref().unwrap_or_default()),
    ]
}

fn operation_labels(image: &ImageMetrics, kind: Kind) -> OperationLabels<'_> {
    let [pool, namespace, name, snapshot] = labels(image);
    [pool, namespace, name, snapshot, ("operation", kind.name())]
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        let server = &self.0.server;
        let version: [(&str, &str); 1] = [("version", VERSION)];
        out.gauge("ferry_build", "Version of the server", [(version, 1)])?;
        out.server(
            "ferry_connections",
            "NBD connections now, those in their handshake included",
            MetricType::Gauge,
            server.connections_now(),
        )?;
        out.server(
            "ferry_connections_accepted",
            "NBD connections that were served",
            MetricType::Counter,
            server.connections_served(),
        )?;
        out.server(
            "ferry_connections_refused",
            "NBD connections that were closed at once because there were too many",
            MetricType::Counter,
            server.connections_refused(),
        )?;
        out.server(
            "ferry_connections_put_out",
            "NBD connections that were ended in their handshake to make room for others",
            MetricType::Counter,
            server.connections_put_out(),
        )?;
        out.server(
            "ferry_requests_held",
            "Requests that wait for space now",
            MetricType::Gauge,
            server.requests_held_now(),
        )?;
        out.server(
            "ferry_requests_held_ever",
            "Requests that have waited for space, those that do now included",
            MetricType::Counter,
            server.requests_held(),
        )?;
        let images = self.0.images();
        out.images(&images)?;
        out.layers(&images)?;
        out.executes(&images)
    }
}

/// Writes one metric with all its series at a time.
struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    fn metric<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, &format!("{help}."), unit, kind)
    }

    /// Something of the server as a whole.
    fn server(&mut self, name: &str, help: &str, kind: MetricType, value: u64) -> fmt::Result {
        let mut metric = self.metric(name, help, None, kind)?;
        match kind {
            MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
            _ => metric.encode_gauge(&value),
        }
    }

    fn counter<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.metric(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.metric(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// `name` without its unit, which is seconds.
    fn histogram<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, LatencySnapshot)>,
    ) -> fmt::Result {
        let mut metric = self.metric(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, seen) in series {
            let buckets: Vec<(f64, u64)> = seen
                .buckets()
                .map(|(bound_ns, count)| {
                    let bound = bound_ns.map_or(f64::INFINITY, |ns| ns as f64 / NS_PER_SECOND);
                    (bound, count)
                })
                .collect();
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                seen.sum_ns() as f64 / NS_PER_SECOND,
                seen.count(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    /// What NBD clients did with the images.
    fn images(&mut self, images: &[Arc<ImageMetrics>]) -> fmt::Result {
        let of_images =
            |value: fn(&ImageMetrics) -> u64| images.iter().map(move |image| (labels(image), value(image)));
        let of_kinds = || {
            images
                .iter()
                .flat_map(|image| Kind::ALL.into_iter().map(move |kind| (image, kind)))
        };
        self.gauge(
            "ferry_image_connections",
            "NBD connections that use the image now",
            of_images(|image| load(&image.connections_now)),
        )?;
        self.counter(
            "ferry_image_connections_accepted",
            "NBD connections that used the image",
            of_images(|image| load(&image.connections)),
        )?;
        self.gauge(
            "ferry_image_requests_in_flight",
            "Requests that the image works on now",
            of_images(|image| load(&image.in_flight)),
        )?;
        self.counter(
            "ferry_image_read_bytes",
            "Bytes that clients have read, holes included",
            of_images(|image| load(&image.read_bytes)),
        )?;
        self.counter(
            "ferry_image_written_bytes",
            "Bytes that clients have written, without trims and zeroes",
            of_images(|image| load(&image.written_bytes)),
        )?;
        self.counter(
            "ferry_image_requests",
            "Requests that were answered, failed ones included",
            of_kinds().map(|(image, kind)| {
                (
                    operation_labels(image, kind),
                    image.kind(kind).latency.snapshot().count(),
                )
            }),
        )?;
        self.counter(
            "ferry_image_request_errors",
            "Requests that failed",
            of_kinds().map(|(image, kind)| (operation_labels(image, kind), load(&image.kind(kind).errors))),
        )?;
        self.histogram(
            "ferry_image_request_duration",
            "Requests, failed ones included, by the time from their start to their answer",
            // Of what nobody has asked for, a row of zeroes each would be most of the text.
            of_kinds()
                .map(|(image, kind)| (operation_labels(image, kind), image.kind(kind).latency.snapshot()))
                .filter(|(_, seen)| seen.count() > 0),
        )
    }

    /// What the image layer did for them.
    fn layers(&mut self, images: &[Arc<ImageMetrics>]) -> fmt::Result {
        let layers: Vec<(ImageLabels<'_>, ImageStatsSnapshot)> = images
            .iter()
            .map(|image| (labels(image), image.layer.lock().snapshot()))
            .collect();
        let of_layers = |value: fn(&ImageStatsSnapshot) -> u64| {
            layers.iter().map(move |(labels, layer)| (*labels, value(layer)))
        };
        self.counter(
            "ferry_image_source_reads",
            "Reads of objects that went to the source of a migration",
            of_layers(|layer| layer.source_reads),
        )?;
        self.counter(
            "ferry_image_source_read_bytes",
            "Bytes that reads asked the source of a migration for",
            of_layers(|layer| layer.source_read_bytes),
        )?;
        self.counter(
            "ferry_image_parent_reads",
            "Reads of objects that went to the parent of a clone",
            of_layers(|layer| layer.parent_reads),
        )?;
        self.counter(
            "ferry_image_parent_read_bytes",
            "Bytes that reads asked the parent of a clone for",
            of_layers(|layer| layer.parent_read_bytes),
        )?;
        self.counter(
            "ferry_image_copied_up_objects",
            "Objects copied from the source of a migration because a client changed them",
            of_layers(|layer| layer.copied_up_objects),
        )?;
        self.counter(
            "ferry_image_copied_up_bytes",
            "Bytes copied from the source of a migration because a client changed their object",
            of_layers(|layer| layer.copied_up_bytes),
        )?;
        self.histogram(
            "ferry_image_copy_up_wait",
            "Changes by clients that waited for such a copy, by the time they waited",
            layers
                .iter()
                .map(|(labels, layer)| (*labels, layer.copy_up_waits.clone())),
        )
    }

    /// How far migrations are whose copying is done by this server; others have no series.
    fn executes(&mut self, images: &[Arc<ImageMetrics>]) -> fmt::Result {
        let executes: Vec<(ImageLabels<'_>, ExecuteProgress)> = images
            .iter()
            .filter_map(|image| Some((labels(image), image.layer.lock().execute()?)))
            .collect();
        let gauges: [(&str, &str, ExecuteFigure); 9] = [
            ("objects", "Objects that the execute has to look at", |p| {
                p.objects_total
            }),
            ("objects_done", "Objects of them that are done", |p| {
                p.objects_done
            }),
            (
                "copied_bytes",
                "Bytes of data that the execute has written",
                |p| p.bytes_copied,
            ),
            ("skipped_bytes", "Bytes that needed no copy", |p| p.bytes_skipped),
            ("left_bytes", "Bytes of objects that are not done", |p| {
                p.bytes_left
            }),
            ("bytes_per_second", "Bytes written per second, lately", |p| {
                p.bytes_per_second
            }),
            ("paused", "1 while the execute waits to be resumed", |p| {
                p.paused.into()
            }),
            ("no_space", "1 while the execute waits for space", |p| {
                p.no_space.into()
            }),
            (
                "yielding",
                "1 while the execute copies little for the sake of clients",
                |p| p.yielding.into(),
            ),
        ];
        for (name, help, value) in gauges {
            let series = executes
                .iter()
                .map(|(labels, progress)| (*labels, value(progress)));
            self.gauge(&format!("ferry_image_execute_{name}"), help, series)?;
        }
        Ok(())
    }
}
