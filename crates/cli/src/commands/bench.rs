//! `rbd bench`: keeps a number of requests in flight and counts.
//!
//! Offsets follow Ceph's patterns: `seq` gives every request in flight its own part of the image to go through in order,
//! `full-seq` goes through the image once with all of them together, `rand` takes any block.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_image::io::write::MAX_WRITE_BYTES;
use ferry_image::{Image, OpenOptions};
use futures::stream::{FuturesUnordered, StreamExt as _};
use rand::{Rng as _, RngExt as _};

use super::error::Explain as _;
use super::session::{Session, say};
use crate::exit::{EINVAL, Failure};
use crate::output::bytes;
use crate::spec::ImageQuery;

/// Most requests in flight.
const MAX_IO_THREADS: u64 = 4096;
/// Most bytes in flight.
const MAX_IN_FLIGHT_BYTES: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Random,
    Sequential,
    FullSequential,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Mixed { read_percent: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    kind: Kind,
    pattern: Pattern,
    io_size_bytes: u64,
    io_threads: u64,
    total_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    reads: u64,
    writes: u64,
}

impl Counts {
    fn ops(self) -> u64 {
        self.reads + self.writes
    }
}

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    args.finish()?;
    let plan = plan(session)?;
    let options = match plan.kind {
        Kind::Read => OpenOptions::read_only(),
        _ => OpenOptions::read_write(),
    };
    let image = session.image(&spec, options).await?;
    if image.size_bytes() < plan.io_size_bytes {
        return Err(Failure::errno("bench failed", EINVAL).with_line(format_args!(
            "rbd: note: image {} is smaller than one request of {}",
            spec.image,
            bytes(plan.io_size_bytes)
        )));
    }
    if plan.kind != Kind::Read {
        // A client that flushes, as everything that is measured does: its writes may be acknowledged early.
        image
            .flush()
            .await
            .map_err(|error| error.failed("bench failed"))?;
    }
    say(&heading(&plan))?;
    let started = Instant::now();
    let counts = work(&image, &plan, started).await?;
    if plan.kind != Kind::Read {
        image
            .flush()
            .await
            .map_err(|error| error.failed("bench failed"))?;
    }
    say(&summary(&plan, counts, started.elapsed()))
}

fn plan(session: &Session) -> Result<Plan, Failure> {
    let args = session.args();
    let kind = match args.text("io-type") {
        Some("read") => Kind::Read,
        Some("write") => Kind::Write,
        _ => Kind::Mixed {
            read_percent: args.number("rw-mix-read").unwrap_or(50),
        },
    };
    if args.number("rw-mix-read").is_some() && !matches!(kind, Kind::Mixed { .. }) {
        return Err(Failure::invalid("--rw-mix-read is for --io-type readwrite"));
    }
    let plan = Plan {
        kind,
        pattern: match args.text("io-pattern") {
            Some("rand") => Pattern::Random,
            Some("full-seq") => Pattern::FullSequential,
            _ => Pattern::Sequential,
        },
        io_size_bytes: args.size_bytes("io-size").unwrap_or(4096),
        io_threads: args.number("io-threads").unwrap_or(16),
        total_bytes: args.size_bytes("io-total").unwrap_or(1 << 30),
    };
    let bounds = [
        ("io-size", plan.io_size_bytes, MAX_WRITE_BYTES),
        ("io-threads", plan.io_threads, MAX_IO_THREADS),
        ("io-total", plan.total_bytes, u64::MAX),
        (
            "io-size times io-threads",
            plan.io_size_bytes.saturating_mul(plan.io_threads),
            MAX_IN_FLIGHT_BYTES,
        ),
    ];
    for (what, value, most) in bounds {
        if value == 0 || value > most {
            return Err(Failure::invalid(format_args!("{what} must be from 1 to {most}")));
        }
    }
    Ok(plan)
}

fn heading(plan: &Plan) -> String {
    let kind = match plan.kind {
        Kind::Read => "read".to_owned(),
        Kind::Write => "write".to_owned(),
        Kind::Mixed { read_percent } => format!("readwrite read:write={read_percent}:{}", 100 - read_percent),
    };
    let pattern = match plan.pattern {
        Pattern::Random => "random",
        Pattern::Sequential => "sequential",
        Pattern::FullSequential => "full sequential",
    };
    format!(
        "bench  type {kind} io_size {} io_threads {} bytes {} pattern {pattern}\n  SEC       OPS   OPS/SEC   BYTES/SEC\n",
        plan.io_size_bytes, plan.io_threads, plan.total_bytes
    )
}

/// Where each request in flight goes next.
struct Offsets {
    plan: Plan,
    size_bytes: u64,
    next: Vec<u64>,
    /// Requests of all together so far.
    taken: u64,
}

impl Offsets {
    fn new(plan: Plan, size_bytes: u64) -> Self {
        let mut offsets = Self {
            plan,
            size_bytes,
            next: Vec::new(),
            taken: 0,
        };
        offsets.next = (0..plan.io_threads).map(|slot| offsets.start(slot)).collect();
        offsets
    }

    fn start(&self, slot: u64) -> u64 {
        let blocks = self.size_bytes / self.plan.io_size_bytes;
        let block = match self.plan.pattern {
            Pattern::Random => rand::rng().random_range(0..blocks),
            Pattern::Sequential => blocks / self.plan.io_threads * slot,
            Pattern::FullSequential => slot % blocks,
        };
        block * self.plan.io_size_bytes
    }

