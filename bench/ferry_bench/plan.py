"""How big and how long: the sizes and times of a run, full or quick."""

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


@dataclass(frozen=True)
class Plan:
    """What all groups of rows need to know of this run."""

    binary: Path
    disk: Path
    """Directory on disk; scratch directories are made in it."""
    memory: Path
    """The same on tmpfs."""
    source: Path
    """The checkout, whose scripts start a cluster."""
    ceph_conf: Path | None
    """Configuration of a cluster to use; without it a group makes its own."""
    rounds: int
    job_ms: int
    """How long a job of fio counts."""
    warm_up_ms: int
    image_bytes: int
    """Size of full images, and bytes held by huge ones."""
    huge_bytes: int
    """Size of a thin image on the local store."""
    thin_bytes: int
    """The same on a Ceph cluster, whose own `rbd` visits every object that could be."""
    link_rate: str
    """What a client's link to a cluster carries each way, in the words of tc."""
    snapshot_objects: int
    """Objects that get their first write after a snapshot."""
    busy_bytes: int
    """Size of the image that is executed under client load."""
    client_bytes: int
    """The part of it that this client uses."""
    client_iops: int
    """That client's rate."""
    starts: int
    """Runs of `rbd ls` in a round."""


def full(binary, disk, memory, source, ceph_conf, rounds, seconds):
    """The run whose results count."""
    return Plan(
        binary=binary,
        disk=disk,
        memory=memory,
        source=source,
        ceph_conf=ceph_conf,
        rounds=rounds,
        job_ms=1000 * seconds,
        warm_up_ms=500,
        image_bytes=GIB,
        huge_bytes=16 * TIB,
        thin_bytes=TIB,
        link_rate="1gbit",
        snapshot_objects=1024,
        busy_bytes=4 * GIB,
        client_bytes=256 * MIB,
        client_iops=1000,
        starts=10,
    )


def quick(binary, disk, memory, source, ceph_conf):
    """A smoke test: every step of a full run, no figure worth anything."""
    return Plan(
        binary=binary,
        disk=disk,
        memory=memory,
        source=source,
        ceph_conf=ceph_conf,
        rounds=1,
        job_ms=200,
        warm_up_ms=0,
        image_bytes=32 * MIB,
        huge_bytes=TIB,
        thin_bytes=4 * GIB,
        link_rate="1gbit",
        snapshot_objects=16,
        busy_bytes=64 * MIB,
        client_bytes=16 * MIB,
        client_iops=200,
        starts=2,
    )
