//! TLS once more, on a plain socket, which gets no lane once TLS is active.

#[path = "tls.rs"]
mod suite;
