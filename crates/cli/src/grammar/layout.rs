//! The layout options of commands that make an image (`create`, `import`, `migration prepare`).
//!
//! ```
//! # use ferry_cli::grammar::{Environment, ImageOptions, Parsed, parse};
//! # let words = ["create", "-s", "1G", "--order", "20", "disk"].map(std::ffi::OsString::from);
//! # let Ok(Parsed::Run(invocation)) = parse(words, &Environment::default()) else { panic!() };
//! let options = ImageOptions::from_args(&invocation.args).unwrap();
//! for warning in &options.warnings {
//!     eprintln!("{warning}"); // rbd: --order is deprecated, use --object-size
//! }
//! assert_eq!(options.order, Some(20));
//! let options = options.or_settings(&invocation.config_overrides); // not for a migration: it copies the source's layout
//! ```

use super::args::Args;
use super::config::ConfigOverrides;
use super::values::FEATURES_SINGLE_CLIENT;
use crate::exit::Failure;

/// What the user asked for about a new image; `None` everywhere the choice is the command's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Image format, 1 or 2. Asking for anything that only format 2 has sets it to 2.
    pub format: Option<u8>,
    /// Binary logarithm of the object size, 12..=25.
    pub order: Option<u8>,
    /// Feature bits, with `--image-shared` applied if both were given.
    pub features: Option<u64>,
    /// Feature bits to leave out of the defaults (`--image-shared` alone).
    pub features_clear: u64,
    /// Length of a stripe in bytes, a power of two; given together with `stripe_count`.
    pub stripe_unit_bytes: Option<u64>,
    /// Number of objects that a stripe is spread over.
    pub stripe_count: Option<u64>,
    /// Pool for data.
    pub data_pool: Option<String>,
    /// Lines for stderr, whatever becomes of the command.
    pub warnings: Vec<String>,
}

impl ImageOptions {
    /// Reads the options that were given.
    ///
    /// # Errors
    /// Exit 22 for combinations that no image can have.
    pub fn from_args(args: &Args) -> Result<Self, Failure> {
        let format = match args.text("image-format") {
            _ if args.flag("new-format") => Some(2),
            Some("1") => Some(1),
            Some(_) => Some(2),
            None => None,
        };
        Self::with_format(args, format)
    }

    /// The same for a command that makes format 2 only, and has no option for it.
    ///
    /// # Errors
    /// As [`ImageOptions::from_args`].
    pub fn of_format_2(args: &Args) -> Result<Self, Failure> {
        Self::with_format(args, Some(2))
    }

    fn with_format(args: &Args, format: Option<u8>) -> Result<Self, Failure> {
        let mut options = Self {
            format,
            data_pool: args.text("data-pool").map(str::to_owned),
            ..Self::default()
        };
        if let Some(order) = args.number("order") {
            options
                .warnings
                .push("rbd: --order is deprecated, use --object-size".to_owned());
            options.order = u8::try_from(order).ok();
        } else if let Some(size_bytes) = args.size_bytes("object-size") {
            options.order = u8::try_from(size_bytes.ilog2()).ok();
        }
        options.features = args.number("image-feature");
        if args.flag("image-shared") {
            match &mut options.features {
                Some(features) => *features &= !FEATURES_SINGLE_CLIENT,
                None => options.features_clear = FEATURES_SINGLE_CLIENT,
            }
        }
        options.stripe_unit_bytes = args.size_bytes("stripe-unit");
        options.stripe_count = args.number("stripe-count");
        if options.format == Some(1) {
            options
                .warnings
                .push("rbd: image format 1 is deprecated".to_owned());
        }
        options
            .check()
            .map_err(|failure| failure.after_warnings(&options.warnings))?;
        if options.format.is_none() && options.needs_format_2() {
            options.format = Some(2);
        }
        Ok(options)
    }

    /// Fills what was left open from the `rbd_default_*` settings.
    #[must_use]
    pub fn or_settings(mut self, settings: &ConfigOverrides) -> Self {
        self.format = self.format.or_else(|| settings.default_format());
        self.order = self.order.or_else(|| settings.default_order());
        let defaults = || {
            settings
                .default_features()
                .map(|features| features & !self.features_clear)
        };
        self.features = self.features.or_else(defaults);
        if self.stripe_unit_bytes.is_none() && self.stripe_count.is_none() {
            self.stripe_unit_bytes = settings.default_stripe_unit_bytes();
            self.stripe_count = settings.default_stripe_count();
        }
        self.data_pool = self
            .data_pool
            .or_else(|| settings.default_data_pool().map(str::to_owned));
        self
    }

    fn check(&self) -> Result<(), Failure> {
        // librbd finds this out after it has begun; nothing is gained by waiting that long.
        if self.stripe_unit_bytes.is_some_and(|bytes| bytes > 0)
            != self.stripe_count.is_some_and(|count| count > 0)
        {
            return Err(Failure::invalid(
                "must specify both (or neither) of stripe-unit and stripe-count",
            ));
        }
        if self.format == Some(1) {
            let what = if self.features.is_some_and(|features| features != 0) {
                "features"
            } else if self.stripe_count.is_some_and(|count| count > 1) {
                "non-default striping"
            } else if self.data_pool.is_some() {
                "data pool"
            } else {
                return Ok(());
            };
            return Err(Failure::invalid(format_args!(
                "{what} not allowed with format 1; use --image-format 2"
            )));
        }
        Ok(())
    }

    fn needs_format_2(&self) -> bool {
        self.features.is_some_and(|features| features != 0)
            || self.stripe_count.is_some_and(|count| count > 1)
            || self.data_pool.is_some()
    }
}
