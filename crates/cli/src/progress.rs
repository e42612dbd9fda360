//! Progress of long work on stderr.
//!
//! A command body makes one [`Progress`], hands `progress.update(done, total)` to the library as its callback (it is
//! `Send + Sync` and cheap when nothing changes), and ends with [`Progress::finish`] or [`Progress::fail`]:
//!
//! ```
//! use ferry_cli::progress::{Progress, ProgressOptions, Unit};
//!
//! let progress = Progress::new("Image migration", ProgressOptions { no_progress: true, unit: Unit::Items });
//! for done in 0..=10 {
//!     progress.update(done, 10);
//! }
//! progress.finish();
//! ```
//!
//! * on a terminal: a bar with rate and remaining time;
//! * piped: `\r<Task>: N% complete...`, only when the percentage grows, then `...done.` or `...failed.`;
//! * with `--no-progress`: nothing.
//!
//! Invariants: the percentage never goes back, exactly one end line is written (a value dropped without an end counts
//! as failed, so that the terminal's line is never left open), and a broken stderr is ignored.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};

/// What `done` and `total` count; only the bar on a terminal shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unit {
    /// Objects, snapshots, images.
    #[default]
    Items,
    /// Bytes: the bar shows MiB/s.
    Bytes,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProgressOptions {
    /// `--no-progress`: stay silent.
    pub no_progress: bool,
    /// What is counted.
    pub unit: Unit,
}

/// How far work is in bytes, for the bar on a terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ByteDetail {
    /// Bytes dealt with.
    pub done: u64,
    /// Bytes to come.
    pub left: u64,
    /// What stands behind the bar.
    pub text: String,
}

/// A task whose progress is shown. See the module's text for how to use it.
pub struct Progress {
    task: String,
    /// Highest percentage so far; ENDED once the end line is written.
    percent: AtomicU64,
    /// Whether the bar shows what [`Progress::detail`] says.
    detailed: AtomicBool,
    mode: Mode,
}

enum Mode {
    Silent,
    Bar(ProgressBar),
    Classic(Mutex<Box<dyn Write + Send>>),
}

const ENDED: u64 = u64::MAX;

impl Progress {
    /// Starts a task, e.g. `Image migration`, in the form that suits stderr.
    pub fn new(task: &str, options: ProgressOptions) -> Self {
        let mode = if options.no_progress {
            Mode::Silent
        } else if io::stderr().is_terminal() {
            Mode::Bar(bar(task, options.unit))
        } else {
            Mode::Classic(Mutex::new(Box::new(io::stderr())))
        };
        Self::with_mode(task, mode)
    }

    /// Starts a task whose classic lines go to `sink`, whatever stderr is.
    pub fn to_sink(task: &str, sink: Box<dyn Write + Send>) -> Self {
        Self::with_mode(task, Mode::Classic(Mutex::new(sink)))
    }

    fn with_mode(task: &str, mode: Mode) -> Self {
        Self {
            task: task.to_owned(),
            percent: AtomicU64::new(0),
            detailed: AtomicBool::new(false),
            mode,
        }
    }

    /// Reports that `done` of `total` units are finished. May come from any thread, in any order; `total` may change.
    pub fn update(&self, done: u64, total: u64) {
        if let Mode::Bar(bar) = &self.mode {
            if self.percent.load(Ordering::Relaxed) != ENDED && !self.detailed.load(Ordering::Relaxed) {
                bar.set_length(total);
                bar.set_position(done.min(total).max(bar.position().min(total)));
            }
            return;
        }
        let percent = percentage(done, total);
        let Mode::Classic(sink) = &self.mode else { return };
        if percent <= self.percent.load(Ordering::Relaxed) {
            return;
        }
        // The lock makes "raise and print" one step, so lines from several threads stay in order.
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        if percent > self.percent.load(Ordering::Relaxed) {
            self.percent.store(percent, Ordering::Relaxed);
            let _ = write!(sink, "\r{}: {percent}% complete...", self.task).and_then(|()| sink.flush());
        }
    }

    /// Shows bytes and a text of the work's own on the bar, in place of the counts of [`Progress::update`]. Piped, nothing.
    pub fn detail(&self, detail: &ByteDetail) {
        let Mode::Bar(bar) = &self.mode else { return };
        if self.percent.load(Ordering::Relaxed) == ENDED {
            return;
        }
        if !self.detailed.swap(true, Ordering::Relaxed) {
            bar.set_style(style("{msg}: {percent:>3}% [{bar:30}] {prefix}"));
        }
        bar.set_prefix(detail.text.clone());
        bar.set_length(detail.done.saturating_add(detail.left).max(1));
        bar.set_position(detail.done);
    }

    /// The task succeeded. Later calls do nothing.
    pub fn finish(&self) {
        self.end("100% complete...done.");
    }

    /// The task failed. Later calls do nothing.
    pub fn fail(&self) {
        let percent = match &self.mode {
            Mode::Bar(bar) => percentage(bar.position(), bar.length().unwrap_or(0)),
            _ => self.percent.load(Ordering::Relaxed),
        };
        self.end(&format!("{percent}% complete...failed."));
    }

