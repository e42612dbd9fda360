//! The checked arguments of one command, with typed getters.
//!
//! Option getters take the option's long name; asking for one that the command's table entry does not have is a
//! mistake in the program and stops a debug build. Positionals are consumed from left to right: every call of
//! [`Args::image`], [`Args::pool_spec`], [`Args::positional`] and their like takes the next one unless an option
//! stands in for it. [`Args::finish`] comes last and refuses what is left over, so that nothing is dropped silently
//! (Ceph ignores leftovers; that is the one known deviation).

use std::sync::atomic::{AtomicUsize, Ordering};

use super::table::Command;
use super::values::Value;
use crate::exit::Failure;
use crate::output::OutputFormat;
use crate::progress::{ProgressOptions, Unit};
use crate::spec::{
    Check, DEFAULT_POOL, ImageQuery, ImageRef, ImageSpec, PartialSpec, PoolSpec, Side, SnapRule,
};
use crate::spec::{split, split_pool};

/// See the module's text.
#[derive(Debug)]
pub struct Args {
    command: &'static Command,
    values: Vec<(&'static str, Value)>,
    positionals: Vec<String>,
    next: AtomicUsize,
    default_pool: String,
}

impl Args {
    pub(super) fn new(
        command: &'static Command,
        values: Vec<(&'static str, Value)>,
        positionals: Vec<String>,
        default_pool: Option<&str>,
    ) -> Self {
        let default_pool = default_pool.unwrap_or(DEFAULT_POOL).to_owned();
        Self {
            command,
            values,
            positionals,
            next: AtomicUsize::new(0),
            default_pool,
        }
    }

    fn value(&self, long: &str) -> Option<&Value> {
        debug_assert!(
            self.declares(long),
            "{} has no option --{long}",
            self.command.name()
        );
        self.values
            .iter()
            .find(|(known, _)| *known == long)
            .map(|(_, value)| value)
    }

    /// Whether the command has this option.
    pub(super) fn declares(&self, long: &str) -> bool {
        self.command.all_options().any(|option| option.long == long)
    }

    /// Whether a switch was given.
    pub fn flag(&self, long: &str) -> bool {
        self.value(long).is_some()
    }

    /// The text of an option, or the word chosen from its list.
    pub fn text(&self, long: &str) -> Option<&str> {
        match self.value(long)? {
            Value::Text(text) => Some(text),
            other => {
                debug_assert!(false, "--{long} holds {other:?}");
                None
            }
        }
    }

    /// The texts of an option that may be given several times, in their order, without empty ones.
    pub fn texts(&self, long: &'static str) -> impl Iterator<Item = &str> {
        debug_assert!(
            self.declares(long),
            "{} has no option --{long}",
            self.command.name()
        );
        self.values.iter().filter_map(move |(known, value)| match value {
            Value::Text(text) if *known == long && !text.is_empty() => Some(text.as_str()),
            _ => None,
        })
    }

    /// The number of an option; for `image-feature` the feature bits, for `order` the order.
    pub fn number(&self, long: &str) -> Option<u64> {
        match self.value(long)? {
            Value::Number(number) => Some(*number),
            other => {
                debug_assert!(false, "--{long} holds {other:?}");
                None
            }
        }
    }

    /// The number of an option that may be `auto` instead: `Some(None)`. `None`: not given.
    pub fn number_or_auto(&self, long: &str) -> Option<Option<u64>> {
        match self.value(long)? {
            Value::Number(number) => Some(Some(*number)),
            Value::Text(_) => Some(None),
            other => {
                debug_assert!(false, "--{long} holds {other:?}");
                None
            }
        }
    }

    /// The bytes that a size option stands for.
    pub fn size_bytes(&self, long: &str) -> Option<u64> {
        self.number(long)
    }

    /// A fraction between 0 and 1.
    pub fn fraction(&self, long: &str) -> Option<f64> {
        match self.value(long)? {
            Value::Fraction(fraction) => Some(*fraction),
            other => {
                debug_assert!(false, "--{long} holds {other:?}");
                None
            }
        }
    }

    /// `--size` in bytes, which the command cannot do without.
    ///
    /// # Errors
    /// `rbd: must specify --size <M/G/T>`, exit 22.
    pub fn required_size_bytes(&self) -> Result<u64, Failure> {
        self.size_bytes("size")
            .ok_or_else(|| Failure::invalid("must specify --size <M/G/T>"))
    }

    /// `--limit`, which the command cannot do without.
    ///
    /// # Errors
    /// `rbd: must specify --limit <num>`, exit 22.
    pub fn required_limit(&self) -> Result<u64, Failure> {
        self.number("limit")
            .ok_or_else(|| Failure::invalid("must specify --limit <num>"))
    }

    /// Refuses two options that exclude each other.
    ///
    /// # Errors
    /// `rbd: cannot specify both <first> and <second>`, exit 22.
    pub fn at_most_one(&self, first: &str, second: &str) -> Result<(), Failure> {
        if self.value(first).is_some() && self.value(second).is_some() {
            return Err(Failure::invalid(format_args!(
                "cannot specify both {first} and {second}"
            )));
        }
        Ok(())
    }

    /// `--format` and `--pretty-format`.
    ///
    /// # Errors
    /// Exit 22 if `--pretty-format` has nothing to indent.
    pub fn output_format(&self) -> Result<OutputFormat, Failure> {
        let pretty = self.flag("pretty-format");
        match self.text("format") {
            Some("json") => Ok(OutputFormat::Json { pretty }),
            Some("xml") => Ok(OutputFormat::Xml { pretty }),
            _ if pretty => Err(Failure::invalid(
                "--pretty-format only works when --format is json or xml",
            )),
            _ => Ok(OutputFormat::Plain),
        }
    }

    /// How to show progress, from `--no-progress`.
    pub fn progress_options(&self, unit: Unit) -> ProgressOptions {
        ProgressOptions {
            no_progress: self.flag("no-progress"),
            unit,
        }
    }

    /// The pool that is meant when none is named: `rbd`, or what `--rbd_default_pool` says.
    pub fn default_pool(&self) -> &str {
        &self.default_pool
    }

    /// The next positional, if there is one and it is not empty.
    pub fn next_positional(&self) -> Option<&str> {
        let positional = self.peek_positional()?;
        self.next.fetch_add(1, Ordering::Relaxed);
        Some(positional)
    }

    /// The same, which stays the next one.
    pub fn peek_positional(&self) -> Option<&str> {
        let positional = self.positionals.get(self.next.load(Ordering::Relaxed))?;
        Some(positional.as_str()).filter(|text| !text.is_empty())
    }

    /// The next positional, which must be there; `what` names it: `metadata key`, `path`, `lock id`.
    ///
    /// # Errors
    /// `rbd: <what> was not specified`, exit 22.
    pub fn positional(&self, what: &str) -> Result<&str, Failure> {
        self.next_positional()
            .ok_or_else(|| Failure::invalid(format_args!("{what} was not specified")))
    }

    /// `--path`, else the next positional.
    ///
    /// # Errors
    /// `rbd: path was not specified`, exit 22.
    pub fn path(&self) -> Result<&str, Failure> {
        match self.text("path").filter(|path| !path.is_empty()) {
            Some(path) => Ok(path),
            None => self.positional("path"),
        }
    }

    /// Refuses positionals that nothing has asked for.
    ///
    /// # Errors
    /// `rbd: too many arguments`, exit 1.
    pub fn finish(&self) -> Result<(), Failure> {
        if self.next.load(Ordering::Relaxed) < self.positionals.len() {
            return Err(Failure::usage("too many arguments"));
        }
        Ok(())
    }

    fn optional_text(&self, long: &str) -> Option<String> {
        if !self.declares(long) {
            return None;
        }
        self.text(long).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// An image that must be named.
    ///
    /// # Errors
    /// `rbd: image name was not specified`, and those of [`Args::image_if_named`]; exit 22.
    pub fn image(&self, query: ImageQuery<'_>) -> Result<ImageSpec, Failure> {
        // The image is missed before its snapshot is, so the snapshot is demanded only once there is an image.
        let found = self.resolve(query)?;
        let snap = found.snap.clone();
        let image = found.into_image().ok_or_else(|| {
            let destination = if query.say_destination { "destination " } else { "" };
            let noun = query.side.noun();
            Failure::invalid(format_args!("{destination}{noun} name was not specified"))
        })?;
        check_snap(query, snap.as_deref())?;
        Ok(image)
    }

    /// An image that may be named; pool and namespace come out either way (`du`, `migration prepare`'s destination).
    ///
    /// # Errors
    /// Exit 22 for malformed specs, for names that break [`ImageQuery::check`], and for a snapshot that is missing or
    /// not wanted.
    pub fn image_if_named(&self, query: ImageQuery<'_>) -> Result<PartialSpec, Failure> {
        let found = self.resolve(query)?;
        check_snap(query, found.snap.as_deref())?;
        Ok(found)
    }

    /// A snapshot that must be named: the image and the snapshot's name.
    ///
    /// # Errors
    /// As [`Args::image`], with `rbd: snapshot name was not specified`.
    pub fn snap(&self, query: ImageQuery<'_>) -> Result<(ImageSpec, String), Failure> {
        let mut image = self.image(query.snap(SnapRule::Required))?;
        let snap = image.snap.take().unwrap_or_default();
        Ok((image, snap))
    }

    /// An image by name or by `--image-id`.
    ///
    /// # Errors
    /// As [`Args::image`]; exit 22 if it is named both ways.
    pub fn image_or_id(&self, query: ImageQuery<'_>) -> Result<ImageRef, Failure> {
        let Some(id) = self.optional_text("image-id") else {
            return self.image(query).map(ImageRef::Name);
        };
        // With an id, what is required of the snapshot may come from --snap or --snap-id; that is the command's affair.
        let query = if query.snap == SnapRule::Required {
            query.snap(SnapRule::Optional)
        } else {
            query
        };
        let found = self.image_if_named(query)?;
        if found.image.is_some() {
            return Err(Failure::invalid(
                "trying to access image using both name and id. ",
            ));
        }
        Ok(ImageRef::Id {
            place: found.place,
            id,
            snap: found.snap,
        })
    }

    /// The images of all remaining positionals (`serve`), each perhaps at a snapshot.
    ///
    /// # Errors
    /// Exit 22 for malformed specs.
    pub fn remaining_images(&self) -> Result<Vec<ImageSpec>, Failure> {
        let place = self.place_from_options();
        let mut images = Vec::new();
        while let Some(spec) = self.next_positional() {
            let parts = split(spec, Check::Lenient)?;
            let (pool, namespace) = match parts.pool {
                Some(pool) => (pool.to_owned(), parts.namespace.unwrap_or_default().to_owned()),
                None => (place.pool.clone(), place.namespace.clone()),
            };
            let snap = parts.snap.map(str::to_owned);
            images.push(ImageSpec {
                pool,
                namespace,
                image: parts.name.to_owned(),
                snap,
            });
        }
        Ok(images)
    }

    /// The id of an image in the trash: `--image-id` or the next positional, either as `[POOL/[NAMESPACE/]]ID`.
    ///
    /// # Errors
    /// `rbd: image id was not specified`, exit 22; also for malformed specs.
    pub fn trash_id(&self) -> Result<(PoolSpec, String), Failure> {
        let given = match self.optional_text("image-id") {
            Some(id) => id,
            None => self.positional("image id")?.to_owned(),
        };
        let parts = split(&given, Check::Lenient)?;
        if parts.snap.is_some() {
            return Err(Failure::invalid(
                "snapshot name specified for a command that doesn't use it",
            ));
        }
        let mut place = self.place_from_options();
        if let Some(pool) = parts.pool {
            place = PoolSpec {
                pool: pool.to_owned(),
                namespace: parts.namespace.unwrap_or_default().to_owned(),
            };
        }
        check_namespace(&place.namespace)?;
        Ok((place, parts.name.to_owned()))
    }

    /// A pool and its namespace: from the options, else from the next positional, else the default pool.
    ///
    /// # Errors
    /// Exit 22 for malformed specs.
    pub fn pool_spec(&self) -> Result<PoolSpec, Failure> {
        let mut place = self.place_from_options();
        if self.optional_text("pool").is_none()
            && let Some(spec) = self.next_positional()
        {
            let (pool, namespace) = split_pool(spec)?;
            place.pool = pool.to_owned();
            if !namespace.is_empty() {
                place.namespace = namespace.to_owned();
            }
        }
        check_pool(&place.pool)?;
        check_namespace(&place.namespace)?;
        Ok(place)
    }

    /// A pool and a namespace that must be named (`namespace create`).
    ///
    /// # Errors
    /// `rbd: namespace name was not specified`, exit 22, and those of [`Args::pool_spec`].
    pub fn namespace_spec(&self) -> Result<PoolSpec, Failure> {
        let place = self.pool_spec()?;
        if place.namespace.is_empty() {
            return Err(Failure::invalid("namespace name was not specified"));
        }
        Ok(place)
    }

    /// The name of a pool: `--pool`, else the next positional, else the default pool (`pool init`, `namespace ls`).
    ///
    /// # Errors
    /// Exit 22 for an impossible name.
    pub fn pool_name(&self) -> Result<String, Failure> {
        let given = self
            .optional_text("pool")
            .or_else(|| self.next_positional().map(str::to_owned));
        let pool = given.unwrap_or_else(|| self.default_pool.clone());
        check_pool(&pool)?;
        Ok(pool)
    }

    /// The name of a pool that must be given (`pool create`, `pool rm`).
    ///
    /// # Errors
    /// `rbd: pool name was not specified`, exit 22; also for an impossible name.
    pub fn required_pool_name(&self) -> Result<String, Failure> {
        let pool = self.positional("pool name")?;
        check_pool(pool)?;
        Ok(pool.to_owned())
    }

    fn place_from_options(&self) -> PoolSpec {
        let pool = self
            .optional_text("pool")
            .unwrap_or_else(|| self.default_pool.clone());
        PoolSpec {
            pool,
            namespace: self.optional_text("namespace").unwrap_or_default(),
        }
    }

    /// Merges options and the next positional as the query wants, without judging the snapshot.
    fn resolve(&self, query: ImageQuery<'_>) -> Result<PartialSpec, Failure> {
        let [pool_key, namespace_key, image_key, snap_key] = query.side.options();
        let mut pool = self.optional_text(pool_key);
        if matches!(query.side, Side::GroupOfImage | Side::ImageOfGroup) {
            pool = pool.or_else(|| self.optional_text("pool"));
        }
        let mut namespace = self.optional_text(namespace_key);
        let mut snap = self.optional_text(snap_key);
        let given = self
            .optional_text(image_key)
            .or_else(|| self.next_positional().map(str::to_owned));
        let mut image = None;
        if let Some(given) = &given {
            let parts = split(given, query.check)?;
            if query.snap == SnapRule::Forbidden && parts.snap.is_some() {
                return Err(Failure::invalid(
                    "snapshot name specified for a command that doesn't use it",
                ));
            }
            pool = parts.pool.map(str::to_owned).or(pool);
            namespace = parts.namespace.map(str::to_owned).or(namespace);
            snap = parts.snap.map(str::to_owned).or(snap);
            image = Some(parts.name.to_owned());
        }
        if let Some(source) = query.inherit {
            if pool.is_none() && namespace.is_none() {
                namespace = Some(source.namespace.clone());
            }
            pool = pool.or_else(|| Some(source.pool.clone()));
        }
        let pool = pool.unwrap_or_else(|| self.default_pool.clone());
        let place = PoolSpec {
            pool,
            namespace: namespace.unwrap_or_default(),
        };
        if query.check == Check::Full {
            check_pool(&place.pool)?;
        }
        check_namespace(&place.namespace)?;
        Ok(PartialSpec { place, image, snap })
    }
}

fn check_snap(query: ImageQuery<'_>, snap: Option<&str>) -> Result<(), Failure> {
    let destination = if query.say_destination { "destination " } else { "" };
    match (query.snap, snap) {
        (SnapRule::Forbidden, Some(_)) => Err(Failure::invalid(format_args!(
            "{destination}snapshot name specified for a command that doesn't use it"
        ))),
        (SnapRule::Required, None) => Err(Failure::invalid(format_args!(
            "{destination}snapshot name was not specified"
        ))),
        (_, Some(snap)) if query.check != Check::Lenient && snap.contains(['/', '@']) => {
            Err(Failure::invalid(format_args!("invalid snap name '{snap}'")))
        }
        _ => Ok(()),
    }
}

fn check_pool(pool: &str) -> Result<(), Failure> {
    if pool.is_empty() || pool.contains(['/', '@']) {
        return Err(Failure::invalid(format_args!("invalid pool name '{pool}'")));
    }
    Ok(())
}

fn check_namespace(namespace: &str) -> Result<(), Failure> {
    if namespace.contains(['/', '@']) {
        return Err(Failure::invalid(format_args!(
            "invalid namespace name '{namespace}'"
        )));
    }
    Ok(())
}
