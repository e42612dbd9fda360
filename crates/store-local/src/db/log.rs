//! SQLite's log of a database: whether a frame of it has its checksum, and whether it has all that was synced into it.
//!
//! SQLite looks at the checksums of a log only when it recovers one, and takes the first that does not fit for the end of what was
//! written. So a byte that flips in a log in use would be read as data, and copied into the database under a new checksum; and
//! after a kill all that was committed behind it would be gone without a word. Here each frame can be judged alone, and a note
//! ([`Mark`]) beside the log says how much of it was synced: a log that has less is damaged, one that has more is as good as it ends.
//!
//! Keeps invariant: no log that a kill or a power loss may leave is called damaged. The note is made under the writers' lock, of frames
//! that are committed and synced, which nobody writes again while the log has that salt; the note itself is never synced, so it may
//! be older than the log, never newer. docs/format-local.md, 3.1 is the contract, docs/decisions/ has the reasons. Pure but for the
//! note. Does not know how SQLite reads and writes ([`super::logged`] does), nor tables.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::page::{self, PAGE};

/// Bytes before the first frame.
pub(super) const HEAD: usize = 32;
/// Bytes of a frame before its page.
pub(super) const FRAME_HEAD: usize = 24;
const FRAME: usize = FRAME_HEAD + PAGE;
/// What a log begins with; one more: its checksums are of big-endian words.
const MAGIC: u32 = 0x377f_0682;
const SALT_AT: usize = 16;
const FRAME_SALT_AT: usize = 8;
/// Where the sums lie at the end of the head, and of the head of a frame.
const SUM_AT: usize = 24;
const FRAME_SUM_AT: usize = 16;

/// Where the note lies in the side file; locks are on the bytes before it.
const MARK_AT: u64 = 16;
const MARK: usize = 48;
const MARK_MAGIC: &[u8; 8] = b"FERRYLOG";

/// A running checksum of SQLite's.
type Sum = [u8; 8];

/// What distinguishes a log from the one before it in the same file.
pub(super) type Salt = [u8; 8];

/// Number of the frame, from 0, whose page lies at `offset`.
pub(super) fn frame_of_page(offset: u64) -> Option<u64> {
    frame_at(offset.checked_sub(FRAME_HEAD as u64)?)
}

/// Number of the frame, from 0, that begins at `offset`.
pub(super) fn frame_at(offset: u64) -> Option<u64> {
    let inside = offset.checked_sub(HEAD as u64)?;
    inside
        .is_multiple_of(FRAME as u64)
        .then_some(inside / FRAME as u64)
}

fn offset_of(frame: u64) -> u64 {
    HEAD as u64 + frame * FRAME as u64
}

/// Where the sum before frame `frame` lies: that of the frame before it, or of the head.
fn sum_before_at(frame: u64) -> u64 {
    match frame {
        0 => SUM_AT as u64,
        _ => offset_of(frame - 1) + FRAME_SUM_AT as u64,
    }
}

/// The salt in the head of a frame.
pub(super) fn salt_of_frame(head: &[u8]) -> Option<Salt> {
    head.get(FRAME_SALT_AT..FRAME_SUM_AT)?.try_into().ok()
}

/// Whether a frame with this head is the last of its transaction.
pub(super) fn is_commit(head: &[u8]) -> bool {
    head.get(4..FRAME_SALT_AT).is_some_and(|pages| pages != [0; 4])
}

/// The salt in the head of a log.
fn salt_of(head: &[u8; HEAD]) -> Salt {
    let mut salt = [0; 8];
    salt.copy_from_slice(&head[SALT_AT..SUM_AT]);
    salt
}

