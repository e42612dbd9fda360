//! Names of pools, namespaces, images and snapshots on the command line: `[POOL/[NAMESPACE/]]IMAGE[@SNAP]` and
//! `POOL[/NAMESPACE]`.
//!
//! A command body says which names it wants with a query and lets `Args` merge options and positionals:
//!
//! ```
//! # use ferry_cli::exit::Failure;
//! # use ferry_cli::grammar::{Environment, Parsed, parse};
//! use ferry_cli::spec::{ImageQuery, SnapRule};
//! # let words = ["export", "p2/ns/disk@s1", "-"].map(std::ffi::OsString::from);
//! # let Ok(Parsed::Run(invocation)) = parse(words, &Environment::default()) else { panic!() };
//! let image = invocation.args.image(ImageQuery::source().snap(SnapRule::Optional)).unwrap();
//! assert_eq!((image.pool.as_str(), image.namespace.as_str(), image.image.as_str()), ("p2", "ns", "disk"));
//! assert_eq!(image.snap.as_deref(), Some("s1"));
//! ```
//!
//! The rules are those of Ceph's `rbd` 16.2.15: a name option (`--image`) may itself be a spec; the next positional
//! is used only if no name came from the options; a pool, namespace or snapshot in the spec wins over its option.
//! One deviation: what is behind the first `@` is always the snapshot, so `img@a/b` names no pool `img@a`.
//!
//! This module knows names only; it does not know which of them exist.

use std::fmt;

use crate::exit::Failure;

/// The pool that is meant when none is named.
pub const DEFAULT_POOL: &str = "rbd";

/// A pool and the namespace within it, which is empty for the default namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolSpec {
    /// Name of the pool.
    pub pool: String,
    /// Name of the namespace; empty is the default one.
    pub namespace: String,
}

impl fmt::Display for PoolSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pool)?;
        if !self.namespace.is_empty() {
            write!(f, "/{}", self.namespace)
        } else {
            Ok(())
        }
    }
}

/// An image, perhaps at a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageSpec {
    /// Name of the pool.
    pub pool: String,
    /// Name of the namespace; empty is the default one.
    pub namespace: String,
    /// Name of the image.
    pub image: String,
    /// Name of the snapshot. Present if [`SnapRule::Required`] was asked for, absent with [`SnapRule::Forbidden`].
    pub snap: Option<String>,
}

impl ImageSpec {
    /// Pool and namespace of the image.
    pub fn pool_spec(&self) -> PoolSpec {
        PoolSpec {
            pool: self.pool.clone(),
            namespace: self.namespace.clone(),
        }
    }

    /// The snapshot's name, empty without one.
    pub fn snap_name(&self) -> &str {
        self.snap.as_deref().unwrap_or("")
    }
}

impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.pool)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.image)?;
        if let Some(snap) = &self.snap {
            write!(f, "@{snap}")
        } else {
            Ok(())
        }
    }
}

/// What options and positionals gave when an image is not demanded: a pool at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialSpec {
    /// Pool and namespace, with defaults filled in.
    pub place: PoolSpec,
    /// Name of the image, if any was given.
    pub image: Option<String>,
    /// Name of the snapshot, if any was given.
    pub snap: Option<String>,
}

impl PartialSpec {
    /// The image, if one was named.
    pub fn into_image(self) -> Option<ImageSpec> {
        let PoolSpec { pool, namespace } = self.place;
        self.image.map(|image| ImageSpec {
            pool,
            namespace,
            image,
            snap: self.snap,
        })
    }
}

/// An image named on the command line either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    /// By name.
    Name(ImageSpec),
    /// By `--image-id`.
    Id {
        /// Pool and namespace.
        place: PoolSpec,
        /// The image's id.
        id: String,
        /// Name of the snapshot, where one may be given.
        snap: Option<String>,
    },
}

/// Whether a snapshot may or must be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnapRule {
    /// Naming one is an error.
    #[default]
    Forbidden,
    /// One may be named.
    Optional,
    /// One must be named.
    Required,
}

/// How strictly names are checked: things that exist may have old, odd names; new names may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    /// Existing things: what is behind the pool and namespace is the name, whatever it contains.
    #[default]
    Lenient,
    /// A new snapshot: its name has no `/` and no `@`.
    SnapName,
    /// A new image: no name has `/` or `@`.
    Full,
}

