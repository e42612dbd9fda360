"""Reads and writes of images on a Ceph cluster: `bench` of both commands, and our NBD server beside fio's rbd engine,
which is a client with librbd in it, and beside qemu-nbd, where that can use librbd. Every contender has an image of its own with
the same bytes.
"""

import contextlib
import re

from .. import ceph, fio, peers, places, processes
from ..rows import FERRY, LIBRBD_IN_QEMU
from ..turns import turned

_CEPH = "Ceph's rbd"
_LIBRBD = "fio's rbd engine"
_IMAGES = {FERRY: "ours", _CEPH: "theirs", LIBRBD_IN_QEMU: "qemus"}

# Row, pattern, type, size of a request, bytes in all as a share of the image.
_BENCHES = {
    "ceph-bench-randread": ("rand", "read", "4K", 16),
    "ceph-bench-randwrite": ("rand", "write", "4K", 32),
    "ceph-bench-seqread": ("seq", "read", "4M", 1),
    "ceph-bench-seqwrite": ("seq", "write", "4M", 1),
}
_JOBS = {
    "ceph-serve-randread": ("randread", "4k", 16, fio.iops),
    "ceph-serve-randwrite": ("randwrite", "4k", 16, fio.iops),
    "ceph-serve-seqread": ("read", "1m", 4, fio.mib_per_s),
    "ceph-serve-seqwrite": ("write", "1m", 4, fio.mib_per_s),
}

ROWS = (*_BENCHES, *_JOBS)


def measure(plan, wanted):
    """One round: every wanted job by both."""
    with ceph.cluster(plan) as cluster, places.scratch(plan.memory, "ceph-io") as here:
        sides = {FERRY: ceph.Side(cluster, plan.binary), _CEPH: ceph.Side(cluster, ceph.CEPH_RBD)}
        raw = here / "raw"
        places.random_file(raw, plan.image_bytes)
        for image in _IMAGES.values():
            sides[_CEPH].run("import", raw, image, "--no-progress")
        for round_no in range(plan.rounds):
            figures = {}
            for row in (row for row in _BENCHES if row in wanted):
                figures[row] = {name: _bench(plan, row, sides[name], name) for name in turned(list(sides), round_no)}
            jobs = [row for row in _JOBS if row in wanted]
            if jobs:
                # Not beside the benches, which want the image's lock for themselves.
                with contextlib.ExitStack() as stack:
                    served = stack.enter_context(sides[FERRY].serve(_IMAGES[FERRY], here))
                    engines = {FERRY: fio.nbd(served.uri), _LIBRBD: _librbd()}
                    # Where it can't, it is not shown.
                    with contextlib.suppress(processes.CommandFailed):
                        image = f"{ceph.POOL}/{_IMAGES[LIBRBD_IN_QEMU]}"
                        qemu = peers.qemu_nbd_on_ceph(cluster.conf, image, here / f"qemu{round_no}.sock")
                        engines[LIBRBD_IN_QEMU] = fio.nbd(stack.enter_context(qemu).uri)
                    for row in jobs:
                        turns = turned(list(engines), round_no)
                        figures[row] = {name: _job(plan, row, engines[name], cluster.env) for name in turns}
            yield figures


def _bench(plan, row, side, name):
    pattern, kind, io_size, share = _BENCHES[row]
    words = ["--io-type", kind, "--io-size", io_size, "--io-pattern", pattern, "--io-threads", "16"]
    out = side.run("bench", _IMAGES[name], *words, "--io-total", str(plan.image_bytes // share))
    found = re.search(r"ops/sec: *([0-9.,e+]+)", out)
    if not found:
        raise processes.CommandFailed(f"bench gave no result: {out[-500:]!r}")
    return float(found[1].replace(",", ""))


def _librbd():
    return ["--ioengine=rbd", "--clientname=admin", f"--pool={ceph.POOL}", f"--rbdname={_IMAGES[_CEPH]}"]


def _job(plan, row, engine, env):
    rw, block_size, depth, figure = _JOBS[row]
    return figure(fio.job_on(engine, rw, block_size, depth, *fio.timed(plan.job_ms, plan.warm_up_ms), env=env))
