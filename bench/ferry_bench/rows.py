"""What is measured and what is to be reached: the table of marks, as data.

Promise: `ROWS` and `CEPH_ROWS` are complete and in the order of the published tables. A row names its contenders; a group (`groups/`)
brings one sample of each per round. Judging is arithmetic on samples, without knowledge of how they came about.
"""

from dataclasses import dataclass, field

FERRY = "ferry"


@dataclass(frozen=True)
class AtLeast:
    """Ferry, or another subject, must be `factor` times as fast as the best of `against` in the same round."""

    factor: float
    against: tuple
    subject: str = FERRY


@dataclass(frozen=True)
class RatioBelow:
    """The subject's figure must stay under `factor` times that of `against`."""

    factor: float
    against: str
    subject: str = FERRY


@dataclass(frozen=True)
class ValueBelow:
    """The subject's figure itself must stay under `limit`, in the row's unit."""

    limit: float
    subject: str = FERRY


@dataclass(frozen=True)
class GrowthBelow:
    """The subject's figure may exceed that of `against` by less than `limit`, in the row's unit."""

    limit: float
    against: str
    subject: str = FERRY


@dataclass(frozen=True)
class Row:
    """One measured quantity with its marks."""

    id: str
    what: str
    unit: str
    higher_is_better: bool
    marks: tuple
    context: tuple = field(default=())
    """Contenders that are shown without a mark, where they could be measured."""


def _nbd(id_, what, unit, *marks):
    return Row(id_, f"NBD {what}", unit, True, marks)


def _against_both(factor_qemu, factor_nbdkit):
    return AtLeast(factor_qemu, ("qemu-nbd",)), AtLeast(factor_nbdkit, ("nbdkit",))


_BETTER_OF_BOTH = AtLeast(1.0, ("qemu-nbd", "nbdkit"))
_COPIERS = ("qemu-img convert", "nbdcopy", "cp")

ROWS = (
    _nbd("read16-disk", "4 KiB random read, depth 16, cached, disk", "IOPS", *_against_both(2.0, 1.1)),
    _nbd("read16-tmpfs", "4 KiB random read, depth 16, tmpfs", "IOPS", *_against_both(2.0, 1.1)),
    _nbd("write16-tmpfs", "4 KiB random write, depth 16, tmpfs", "IOPS", *_against_both(2.5, 1.0)),
    _nbd("write16-disk", "4 KiB random write, depth 16, disk", "IOPS", *_against_both(1.0, 1.0)),
    _nbd("read1-disk", "4 KiB random read, depth 1, cached, disk", "IOPS", *_against_both(1.2, 1.0)),
    _nbd("read1-tmpfs", "4 KiB random read, depth 1, tmpfs", "IOPS", *_against_both(1.2, 1.0)),
    _nbd("flush1-disk", "4 KiB write + flush each, depth 1, disk", "IOPS", AtLeast(1.0, ("qemu-nbd",))),
    _nbd("seqread-disk", "1 MiB sequential read, depth 4, cached, disk", "MiB/s", _BETTER_OF_BOTH),
    _nbd("seqread-tmpfs", "1 MiB sequential read, depth 4, tmpfs", "MiB/s", _BETTER_OF_BOTH),
    _nbd("seqwrite-disk", "1 MiB sequential write, depth 4, disk", "MiB/s", _BETTER_OF_BOTH),
    _nbd("seqwrite-tmpfs", "1 MiB sequential write, depth 4, tmpfs", "MiB/s", _BETTER_OF_BOTH),
    Row(
        "execute",
        "`execute` of a full image, same file system, no reflink",
        "s",
        False,
        (AtLeast(1.0, _COPIERS),),
    ),
    Row(
        "execute-reflink",
        "`execute` of a full image with reflink (xfs)",
        "s",
        False,
        (AtLeast(10.0, ("execute without reflink",)),),
        ("cp --reflink=always",),
    ),
    Row(
        "uncopied",
        "4 KiB random read, depth 16, of blocks not copied yet",
        "IOPS",
        True,
        (AtLeast(0.9, ("copied blocks",)),),
    ),
    Row(
        "first-write",
        "first 4 KiB write to an object after a snapshot, durable, no reflink",
        "IOPS",
        True,
        (AtLeast(0.5, ("plain overwrite",)),),
    ),
    Row(
        "first-write-reflink",
        "the same with reflink (xfs)",
        "IOPS",
        True,
        (AtLeast(0.5, ("plain overwrite",)),),
    ),
    Row(
        "latency",
        "client p99 latency during `execute`, 4 KiB random reads and writes of copied blocks",
        "µs",
        False,
        (RatioBelow(2.0, "without execute"),),
    ),
    Row(
        "latency-reads",
        "the same, 4 KiB random reads of the whole image",
        "µs",
        False,
        (RatioBelow(2.0, "without execute"),),
    ),
    Row("prepare-size", "`prepare` of 16 TiB that hold 1 GiB", "s", False, (RatioBelow(2.0, "1 GiB full"),)),
    Row("execute-size", "`execute` of 16 TiB that hold 1 GiB", "s", False, (RatioBelow(1.5, "1 GiB full"),)),
    Row(
        "memory-execute",
        "peak memory of `execute` of 16 TiB",
        "MiB",
        False,
        (ValueBelow(128), ValueBelow(128, "1 GiB full"), GrowthBelow(16, "1 GiB full")),
    ),
    Row(
        "memory-serve",
        "peak memory of `serve` of 16 TiB, under load",
        "MiB",
        False,
        (ValueBelow(128), ValueBelow(128, "1 GiB full"), GrowthBelow(16, "1 GiB full")),
    ),
    Row("start", "CPU time of `rbd ls` on a small store", "ms", False, (ValueBelow(20),)),
)

