"""What a huge thin image costs beside a small full one that holds as many bytes: times and memory."""

from .. import fio, places
from ..copies import Mover
from ..ferry import Ferry
from ..processes import peak_memory_kib
from ..rows import FERRY
from ..turns import turned

ROWS = ("prepare-size", "execute-size", "memory-execute", "memory-serve")

_OBJECT_BYTES = 4 << 20
_SMALL = "1 GiB full"


class _Subject:
    """One of the two images. Its data are whole objects, evenly spread."""

    def __init__(self, ferry, image, plan, size_bytes):
        objects = plan.image_bytes // _OBJECT_BYTES
        self._ferry = ferry
        self._plan = plan
        self._stride_bytes = size_bytes // objects
        self._mover = Mover(ferry, image)
        ferry.create(image, size_bytes)
        with ferry.serve(image) as served:
            fio.fill(served.uri, plan.image_bytes, self._stride_bytes)

    def migrate(self):
        """Figures of one migration, by row."""
        prepared = self._mover.prepare()
        executed = self._mover.execute()
        self._mover.commit()
        return {
            "prepare-size": prepared.wall_s,
            "execute-size": executed.wall_s,
            "memory-execute": executed.peak_kib / 1024,
        }

    def serve(self):
        """Peak memory of a server in MiB, after reads all over the image and small and big writes where data are."""
        with self._ferry.serve(self._mover.image) as served:
            fio.job(served.uri, "randread", "4k", 16, *fio.timed(self._plan.job_ms, 0))
            fio.job(served.uri, "read", "1m", 16, f"--io_size={self._plan.image_bytes}")
            for block_bytes in (4 << 10, 1 << 20):
                fio.fill(
                    served.uri, self._plan.image_bytes // _OBJECT_BYTES * block_bytes, self._stride_bytes, block_bytes
                )
            return peak_memory_kib(served.server.pid) / 1024


def measure(plan, wanted):
    """One round: each image migrates and is served."""
    with places.scratch(plan.disk, "size") as here:
        places.require_free(here, 4 * plan.image_bytes)
        ferry = Ferry(plan.binary, here / "store")
        subjects = {
            FERRY: _Subject(ferry, "huge", plan, plan.huge_bytes),
            _SMALL: _Subject(ferry, "small", plan, plan.image_bytes),
        }
        for round_no in range(plan.rounds):
            figures = {row: {} for row in wanted}
            for name in turned(list(subjects), round_no):
                taken = subjects[name].migrate()
                if "memory-serve" in wanted:
                    taken["memory-serve"] = subjects[name].serve()
                for row in wanted:
                    figures[row][name] = taken[row]
            yield figures
