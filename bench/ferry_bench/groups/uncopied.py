"""Reads through a migration target: of an image that is only prepared, and of its twin that is wholly copied."""

import contextlib

from .. import fio, places
from ..copies import Mover
from ..ferry import Ferry
from ..rows import FERRY
from ..turns import turned

ROWS = ("uncopied",)


def measure(plan, _wanted):
    """One round: the same job on both twins, each behind a server of its own. Reads copy nothing, so they stay so."""
    with places.scratch(plan.disk, "uncopied") as here, contextlib.ExitStack() as servers:
        places.require_free(here, 5 * plan.image_bytes)
        raw = here / "source.raw"
        places.random_file(raw, plan.image_bytes)
        ferry = Ferry(plan.binary, here / "store")
        served = {}
        for name, image in ((FERRY, "uncopied"), ("copied blocks", "copied")):
            ferry.import_file(raw, image)
            mover = Mover(ferry, image)
            mover.prepare()
            if name != FERRY:
                mover.execute()
            served[name] = servers.enter_context(ferry.serve(mover.image))
        raw.unlink()
        places.sync(here)
        places.warm_tree(here)
        for round_no in range(plan.rounds):
            figures = {}
            for name in turned(list(served), round_no):
                options = fio.timed(plan.job_ms, plan.warm_up_ms)
                figures[name] = fio.iops(fio.job(served[name].uri, "randread", "4k", 16, *options))
            yield {"uncopied": figures}
