"""The command line of scripts/bench."""

import argparse
import json
import shlex
import signal
import sys
import time
from pathlib import Path

from . import machine, plan, report
from .groups import ceph_execute, ceph_io, execute, first_write, latency, nbd, size, start, uncopied
from .places import Skipped
from .processes import CommandFailed
from .rows import BY_ID, CEPH_ROWS, ROWS

GROUPS = (
    nbd.DISK,
    nbd.MEMORY,
    execute.Plain,
    execute.Reflink,
    uncopied,
    first_write.PLAIN,
    first_write.REFLINK,
    latency,
    size,
    start,
)
CEPH_GROUPS = (ceph_execute.FULL, ceph_execute.THIN, ceph_execute.FULL_LINK, ceph_execute.THIN_LINK, ceph_io)


def _arguments(words):
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures Ferry beside its peers, in turn, and judges the rows by their marks.",
        epilog=f"Rows: {', '.join(BY_ID)}. Also: scripts/bench --micro [FILTER] runs the Criterion benches.",
    )
    parser.add_argument("--binary", type=Path, help="the rbd to measure; without it, a release build is made")
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 for figures that count [5]")
    parser.add_argument("--seconds", type=int, default=3, help="how long each job of fio counts [3]")
    parser.add_argument("--only", default="", metavar="ROW,...", help="only these rows")
    parser.add_argument("--ceph", action="store_true", help="the rows that need a Ceph cluster; one is started")
    parser.add_argument("--ceph-conf", type=Path, metavar="FILE", help="the cluster to use instead")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one round, small images")
    parser.add_argument(
        "--out", type=Path, help="directory for result.json and result.md [bench-results in the build directory]"
    )
    parser.add_argument("--disk", type=Path, help="directory on a disk file system [the build directory]")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="directory on tmpfs [/dev/shm]")
    parser.add_argument("--merge", type=Path, metavar="JSON", help="a result.json that gives the rows not measured now")
    parser.add_argument(
        "--from", dest="record", type=Path, metavar="JSON", help="a result.json to show instead of measuring"
    )
    parser.add_argument("--update-docs", action="store_true", help="put the table and the JSON into docs/performance.*")
    # From the shell script.
    parser.add_argument("--source", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--build-dir", type=Path, required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.ceph = arguments.ceph or arguments.ceph_conf is not None
    rows = [row.id for row in (CEPH_ROWS if arguments.ceph else ROWS)]
    arguments.only = [row for row in arguments.only.split(",") if row]
    unknown = [row for row in arguments.only if row not in rows]
    if unknown:
        parser.error(f"no such row{' of --ceph' if arguments.ceph else ''}: {', '.join(unknown)}")
    arguments.only = arguments.only or rows
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("--rounds and --seconds are at least 1")
    return arguments


def _plan(arguments):
    binary = arguments.binary.resolve()
    disk = arguments.disk or arguments.build_dir
    where = (binary, disk, arguments.memory, arguments.source, arguments.ceph_conf)
    if arguments.quick:
        return plan.quick(*where)
    return plan.full(*where, arguments.rounds, arguments.seconds)


def _say(text, end="\n"):
    print(text, end=end, file=sys.stderr, flush=True)


def _measure_group(group, the_plan, rows):
    """All rounds of one group: {row: {contender: [figure per round]}}."""
    taken = {row: {} for row in rows}
    for round_no, figures in enumerate(group.measure(the_plan, rows), 1):
        _say(f" {round_no}", end="")
        for row, by_contender in figures.items():
            for contender, figure in by_contender.items():
                taken[row].setdefault(contender, []).append(figure)
    return taken


def _measure(the_plan, wanted, described):
    """Runs the groups that have wanted rows; yields the record as it grows, so that an interruption loses little."""
    samples, skipped = {}, {}
    for group in (*GROUPS, *CEPH_GROUPS):
        rows = [row for row in group.ROWS if row in wanted]
        if not rows:
            continue
        start_s = time.monotonic()
        _say(f"{', '.join(rows)}:", end="")
        try:
            samples.update(_measure_group(group, the_plan, rows))
            _say(f" ({time.monotonic() - start_s:.0f} s)")
        except Skipped as reason:
            _say(f" skipped: {reason}")
            skipped.update(dict.fromkeys(rows, f"{report.SKIPPED}{reason}"))
        except (CommandFailed, OSError, ValueError) as reason:
            # The other groups are worth having all the same; the exit code tells.
            _say(f" failed: {reason}")
            skipped.update(dict.fromkeys(rows, f"{report.FAILED}{reason}"))
        yield report.as_json(the_plan, described, samples, skipped)


def _read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _results(arguments):
    return "bench-results-ceph" if arguments.ceph else "bench-results"


def main(words):
    """Measures, prints the table, writes the files. Returns 0, or 1 if a row failed to be measured."""
    arguments = _arguments(words)
    # Terminated like interrupted: everything is cleaned up on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.record:
        record = _read(arguments.record)
    else:
        the_plan = _plan(arguments)
        described = machine.describe(the_plan, arguments.source)
        earlier = _read(arguments.merge) if arguments.merge else None
        for fresh in _measure(the_plan, arguments.only, described):
            record = report.merged(earlier, fresh) if earlier else fresh
            paths = report.write(record, arguments.out or arguments.build_dir / _results(arguments))
        _say(f"written: {shlex.join(map(str, paths))}")
    print(report.table(record), end="")
    if arguments.update_docs:
        report.update_docs(record, arguments.source / "docs" / "performance.md")
    return 1 if report.failed(record) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