/// Goes on from `before` over `bytes`, which are a multiple of eight.
fn sum(before: Sum, bytes: &[u8], is_big_endian: bool) -> Sum {
    let [mut first, mut second] = halves(before);
    let word = |bytes: [u8; 4]| match is_big_endian {
        true => u32::from_be_bytes(bytes),
        false => u32::from_le_bytes(bytes),
    };
    for [a, b, c, d, e, f, g, h] in bytes.as_chunks::<8>().0 {
        first = first.wrapping_add(word([*a, *b, *c, *d])).wrapping_add(second);
        second = second.wrapping_add(word([*e, *f, *g, *h])).wrapping_add(first);
    }
    let ([a, b, c, d], [e, f, g, h]) = (first.to_be_bytes(), second.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

fn halves([a, b, c, d, e, f, g, h]: Sum) -> [u32; 2] {
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]
}

/// Whether a frame has its checksum, which goes on from the one before it.
fn fits(before: Sum, head: &[u8], page: &[u8], is_big_endian: bool) -> bool {
    let (Some(named), Some(stored)) = (head.get(..8), head.get(FRAME_SUM_AT..FRAME_HEAD)) else {
        return false;
    };
    sum(sum(before, named, is_big_endian), page, is_big_endian) == stored
}

/// Whether `page`, as it was read from frame `frame`, is what was written there. `read` fills a buffer from an offset of the log and
/// says whether it could. Only for frames that nobody writes just now.
pub(super) fn page_fits(frame: u64, page: &[u8], mut read: impl FnMut(u64, &mut [u8]) -> bool) -> bool {
    let (mut before, mut head) = (Sum::default(), [0; FRAME_HEAD]);
    if !read(sum_before_at(frame), &mut before) || !read(offset_of(frame), &mut head) {
        return false;
    }
    // Written on a machine like this, or on one of the other order: the head of the log says so, and is asked only then.
    fits(before, &head, page, cfg!(target_endian = "big")) || {
        let mut log = [0; HEAD];
        read(0, &mut log)
            && Order::of(&log).is_some_and(|order| fits(before, &head, page, order.is_big_endian))
    }
}

/// What the head of a log says, if it has its checksum.
struct Order {
    is_big_endian: bool,
    sum: Sum,
    /// Whether its pages are as long as ours.
    is_ours: bool,
}

impl Order {
    fn of(head: &[u8; HEAD]) -> Option<Self> {
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(0) & !1 != MAGIC {
            return None;
        }
        let is_big_endian = word(0) & 1 == 1;
        let sum = sum(Sum::default(), &head[..SUM_AT], is_big_endian);
        (head[SUM_AT..] == sum).then_some(Self {
            is_big_endian,
            sum,
            is_ours: word(8) as usize == PAGE,
        })
    }
}

/// Frames of a log, from its first on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Synced {
    pub(super) salt: Salt,
    pub(super) frames: u64,
}

/// How many frames of a log were committed and synced at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    salt: Salt,
    frames: u64,
    /// When it was noted: a torn head of a log is damage only in a machine that has not been down since. A head is written anew when
    /// all of the log is in the database, and may be torn by the power then.
    boot: [u8; 16],
}

impl Mark {
    pub(super) fn new(synced: Synced) -> Self {
        Self {
            salt: synced.salt,
            frames: synced.frames,
            boot: boot(),
        }
    }

    /// The note in the side file; `None`: there is none that can be read.
    pub(super) fn read(side: &File) -> Option<Self> {
        let mut bytes = [0; MARK];
        side.read_exact_at(&mut bytes, MARK_AT).ok()?;
        let (body, sum) = bytes.split_at(MARK - 8);
        if !body.starts_with(MARK_MAGIC) || page::sum_of(0, body).to_le_bytes() != *sum {
            return None;
        }
        Some(Self {
            boot: body[8..24].try_into().ok()?,
            salt: body[24..32].try_into().ok()?,
            frames: u64::from_le_bytes(body[32..40].try_into().ok()?),
        })
    }

    /// Notes it, without a sync.
    pub(super) fn note(&self, side: &File) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(MARK);
        bytes.extend_from_slice(MARK_MAGIC);
        bytes.extend_from_slice(&self.boot);
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&self.frames.to_le_bytes());
        bytes.extend_from_slice(&page::sum_of(0, &bytes).to_le_bytes());
        side.write_all_at(&bytes, MARK_AT)
    }
}

