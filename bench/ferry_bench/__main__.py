"""The command line of scripts/bench."""

import argparse
import json
import shlex
import signal
import sys
import time
from pathlib import Path

from . import machine, plan, report
from .groups import execute, first_write, latency, nbd, size, start, uncopied
from .places import Skipped
from .processes import CommandFailed
from .rows import BY_ID

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


def _arguments(words):
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measures Ferry beside its peers, in turn, and judges the rows by their marks."
    )
    parser.add_argument("--binary", type=Path, help="the rbd to measure; without it, a release build is made")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, at least 5 for figures that count [5]")
    parser.add_argument("--seconds", type=int, default=3, help="how long each job of fio counts [3]")
    parser.add_argument("--only", default="", metavar="ROW,...", help=f"only these rows: {', '.join(BY_ID)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one round, small images")
    parser.add_argument("--out", type=Path, help="directory for result.json and result.md [bench-results in the build directory]")
    parser.add_argument("--disk", type=Path, help="directory on a disk file system [the build directory]")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="directory on tmpfs [/dev/shm]")
    parser.add_argument("--update-docs", action="store_true", help="put the table into docs/performance.md; without measuring, if --from is given")
    parser.add_argument("--from", dest="record", type=Path, metavar="JSON", help="a result.json to take instead of measuring")
    # From scripts/bench.
    parser.add_argument("--source", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--build-dir", type=Path, required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.only = [row for row in arguments.only.split(",") if row]
    unknown = [row for row in arguments.only if row not in BY_ID]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}")
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("--rounds and --seconds are at least 1")
    return arguments


def _plan(arguments):
    binary = arguments.binary.resolve()
    disk = arguments.disk or arguments.build_dir
    if arguments.quick:
        return plan.quick(binary, disk, arguments.memory)
    return plan.full(binary, disk, arguments.memory, arguments.rounds, arguments.seconds)


def _measure(the_plan, wanted):
    """Runs all groups. Returns (samples by row and contender, why rows were skipped)."""
    samples, skipped = {}, {}
    for group in GROUPS:
        rows = [row for row in group.ROWS if row in wanted]
        if not rows:
            continue
        start = time.monotonic()
        print(f"{', '.join(rows)}:", end="", file=sys.stderr, flush=True)
        taken = {row: {} for row in rows}
        try:
            for round_no, figures in enumerate(group.measure(the_plan, rows), 1):
                print(f" {round_no}", end="", file=sys.stderr, flush=True)
                for row, by_contender in figures.items():
                    for contender, figure in by_contender.items():
                        taken[row].setdefault(contender, []).append(figure)
            samples.update(taken)
            print(f" ({time.monotonic() - start:.0f} s)", file=sys.stderr)
        except (Skipped, CommandFailed) as reason:
            kind = "skipped" if isinstance(reason, Skipped) else "failed"
            print(f" {kind}: {reason}", file=sys.stderr)
            skipped.update({row: f"{kind}: {reason}" for row in rows})
    return samples, skipped


def main(words):
    """Measures, prints the table, writes the files. 0, or 1 if a row failed to be measured."""
    arguments = _arguments(words)
    # Terminated like interrupted: everything is cleaned up on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.record:
        record = json.loads(arguments.record.read_text(encoding="utf-8"))
    else:
        the_plan = _plan(arguments)
        wanted = arguments.only or list(BY_ID)
        described = machine.describe(the_plan, arguments.source)
        samples, skipped = _measure(the_plan, wanted)
        record = report.as_json(the_plan, described, samples, skipped)
        paths = report.write(record, arguments.out or arguments.build_dir / "bench-results")
        print(f"written: {shlex.join(map(str, paths))}", file=sys.stderr)
    print(report.table(record), end="")
    if arguments.update_docs:
        report.update_docs(record, arguments.source / "docs" / "performance.md")
    return 1 if any(reason.startswith("failed") for reason in record["skipped"].values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