/// Which options an image is named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `--pool --namespace --image --snap`.
    Source,
    /// `--dest-pool --dest-namespace --dest --dest-snap`.
    Dest,
    /// `--pool --namespace --group --snap`.
    Group,
    /// `--dest-pool --dest-namespace --dest-group`.
    DestGroup,
    /// A group beside an image: `--group-pool --group-namespace --group`.
    GroupOfImage,
    /// An image beside a group: `--image-pool --image-namespace --image`.
    ImageOfGroup,
}

impl Side {
    /// The options for pool, namespace, name and snapshot.
    pub(crate) fn options(self) -> [&'static str; 4] {
        match self {
            Self::Source => ["pool", "namespace", "image", "snap"],
            Self::Dest => ["dest-pool", "dest-namespace", "dest", "dest-snap"],
            Self::Group => ["pool", "namespace", "group", "snap"],
            Self::DestGroup => ["dest-pool", "dest-namespace", "dest-group", "dest-snap"],
            Self::GroupOfImage => ["group-pool", "group-namespace", "group", "snap"],
            Self::ImageOfGroup => ["image-pool", "image-namespace", "image", "snap"],
        }
    }

    /// What is named.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Source | Self::Dest | Self::ImageOfGroup => "image",
            Self::Group | Self::DestGroup | Self::GroupOfImage => "group",
        }
    }
}

/// What a command wants to know about an image. Start with [`ImageQuery::source`] or [`ImageQuery::dest`].
#[derive(Debug, Clone, Copy)]
pub struct ImageQuery<'a> {
    pub(crate) side: Side,
    pub(crate) snap: SnapRule,
    pub(crate) check: Check,
    pub(crate) inherit: Option<&'a ImageSpec>,
    pub(crate) say_destination: bool,
}

impl<'a> ImageQuery<'a> {
    /// The command's only image, or the source of two.
    pub fn source() -> Self {
        Self {
            side: Side::Source,
            snap: SnapRule::default(),
            check: Check::default(),
            inherit: None,
            say_destination: false,
        }
    }

    /// The destination image of a command that has two.
    pub fn dest() -> Self {
        Self {
            side: Side::Dest,
            say_destination: true,
            ..Self::source()
        }
    }

    /// The command's group, or the source of two; its name takes the place of the image's.
    pub fn group() -> Self {
        Self {
            side: Side::Group,
            check: Check::Full,
            ..Self::source()
        }
    }

    /// The destination group of a command that has two.
    pub fn dest_group() -> Self {
        Self {
            side: Side::DestGroup,
            say_destination: true,
            ..Self::group()
        }
    }

    /// The group of a command that has a group and an image.
    pub fn group_of_image() -> Self {
        Self {
            side: Side::GroupOfImage,
            ..Self::group()
        }
    }

    /// The image of a command that has a group and an image.
    pub fn image_of_group() -> Self {
        Self {
            side: Side::ImageOfGroup,
            ..Self::group()
        }
    }

    /// Whether a snapshot may or must be named; without this it may not.
    #[must_use]
    pub fn snap(mut self, rule: SnapRule) -> Self {
        self.snap = rule;
        self
    }

    /// How strictly names are checked; without this leniently.
    #[must_use]
    pub fn check(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    /// Pool and namespace come from `source` if neither is named here (Ceph: `mv` and `snap rename`, not copies).
    #[must_use]
    pub fn inherit(mut self, source: &'a ImageSpec) -> Self {
        self.inherit = Some(source);
        self
    }

    /// Errors say `image name` instead of `destination image name` (`migration prepare --source-spec`).
    #[must_use]
    pub fn plain_wording(mut self) -> Self {
        self.say_destination = false;
        self
    }
}

/// The parts of an image spec as written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    pub(crate) pool: Option<&'a str>,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: &'a str,
    pub(crate) snap: Option<&'a str>,
}

