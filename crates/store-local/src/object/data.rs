//! Bytes of bulk objects: reads through the chain of layers, changes in place of the head's layer.
//!
//! Keeps invariant: a block's data is in the file before its bit is in the map, so a writer that dies between leaves
//! the old block; a read that ends early where rows promise bytes is an error, never zeros. Callers hold the object's
//! slot: shared to read, exclusively to change. Does not know rows beyond [`Object`], nor durability.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use ferry_store::{Errno, Extent, Result, StoreError};

use super::bitmap::{BLOCK_BYTES, Bitmap, blocks_of};
use super::extents;
use super::rows::{Body, Layer, Object};
use crate::disk::DiskFile;
use crate::pool::files::Files;

/// One change of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DataStep {
    /// Writes bytes.
    Write { offset: u64, data: Bytes },
    /// Zeroes a range inside the object.
    Zero { offset: u64, length_bytes: u64 },
    /// Sets the size.
    Truncate { size_bytes: u64 },
}

/// The data of one bulk object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bulk<'a> {
    files: &'a Files,
    object: &'a Object,
    /// Whether reads may wait for the medium.
    waits: bool,
    /// The live map of a head's layer that has no row yet.
    unborn: Option<&'a RefCell<Bitmap>>,
}

/// Bits of a range of blocks.
struct Blocks {
    first: u64,
    map: Bitmap,
}

impl Blocks {
    fn has(&self, block: u64) -> bool {
        block >= self.first && self.map.has(block - self.first)
    }
}

impl<'a> Bulk<'a> {
    /// The data of `object`.
    pub(crate) fn new(files: &'a Files, object: &'a Object) -> Self {
        Self {
            files,
            object,
            waits: true,
            unborn: None,
        }
    }

    /// The data of an object whose head's layer has no row yet; `map` is that layer's.
    pub(crate) fn unborn(files: &'a Files, object: &'a Object, map: &'a RefCell<Bitmap>) -> Self {
        Self {
            unborn: Some(map),
            ..Self::new(files, object)
        }
    }

    /// The same for reads that must not wait: what would have to is `EAGAIN`.
    pub(crate) fn without_waiting(files: &'a Files, object: &'a Object) -> Self {
        Self {
            waits: false,
            ..Self::new(files, object)
        }
    }

