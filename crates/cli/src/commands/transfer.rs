//! `rbd export` and `rbd import`: bare images, and images with their snapshots (`--export-format 2`).
//!
//! `-` stands for stdout and stdin. A path without a directory part names the file; an image that is not named gets the
//! name of its file. What fails or is interrupted leaves neither a file nor an image.

use std::path::{Path, PathBuf};

use ferry_image::admin::{export, export_diff, import, import_diff};
use ferry_image::export_format::Input;
use ferry_image::{ErrorKind, ImageError, OpenOptions, SnapKey};
use ferry_store::Errno;
use tokio::io::{AsyncWrite, BufReader, BufWriter};

use super::create::{create_options, warn};
use super::error::Explain as _;
use super::session::{Session, Task};
use crate::exit::Failure;
use crate::grammar::{Args, ImageOptions};
use crate::spec::{Check, ImageQuery, ImageSpec, SnapRule};

pub(super) async fn export(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let mut spec = args.image(ImageQuery::source().snap(SnapRule::Optional))?;
    let path = match args
        .text("path")
        .filter(|path| !path.is_empty())
        .or_else(|| args.next_positional())
    {
        Some(path) => path.to_owned(),
        // Ceph names the file after the image.
        None => match &spec.snap {
            Some(snap) => format!("{}@{snap}", spec.image),
            None => spec.image.clone(),
        },
    };
    args.finish()?;
    let with_snapshots = args.text("export-format") == Some("2");
    let options = match spec.snap.take() {
        Some(snap) => OpenOptions::read_only().at(SnapKey::Name(snap)),
        None => OpenOptions::read_only(),
    };
    let image = session.image(&spec, options).await?;
    let task = if with_snapshots {
        session.task(EXPORTING)
    } else {
        session.bytes_task(EXPORTING)
    };
    let progress = task.library();
    let exported = match (with_snapshots, path.as_str()) {
        (true, _) => {
            write_out(&path, async |out| {
                export_diff::export_image(&image, out, &progress).await
            })
            .await
        }
        (false, "-") => export::to_writer(&image, &mut tokio::io::stdout(), &progress).await,
        (false, _) => new_file(&path, export::to_file(&image, Path::new(&path), &progress)).await,
    };
    end_of_export(task, exported, "export error")
}

/// The progress that all exports show.
pub(super) const EXPORTING: &str = "Exporting image";

/// Ends an export. A file that is in the way is told before any progress is shown, as Ceph does.
pub(super) fn end_of_export(task: Task, exported: Result<(), ImageError>, what: &str) -> Result<(), Failure> {
    if let Err(error) = &exported
        && error.errno == Errno::EEXIST
    {
        task.forget();
        return Err(Failure::errno(what, error.errno.0));
    }
    task.end(exported).map_err(|error| error.failed(what))
}

/// Writes to stdout (`-`) or to a new file, which does not remain unless it was written whole.
pub(super) async fn write_out(
    path: &str,
    fill: impl AsyncFnOnce(&mut (dyn AsyncWrite + Unpin + Send)) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    if path == "-" {
        let mut stdout = BufWriter::with_capacity(WRITE_BYTES, tokio::io::stdout());
        return fill(&mut stdout).await;
    }
    new_file(path, export::new_file(Path::new(path), fill)).await
}

/// Bytes collected for one write to stdout.
const WRITE_BYTES: usize = 1 << 20;

async fn new_file(
    path: &str,
    writing: impl Future<Output = Result<(), ImageError>>,
) -> Result<(), ImageError> {
    if Path::new(path).exists() {
        return Err(ImageError::new(Errno::EEXIST, format!("'{path}' exists")));
    }
    let unfinished = Unfinished::new(path);
    let written = writing.await;
    unfinished.finished();
    written
}

/// Removes the file of an export that is dropped halfway.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn new(path: &str) -> Self {
        Self(Some(path.into()))
    }

    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may not have been made yet.
            let _ = std::fs::remove_file(path);
        }
    }
}

