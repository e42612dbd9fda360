"""The first write to each object after a snapshot, beside a plain overwrite of the same blocks of the same objects.

The image is full, so that an engine that copies a whole object pays for it. One 4 KiB write per object, 16 in flight,
one flush behind the last; the flush counts.
"""

from .. import fio, places
from ..ferry import Ferry
from ..rows import FERRY

_OBJECT_BYTES = 4 << 20
_BLOCK_BYTES = 4 << 10
# Somewhere inside the object, at no boundary of anything.
_OFFSET_BYTES = (1 << 20) + 3 * _BLOCK_BYTES


class _Group:
    def __init__(self, row, place):
        self.ROWS = (row,)
        self._place = place

    def measure(self, plan, _wanted):
        """One round: overwrite, snapshot, overwrite; then the snapshot goes."""
        size_bytes = plan.snapshot_objects * _OBJECT_BYTES
        with self._place(plan.disk, 3 * size_bytes) as here:
            places.require_free(here, 2 * size_bytes)
            ferry = Ferry(plan.binary, here / "store")
            ferry.create("image", size_bytes)
            with ferry.serve("image") as served:
                fio.fill(served.uri, size_bytes)
                _write_each(served, plan, here)
                for _ in range(plan.rounds):
                    plain = _write_each(served, plan, here)
                    ferry.run("snap", "create", ferry.spec("image@snap"), "--no-progress")
                    first = _write_each(served, plan, here)
                    ferry.run("snap", "rm", ferry.spec("image@snap"), "--no-progress")
                    yield {self.ROWS[0]: {FERRY: first, "plain overwrite": plain}}


def _write_each(served, plan, here):
    """One write to every object and a flush. Returns writes per second, the flush included."""
    places.sync(here)
    result = fio.job(
        served.uri,
        f"write:{_OBJECT_BYTES - _BLOCK_BYTES}",
        _BLOCK_BYTES,
        16,
        f"--offset={_OFFSET_BYTES}",
        f"--io_size={plan.snapshot_objects * _BLOCK_BYTES}",
        "--end_fsync=1",
    )
    return fio.iops(result)


PLAIN = _Group("first-write", places.without_reflink)
REFLINK = _Group("first-write-reflink", places.xfs)