    fn take(&mut self, slot: u64) -> u64 {
        if self.plan.pattern == Pattern::FullSequential {
            // Not each in steps of its own: whoever is faster would get ahead of the others.
            let offset = self.start(self.taken);
            self.taken += 1;
            return offset;
        }
        let index = slot as usize;
        let offset = self.next[index];
        let step = match self.plan.pattern {
            Pattern::Sequential => self.plan.io_size_bytes,
            _ => self.size_bytes,
        };
        let next = offset.saturating_add(step);
        let fits = next.saturating_add(self.plan.io_size_bytes) <= self.size_bytes;
        self.next[index] = if fits { next } else { self.start(slot) };
        offset
    }
}

async fn work(image: &Image, plan: &Plan, started: Instant) -> Result<Counts, Failure> {
    let requests = plan.total_bytes.div_ceil(plan.io_size_bytes);
    let mut offsets = Offsets::new(*plan, image.size_bytes());
    let mut block = vec![0; plan.io_size_bytes as usize];
    rand::rng().fill_bytes(&mut block);
    let block = Bytes::from(block);
    let mut counts = Counts::default();
    // Not tasks: requests that wait for a store need no threads to wait on, and each would be woken on its own.
    let mut in_flight = FuturesUnordered::new();
    let mut begun = 0;
    let mut last_line = Instant::now();
    let mut last_counts = counts;
    let mut free: Vec<u64> = (0..plan.io_threads).rev().collect();
    loop {
        while begun < requests
            && let Some(slot) = free.pop()
        {
            begun += 1;
            let reads = match plan.kind {
                Kind::Read => true,
                Kind::Write => false,
                Kind::Mixed { read_percent } => rand::rng().random_range(0..100) < read_percent,
            };
            let (image, block, offset) = (image.clone(), block.clone(), offsets.take(slot));
            in_flight.push(async move {
                let done = if reads {
                    image.read(offset, block.len() as u64).await.map(|_| ())
                } else {
                    image.write(offset, block).await
                };
                (slot, reads, done)
            });
        }
        let Some((slot, reads, done)) = in_flight.next().await else {
            return Ok(counts);
        };
        done.map_err(|error| error.failed("bench failed"))?;
        free.push(slot);
        if reads {
            counts.reads += 1;
        } else {
            counts.writes += 1;
        }
        let since = last_line.elapsed();
        if since >= Duration::from_secs(1) {
            let ops = counts.ops() - last_counts.ops();
            let per_second = ops as f64 / since.as_secs_f64();
            say(&format!(
                "{:>5}{:>10}{:>10}{:>10}/s\n",
                started.elapsed().as_secs(),
                counts.ops(),
                significant(per_second),
                bytes((per_second * plan.io_size_bytes as f64) as u64),
            ))?;
            last_line = Instant::now();
            last_counts = counts;
        }
    }
}

fn summary(plan: &Plan, counts: Counts, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rates = |ops: u64| {
        let per_second = ops as f64 / seconds;
        let bytes_per_second = (ops * plan.io_size_bytes) as f64 / seconds;
        (significant(per_second), bytes(bytes_per_second as u64))
    };
    let (ops_rate, bytes_rate) = rates(counts.ops());
    let mut text = format!(
        "elapsed: {}   ops: {}   ops/sec: {ops_rate}   bytes/sec: {bytes_rate}/s\n",
        elapsed.as_secs(),
        counts.ops(),
    );
    if matches!(plan.kind, Kind::Mixed { .. }) {
        for (name, ops) in [("read", counts.reads), ("write", counts.writes)] {
            let (ops_rate, bytes_rate) = rates(ops);
            text.push_str(&format!(
                "{name}_ops: {ops}   {name}_ops/sec: {ops_rate}   {name}_bytes/sec: {bytes_rate}/s\n"
            ));
        }
    }
    text
}

/// Six significant digits without trailing zeros, as C++ streams print a number.
fn significant(value: f64) -> String {
    if !value.is_finite() {
        return "inf".to_owned();
    }
    let exponent = if value == 0.0 {
        0
    } else {
        value.abs().log10().floor() as i32
    };
    if !(-4..6).contains(&exponent) {
        let text = format!("{value:.5e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        let exponent: i32 = exponent.parse().unwrap_or(0);
        return format!(
            "{digits}e{}{:02}",
            if exponent < 0 { '-' } else { '+' },
            exponent.abs()
        );
    }
    let decimals = usize::try_from(5 - exponent).unwrap_or(0);
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_in_c_plus_plus() {
        for (value, text) in [
            (4000.0, "4000"),
            (592.5926, "592.593"),
            (5039.3701, "5039.37"),
            (0.5, "0.5"),
            (0.0, "0"),
            (1_234_567.0, "1.23457e+06"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(significant(value), text);
        }
    }

    #[test]
    fn offsets_stay_inside_and_follow_their_pattern() {
        let plan = |pattern| Plan {
            kind: Kind::Read,
            pattern,
            io_size_bytes: 4096,
            io_threads: 4,
            total_bytes: 1 << 20,
        };
        for pattern in [Pattern::Random, Pattern::Sequential, Pattern::FullSequential] {
            for size_bytes in [4096, 10_000, 1 << 20] {
                let mut offsets = Offsets::new(plan(pattern), size_bytes);
                for n in 0..2000 {
                    assert!(
                        offsets.take(n % 4) + 4096 <= size_bytes,
                        "{pattern:?} {size_bytes}"
                    );
                }
            }
        }
        let mut offsets = Offsets::new(plan(Pattern::Sequential), 1 << 20);
        assert_eq!(
            (0..4).map(|slot| offsets.take(slot)).collect::<Vec<_>>(),
            [0, 1 << 18, 2 << 18, 3 << 18]
        );
        let mut offsets = Offsets::new(plan(Pattern::FullSequential), 1 << 20);
        assert_eq!(
            (0..5).map(|n| offsets.take(n % 4)).collect::<Vec<_>>(),
            [0, 4096, 8192, 12_288, 16_384]
        );
    }
}