/// The kernel's boot; zeros where it does not say.
fn boot() -> [u8; 16] {
    static BOOT: OnceLock<[u8; 16]> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16)
            .unwrap_or_default()
            .to_be_bytes()
    })
}

/// What is wrong with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its head does not have its checksum.
    Head,
    /// This frame does not have its checksum.
    Frame(u64),
    /// It ends before this frame, which was synced.
    Cut(u64),
}

/// What a log of `size` bytes lacks of what was synced into it. `read` as for [`page_fits`]; what cannot be read is no fault of the log's.
/// One that is empty, or another than `mark` tells of, is not judged.
pub(super) fn judge(mark: &Mark, size: u64, mut read: impl FnMut(u64, &mut [u8]) -> bool) -> Option<Fault> {
    if size == 0 || mark.frames == 0 {
        return None;
    }
    let is_this_boot = mark.boot == boot();
    let mut head = [0; HEAD];
    if size < HEAD as u64 {
        return is_this_boot.then_some(Fault::Cut(0));
    }
    if !read(0, &mut head) {
        return None;
    }
    let Some(order) = Order::of(&head) else {
        return is_this_boot.then_some(Fault::Head);
    };
    if salt_of(&head) != mark.salt || !order.is_ours {
        return None;
    }
    let (mut before, mut bytes) = (order.sum, vec![0; FRAME]);
    for frame in 0..mark.frames {
        if size < offset_of(frame + 1) {
            return Some(Fault::Cut(frame));
        }
        if !read(offset_of(frame), &mut bytes) {
            return None;
        }
        let (head, page) = bytes.split_at(FRAME_HEAD);
        let is_of_this_log = salt_of_frame(head) == Some(mark.salt) && head[..4] != [0; 4];
        if !is_of_this_log || !fits(before, head, page, order.is_big_endian) {
            return Some(Fault::Frame(frame));
        }
        before.copy_from_slice(&head[FRAME_SUM_AT..]);
    }
    None
}

/// The log of the database at `path`.
pub(super) fn path_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// The side file of the database at `path`.
pub(super) fn side_path(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

/// What can be done about such a log. Neither all that is in front of the damage nor the database alone need be one state: parts of the
/// log may have been copied into the database, of which nothing durable tells.
pub(crate) const WAY_OUT: &str = "put the store back from a copy; without one, end all users of it, put the log aside, and let 'rbd fsck' look before anything is trusted: what was committed into the log may be missing then, wholly or in part";

/// In words: what the log of the database at `path` lacks of what was synced into it. Under the writers' lock, or when there are none.
/// Opens the log past SQLite, which has no lock on it that could be lost ([`super::raw`]).
pub(crate) fn damage(path: &Path) -> io::Result<Option<String>> {
    let path_of_log = path_of(path);
    let (side, log) = match (File::open(side_path(path)), File::open(&path_of_log)) {
        (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        (side, log) => (side?, log?),
    };
    let Some(mark) = Mark::read(&side) else {
        return Ok(None);
    };
    let look = |mark: &Mark| -> io::Result<(u64, Option<Fault>)> {
        let size = log.metadata()?.len();
        let read = |offset: u64, bytes: &mut [u8]| log.read_exact_at(bytes, offset).is_ok();
        Ok((size, judge(mark, size, read)))
    };
    let (size, mut fault) = look(&mark)?;
    // Programs that do not take the writers' lock end a log when they close it.
    if fault.is_some() && (Mark::read(&side) != Some(mark) || look(&mark)?.1 != fault) {
        fault = None;
    }
    let place = path_of_log.display();
    Ok(fault.map(|fault| match fault {
        Fault::Head => format!("{place}: the head of this log is damaged, and {} pages in it were synced", mark.frames),
        Fault::Frame(frame) => format!(
            "{place}: frame {} of this log (bytes {} to {}) does not have its checksum, and {} pages were synced",
            frame + 1,
            offset_of(frame),
            offset_of(frame + 1) - 1,
            mark.frames
        ),
        Fault::Cut(frame) => format!(
            "{place}: this log was cut to {size} bytes; it has {frame} whole pages, and {} were synced",
            mark.frames
        ),
    }))
}
