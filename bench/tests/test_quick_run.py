"""A quick run of everything with a real binary. `FERRY_RBD` names it."""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from ferry_bench.rows import ROWS

SOURCE = Path(__file__).resolve().parents[2]
SHM = "/dev/shm"


@unittest.skipUnless(os.environ.get("FERRY_RBD"), "FERRY_RBD names no binary")
class QuickRun(unittest.TestCase):
    def test_all_rows_are_measured_and_nothing_is_left(self):
        with tempfile.TemporaryDirectory() as on_disk, tempfile.TemporaryDirectory(dir=SHM) as in_memory:
            here, memory = Path(on_disk), Path(in_memory)
            (here / "data").mkdir()
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
            done = subprocess.run(
                [
                    SOURCE / "scripts" / "bench",
                    "--quick",
                    *("--binary", os.environ["FERRY_RBD"]),
                    *("--disk", here / "data", "--memory", memory, "--out", here / "out"),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual([*(here / "data").iterdir(), *memory.iterdir()], [])
            self.assertEqual(Path("/proc/self/mounts").read_text(encoding="utf-8"), mounts)
            self._check(json.loads((here / "out" / "result.json").read_text(encoding="utf-8")), done.stdout)
            self.assertEqual((here / "out" / "result.md").read_text(encoding="utf-8"), done.stdout)

    def _check(self, record, table):
        skipped = record["skipped"]
        if os.environ.get("CI"):
            self.assertEqual(skipped, {})
        measured = {row["id"]: row for row in record["rows"]}
        self.assertCountEqual([*measured, *skipped], [row.id for row in ROWS])
        for row in ROWS:
            self.assertIn(f"| {row.what} |", table)
            if row.id in measured:
                self.assertEqual(len(measured[row.id]["marks"]), len(row.marks))
                for contender, samples in measured[row.id]["samples"].items():
                    self.assertEqual(len(samples), 1, (row.id, contender))
                    self.assertGreater(samples[0], 0, (row.id, contender))
        widths = {line.count("|") for line in table.split("\n\n", 1)[1].splitlines()}
        self.assertEqual(widths, {7}, "cells of the table of rows")


if __name__ == "__main__":
    unittest.main()
