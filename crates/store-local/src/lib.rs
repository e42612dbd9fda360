//! store-local
