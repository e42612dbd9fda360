//! Clients of `rbd serve`.

use std::path::Path;

use ferry_nbd::client::{Client, ClientConfig, Negotiation};

/// Begins a conversation.
pub async fn negotiate(socket: &Path) -> Negotiation {
    Negotiation::connect_unix(socket, ClientConfig::default())
        .await
        .unwrap()
}

/// Opens an export.
pub async fn connect(socket: &Path, export: &str) -> Client {
    negotiate(socket).await.go(export).await.unwrap()
}
