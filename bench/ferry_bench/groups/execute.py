"""`execute` of a full image beside plain copies of a raw file with the same bytes."""

import contextlib

from .. import places
from ..copies import Mover, copy_file
from ..ferry import Ferry
from ..rows import BY_ID, FERRY
from ..turns import turned


class _Setup:
    """A raw file and an image of the same bytes on one file system, both in the page cache."""

    def __init__(self, plan, here):
        places.require_free(here, 4 * plan.image_bytes)
        self.raw = here / "source.raw"
        places.random_file(self.raw, plan.image_bytes)
        ferry = Ferry(plan.binary, here / "store")
        ferry.import_file(self.raw, "image")
        self.mover = Mover(ferry, "image")
        places.sync(here)
        places.warm_tree(here)


class Plain:
    """Without reflinks."""

    ROWS = ("execute",)

    @staticmethod
    def measure(plan, _wanted):
        """One round: execute and every copier."""
        with places.without_reflink(plan.disk, 6 * plan.image_bytes) as here:
            setup = _Setup(plan, here)
            turns = {FERRY: setup.mover.move}
            for copier in BY_ID["execute"].marks[0].against:
                turns[copier] = lambda copier=copier: copy_file(copier, setup.raw)
            for round_no in range(plan.rounds):
                yield {"execute": {name: turns[name]() for name in turned(list(turns), round_no)}}


class Reflink:
    """With reflinks, against an execute without them of the same bytes."""

    ROWS = ("execute-reflink",)

    @staticmethod
    def measure(plan, _wanted):
        """One round: execute there and here, and a reflinked copy for comparison."""
        with contextlib.ExitStack() as places_:
            with_reflink = _Setup(plan, places_.enter_context(places.xfs(plan.disk, 6 * plan.image_bytes)))
            without = _Setup(plan, places_.enter_context(places.without_reflink(plan.disk, 6 * plan.image_bytes)))
            turns = {
                FERRY: with_reflink.mover.move,
                "execute without reflink": without.mover.move,
                "cp --reflink=always": lambda: copy_file("cp --reflink=always", with_reflink.raw),
            }
            for round_no in range(plan.rounds):
                yield {"execute-reflink": {name: turns[name]() for name in turned(list(turns), round_no)}}