    fn layer(&self, lid: i64) -> Result<&'a Layer> {
        let missing = || StoreError::new(Errno::EIO, format!("the row of layer {lid} is missing"));
        self.object.layer(lid).map(|layer| &**layer).ok_or_else(missing)
    }

    /// Size of a body with layer `lid`: the head's is the length of its file.
    pub(crate) fn size(&self, body: &Body, lid: i64) -> Result<u64> {
        if !self.object.is_live(lid) {
            return Ok(body.size_bytes);
        }
        let layer = self.layer(lid)?;
        let stat = self.file(layer)?.stat();
        Ok(self.files.at(stat, "read", &layer.file)?.size_bytes)
    }

    fn blocks(&self, layer: &Layer, first: u64, end: u64) -> Result<Blocks> {
        if let Some(map) = self.map_in_memory(layer) {
            return Ok(Blocks { first: 0, map });
        }
        let first_byte = first / 8;
        let count = (end.div_ceil(8) - first_byte) as usize;
        let map = if self.waits {
            self.sidecar(layer)?.read(first_byte, count)
        } else {
            let sidecar = self.files.opened_sidecar(layer).ok_or_else(would_wait)?;
            let map = sidecar.try_read(first_byte, count);
            map.and_then(|map| map.ok_or_else(|| std::io::ErrorKind::WouldBlock.into()))
        };
        let map = self.files.at(map, "read the map of", &layer.file)?;
        Ok(Blocks {
            first: first_byte * 8,
            map,
        })
    }

    /// The map of a layer as of now, unless a sidecar has it.
    fn map_in_memory(&self, layer: &Layer) -> Option<Bitmap> {
        if !self.object.is_live(layer.lid) {
            return Some(layer.map.clone());
        }
        match self.unborn {
            Some(map) => Some(map.borrow().clone()),
            None => (!self.object.sidecar).then(|| layer.map.clone()),
        }
    }

    fn sidecar(&self, layer: &Layer) -> Result<crate::pool::files::Sidecar> {
        // It was there when the object was loaded.
        self.files.sidecar(layer)?.ok_or_else(|| {
            StoreError::new(
                Errno::EIO,
                format!(
                    "{}.map is missing or damaged",
                    self.files.path_of(&layer.file).display()
                ),
            )
        })
    }

    /// The map of a layer as of now.
    pub(crate) fn map_now(&self, layer: &Layer) -> Result<Bitmap> {
        if layer.parent.is_none() {
            return Ok(layer.map.clone());
        }
        if let Some(map) = self.map_in_memory(layer) {
            return Ok(map);
        }
        let map = self.sidecar(layer)?.whole(layer.map.bytes().len() as u64 * 8);
        self.files.at(map, "read the map of", &layer.file)
    }

    /// Fills `buffer`, all of it inside the body of layer `lid`.
    pub(crate) fn read(&self, lid: i64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let layer = self.layer(lid)?;
        let Some(parent) = layer
            .parent
            .filter(|_| layer.chained && offset < layer.covered_bytes && !buffer.is_empty())
        else {
            return self.read_own(layer, offset, buffer);
        };
        let covered_end = layer.covered_bytes.min(offset + buffer.len() as u64);
        let blocks = self.blocks(layer, offset / BLOCK_BYTES, blocks_of(covered_end))?;
        let mut at = offset;
        let mut rest = buffer;
        while at < covered_end {
            let own = blocks.has(at / BLOCK_BYTES);
            let mut end = next_block(at).min(covered_end);
            while end < covered_end && blocks.has(end / BLOCK_BYTES) == own {
                end = next_block(end).min(covered_end);
            }
            let (run, after) = rest.split_at_mut((end - at) as usize);
            match own {
                true => self.read_own(layer, at, run)?,
                false => self.read(parent, at, run)?,
            }
            (at, rest) = (end, after);
        }
        match rest.is_empty() {
            true => Ok(()),
            false => self.read_own(layer, at, rest),
        }
    }

    fn file(&self, layer: &Layer) -> Result<Arc<dyn DiskFile>> {
        match self.waits {
            true => self.files.open(&layer.file),
            false => self.files.opened(&layer.file).ok_or_else(would_wait),
        }
    }

    fn read_own(&self, layer: &Layer, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let file = self.file(layer)?;
        let read = match self.waits {
            true => file.read_at(buffer, offset),
            // Where the file ends too early, those who may wait find out.
            false => file.try_read_at(buffer, offset).and_then(|count| match count {
                Some(count) if count == buffer.len() => Ok(count),
                _ => Err(std::io::ErrorKind::WouldBlock.into()),
            }),
        };
        let count = self.files.at(read, "read", &layer.file)?;
        if count < buffer.len() {
            return Err(self.ends_early(layer, offset + count as u64));
        }
        Ok(())
    }

    /// Allocated runs of layer `lid` between `offset` and `end`, ascending.
    pub(crate) fn runs(&self, lid: i64, offset: u64, end: u64, runs: &mut Vec<Extent>) -> Result<()> {
        self.parts(lid, offset, end, &mut |_, run| {
            extents::push(runs, run);
            Ok(())
        })
    }

    /// Hands the allocated runs of layer `lid` between `offset` and `end` to `visit`, ascending, each with the layer whose
    /// file has it at the same place.
    pub(crate) fn parts(
        &self,
        lid: i64,
        offset: u64,
        end: u64,
        visit: &mut dyn FnMut(&Layer, Extent) -> Result<()>,
    ) -> Result<()> {
        let layer = self.layer(lid)?;
        let chained = layer
            .parent
            .filter(|_| layer.chained && offset < layer.covered_bytes);
        let covered_end = chained.map_or(offset, |_| layer.covered_bytes.min(end));
        let mut at = offset;
        if let Some(parent) = chained {
            let blocks = self.blocks(layer, offset / BLOCK_BYTES, blocks_of(covered_end))?;
            while at < covered_end {
                let own = blocks.has(at / BLOCK_BYTES);
                let mut run_end = next_block(at).min(covered_end);
                while run_end < covered_end && blocks.has(run_end / BLOCK_BYTES) == own {
                    run_end = next_block(run_end).min(covered_end);
                }
                match own {
                    true => self.own_parts(layer, at, run_end, visit)?,
                    false => self.parts(parent, at, run_end, visit)?,
                }
                at = run_end;
            }
        }
        self.own_parts(layer, at, end, visit)
    }

    fn own_parts(
        &self,
        layer: &Layer,
        offset: u64,
        end: u64,
        visit: &mut dyn FnMut(&Layer, Extent) -> Result<()>,
    ) -> Result<()> {
        let file = self.files.open(&layer.file)?;
        let mut at = offset;
        while at < end {
            match self.files.at(file.next_data(at), "read", &layer.file)? {
                Some((start, stop)) if start < end => {
                    let start = start.max(at);
                    let stop = stop.clamp(start, end);
                    visit(layer, Extent::new(start, stop - start))?;
                    at = stop.max(at + 1);
                }
                _ => break,
            }
        }
        if at < end {
            let size_bytes = self.files.at(file.stat(), "read", &layer.file)?.size_bytes;
            if size_bytes < end {
                return Err(self.ends_early(layer, size_bytes));
            }
        }
        Ok(())
    }

    /// The error of a file that is shorter than its rows say.
    pub(crate) fn ends_early(&self, layer: &Layer, end: u64) -> StoreError {
        let path = self.files.path_of(&layer.file);
        let what = format!(
            "read {}: the file ends at {end}, its rows promise more",
            path.display()
        );
        StoreError::new(Errno::EIO, what)
    }

    /// Applies a change to the head's layer in place. `Truncate` below the covered length only after the rows say so.
    pub(crate) fn apply(&self, layer: &Layer, step: &DataStep) -> Result<()> {
        match step {
            DataStep::Write { offset, data } => self.write(layer, *offset, data),
            DataStep::Zero { offset, length_bytes } => self.zero(layer, *offset, *length_bytes),
            DataStep::Truncate { size_bytes } => {
                let file = self.files.open(&layer.file)?;
                self.files.at(file.truncate(*size_bytes), "resize", &layer.file)
            }
        }
    }

    /// Reserves room for what `steps` write, so that a full disk refuses them before any byte changed. A lone write inside
    /// one block is left out, as it fails whole; not so with `committed` steps, which must not fail any more.
    pub(crate) fn reserve(&self, layer: &Layer, steps: &[DataStep], committed: bool) -> Result<()> {
        let file = self.files.open(&layer.file)?;
        let allocate = |first: u64, end: u64| {
            let room = file.allocate(first * BLOCK_BYTES, (end - first) * BLOCK_BYTES);
            self.files.at(room, "reserve room in", &layer.file)
        };
        let mut size = None;
        for step in steps {
            let stat = self.files.at(file.stat(), "read", &layer.file)?;
            let size = size.get_or_insert(stat.size_bytes);
            match step {
                DataStep::Write { data, .. } if data.is_empty() => {}
                DataStep::Write { offset, data } => {
                    let end = offset + data.len() as u64;
                    let (first, last) = (offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
                    let fails_whole = first == last && steps.len() == 1;
                    let holes = end > stat.size_bytes || stat.allocated_bytes < stat.size_bytes;
                    if committed || holes && !fails_whole {
                        allocate(first, last + 1)?;
                    }
                    *size = end.max(*size);
                }
                // Where a parent is, the blocks at the edges are written, as `zero` does.
                DataStep::Zero { offset, length_bytes } if layer.parent.is_some() => {
                    let end = offset.saturating_add(*length_bytes).min(*size);
                    let end = end.min(layer.covered_bytes);
                    let edges =
                        [*offset, end].map(|edge| (edge % BLOCK_BYTES != 0).then_some(edge / BLOCK_BYTES));
                    for block in edges.into_iter().flatten().filter(|_| *offset < end) {
                        allocate(block, block + 1)?;
                    }
                }
                DataStep::Zero { .. } => {}
                DataStep::Truncate { size_bytes } => *size = *size_bytes,
            }
        }
        Ok(())
    }

    /// Writes bytes into the head's layer in place.
    pub(crate) fn write(&self, layer: &Layer, offset: u64, data: &[u8]) -> Result<()> {
        let file = self.files.open(&layer.file)?;
        let write = |bytes: &[u8], at: u64| self.files.at(file.write_at(bytes, at), "write", &layer.file);
        if data.is_empty() {
            return Ok(());
        }
        let Some(parent) = layer.parent.filter(|_| offset < layer.covered_bytes) else {
            return write(data, offset);
        };
        let end = offset + data.len() as u64;
        let covered_end = end.min(layer.covered_bytes);
        let (first, last) = (offset / BLOCK_BYTES, (covered_end - 1) / BLOCK_BYTES);
        let blocks = self.blocks(layer, first, last + 1)?;
        // Blocks that so far come from the parent are completed from it, as far as they are the parent's.
        let head_from = first * BLOCK_BYTES;
        let tail_to = next_block(end - 1).min(layer.covered_bytes);
        let head = layer.chained && head_from < offset && !blocks.has(first);
        let tail = layer.chained && end < tail_to && !blocks.has(last);
        if head || tail {
            let mut whole = vec![0; if head { (offset - head_from) as usize } else { 0 }];
            self.read(parent, head_from, &mut whole)?;
            let start = offset - whole.len() as u64;
            whole.extend_from_slice(data);
            if tail {
                let filled = whole.len();
                whole.resize(filled + (tail_to - end) as usize, 0);
                self.read(parent, end, &mut whole[filled..])?;
            }
            write(&whole, start)?;
        } else {
            write(data, offset)?;
        }
        self.mark(layer, first, last + 1)
    }

    fn zero(&self, layer: &Layer, offset: u64, length_bytes: u64) -> Result<()> {
        let file = self.files.open(&layer.file)?;
        let size = self.files.at(file.stat(), "read", &layer.file)?.size_bytes;
        let end = offset.saturating_add(length_bytes).min(size);
        if offset >= end {
            return Ok(());
        }
        let punch = |from: u64, to: u64| self.files.at(file.punch(from, to - from), "punch", &layer.file);
        let covered_end = match layer.parent {
            Some(_) => end.min(layer.covered_bytes),
            None => offset,
        };
        if offset >= covered_end {
            return punch(offset, end);
        }
        let zeros = [0u8; BLOCK_BYTES as usize];
        let head_end = offset.next_multiple_of(BLOCK_BYTES).min(covered_end);
        self.write(layer, offset, &zeros[..(head_end - offset) as usize])?;
        let whole_end = (covered_end / BLOCK_BYTES * BLOCK_BYTES).max(head_end);
        if head_end < whole_end {
            punch(head_end, whole_end)?;
            self.mark(layer, head_end / BLOCK_BYTES, whole_end / BLOCK_BYTES)?;
        }
        self.write(layer, whole_end, &zeros[..(covered_end - whole_end) as usize])?;
        if covered_end < end {
            punch(covered_end, end)?;
        }
        Ok(())
    }

    /// Whether `steps` give the head's layer blocks that its row lacks, while it has no sidecar to say so: then it must be
    /// given one first.
    pub(crate) fn needs_sidecar(&self, layer: &Layer, steps: &[DataStep]) -> bool {
        let adds = |step: &DataStep| match step {
            DataStep::Write { offset, data } => self.adds_blocks(layer, *offset, data.len() as u64),
            DataStep::Zero { offset, length_bytes } => self.adds_blocks(layer, *offset, *length_bytes),
            DataStep::Truncate { .. } => false,
        };
        steps.iter().any(adds)
    }

    /// The same for a write of a range.
    pub(crate) fn adds_blocks(&self, layer: &Layer, offset: u64, length_bytes: u64) -> bool {
        let end = offset.saturating_add(length_bytes).min(layer.covered_bytes);
        let mut blocks = offset / BLOCK_BYTES..blocks_of(end);
        layer.parent.is_some()
            && !self.object.sidecar
            && offset < end
            && blocks.any(|block| !layer.map.has(block))
    }

    fn mark(&self, layer: &Layer, first: u64, end: u64) -> Result<()> {
        if let Some(map) = self.unborn {
            let mut map = map.borrow_mut();
            for block in first..end {
                map.insert(block);
            }
            return Ok(());
        }
        if !self.object.sidecar && (first..end).all(|block| layer.map.has(block)) {
            return Ok(());
        }
        let sidecar = self.sidecar(layer)?;
        let mut blocks = self.blocks(layer, first, end)?;
        let mut changed = false;
        for block in first..end {
            changed |= blocks.map.insert(block - blocks.first);
        }
        match changed {
            true => {
                let put = sidecar.write(blocks.first / 8, &blocks.map);
                self.files.at(put, "write the map of", &layer.file)
            }
            false => Ok(()),
        }
    }
}

fn would_wait() -> StoreError {
    StoreError::new(Errno::EAGAIN, "would have to wait")
}

fn next_block(at: u64) -> u64 {
    (at / BLOCK_BYTES + 1) * BLOCK_BYTES
}
