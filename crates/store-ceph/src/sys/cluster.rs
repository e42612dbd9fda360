//! A connection to a cluster.
//!
//! Invariant: the connection ends after the last I/O context and never on a thread of the library itself.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use ferry_store::Errno;

use super::budget::Budget;
use super::given_up::GivenUp;
use super::library::{ClusterStat, Library, RawCluster};
use super::{Rc, check, completion, errno_of, text};

/// A connection; its blocking calls say so.
pub(crate) struct Cluster {
    pub(super) library: &'static Library,
    pub(super) raw: RawCluster,
    /// How much of it may be under way; nothing is bounded before it is connected.
    pub(super) budget: Budget,
    /// Writes that nobody waits for any more.
    pub(crate) given_up: Arc<GivenUp>,
}

// SAFETY: the library's cluster handle may be used by any number of threads.
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({:?})", self.library)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        let (functions, handle) = (&self.library.functions, Handle(self.raw));
        let shutdown = move || {
            let handle = handle;
            // SAFETY: nothing uses the handle any more.
            unsafe { (functions.rados_shutdown)(handle.0) }
        };
        // Nobody said farewell (`Cluster::end`). It has to be done here and now, as a program that ends while the library's
        // threads run may crash; but on a thread of the library, which would wait for itself, it is done elsewhere.
        if !completion::is_library_thread() {
            shutdown();
        } else if let Err(error) = std::thread::Builder::new().spawn(shutdown) {
            tracing::warn!(%error, "a connection to Ceph is left open: no thread to end it");
        }
    }
}

impl Cluster {
    /// An unconnected handle of user `name` (`client.admin`).
    pub(crate) fn new(library: &'static Library, cluster: &str, name: &str) -> Rc<Self> {
        let (cluster, name) = (text(cluster)?, text(name)?);
        let mut raw = ptr::null_mut();
        // SAFETY: two strings and a place for the handle.
        let made = unsafe { (library.functions.rados_create2)(&mut raw, cluster.as_ptr(), name.as_ptr(), 0) };
        check(made)?;
        Ok(Self {
            library,
            raw,
            budget: Budget::default(),
            given_up: Arc::default(),
        })
    }

    /// Reads a configuration file; without a path the places where Ceph's clients look (`CEPH_CONF` first).
    pub(crate) fn read_conf(&self, path: Option<&Path>) -> Rc<()> {
        let path = match path {
            Some(path) => Some(
                CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
                    .map_err(|_| Errno::EINVAL)?,
            ),
            None => None,
        };
        let path = path.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        // SAFETY: a string or null.
        check(unsafe { (self.library.functions.rados_conf_read_file)(self.raw, path) }).map(drop)
    }

    /// Takes the options in `CEPH_ARGS`.
    pub(crate) fn read_environment(&self) -> Rc<()> {
        // SAFETY: null stands for the usual variable.
        check(unsafe { (self.library.functions.rados_conf_parse_env)(self.raw, ptr::null()) }).map(drop)
    }

    /// Sets an option.
    pub(crate) fn set(&self, option: &str, value: &str) -> Rc<()> {
        let (option, value) = (text(option)?, text(value)?);
        // SAFETY: two strings.
        check(unsafe { (self.library.functions.rados_conf_set)(self.raw, option.as_ptr(), value.as_ptr()) })
            .map(drop)
    }