/// Takes `[POOL/[NAMESPACE/]]NAME[@SNAP]` apart, or fails with `rbd: invalid spec '...'`.
pub(crate) fn split(spec: &str, check: Check) -> Result<Parts<'_>, Failure> {
    let invalid = || Failure::invalid(format_args!("invalid spec '{spec}'"));
    let (place, snap) = match spec.split_once('@') {
        Some((place, snap)) => (place, Some(snap)),
        None => (spec, None),
    };
    let mut parts = Parts {
        snap,
        name: place,
        ..Parts::default()
    };
    if let Some((pool, rest)) = place
        .split_once('/')
        .filter(|(pool, rest)| !pool.is_empty() && !rest.is_empty())
    {
        (parts.pool, parts.name) = (Some(pool), rest);
        if let Some((namespace, name)) = rest
            .split_once('/')
            .filter(|(ns, name)| !ns.is_empty() && !name.is_empty())
        {
            (parts.namespace, parts.name) = (Some(namespace), name);
        }
    }
    let odd = |text: &str| text.contains(['/', '@']);
    let bad_snap = snap.is_some_and(|snap| snap.is_empty() || (check != Check::Lenient && odd(snap)));
    if parts.name.is_empty() || bad_snap || (check == Check::Full && odd(parts.name)) {
        return Err(invalid());
    }
    Ok(parts)
}

/// Takes `POOL[/[NAMESPACE]]` apart, or fails with `rbd: invalid spec '...'`.
pub(crate) fn split_pool(spec: &str) -> Result<(&str, &str), Failure> {
    let (pool, namespace) = spec.split_once('/').unwrap_or((spec, ""));
    if pool.is_empty() || namespace.contains('/') {
        return Err(Failure::invalid(format_args!("invalid spec '{spec}'")));
    }
    Ok((pool, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_taken_apart_like_ceph_does() {
        type Row<'a> = (
            &'a str,
            Check,
            Option<(Option<&'a str>, Option<&'a str>, &'a str, Option<&'a str>)>,
        );
        let table: &[Row] = &[
            ("i", Check::Full, Some((None, None, "i", None))),
            ("p/i", Check::Full, Some((Some("p"), None, "i", None))),
            (
                "p/n/i@s",
                Check::Full,
                Some((Some("p"), Some("n"), "i", Some("s"))),
            ),
            (
                "a/b/c/d",
                Check::Lenient,
                Some((Some("a"), Some("b"), "c/d", None)),
            ),
            ("a/b/c/d", Check::Full, None),
            ("i@a/b", Check::Lenient, Some((None, None, "i", Some("a/b")))),
            ("i@a/b", Check::SnapName, None),
            ("i@a@b", Check::Lenient, Some((None, None, "i", Some("a@b")))),
            ("i@a@b", Check::Full, None),
            ("i@", Check::Lenient, None),
            ("@s", Check::Lenient, None),
            ("", Check::Lenient, None),
            ("/i", Check::Lenient, Some((None, None, "/i", None))),
            ("/i", Check::Full, None),
            ("p/", Check::Full, None),
            ("p//i", Check::Lenient, Some((Some("p"), None, "/i", None))),
            ("p//i", Check::Full, None),
        ];
        for (spec, check, wanted) in table {
            let got = split(spec, *check)
                .ok()
                .map(|parts| (parts.pool, parts.namespace, parts.name, parts.snap));
            assert_eq!(got, *wanted, "{spec} {check:?}");
        }
        assert_eq!(
            split("i@", Check::Full).unwrap_err().text(),
            "rbd: invalid spec 'i@'"
        );
    }

    #[test]
    fn pool_specs_have_at_most_one_namespace() {
        assert_eq!(split_pool("p").unwrap(), ("p", ""));
        assert_eq!(split_pool("p/n").unwrap(), ("p", "n"));
        assert_eq!(split_pool("p/").unwrap(), ("p", ""));
        for spec in ["p/n/x", "/n", ""] {
            assert_eq!(
                split_pool(spec).unwrap_err().text(),
                format!("rbd: invalid spec '{spec}'")
            );
        }
    }

    #[test]
    fn specs_are_shown_the_way_they_are_written() {
        let mut spec = ImageSpec {
            pool: "p".into(),
            namespace: String::new(),
            image: "i".into(),
            snap: None,
        };
        assert_eq!(spec.to_string(), "p/i");
        spec.namespace = "n".into();
        spec.snap = Some("s".into());
        assert_eq!(spec.to_string(), "p/n/i@s");
        assert_eq!(spec.pool_spec().to_string(), "p/n");
    }
}
