//! What an object is: rows, bodies and layers; what a write plans; how bytes are read.

pub(crate) mod bitmap;
pub(crate) mod combine;
pub(crate) mod data;
pub(crate) mod extents;
pub(crate) mod inline;
pub(crate) mod plan;
pub(crate) mod rows;
pub(crate) mod view;
