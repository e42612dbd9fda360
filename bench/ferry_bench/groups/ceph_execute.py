"""`execute` on a Ceph cluster, ours and that of Ceph's own `rbd`, of the same image in turn.

Both copy the same source. After each, Ferry's `abort` takes the migration back, which leaves the source as it was. The rows with a
link have the clients on a host of their own, as far as the network goes.
"""

import contextlib

from .. import ceph, fio, places
from ..link import link
from ..rows import FERRY
from ..turns import turned

_CEPH = "Ceph's rbd"
_OBJECT_BYTES = 4 << 20
_SNAPSHOTS = 3


class _Group:
    def __init__(self, rows, make, has_link=False):
        self.ROWS = rows
        self._make = make
        self._has_link = has_link

    def measure(self, plan, wanted):
        """One round: both migrate the image."""
        with contextlib.ExitStack() as stack:
            slow = stack.enter_context(link()) if self._has_link else None
            cluster = stack.enter_context(ceph.cluster(plan, slow.prefix if slow else ()))
            here = stack.enter_context(places.scratch(plan.memory, "ceph-execute"))
            sides = {FERRY: ceph.Side(cluster, plan.binary), _CEPH: ceph.Side(cluster, ceph.CEPH_RBD)}
            self._make(plan, sides[FERRY], here)
            if slow:
                # The OSD's connection to itself is there afterwards, and not the clients'.
                _migrate(sides[FERRY], sides[FERRY])
                slow.slow_down(plan.link_rate)
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
FULL_LINK = _Group(("ceph-execute-link",), _full, has_link=True)
THIN_LINK = _Group(("ceph-execute-thin-link",), _thin, has_link=True)
