//! The simulated disk for tests.
