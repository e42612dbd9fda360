//! librados as it is found at run time: the table of its functions, by our own prototypes.
//!
//! Invariant: a [`Library`] has every function that the engine cannot do without; what only some releases export is an
//! `Option`. It is never unloaded: its threads may still run when the last handle is gone.
//! Source of the prototypes: the C header of librados, release Pacific (`rados/librados.h`).

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uchar, c_void};
use std::fmt;
use std::sync::OnceLock;

/// `rados_t`.
pub(super) type RawCluster = *mut c_void;
/// `rados_ioctx_t`.
pub(super) type RawIoctx = *mut c_void;
/// `rados_completion_t`.
pub(super) type RawCompletion = *mut c_void;
/// `rados_read_op_t` and `rados_write_op_t`.
pub(super) type RawOp = *mut c_void;
/// `rados_omap_iter_t` and `rados_xattrs_iter_t`.
pub(super) type RawIter = *mut c_void;
/// `rados_list_ctx_t`.
pub(super) type RawList = *mut c_void;

/// `rados_callback_t`.
pub(super) type CompletionCallback = unsafe extern "C" fn(RawCompletion, *mut c_void);
/// `rados_watchcb2_t`: argument, notify id, handle, notifier, data, length.
pub(super) type NotifyCallback = unsafe extern "C" fn(*mut c_void, u64, u64, u64, *mut c_void, usize);
/// `rados_watcherrcb_t`: argument, handle, negative errno.
pub(super) type WatchErrorCallback = unsafe extern "C" fn(*mut c_void, u64, c_int);

/// `struct rados_pool_stat_t`; only the first fields are looked at.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct PoolStat {
    pub(super) num_bytes: u64,
    pub(super) num_kb: u64,
    pub(super) num_objects: u64,
    pub(super) num_object_clones: u64,
    /// 13 more counters; room for more than the known ones.
    rest: [u64; 28],
}

/// `struct rados_cluster_stat_t`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct ClusterStat {
    pub(super) kb: u64,
    pub(super) kb_used: u64,
    pub(super) kb_avail: u64,
    pub(super) num_objects: u64,
    rest: [u64; 4],
}

macro_rules! functions {
    (
        required { $($name:ident($($argument:ty),*) $(-> $result:ty)?;)* }
        optional { $($maybe:ident = $symbol:literal ($($maybe_argument:ty),*) $(-> $maybe_result:ty)?;)* }
    ) => {
        /// The functions.
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            $(pub(super) $maybe: Option<unsafe extern "C" fn($($maybe_argument),*) $(-> $maybe_result)?>,)*
        }

        impl Functions {
            fn load(library: &'static libloading::Library) -> Result<Self, LoadError> {
                Ok(Self {
                    // SAFETY: the types are those of the library's header; the library is never unloaded.
                    $($name: unsafe {
                        *library
                            .get::<unsafe extern "C" fn($($argument),*) $(-> $result)?>(concat!(stringify!($name), "\0").as_bytes())
                            .map_err(|_| LoadError::Incomplete(stringify!($name)))?
                    },)*
                    // SAFETY: as above; the C++ ones have the types that their mangled names say.
                    $($maybe: unsafe {
                        library
                            .get::<unsafe extern "C" fn($($maybe_argument),*) $(-> $maybe_result)?>(concat!($symbol, "\0").as_bytes())
                            .ok()
                            .map(|function| *function)
                    },)*
                })
            }
        }
    };
}

