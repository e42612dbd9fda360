"""Where data lies: directories on disk and on tmpfs, and file systems of a run's own on loop devices.

Promise: everything is below directories made for this run, which go away with it; mounts first.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from .processes import CommandFailed, run

_BLOCK = 1 << 20
_SMALLEST_XFS_BYTES = 512 << 20


class Skipped(Exception):
    """A row cannot be measured here; the text says why."""


@contextlib.contextmanager
def scratch(parent, name):
    """A fresh directory in `parent`, removed on leaving."""
    path = Path(tempfile.mkdtemp(prefix=f"ferry-bench-{name}.", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def xfs(parent, size_bytes):
    """A mounted xfs with reflinks on a loop device whose file lies in `parent`. Raises Skipped without the rights."""
    with _xfs(parent, size_bytes, reflink=True) as mountpoint:
        yield mountpoint


@contextlib.contextmanager
def without_reflink(parent, size_bytes):
    """A directory in `parent`, if its file system has no reflinks; otherwise an xfs without them, as in `xfs`."""
    with scratch(parent, "plain") as path:
        if not _has_reflinks(path):
            yield path
            return
    with _xfs(parent, size_bytes, reflink=False) as mountpoint:
        yield mountpoint


def _has_reflinks(path):
    probe = path / "probe"
    probe.write_bytes(b"probe")
    try:
        run(["cp", "--reflink=always", probe, path / "clone"])
    except CommandFailed:
        return False
    return True


@contextlib.contextmanager
def _xfs(parent, size_bytes, reflink):
    if os.geteuid() != 0:
        raise Skipped("a loop mount needs root")
    with scratch(parent, "xfs") as path:
        image, mountpoint = path / "xfs.img", path / "mnt"
        mountpoint.mkdir()
        with open(image, "wb") as file:
            file.truncate(max(size_bytes, _SMALLEST_XFS_BYTES))
        try:
            run(["mkfs.xfs", "-q", "-m", f"reflink={int(reflink)}", image])
            run(["mount", "-o", "loop", image, mountpoint])
        except CommandFailed as error:
            raise Skipped(f"no xfs on a loop device here: {error}") from error
        try:
            yield mountpoint
        finally:
            # The loop device goes with the mount.
            run(["umount", mountpoint])


def sync(path):
    """Brings all of the file system of `path` to the medium, so that nobody pays for what others wrote."""
    run(["sync", "-f", path])


def random_file(path, size_bytes):
    """A file of incompressible bytes without a hole."""
    with open(path, "wb") as file:
        left = size_bytes
        while left > 0:
            block = os.urandom(min(left, _BLOCK))
            file.write(block)
            left -= len(block)
    sync(path)


def warm(path):
    """Reads a file, so that it is in the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(_BLOCK):
            pass


def warm_tree(path):
    """Reads all files below a directory."""
    for directory, _, names in os.walk(path):
        for name in names:
            file = Path(directory) / name
            if file.is_file():
                warm(file)


def require_free(path, size_bytes):
    """Raises Skipped if the file system of `path` has not that much space."""
    free = shutil.disk_usage(path).free
    if free < size_bytes:
        raise Skipped(f"needs {size_bytes >> 20} MiB of free space, there are {free >> 20}")
