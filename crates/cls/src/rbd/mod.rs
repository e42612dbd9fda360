//! Class `rbd`: images' records, requests and methods.

pub mod client;
pub mod features;
pub mod methods;
pub mod names;
pub mod types;
pub mod v1;

pub use features::{feature, flag, op_feature};
pub use types::*;

/// Name of the class.
pub const CLASS: &str = "rbd";
