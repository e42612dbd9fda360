//! One object in memory that runs method calls as an engine must, with the visibility rule of the fact sheet (3.0),
//! and helpers to call it through typed requests: for tests of this and other crates.
//!
//! Promise: an operation changes all or nothing, and an object never grows past [`MAX_OBJECT_BYTES`]. What it does not know:
//! snapshots' clones, other objects, clients' sessions.
//!
//! [`samples`] has right records and requests to make wrong ones of.
//!
//! # Panics
//! As tests do, by panicking, where a method breaks what engines rely on.

pub mod samples;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use ferry_store::class::{CallContext, ClassRegistry, ObjectHandle};
use ferry_store::{ClientInstance, EntityAddr, Errno, Timestamp};

use crate::Call;

/// Largest object, as with an OSD's defaults; what would be larger fails with `EFBIG`.
pub const MAX_OBJECT_BYTES: u64 = 128 << 20;

/// All methods of both classes.
pub static REGISTRY: LazyLock<ClassRegistry> = LazyLock::new(crate::registry);

/// The time of all calls that do not say otherwise.
pub const NOW: Timestamp = Timestamp {
    seconds: 1_795_000_000,
    nanoseconds: 7,
};

/// An instance of a client with this number.
pub fn client(gid: u64) -> ClientInstance {
    ClientInstance {
        gid,
        addr: EntityAddr {
            ip: [127, 0, 0, 1],
            port: 0,
            nonce: 0x427c_b125,
        },
    }
}

/// The object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object {
    /// Whether the head exists.
    pub exists: bool,
    /// Whether clones exist, and the sequence of the last write.
    pub snapset_seq: Option<u64>,
    /// Bytes.
    pub data: Vec<u8>,
    /// Omap.
    pub omap: BTreeMap<Bytes, Bytes>,
    /// Attributes.
    pub xattrs: BTreeMap<String, Bytes>,
}

/// One step of an operation: class, method, payload.
pub type Step = (&'static str, &'static str, Bytes);

/// A typed call as a step.
pub fn step<T>(call: &Call<T>) -> Step {
    (call.class, call.method, call.input.clone())
}

impl Object {
    /// An object that exists and is empty.
    pub fn empty() -> Self {
        Self {
            exists: true,
            ..Self::default()
        }
    }

    /// An object that exists and has these bytes.
    pub fn with_data(data: &[u8]) -> Self {
        Self {
            data: data.to_vec(),
            ..Self::empty()
        }
    }

    /// An omap value in hexadecimal.
    pub fn omap_hex(&self, key: &str) -> Option<String> {
        self.omap.get(key.as_bytes()).map(|value| to_hex(value))
    }

    /// Puts an omap value that is given in hexadecimal.
    pub fn set_omap_hex(&mut self, key: &str, hex: &str) {
        self.exists = true;
        let value = Bytes::from(from_hex(hex));
        self.omap.insert(Bytes::copy_from_slice(key.as_bytes()), value);
    }

    /// Runs an operation of class calls as client 4190 at [`NOW`]: all or nothing.
    pub fn operate(&mut self, steps: &[Step]) -> Result<Vec<u8>, Errno> {
        self.operate_as(client(4190), NOW, steps)
    }

    /// Runs an operation of class calls: all or nothing.
    pub fn operate_as(
        &mut self,
        client: ClientInstance,
        now: Timestamp,
        steps: &[Step],
    ) -> Result<Vec<u8>, Errno> {
        let context = CallContext { client, now };
        let mut handle = Handle {
            before: self,
            after: None,
        };
        let mut output = Vec::new();
        for (class, method, input) in steps {
            let found = REGISTRY.find(class, method)?;
            output = (found.run)(&context, &mut handle, input)?;
            assert!(
                found.writes || handle.after.is_none(),
                "{class}.{method} is a read but writes"
            );
            assert!(
                !found.writes || output.is_empty(),
                "{class}.{method} writes and answers"
            );
        }
        if let Some(after) = handle.after {
            *self = after;
        }
        Ok(output)
    }

    /// Runs one typed call and decodes its answer.
    pub fn call<T>(&mut self, call: Call<T>) -> Result<T, Errno> {
        let output = self.operate(&[step(&call)])?;
        Ok(call.decode(&output).expect("own answers decode"))
    }

    /// The same as the client of this number.
    pub fn call_as<T>(&mut self, gid: u64, call: Call<T>) -> Result<T, Errno> {
        let output = self.operate_as(client(gid), NOW, &[step(&call)])?;
        Ok(call.decode(&output).expect("own answers decode"))
    }

