//! Serves a disk in memory over a Unix socket until Ctrl-C:
//! `cargo run --example memory-disk -- /tmp/disk.sock 1073741824`.

use std::error::Error;
use std::sync::Arc;

use ferry_nbd::testing::{MemoryDevice, MemoryExports};
use ferry_nbd::{Listener, Server, ServerConfig, shutdown_channel};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(size)) = (arguments.next(), arguments.next()) else {
        return Err("usage: memory-disk SOCKET SIZE-IN-BYTES".into());
    };
    let device = Arc::new(MemoryDevice::new(size.parse()?));
    let exports = Arc::new(MemoryExports::new().with("", "a disk in memory", device));
    let listener = Listener::unix(socket).await?;
    eprintln!("listening: {}", listener.uri(""));
    let (trigger, shutdown) = shutdown_channel();
    let server = tokio::spawn(Server::run(
        vec![listener],
        exports,
        ServerConfig::default(),
        shutdown,
    ));
    tokio::signal::ctrl_c().await?;
    trigger.shut_down();
    let summary = server.await??;
    eprintln!("served {} connections", summary.connections_served);
    Ok(())
}
