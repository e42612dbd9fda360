//! Serves a raw file over NBD on a Unix socket, with the least that a device can do: the measure of what the
//! protocol side of the server costs by itself.
//!
//! `serve_file FILE SOCKET`; the export is called `disk`. Ends on end of input or an interrupt.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use ferry_nbd::testing::MemoryExports;
use ferry_nbd::{
    BlockDevice, DeviceError, Errno, Extent, Listener, QuickRead, Server, ServerConfig, shutdown_channel,
};

struct RawFile {
    file: Arc<File>,
    size_bytes: u64,
}

impl RawFile {
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, DeviceError> {
        let file = Arc::clone(&self.file);
        let result = tokio::task::spawn_blocking(move || call(&file)).await;
        result
            .map_err(|failure| DeviceError::new(Errno::Io, failure.to_string()))?
            .map_err(DeviceError::from)
    }

    fn write_now(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        Ok(self.file.write_all_at(data, offset)?)
    }
}

#[async_trait]
impl BlockDevice for RawFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        false
    }

    fn can_multi_conn(&self) -> bool {
        true
    }

    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<QuickRead, DeviceError>> {
        let read = self.file.read_exact_at(out, offset);
        Some(read.map(|()| QuickRead::Data).map_err(DeviceError::from))
    }

    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Option<Result<(), DeviceError>> {
        (!fua).then(|| self.write_now(offset, data))
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        let mut data = vec![0; length as usize];
        self.file.read_exact_at(&mut data, offset)?;
        Ok(data.into())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        self.write_now(offset, &data)?;
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn trim(&self, _offset: u64, _length_bytes: u64, _fua: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        _no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        let zeroes = vec![0; 64 << 10];
        let mut at = offset;
        let end = offset + length_bytes;
        while at < end {
            let step = (end - at).min(zeroes.len() as u64);
            self.write_now(at, &zeroes[..step as usize])?;
            at += step;
        }
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.blocking(File::sync_data).await
    }

    async fn block_status(
        &self,
        _offset: u64,
        length_bytes: u64,
        _max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent {
            length_bytes,
            hole: false,
            zero: false,
        }])
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(path), Some(socket)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve_file FILE SOCKET".into());
    };
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let device = RawFile {
        size_bytes: file.metadata()?.len(),
        file: Arc::new(file),
    };
    let exports = Arc::new(MemoryExports::new().with("disk", "a raw file", Arc::new(device)));
    let listener = Listener::unix(socket.clone()).await?;
    println!("{}", listener.uri("disk"));
    let (trigger, shutdown) = shutdown_channel();
    tokio::spawn(async move {
        // Without the signal the server just goes on.
        if tokio::signal::ctrl_c().await.is_ok() {
            trigger.shut_down();
        }
    });
    let summary = Server::run(vec![listener], exports, ServerConfig::default(), shutdown).await?;
    println!("{summary:?}");
    Ok(())
}