functions! {
    required {
        rados_version(*mut c_int, *mut c_int, *mut c_int);
        rados_create2(*mut RawCluster, *const c_char, *const c_char, u64) -> c_int;
        rados_conf_read_file(RawCluster, *const c_char) -> c_int;
        rados_conf_parse_env(RawCluster, *const c_char) -> c_int;
        rados_conf_set(RawCluster, *const c_char, *const c_char) -> c_int;
        rados_conf_get(RawCluster, *const c_char, *mut c_char, usize) -> c_int;
        rados_connect(RawCluster) -> c_int;
        rados_shutdown(RawCluster);
        rados_get_instance_id(RawCluster) -> u64;
        rados_getaddrs(RawCluster, *mut *mut c_char) -> c_int;
        rados_buffer_free(*mut c_char);
        rados_cluster_stat(RawCluster, *mut ClusterStat) -> c_int;
        rados_mon_command(RawCluster, *mut *const c_char, usize, *const c_char, usize, *mut *mut c_char, *mut usize, *mut *mut c_char, *mut usize) -> c_int;
        rados_wait_for_latest_osdmap(RawCluster) -> c_int;
        rados_get_min_compatible_client(RawCluster, *mut i8, *mut i8) -> c_int;
        rados_pool_list(RawCluster, *mut c_char, usize) -> c_int;
        rados_pool_lookup(RawCluster, *const c_char) -> i64;
        rados_pool_reverse_lookup(RawCluster, i64, *mut c_char, usize) -> c_int;
        rados_pool_create(RawCluster, *const c_char) -> c_int;
        rados_pool_delete(RawCluster, *const c_char) -> c_int;
        rados_ioctx_create2(RawCluster, i64, *mut RawIoctx) -> c_int;
        rados_ioctx_destroy(RawIoctx);
        rados_ioctx_pool_stat(RawIoctx, *mut PoolStat) -> c_int;
        rados_application_enable(RawIoctx, *const c_char, c_int) -> c_int;
        rados_ioctx_set_namespace(RawIoctx, *const c_char);
        rados_ioctx_snap_set_read(RawIoctx, u64);
        rados_ioctx_selfmanaged_snap_set_write_ctx(RawIoctx, u64, *mut u64, c_int) -> c_int;
        rados_ioctx_selfmanaged_snap_rollback(RawIoctx, *const c_char, u64) -> c_int;
        rados_aio_ioctx_selfmanaged_snap_create(RawIoctx, *mut u64, RawCompletion);
        rados_aio_ioctx_selfmanaged_snap_remove(RawIoctx, u64, RawCompletion);
        rados_nobjects_list_open(RawIoctx, *mut RawList) -> c_int;
        rados_nobjects_list_next2(RawList, *mut *const c_char, *mut *const c_char, *mut *const c_char, *mut usize, *mut usize, *mut usize) -> c_int;
        rados_nobjects_list_close(RawList);
        rados_aio_create_completion2(*mut c_void, CompletionCallback, *mut RawCompletion) -> c_int;
        rados_aio_get_return_value(RawCompletion) -> c_int;
        rados_aio_get_version(RawCompletion) -> u64;
        rados_aio_release(RawCompletion);
        rados_create_write_op() -> RawOp;
        rados_release_write_op(RawOp);
        rados_write_op_create(RawOp, c_int, *const c_char);
        rados_write_op_assert_exists(RawOp);
        rados_write_op_assert_version(RawOp, u64);
        rados_write_op_cmpext(RawOp, *const c_char, usize, u64, *mut c_int);
        rados_write_op_write(RawOp, *const c_char, usize, u64);
        rados_write_op_write_full(RawOp, *const c_char, usize);
        rados_write_op_zero(RawOp, u64, u64);
        rados_write_op_truncate(RawOp, u64);
        rados_write_op_remove(RawOp);
        rados_write_op_omap_set2(RawOp, *const *const c_char, *const *const c_char, *const usize, *const usize, usize);
        rados_write_op_omap_rm_keys2(RawOp, *const *const c_char, *const usize, usize);
        rados_write_op_omap_cmp2(RawOp, *const c_char, u8, *const c_char, usize, usize, *mut c_int);
        rados_write_op_setxattr(RawOp, *const c_char, *const c_char, usize);
        rados_write_op_rmxattr(RawOp, *const c_char);
        rados_write_op_exec(RawOp, *const c_char, *const c_char, *const c_char, usize, *mut c_int);
        rados_write_op_set_alloc_hint(RawOp, u64, u64);
        rados_aio_write_op_operate(RawOp, RawIoctx, RawCompletion, *const c_char, *mut i64, c_int) -> c_int;
        rados_create_read_op() -> RawOp;
        rados_release_read_op(RawOp);
        rados_read_op_assert_exists(RawOp);
        rados_read_op_assert_version(RawOp, u64);
        rados_read_op_cmpext(RawOp, *const c_char, usize, u64, *mut c_int);
        rados_read_op_stat(RawOp, *mut u64, *mut i64, *mut c_int);
        rados_read_op_read(RawOp, u64, usize, *mut c_char, *mut usize, *mut c_int);
        rados_read_op_exec(RawOp, *const c_char, *const c_char, *const c_char, usize, *mut *mut c_char, *mut usize, *mut c_int);
        rados_read_op_omap_get_vals2(RawOp, *const c_char, *const c_char, u64, *mut RawIter, *mut c_uchar, *mut c_int);
        rados_read_op_omap_get_vals_by_keys2(RawOp, *const *const c_char, usize, *const usize, *mut RawIter, *mut c_int);
        rados_read_op_getxattrs(RawOp, *mut RawIter, *mut c_int);
        rados_aio_read_op_operate(RawOp, RawIoctx, RawCompletion, *const c_char, c_int) -> c_int;
        rados_omap_get_next2(RawIter, *mut *mut c_char, *mut *mut c_char, *mut usize, *mut usize) -> c_int;
        rados_omap_get_end(RawIter);
        rados_getxattrs_next(RawIter, *mut *const c_char, *mut *const c_char, *mut usize) -> c_int;
        rados_getxattrs_end(RawIter);
        rados_aio_watch2(RawIoctx, *const c_char, RawCompletion, *mut u64, NotifyCallback, WatchErrorCallback, u32, *mut c_void) -> c_int;
        rados_aio_unwatch(RawIoctx, u64, RawCompletion) -> c_int;
        rados_aio_watch_flush(RawCluster, RawCompletion) -> c_int;
        rados_notify_ack(RawIoctx, *const c_char, u64, u64, *const c_char, c_int) -> c_int;
        rados_aio_notify(RawIoctx, *const c_char, RawCompletion, *const c_char, c_int, u64, *mut *mut c_char, *mut usize) -> c_int;
        rados_blocklist_add(RawCluster, *mut c_char, u32) -> c_int;
    }
    optional {
        // One function under two names: its old one, and that of newer releases.
        set_osdmap_full_try = "rados_set_osdmap_full_try" (RawIoctx);
        set_pool_full_try = "rados_set_pool_full_try" (RawIoctx);
        // Steps that the C interface lacks, added to an operation of the C interface: see `cxx` and `cxx_copy`.
        list_snaps_step = "_ZN8librados7v14_2_019ObjectReadOperation10list_snapsEPNS_10snap_set_tEPi"
            (*mut c_void, *mut c_void, *mut c_int);
        list_watchers_step = "_ZN8librados7v14_2_019ObjectReadOperation13list_watchersEPNSt7__cxx114listI11obj_watch_tSaIS4_EEEPi"
            (*mut c_void, *mut c_void, *mut c_int);
        rollback_step = "_ZN8librados7v14_2_020ObjectWriteOperation25selfmanaged_snap_rollbackEm"
            (*mut c_void, u64);
        copy_from_step = "_ZN8librados7v14_2_020ObjectWriteOperation9copy_fromERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEERKNS0_5IoCtxEmj"
            (*mut c_void, *const c_void, *mut c_void, u64, u32);
        mapext = "_ZN8librados7v14_2_05IoCtx6mapextERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEmmRSt3mapImmSt4lessImESaISt4pairIKmmEEE"
            (*mut c_void, *const c_void, u64, usize, *mut c_void) -> c_int;
        delete_cxx = "_ZdlPv" (*mut c_void);
        // Buffer lists: see `cxx_buffer`.
        read_into_list_step = "_ZN8librados7v14_2_019ObjectReadOperation4readEmmPN4ceph6buffer7v15_2_04listEPi"
            (*mut c_void, u64, u64, *mut c_void, *mut c_int);
        list_c_str = "_ZN4ceph6buffer7v15_2_04list5c_strEv" (*mut c_void) -> *mut u8;
        list_append = "_ZN4ceph6buffer7v15_2_04list6appendEPKcj" (*mut c_void, *const u8, u32);
        list_substr_of = "_ZN4ceph6buffer7v15_2_04list9substr_ofERKS2_jj" (*mut c_void, *const c_void, u32, u32);
        // Bytes that are lent: see `cxx_lend`.
        claim_buffer = "_ZN4ceph6buffer7v15_2_012claim_bufferEjPc7deleter" (*mut c_void, u32, *mut u8, *mut c_void);
        list_append_pointer = "_ZN4ceph6buffer7v15_2_04list6appendERKNS1_3ptrE" (*mut c_void, *const c_void);
        write_list_step = "_ZN8librados7v14_2_020ObjectWriteOperation5writeEmRKN4ceph6buffer7v15_2_04listE"
            (*mut c_void, u64, *const c_void);
        write_full_list_step = "_ZN8librados7v14_2_020ObjectWriteOperation10write_fullERKN4ceph6buffer7v15_2_04listE"
            (*mut c_void, *const c_void);
        // A variable, of which only the address is asked; never called.
        list_no_carriage = "_ZN4ceph6buffer7v15_2_04list17always_empty_bptrE" ();
    }
}

