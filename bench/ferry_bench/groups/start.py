"""What it costs to start `rbd` at all."""

import statistics

from .. import places
from ..ferry import POOL, Ferry
from ..rows import FERRY

ROWS = ("start",)
_IMAGES = 3


def measure(plan, _wanted):
    """One round: `rbd ls` some times; their median."""
    with places.scratch(plan.disk, "start") as here:
        ferry = Ferry(plan.binary, here / "store")
        for number in range(_IMAGES):
            ferry.create(f"image{number}", plan.image_bytes)
        for _ in range(plan.rounds):
            yield {
                "start": {FERRY: statistics.median(ferry.measure("ls", POOL).cpu_s * 1000 for _ in range(plan.starts))}
            }
