//! `rbd export` and `rbd import`, of bare images (format 1 of `--export-format`).
//!
//! `-` stands for stdout and stdin. A path without a directory part names the file; an image that is not named gets the
//! name of its file. What fails or is interrupted leaves neither a file nor an image.

use std::path::{Path, PathBuf};

use ferry_image::admin::{export, import};
use ferry_image::{ErrorKind, ImageError, OpenOptions, SnapKey};
use ferry_store::Errno;

use super::create::{create_options, warn};
use super::error::Explain as _;
use super::session::Session;
use crate::VERSION;
use crate::exit::{EOPNOTSUPP, Failure};
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
    refuse_format_2(args)?;
    let options = match spec.snap.take() {
        Some(snap) => OpenOptions::read_only().at(SnapKey::Name(snap)),
        None => OpenOptions::read_only(),
    };
    let image = session.image(&spec, options).await?;
    let task = session.bytes_task("Exporting image");
    let exported = if path == "-" {
        let mut stdout = tokio::io::stdout();
        export::to_writer(&image, &mut stdout, &task.library()).await
    } else if Path::new(&path).exists() {
        // Before any progress is shown, as Ceph does.
        Err(ImageError::new(Errno::EEXIST, format!("'{path}' exists")))
    } else {
        let unfinished = Unfinished::new(&path);
        let exported = export::to_file(&image, Path::new(&path), &task.library()).await;
        unfinished.finished();
        exported
    };
    if let Err(error) = &exported
        && error.errno == Errno::EEXIST
    {
        task.forget();
        return Err(Failure::errno("export error", error.errno.0));
    }
    task.end(exported).map_err(|error| error.failed("export error"))
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

fn refuse_format_2(args: &Args) -> Result<(), Failure> {
    if args.text("export-format") == Some("2") {
        return Err(Failure::message(
            format!("rbd: option '--export-format 2' is not implemented yet in Ferry {VERSION}"),
            EOPNOTSUPP,
        ));
    }
    Ok(())
}

pub(super) async fn import(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let path = args.path()?.to_owned();
    let spec = destination(args, &path)?;
    let options = ImageOptions::from_args(args)?.or_settings(&session.invocation().config_overrides);
    args.finish()?;
    refuse_format_2(args)?;
    warn(&options);
    let options = import::ImportOptions {
        create: create_options(&options, 0, "import failed")?,
        sparse_size_bytes: args
            .size_bytes("sparse-size")
            .unwrap_or(import::DEFAULT_SPARSE_SIZE_BYTES),
    };
    let io = session.place_of(&spec).await?;
    if path != "-"
        && let Err(error) = std::fs::File::open(&path)
    {
        eprintln!("rbd: error opening {path}");
        return Err(Failure::errno(
            "import failed",
            error.raw_os_error().unwrap_or(crate::exit::EIO),
        ));
    }
    let task = session.bytes_task("Importing image");
    let imported = if path == "-" {
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
