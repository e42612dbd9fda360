"""`execute` on a Ceph cluster, ours and that of Ceph's own `rbd`, of the same image in turn.

Both copy the same source. After each, Ferry's `abort` takes the migration back, which leaves the source as it was.
"""

from .. import ceph, fio, places
from ..rows import FERRY
from ..turns import turned

_CEPH = "Ceph's rbd"
_OBJECT_BYTES = 4 << 20
_SNAPSHOTS = 3


class _Group:
    def __init__(self, rows, make):
        self.ROWS = rows
        self._make = make

    def measure(self, plan, wanted):
        """One round: both migrate the image."""
        with ceph.cluster(plan) as cluster, places.scratch(plan.memory, "ceph-execute") as here:
            sides = {FERRY: ceph.Side(cluster, plan.binary), _CEPH: ceph.Side(cluster, ceph.CEPH_RBD)}
            self._make(plan, sides[FERRY], here)
            for round_no in range(plan.rounds):
                taken = {row: {} for row in wanted}
                for name in turned(list(sides), round_no):
                    usage = _migrate(sides[name], sides[FERRY])
                    figures = (usage.wall_s, usage.cpu_s * (1 << 30) / plan.image_bytes)
                    for row, figure in zip(self.ROWS, figures, strict=False):
                        if row in wanted:
                            taken[row][name] = figure
                yield taken


def _migrate(side, ferry):
    side.run("migration", "prepare", "source", "target")
    side.cluster.settle()
    usage = side.measure("migration", "execute", "target", "--no-progress")
    ferry.run("migration", "abort", "target", "--no-progress")
    side.cluster.settle()
    return usage


def _full(plan, ferry, here):
    """Random bytes all over, and between the snapshots every sixteenth block of 64 KiB is written anew."""
    raw = here / "raw"
    places.random_file(raw, plan.image_bytes)
    ferry.run("import", raw, "source", "--no-progress")
    for snapshot in range(_SNAPSHOTS):
        ferry.run("snap", "create", f"source@s{snapshot}", "--no-progress")
        with ferry.serve("source", here) as served:
            fio.fill(served.uri, plan.image_bytes // 16, 1 << 20, 64 << 10)


def _thin(plan, ferry, here):
    """Whole objects of random bytes, evenly spread over the image."""
    ferry.run("create", "source", "--size", f"{plan.thin_bytes >> 20}M")
    with ferry.serve("source", here) as served:
        stride_bytes = plan.thin_bytes // (plan.image_bytes // _OBJECT_BYTES)
        fio.fill(served.uri, plan.image_bytes, stride_bytes)


FULL = _Group(("ceph-execute", "ceph-execute-cpu"), _full)
THIN = _Group(("ceph-execute-thin",), _thin)
