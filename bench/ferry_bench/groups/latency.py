"""What clients notice of `execute`: p99 latencies at a fixed rate, while it runs in the serving process and before.

Two clients at once, both far from saturating the server: one reads and writes in a part of the image that is copied
beforehand (a write to what is not copied must copy first, whether `execute` runs or not), one reads anywhere. Only
operations that completed while `execute` ran count, so that its end does not flatter it.
"""

import time

from .. import fio, places
from ..copies import Mover
from ..ferry import Ferry
from ..processes import Background
from ..rows import FERRY

ROWS = ("latency", "latency-reads")

_OBJECT_BYTES = 4 << 20
_QUIET = "without execute"
# fio is stopped when execute ends; this bounds an execute that never does.
_LONGEST_S = 180
_START_S = 1.0


def measure(plan, wanted):
    """One round: a new target, the clients without `execute`, the clients with it."""
    with places.scratch(plan.disk, "latency") as here:
        places.require_free(here, 3 * plan.busy_bytes)
        ferry = Ferry(plan.binary, here / "store")
        ferry.create("image", plan.busy_bytes)
        with ferry.serve("image") as served:
            fio.fill(served.uri, plan.busy_bytes)
        mover = Mover(ferry, "image")
        for _ in range(plan.rounds):
            mover.prepare()
            with ferry.serve(mover.image) as served:
                _copy_the_clients_part(plan, served)
                places.sync(here)
                quiet = _clients_alone(plan, served, here)
                places.sync(here)
                busy = _clients_beside_execute(plan, served, here, mover)
                mover.commit()
            yield {row: {FERRY: busy[row], _QUIET: quiet[row]} for row in wanted}


def _copy_the_clients_part(plan, served):
    """One write to each of its objects copies it."""
    fio.job(
        served.uri,
        f"write:{_OBJECT_BYTES - 4096}",
        "4k",
        4,
        f"--io_size={plan.client_bytes // _OBJECT_BYTES * 4096}",
        "--end_fsync=1",
    )


def _argv(plan, served, here, runtime_s):
    """fio with both clients; it logs every operation with the time of day."""
    common = ["--time_based", f"--runtime={runtime_s}s", "--log_unix_epoch=1"]
    rate = plan.client_iops // 2
    first = fio.argv(
        served.uri,
        "randrw",
        "4k",
        16,
        *common,
        f"--size={plan.client_bytes}",
        f"--rate_iops={rate // 2}",
        f"--write_lat_log={here / 'latency'}",
    )
    second = [
        "--name=reads",
        "--ioengine=nbd",
        "--thread=1",
        "--norandommap=1",
        f"--uri={served.uri}",
        "--rw=randread",
        "--bs=4k",
        "--iodepth=16",
        *common,
        f"--rate_iops={rate}",
        f"--write_lat_log={here / 'latency-reads'}",
    ]
    return [*first, *second]


def _clients_alone(plan, served, here):
    with Background(_argv(plan, served, here, max(1, 2 * plan.job_ms // 1000))) as clients:
        clients.wait()
    return _p99(here, 0, float("inf"))


def _clients_beside_execute(plan, served, here, mover):
    with Background(_argv(plan, served, here, _LONGEST_S)) as clients:
        time.sleep(_START_S)
        begin = time.time()
        with mover.execute_in_background() as execute:
            execute.wait()
        end = time.time()
        clients.interrupt()
    return _p99(here, 1000 * begin, 1000 * end)


def _p99(here, begin_ms, end_ms):
    """p99 of what completed between two times of day, by row, in µs. Removes the logs."""
    figures = {}
    for row, log in zip(ROWS, ("latency_lat.1.log", "latency-reads_lat.2.log"), strict=True):
        figures[row] = percentile_us((here / log).read_text(encoding="ascii"), begin_ms, end_ms, 99)
    for log in here.glob("latency*.log"):
        log.unlink()
    return figures


def percentile_us(log, begin_ms, end_ms, percent):
    """A percentile of the latencies in a span of time, in µs, from fio's log (`time in ms, ns, ...` per line).

    Raises ValueError if there are none.
    """
    latencies = []
    for line in log.splitlines():
        at_ms, latency_ns, *_ = line.split(",")
        if begin_ms <= int(at_ms) <= end_ms:
            latencies.append(int(latency_ns))
    if not latencies:
        raise ValueError("no operation completed in the span of time")
    latencies.sort()
    return latencies[min(len(latencies) - 1, len(latencies) * percent // 100)] / 1000
