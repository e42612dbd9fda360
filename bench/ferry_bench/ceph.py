"""A Ceph cluster to measure on, and the two commands that work on its images."""

import contextlib
import itertools
import subprocess
import time

from . import places, processes
from .ferry import Served

CEPH_RBD = "/usr/bin/rbd"
POOL = "rbd"


class Cluster:
    """A running cluster, by its configuration file; the administrator's key is where that says. Clients' commands begin with
    `prefix`, where they have to run in the cluster's own network."""

    def __init__(self, conf, prefix=()):
        self.conf = conf
        self.prefix = prefix
        self.env = {"CEPH_CONF": str(conf)}

    def settle(self):
        """Gives the OSD a moment to be done with what it does behind its answers, removing snapshots above all."""
        time.sleep(2)


@contextlib.contextmanager
def cluster(plan, prefix=()):
    """The cluster that the plan names, or one of this run's own that goes away with it. One that is in a network of its own, which
    `prefix` leads into, is always this run's. Raises Skipped without Ceph."""
    if plan.ceph_conf and not prefix:
        yield Cluster(plan.ceph_conf)
        return
    script = plan.source / "scripts" / "ceph-dev"
    with places.scratch(plan.memory, "ceph") as here:
        home, more = here / "c", here / "more.conf"
        # In memory, so no larger than it must be: an OSD gets to use all of its device sooner or later.
        more.write_text(f"[osd]\nbluestore block size = {6 * plan.image_bytes + (2 << 30)}\n", encoding="utf-8")
        try:
            processes.run([*prefix, script, "up", "--conf", more, home])
        except processes.CommandFailed as error:
            raise places.Skipped(f"no cluster here: {error}") from error
        try:
            yield Cluster(home / "ceph.conf", prefix)
        finally:
            subprocess.run([script, "down", home], check=False, capture_output=True)


class Side:
    """One of the two commands on one cluster."""

    _numbers = itertools.count()

    def __init__(self, cluster_, binary):
        self.cluster = cluster_
        self.binary = binary

    def argv(self, *words):
        """The command line of `rbd WORDS`."""
        return [*self.cluster.prefix, self.binary, "-c", self.cluster.conf, *words]

    def run(self, *words):
        """Runs `rbd WORDS` and returns its stdout."""
        return processes.run(self.argv(*words))

    def measure(self, *words):
        """Runs `rbd WORDS` and returns what it cost."""
        return processes.measure(self.argv(*words))

    @contextlib.contextmanager
    def serve(self, image, directory):
        """Serves one image of the pool; gives its Served. Ferry only."""
        socket = directory / f"ceph{next(self._numbers)}.sock"
        spec = f"{POOL}/{image}"
        with processes.Background(self.argv("serve", spec, "--socket", socket)) as server:
            server.wait_for_socket(socket)
            yield Served(f"nbd+unix:///{spec}?socket={socket}", server)