_CEPH = "Ceph's rbd"
_LIBRBD = "fio's rbd engine"


LIBRBD_IN_QEMU = "qemu-nbd with librbd"


def _beside_librbd(id_, what, unit):
    return Row(id_, f"Ceph: NBD {what}", unit, True, (AtLeast(1.0, (_LIBRBD,)),), (LIBRBD_IN_QEMU,))


def _beside_rbd(id_, what, unit, factor=1.0, higher_is_better=True):
    return Row(id_, f"Ceph: {what}", unit, higher_is_better, (AtLeast(factor, (_CEPH,)),))


CEPH_ROWS = (
    _beside_rbd("ceph-execute", "`execute` of a full 1 GiB image with 3 snapshots", "s", 2.0, False),
    Row(
        "ceph-execute-cpu",
        "Ceph: CPU time of the client in that `execute`, per GiB",
        "s",
        False,
        (RatioBelow(0.7, _CEPH),),
    ),
    _beside_rbd("ceph-execute-thin", "`execute` of a 1 TiB image that holds 1 GiB", "s", 10.0, False),
    _beside_rbd("ceph-execute-link", "`execute` of that full image, client behind 1 Gbit/s", "s", 2.0, False),
    _beside_rbd("ceph-execute-thin-link", "`execute` of that thin image, client behind 1 Gbit/s", "s", 10.0, False),
    _beside_rbd("ceph-bench-randread", "`bench` 4 KiB random read, 16 in flight", "IOPS"),
    _beside_rbd("ceph-bench-randwrite", "`bench` 4 KiB random write, 16 in flight", "IOPS"),
    _beside_rbd("ceph-bench-seqread", "`bench` 4 MiB sequential read, 16 in flight", "IOPS"),
    _beside_rbd("ceph-bench-seqwrite", "`bench` 4 MiB sequential write, 16 in flight", "IOPS"),
    _beside_librbd("ceph-serve-randread", "4 KiB random read, depth 16", "IOPS"),
    _beside_librbd("ceph-serve-randwrite", "4 KiB random write, depth 16", "IOPS"),
    _beside_librbd("ceph-serve-seqread", "1 MiB sequential read, depth 4", "MiB/s"),
    _beside_librbd("ceph-serve-seqwrite", "1 MiB sequential write, depth 4", "MiB/s"),
)
"""Rows that need a Ceph cluster; a table of their own."""

BY_ID = {row.id: row for row in (*ROWS, *CEPH_ROWS)}
