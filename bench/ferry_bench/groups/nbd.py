"""NBD service: the same jobs against Ferry, qemu-nbd and nbdkit on files with the same bytes."""

import contextlib
from dataclasses import dataclass

from .. import fio, peers, places
from ..ferry import Ferry
from ..rows import FERRY
from ..turns import turned


@dataclass(frozen=True)
class Job:
    """What fio does for one row."""

    row: str
    rw: str
    block_size: str
    depth: int
    figure: object = fio.iops
    extra: tuple = ()


def _jobs(where):
    return (
        Job(f"read16-{where}", "randread", "4k", 16),
        Job(f"read1-{where}", "randread", "4k", 1),
        Job(f"seqread-{where}", "read", "1m", 4, fio.mib_per_s),
        Job(f"write16-{where}", "randwrite", "4k", 16),
        Job(f"seqwrite-{where}", "write", "1m", 4, fio.mib_per_s),
    )


class _Group:
    def __init__(self, parent, jobs):
        self.ROWS = tuple(job.row for job in jobs)
        self._parent = parent
        self._jobs = jobs

    def measure(self, plan, wanted):
        """One round: every wanted job on every server."""
        jobs = [job for job in self._jobs if job.row in wanted]
        with places.scratch(self._parent(plan), "nbd") as here, contextlib.ExitStack() as servers:
            places.require_free(here, 4 * plan.image_bytes)
            served = _start_all(plan, here, servers)
            for round_no in range(plan.rounds):
                yield {job.row: _alternate(plan, here, job, served, round_no) for job in jobs}


def _start_all(plan, here, servers):
    """Starts each server on data of its own with the same bytes, all in the page cache."""
    first, *others = [here / f"{name}.raw" for name in peers.SERVERS]
    places.random_file(first, plan.image_bytes)
    ferry = Ferry(plan.binary, here / "store")
    ferry.import_file(first, "image")
    for other in others:
        other.write_bytes(first.read_bytes())
    places.sync(here)
    places.warm_tree(here)
    served = {FERRY: servers.enter_context(ferry.serve("image"))}
    for name, start in peers.SERVERS.items():
        served[name] = servers.enter_context(start(here / f"{name}.raw"))
    return served


def _alternate(plan, here, job, served, round_no):
    figures = {}
    for name in turned(list(served), round_no):
        # What the last job left to be written back must not cost this one.
        places.sync(here)
        options = [*fio.timed(plan.job_ms, plan.warm_up_ms), *job.extra]
        figures[name] = job.figure(fio.job(served[name].uri, job.rw, job.block_size, job.depth, *options))
    return figures


DISK = _Group(lambda plan: plan.disk, (*_jobs("disk"), Job("flush1-disk", "randwrite", "4k", 1, extra=("--fsync=1",))))
MEMORY = _Group(lambda plan: plan.memory, _jobs("tmpfs"))