pub(super) async fn import(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let path = args.path()?.to_owned();
    let spec = destination(args, &path)?;
    let with_snapshots = args.text("export-format") == Some("2");
    let mut options = ImageOptions::from_args(args)?;
    if !with_snapshots {
        // An export of format 2 says itself what the command line leaves open.
        options = options.or_settings(&session.invocation().config_overrides);
    }
    args.finish()?;
    warn(&options);
    let options = import::ImportOptions {
        create: create_options(&options, 0, "import failed")?,
        sparse_size_bytes: args
            .size_bytes("sparse-size")
            .unwrap_or(import::DEFAULT_SPARSE_SIZE_BYTES),
    };
    let io = session.place_of(&spec).await?;
    if path != "-"
        && let Err(error) = std::fs::metadata(&path)
    {
        eprintln!("rbd: error opening {path}");
        return Err(Failure::errno(
            "import failed",
            error.raw_os_error().unwrap_or(crate::exit::EIO),
        ));
    }
    let task = if with_snapshots {
        session.task("Importing image")
    } else {
        session.bytes_task("Importing image")
    };
    let imported = if with_snapshots {
        let progress = task.library();
        let imported = read_in(&path, async |input| {
            import_diff::import_image(&io, &spec.image, input, &options, &progress).await
        })
        .await;
        imported.map(|noticed| tell(&noticed))
    } else if path == "-" {
        let mut stdin = tokio::io::stdin();
        import::from_reader(&io, &spec.image, &mut stdin, &options, &task.library()).await
    } else {
        import::from_path(&io, &spec.image, Path::new(&path), &options, &task.library()).await
    };
    if let Err(error) = &imported
        && error.kind == ErrorKind::ImageExists
    {
        eprintln!("rbd: image creation failed");
    }
    task.end(imported).map_err(|error| error.failed("import failed"))
}

/// Reads from stdin (`-`), a file or a named pipe.
pub(super) async fn read_in<T, E: From<ImageError>>(
    path: &str,
    take: impl AsyncFnOnce(&mut Input<'_>) -> Result<T, E>,
) -> Result<T, E> {
    if path == "-" {
        let mut stdin = BufReader::with_capacity(READ_BYTES, tokio::io::stdin());
        return take(&mut Input::pipe(&mut stdin)).await;
    }
    let failed = |error: std::io::Error| {
        E::from(ImageError::new(
            Errno::of_io(&error),
            format!("opening '{path}' ({error})"),
        ))
    };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let is_file = file.metadata().await.map_err(failed)?.is_file();
    let mut buffered = BufReader::with_capacity(READ_BYTES, file);
    match is_file {
        true => take(&mut Input::file(&mut buffered)).await,
        false => take(&mut Input::pipe(&mut buffered)).await,
    }
}

/// Bytes read ahead of what is decoded.
const READ_BYTES: usize = 1 << 20;

/// Says on stderr what an import skipped.
pub(super) fn tell(noticed: &import_diff::Noticed) {
    for tag in &noticed.skipped_tags {
        eprintln!("unrecognized tag byte {tag} in stream; skipping");
    }
}

/// `--dest` and its like, the old spelling `--image`, or the file's name.
fn destination(args: &Args, path: &str) -> Result<ImageSpec, Failure> {
    let found = args.image_if_named(ImageQuery::dest().check(Check::Full))?;
    let text = |option| {
        args.text(option)
            .filter(|text: &&str| !text.is_empty())
            .map(str::to_owned)
    };
    let mut place = found.place;
    if text("dest-pool").is_none()
        && found.image.is_none()
        && let Some(pool) = text("pool")
    {
        place.pool = pool;
    }
    let from_path = || {
        let name = Path::new(path).file_name()?.to_str()?;
        (path != "-").then(|| name.to_owned())
    };
    let image = found.image.or_else(|| text("image")).or_else(from_path);
    let image = image.ok_or_else(|| Failure::invalid("destination image name was not specified"))?;
    Ok(ImageSpec {
        pool: place.pool,
        namespace: place.namespace,
        image,
        snap: None,
    })
}