    /// Value of an option; `None` for an unknown one.
    pub(crate) fn get(&self, option: &str) -> Option<String> {
        let option = text(option).ok()?;
        let mut value = vec![0u8; 4096];
        // SAFETY: a string and a buffer of the length that is named.
        let got = unsafe {
            (self.library.functions.rados_conf_get)(
                self.raw,
                option.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        check(got).ok()?;
        let value = CStr::from_bytes_until_nul(&value).ok()?;
        Some(value.to_string_lossy().into_owned())
    }

    /// Ends the connection. Blocks; not to be called on a thread of the library.
    pub(crate) fn end(mut self) {
        let raw = std::mem::replace(&mut self.raw, ptr::null_mut());
        // SAFETY: this is the last reference, and dropping it does nothing any more.
        unsafe { (self.library.functions.rados_shutdown)(raw) }
    }

    /// Connects. Blocks until it is done or `client_mount_timeout` has passed.
    pub(crate) fn connect(&mut self) -> Rc<()> {
        self.budget = Budget::new(
            self.take_bound("objecter_inflight_ops"),
            self.take_bound("objecter_inflight_op_bytes"),
        );
        // SAFETY: an unconnected handle.
        check(unsafe { (self.library.functions.rados_connect)(self.raw) }).map(drop)
    }

    /// One of the library's bounds, which it does not keep any more itself.
    fn take_bound(&self, option: &str) -> u64 {
        let bound = self.get(option).and_then(|value| value.parse().ok());
        // A library without the option has no such bound.
        let _ = self.set(option, "0");
        bound.unwrap_or(0)
    }

    /// Global id of this client.
    pub(crate) fn instance_id(&self) -> u64 {
        // SAFETY: a connected handle.
        unsafe { (self.library.functions.rados_get_instance_id)(self.raw) }
    }

    /// Number of the oldest release of clients that the cluster must serve, or that it lets in.
    pub(crate) fn oldest_client_release(&self) -> Rc<u8> {
        let (mut compatible, mut required) = (0i8, 0i8);
        // SAFETY: a connected handle, and places for two numbers.
        unsafe {
            let call = self.library.functions.rados_get_min_compatible_client;
            check(call(self.raw, &mut compatible, &mut required))?;
        }
        Ok(u8::try_from(compatible.max(required)).unwrap_or(0))
    }

    /// Addresses of this client, as Ceph writes them.
    pub(crate) fn addresses(&self) -> Rc<String> {
        let mut addresses: *mut c_char = ptr::null_mut();
        // SAFETY: a place for a string, which is given back below.
        unsafe {
            check((self.library.functions.rados_getaddrs)(self.raw, &mut addresses))?;
            if addresses.is_null() {
                return Err(Errno::EIO);
            }
            let copy = CStr::from_ptr(addresses).to_string_lossy().into_owned();
            (self.library.functions.rados_buffer_free)(addresses);
            Ok(copy)
        }
    }

    /// Has the monitors carry out a command in their form of JSON, and gives their answer; of a refusal with their words. Blocks.
    pub(crate) fn monitors(&self, command: &str) -> Result<Vec<u8>, (Errno, String)> {
        let command = text(command).map_err(|errno| (errno, String::new()))?;
        let mut lines = [command.as_ptr()];
        let (mut answer, mut answer_bytes) = (ptr::null_mut(), 0);
        let (mut words, mut words_bytes) = (ptr::null_mut(), 0);
        let functions = &self.library.functions;
        // SAFETY: one string, no input, and places for two buffers, which are given back below.
        let (done, answer, words) = unsafe {
            let done = (functions.rados_mon_command)(
                self.raw,
                lines.as_mut_ptr(),
                lines.len(),
                ptr::null(),
                0,
                &mut answer,
                &mut answer_bytes,
                &mut words,
                &mut words_bytes,
            );
            let answer = self.taken(answer, answer_bytes);
            (done, answer, self.taken(words, words_bytes))
        };
        match check(done) {
            Ok(_) => Ok(answer),
            Err(errno) => Err((errno, String::from_utf8_lossy(&words).into_owned())),
        }
    }

    /// The bytes of a buffer of the library, which is given back.
    ///
    /// # Safety
    /// Null, or a buffer of the library with this many bytes.
    unsafe fn taken(&self, buffer: *mut c_char, length_bytes: usize) -> Vec<u8> {
        if buffer.is_null() {
            return Vec::new();
        }
        // SAFETY: the caller's promise; nothing uses the buffer afterwards.
        unsafe {
            let copy = std::slice::from_raw_parts(buffer.cast::<u8>(), length_bytes).to_vec();
            (self.library.functions.rados_buffer_free)(buffer);
            copy
        }
    }

    /// Bytes that are still free in the cluster. Blocks.
    pub(crate) fn free_bytes(&self) -> Rc<u64> {
        let mut stat = ClusterStat::default();
        // SAFETY: a place for the figures.
        check(unsafe { (self.library.functions.rados_cluster_stat)(self.raw, &mut stat) })?;
        Ok(stat.kb_avail.saturating_mul(1024))
    }

    /// Waits until this client knows the newest map of the OSDs. Blocks.
    pub(crate) fn wait_for_latest_map(&self) -> Rc<()> {
        // SAFETY: a connected handle.
        check(unsafe { (self.library.functions.rados_wait_for_latest_osdmap)(self.raw) }).map(drop)
    }

    /// Names of all pools. Blocks.
    pub(crate) fn pools(&self) -> Rc<Vec<String>> {
        let mut names = vec![0u8; 16 << 10];
        loop {
            // SAFETY: a buffer of the length that is named.
            let needed = unsafe {
                (self.library.functions.rados_pool_list)(self.raw, names.as_mut_ptr().cast(), names.len())
            };
            let needed = usize::try_from(check(needed)?).unwrap_or(0);
            if needed <= names.len() {
                break;
            }
            names.resize(needed, 0);
        }
        let listed = names.split(|byte| *byte == 0).take_while(|name| !name.is_empty());
        Ok(listed
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect())
    }

    /// Id of a pool by this client's map.
    pub(crate) fn pool_id(&self, name: &str) -> Rc<i64> {
        let name = text(name)?;
        // SAFETY: a string.
        match unsafe { (self.library.functions.rados_pool_lookup)(self.raw, name.as_ptr()) } {
            id @ 0.. => Ok(id),
            error => Err(errno_of(i32::try_from(error).unwrap_or(-5))),
        }
    }

    /// `ENOENT` unless there is a pool of this id. Blocks when this client's map does not have it.
    pub(crate) fn check_pool(&self, id: i64) -> Rc<()> {
        let mut name = [0u8; 1024];
        // SAFETY: a buffer of the length that is named.
        let got = unsafe {
            (self.library.functions.rados_pool_reverse_lookup)(
                self.raw,
                id,
                name.as_mut_ptr().cast(),
                name.len(),
            )
        };
        check(got).map(drop)
    }

    /// Makes a pool. Blocks.
    pub(crate) fn create_pool(&self, name: &str) -> Rc<()> {
        let name = text(name)?;
        // SAFETY: a string.
        check(unsafe { (self.library.functions.rados_pool_create)(self.raw, name.as_ptr()) }).map(drop)
    }

    /// Removes a pool. Blocks.
    pub(crate) fn remove_pool(&self, name: &str) -> Rc<()> {
        let name = text(name)?;
        // SAFETY: a string.
        check(unsafe { (self.library.functions.rados_pool_delete)(self.raw, name.as_ptr()) }).map(drop)
    }

    /// Fences the client at `address` for as long as the cluster does by default. Blocks.
    pub(crate) fn blocklist(&self, address: &str) -> Rc<()> {
        let mut address = text(address)?.into_bytes_with_nul();
        // SAFETY: a string that the library may write to.
        let added =
            unsafe { (self.library.functions.rados_blocklist_add)(self.raw, address.as_mut_ptr().cast(), 0) };
        check(added).map(drop)
    }

    /// Waits until every notify and every loss that the library knows of was handed to its callback.
    pub(crate) async fn flush_watches(self: &Arc<Self>) -> Rc<()> {
        let functions = &self.library.functions;
        let raw = Handle(self.raw);
        let done = completion::run(functions, None, Box::new(self.clone()), move |_, completion| {
            let raw = raw;
            // SAFETY: a connected handle, which the state keeps, and a completion of its own.
            unsafe { (functions.rados_aio_watch_flush)(raw.0, completion) }
        });
        done.await?.ok().map(drop)
    }
}

struct Handle(RawCluster);
// SAFETY: see `Cluster`.
unsafe impl Send for Handle {}
