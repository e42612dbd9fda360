"""Migrations as things to be timed: an image that moves to and fro under two names, and plain copies of the same bytes.

All copies end with the target on the medium, because Ferry's `execute` does: the peers' commands are followed by a sync
of the target file, and the time of both counts.
"""

import time

from . import places
from .processes import measure, run


class Mover:
    """An image of a store that is migrated again and again; each target is the next source."""

    def __init__(self, ferry, image):
        self._ferry = ferry
        self._base = image
        self._moves = 0
        self.image = image
        """Name of the image that is in use, inside the pool."""

    def prepare(self):
        """Puts a new target in front of the image. Returns the Usage of that."""
        self._moves += 1
        target = f"{self._base}-{self._moves}"
        places.sync(self._ferry.store)
        usage = self._ferry.measure("migration", "prepare", self._ferry.spec(self.image), self._ferry.spec(target))
        self.image = target
        return usage

    def execute(self):
        """Copies everything. Returns the Usage of that."""
        places.sync(self._ferry.store)
        return self._ferry.measure("migration", "execute", self._ferry.spec(self.image), "--no-progress")

    def execute_in_background(self):
        """Starts the copying."""
        return self._ferry.background("migration", "execute", self._ferry.spec(self.image), "--no-progress")

    def commit(self):
        """Ends the migration; the source goes."""
        self._ferry.run("migration", "commit", self._ferry.spec(self.image), "--no-progress")

    def move(self):
        """A whole migration. Returns how long `execute` took, in seconds."""
        self.prepare()
        usage = self.execute()
        self.commit()
        return usage.wall_s


# qemu-img gets the options that let it write in parallel, nbdcopy its own way of copying between files; both were
# faster so than otherwise.
COPIERS = {
    "qemu-img convert": lambda source, target: [
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "raw",
        "-m",
        "16",
        "-W",
        source,
        target,
    ],
    "nbdcopy": lambda source, target: ["nbdcopy", "--flush", source, target],
    "cp": lambda source, target: ["cp", "--reflink=never", source, target],
    "cp --reflink=always": lambda source, target: ["cp", "--reflink=always", source, target],
}


def copy_file(copier, source):
    """Copies a file with one of COPIERS, makes the copy durable, removes it. Returns how long that took, in seconds."""
    target = source.with_name("copy.raw")
    places.sync(source)
    try:
        start = time.monotonic()
        measure(COPIERS[copier](source, target))
        run(["sync", target])
        return time.monotonic() - start
    finally:
        target.unlink(missing_ok=True)
