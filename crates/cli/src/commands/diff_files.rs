//! `rbd export-diff`, `rbd import-diff` and `rbd merge-diff`.

use ferry_image::admin::export_diff;
use ferry_image::admin::import::DEFAULT_SPARSE_SIZE_BYTES;
use ferry_image::admin::import_diff::{self, ImportDiffError, Obstacle};
use ferry_image::export_format::merge::{MergeError, MergeStep, merge as merge_diffs};
use ferry_image::{ErrorKind, ImageError, OpenOptions, SnapKey};
use ferry_store::Errno;

use super::diff::from_snap;
use super::error::Explain as _;
use super::session::Session;
use super::transfer::{EXPORTING, end_of_export, read_in, tell, write_out};
use crate::exit::Failure;
use crate::spec::{ImageQuery, SnapRule};

/// What Ceph's `merge-diff` exits with for a file that ends too early.
const EDOM: i32 = 33;

pub(super) async fn export(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let mut spec = args.image(ImageQuery::source().snap(SnapRule::Optional))?;
    let path = args.path()?.to_owned();
    args.finish()?;
    let options = match spec.snap.take() {
        Some(snap) => OpenOptions::read_only().at(SnapKey::Name(snap)),
        None => OpenOptions::read_only(),
    };
    let image = session.image(&spec, options).await?;
    let task = session.bytes_task(EXPORTING);
    let progress = task.library();
    let exported = match from_snap(args, &image) {
        Ok(from) => {
            let whole_object = args.flag("whole-object");
            write_out(&path, async |out| {
                export_diff::export_diff(&image, from, whole_object, out, &progress).await
            })
            .await
        }
        Err(error) => Err(error),
    };
    end_of_export(task, exported, "export-diff error")
}

pub(super) async fn import(session: &Session) -> Result<(), Failure> {
    const WHAT: &str = "import-diff failed";
    let args = session.args();
    let path = args.path()?.to_owned();
    let spec = args.image(ImageQuery::source())?;
    args.finish()?;
    let unit = args
        .size_bytes("sparse-size")
        .unwrap_or(DEFAULT_SPARSE_SIZE_BYTES);
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    if path != "-"
        && let Err(error) = std::fs::metadata(&path)
    {
        eprintln!("rbd: error opening {path}");
        return Err(Failure::errno(
            WHAT,
            error.raw_os_error().unwrap_or(crate::exit::EIO),
        ));
    }
    let task = session.bytes_task("Importing image diff");
    let progress = task.library();
    let imported = read_in(&path, async |input| {
        import_diff::import_diff(&image, input, unit, &progress).await
    })
    .await;
    if let Err(ImportDiffError {
        obstacle: Some(obstacle),
        ..
    }) = &imported
    {
        match obstacle {
            Obstacle::StartMissing(snap) => {
                eprintln!("start snapshot '{snap}' does not exist in the image, aborting");
            }
            Obstacle::EndExists(snap) => eprintln!("end snapshot '{snap}' already exists, aborting"),
        }
    }
    let imported = task.end(imported);
    let noticed = imported.map_err(|ImportDiffError { obstacle, error }| match obstacle {
        Some(_) => Failure::errno(WHAT, error.errno.0),
        None => error.failed(WHAT),
    })?;
    tell(&noticed);
    Ok(())
}

pub(super) async fn merge(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let first = args.positional("first diff")?.to_owned();
    let second = args.positional("second diff")?.to_owned();
    let path = args.path()?.to_owned();
    args.finish()?;
    let task = session.bytes_task("Merging image diff");
    let progress = task.library();
    // Ceph's order: what can't be opened is told before anything is made.
    let unopened = [&first, &second].into_iter().find_map(|name| {
        let missing = |name: &String| std::fs::metadata(name).err();
        (name != "-")
            .then(|| missing(name))
            .flatten()
            .map(|error| (name, error))
    });
    if let Some((name, error)) = unopened {
        eprintln!("rbd: error opening {name}");
        let failed = Err(error.raw_os_error().unwrap_or(crate::exit::EIO));
        return task
            .end(failed)
            .map_err(|errno| Failure::message("rbd: merge-diff error", errno));
    }
    let mut step = None;
    let merged = write_out(&path, async |out| {
        read_in(&first, async |one| {
            read_in(&second, async |other| {
                merge_diffs(one, other, out, &progress).await.map_err(Failed)
            })
            .await
        })
        .await
        .map_err(|Failed(MergeError { during, error })| {
            step = Some(during);
            error
        })
    })
    .await;
    let Err(error) = &merged else {
        return task.end(merged).map_err(|error| error.failed("merge-diff error"));
    };
    match step {
        Some(step) => eprintln!("{}", line(step, error)),
        None => eprintln!("rbd: error create {path}"),
    }
    let errno = match (error.kind, error.errno) {
        (ErrorKind::Damaged, Errno::EBADMSG) => EDOM,
        (_, errno) => errno.0,
    };
    let note = error.note();
    let failure = Failure::message("rbd: merge-diff error", errno);
    task.end(merged)
        .map_err(|_| note.map_or(failure.clone(), |note| failure.with_line(note)))
}

/// So that what goes wrong in opening a file has a step too.
struct Failed(MergeError);

impl From<ImageError> for Failed {
    fn from(error: ImageError) -> Self {
        Self(MergeError {
            during: MergeStep::FirstHead,
            error,
        })
    }
}

fn line(step: MergeStep, error: &ImageError) -> String {
    let text = match step {
        MergeStep::FirstHead => "rbd: failed to parse first diff header",
        MergeStep::SecondHead => "rbd: failed to parse second diff header",
        MergeStep::Match => "The first TO snapshot must be equal with the second FROM snapshot, aborting",
        MergeStep::Write => "rbd: failed to write merged diff header",
        MergeStep::FirstRun => "rbd: failed to read first diff data chunk header",
        MergeStep::SecondRun => "rbd: failed to read second diff data chunk header",
        MergeStep::FirstOrder | MergeStep::SecondOrder => return format!("rbd: {}", error.message),
        MergeStep::Data => "rbd: failed to merge diff chunk",
    };
    text.to_owned()
}
