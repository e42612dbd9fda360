"""A network of this run's own, in which clients reach a cluster over a link of a given rate and the cluster itself over none.

Everything listens on the loopback device of a network namespace that nothing leads into. A client's connections are told from the
cluster's own by their local ports: what begins before `slow_down` (the daemons, and the connection of an OSD to itself, which is
there after a first migration) has low ones and stays as fast as the machine; what begins behind it has high ones, and each
direction of all of these together gets the rate. Needs root. Raises Skipped where the kernel has no namespaces or no such queues.
"""

import contextlib

from . import processes
from .places import Skipped

_LOW, _HIGH = "32768 49151", "49152 65535"
_HIGH_MASK = "0xc000"
_UP, _DOWN = "1:10", "1:20"
# The loopback device has packets of 64 KiB; a bucket that is smaller than some of them would let nothing through.
_BUCKET = ("burst", "512k", "cburst", "512k", "mtu", "65600")


class Link:
    """The namespace; `prefix` is what a command begins with that is to run in it."""

    def __init__(self, holder):
        self.prefix = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        self._run("ip", "link", "set", "lo", "up")
        self._ports(_LOW)

    def _run(self, *words):
        return processes.run((*self.prefix, *words))

    def _ports(self, interval):
        self._run("sh", "-c", f"echo {interval} >/proc/sys/net/ipv4/ip_local_port_range")

    def slow_down(self, rate):
        """Gives clients that connect from now on a link of `rate`, in the words of tc."""
        self._ports(_HIGH)
        try:
            self._run("tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb")
        except processes.CommandFailed as error:
            raise Skipped(f"no link of a given rate here: {error}") from error
        for flow, port in ((_UP, "sport"), (_DOWN, "dport")):
            self._run("tc", "class", "add", "dev", "lo", "parent", "1:", "classid", flow, "htb", "rate", rate, *_BUCKET)
            what = ("u32", "match", "ip", port, _HIGH.split()[0], _HIGH_MASK, "flowid", flow)
            self._run("tc", "filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", *what)


@contextlib.contextmanager
def link():
    """A Link of its own, gone on leaving; what still runs in it keeps the namespace, nobody else can reach it."""
    try:
        holder = processes.Background(["unshare", "--net", "sleep", "infinity"])
    except processes.CommandFailed as error:
        raise Skipped(f"no network namespace here: {error}") from error
    with holder:
        _wait_for_namespace(holder)
        try:
            made = Link(holder)
        except processes.CommandFailed as error:
            raise Skipped(f"no network of its own here: {error}") from error
        yield made


def _wait_for_namespace(holder):
    processes.wait_until(lambda: not holder.running() or _name_of(holder.pid) == "sleep", "a network namespace")
    if not holder.running():
        raise Skipped(f"no network namespace here: {holder.errors().strip()}")


def _name_of(pid):
    with open(f"/proc/{pid}/comm", encoding="ascii", errors="replace") as name:
        return name.read().strip()