    /// The task never began: no line at all. Later calls do nothing.
    pub fn abandon(&self) {
        self.percent.store(ENDED, Ordering::Relaxed);
        if let Mode::Bar(bar) = &self.mode {
            bar.finish_and_clear();
        }
    }

    fn end(&self, line: &str) {
        if self.percent.swap(ENDED, Ordering::Relaxed) == ENDED {
            return;
        }
        match &self.mode {
            Mode::Silent => {}
            Mode::Bar(bar) => {
                bar.finish_and_clear();
                let _ = writeln!(io::stderr(), "{}: {line}", self.task);
            }
            Mode::Classic(sink) => {
                let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = writeln!(sink, "\r{}: {line}", self.task).and_then(|()| sink.flush());
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.fail();
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}

fn percentage(done: u64, total: u64) -> u64 {
    if total == 0 {
        return 0;
    }
    // The quotient is at most 100, so the cast loses nothing.
    (u128::from(done.min(total)) * 100 / u128::from(total)) as u64
}

fn bar(task: &str, unit: Unit) -> ProgressBar {
    let template = match unit {
        Unit::Items => "{msg}: {percent:>3}% [{bar:30}] {human_pos}/{human_len} {per_sec} eta {eta}",
        Unit::Bytes => {
            "{msg}: {percent:>3}% [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}"
        }
    };
    ProgressBar::new(0)
        .with_style(style(template))
        .with_message(task.to_owned())
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn piped_progress_is_byte_for_byte_the_classic_one() {
        let sink = Sink::default();
        let progress = Progress::to_sink("Creating snap", Box::new(sink.clone()));
        progress.update(1, 10);
        progress.update(1, 10);
        progress.finish();
        progress.fail();
        drop(progress);
        assert_eq!(
            sink.text(),
            "\rCreating snap: 10% complete...\rCreating snap: 100% complete...done.\n"
        );
    }

    #[test]
    fn failure_repeats_the_last_percentage() {
        let sink = Sink::default();
        let progress = Progress::to_sink("Creating snap", Box::new(sink.clone()));
        progress.update(1, 10);
        progress.fail();
        assert_eq!(
            sink.text(),
            "\rCreating snap: 10% complete...\rCreating snap: 10% complete...failed.\n"
        );
    }

    #[test]
    fn dropping_an_unfinished_task_closes_its_line_as_failed() {
        let sink = Sink::default();
        drop(Progress::to_sink("Removing image", Box::new(sink.clone())));
        assert_eq!(sink.text(), "\rRemoving image: 0% complete...failed.\n");
    }

    #[test]
    fn late_and_odd_updates_never_go_back() {
        let sink = Sink::default();
        let progress = Progress::to_sink("T", Box::new(sink.clone()));
        progress.update(50, 100);
        progress.update(20, 100);
        progress.update(7, 0);
        progress.update(u64::MAX, u64::MAX);
        progress.update(500, 100);
        progress.finish();
        assert_eq!(
            sink.text(),
            "\rT: 50% complete...\rT: 100% complete...\rT: 100% complete...done.\n"
        );
    }

    #[test]
    fn callbacks_from_many_threads_print_each_percentage_once() {
        let sink = Sink::default();
        let progress = Progress::to_sink("T", Box::new(sink.clone()));
        std::thread::scope(|scope| {
            for offset in 0..4 {
                let progress = &progress;
                scope.spawn(move || (0..250).for_each(|step| progress.update(step * 4 + offset + 1, 1000)));
            }
        });
        progress.finish();
        let shown: Vec<u64> = sink
            .text()
            .split('\r')
            .filter(|part| part.ends_with("...") && !part.is_empty())
            .map(|part| {
                part.trim_start_matches("T: ")
                    .split('%')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        assert!(shown.windows(2).all(|pair| pair[0] < pair[1]), "{shown:?}");
        assert_eq!(shown.last(), Some(&100));
    }

    #[test]
    fn silent_progress_prints_nothing_and_bars_can_be_driven() {
        let silent = Progress::new(
            "T",
            ProgressOptions {
                no_progress: true,
                unit: Unit::Bytes,
            },
        );
        silent.update(1, 2);
        silent.finish();
        for unit in [Unit::Items, Unit::Bytes] {
            let hidden = bar("T", unit);
            hidden.set_draw_target(indicatif::ProgressDrawTarget::hidden());
            let progress = Progress::with_mode("T", Mode::Bar(hidden));
            progress.update(5, 10);
            progress.update(3, 10);
            let Mode::Bar(bar) = &progress.mode else { panic!() };
            assert_eq!((bar.position(), bar.length()), (5, Some(10)));
            let detail = ByteDetail {
                done: 30,
                left: 70,
                text: "copied 30 B".into(),
            };
            progress.detail(&detail);
            progress.update(6, 10);
            assert_eq!((bar.position(), bar.length()), (30, Some(100)));
            assert_eq!(bar.prefix(), detail.text);
            progress.finish();
        }
    }
}