    /// The errno of one call, which must leave the object as it was.
    pub fn refuses<T: std::fmt::Debug>(&mut self, call: Call<T>) -> Errno {
        let before = self.clone();
        let name = format!("{call:?}");
        let errno = self.call(call).expect_err(&name);
        assert_eq!(*self, before, "{name} failed and changed the object");
        errno
    }
}

struct Handle<'a> {
    before: &'a Object,
    /// From the first change on.
    after: Option<Object>,
}

impl Handle<'_> {
    fn after(&self) -> &Object {
        self.after.as_ref().unwrap_or(self.before)
    }

    fn change(&mut self) -> &mut Object {
        self.after.get_or_insert_with(|| self.before.clone())
    }

    fn touch(&mut self) -> &mut Object {
        let object = self.change();
        object.exists = true;
        object
    }
}

impl ObjectHandle for Handle<'_> {
    fn exists(&self) -> bool {
        self.after().exists
    }

    fn size_bytes(&self) -> u64 {
        self.after().data.len() as u64
    }

    fn snapset_seq(&self) -> Option<u64> {
        match self.before.snapset_seq {
            None if self.before.exists => Some(0),
            seq => seq,
        }
    }

    fn read(&self, offset: u64, length_bytes: u64) -> Result<Bytes, Errno> {
        let data = &self.before.data;
        let start = (offset as usize).min(data.len());
        let end = (offset.saturating_add(length_bytes) as usize).min(data.len());
        Ok(Bytes::copy_from_slice(&data[start..end]))
    }

    fn omap_get(&self, key: &[u8]) -> Result<Option<Bytes>, Errno> {
        Ok(self.before.omap.get(key).cloned())
    }

    fn omap_list(
        &self,
        start_after: &[u8],
        prefix: &[u8],
        max: usize,
    ) -> Result<(BTreeMap<Bytes, Bytes>, bool), Errno> {
        let matching = |(key, _): &(&Bytes, &Bytes)| key.as_ref() > start_after && key.starts_with(prefix);
        let mut found = self.before.omap.iter().filter(matching);
        let page: BTreeMap<_, _> = found
            .by_ref()
            .take(max)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Ok((page, found.next().is_some()))
    }

    fn xattr_get(&self, name: &str) -> Result<Option<Bytes>, Errno> {
        Ok(self.before.xattrs.get(name).cloned())
    }

    fn create(&mut self, exclusive: bool) -> Result<(), Errno> {
        if exclusive && self.after().exists {
            return Err(Errno::EEXIST);
        }
        self.touch();
        Ok(())
    }

    fn write(&mut self, offset: u64, data: Bytes) -> Result<(), Errno> {
        let end = offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= MAX_OBJECT_BYTES)
            .ok_or(Errno::EFBIG)? as usize;
        let object = self.touch();
        if object.data.len() < end {
            object.data.resize(end, 0);
        }
        object.data[offset as usize..end].copy_from_slice(&data);
        Ok(())
    }

    fn write_full(&mut self, data: Bytes) -> Result<(), Errno> {
        self.touch().data = data.into();
        Ok(())
    }

    fn zero(&mut self, offset: u64, length_bytes: u64) -> Result<(), Errno> {
        let data = &mut self.change().data;
        let end = (offset.saturating_add(length_bytes) as usize).min(data.len());
        data[(offset as usize).min(end)..end].fill(0);
        Ok(())
    }

    fn truncate(&mut self, size_bytes: u64) -> Result<(), Errno> {
        if size_bytes > MAX_OBJECT_BYTES {
            return Err(Errno::EFBIG);
        }
        self.change().data.resize(size_bytes as usize, 0);
        Ok(())
    }

    fn remove(&mut self) -> Result<(), Errno> {
        self.after = Some(Object {
            snapset_seq: self.after().snapset_seq,
            ..Object::default()
        });
        Ok(())
    }

    fn omap_set(&mut self, key: Bytes, value: Bytes) -> Result<(), Errno> {
        self.touch().omap.insert(key, value);
        Ok(())
    }

    fn omap_remove(&mut self, key: Bytes) -> Result<(), Errno> {
        self.change().omap.remove(&key);
        Ok(())
    }

    fn xattr_set(&mut self, name: &str, value: Bytes) -> Result<(), Errno> {
        self.touch().xattrs.insert(name.to_owned(), value);
        Ok(())
    }
}

/// Bytes of a text in hexadecimal; white space is passed over.
pub fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).expect("hex digit") as u8)
        .collect();
    assert_eq!(digits.len() % 2, 0, "odd number of digits in {text}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Bytes in hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SplitMix64: the same numbers for the same seed on every machine.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which must not be 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