/// The loaded library.
pub(crate) struct Library {
    pub(super) functions: Functions,
    version: (i32, i32, i32),
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, extra) = self.version;
        write!(f, "librados {major}.{minor}.{extra}")
    }
}

/// Why there is no librados.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// It is not installed; what the loader said.
    Absent(String),
    /// It lacks a function that the engine needs.
    Incomplete(&'static str),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(why) => write!(
                f,
                "librados is not installed on this machine (package 'librados2' on Debian and Ubuntu, 'librados2' on \
                 Fedora, RHEL and SUSE): {why}"
            ),
            Self::Incomplete(function) => write!(
                f,
                "the librados on this machine has no {function}: at least release 16 (Pacific) is needed"
            ),
        }
    }
}

/// Name that the loader looks for; `FERRY_LIBRADOS` names another file.
const SONAME: &str = "librados.so.2";

/// The library; loaded at the first call, for the life of the process.
pub(crate) fn library() -> Result<&'static Library, LoadError> {
    static LOADED: OnceLock<Result<Library, LoadError>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Library, LoadError> {
    let name = std::env::var_os("FERRY_LIBRADOS").unwrap_or_else(|| SONAME.into());
    // SAFETY: what the library does when it is loaded is what it does in every client of Ceph.
    let loaded = unsafe { libloading::Library::new(name) };
    let loaded = Box::leak(Box::new(
        loaded.map_err(|error| LoadError::Absent(error.to_string()))?,
    ));
    let functions = Functions::load(loaded)?;
    super::allocator::keep_large_buffers();
    let mut version = (0, 0, 0);
    // SAFETY: three places for integers.
    unsafe { (functions.rados_version)(&mut version.0, &mut version.1, &mut version.2) };
    Ok(Library { functions, version })
}
