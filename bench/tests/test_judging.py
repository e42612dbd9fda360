"""Marks, ratios, tables and logs, without measuring anything."""

import tempfile
import unittest
from pathlib import Path

from ferry_bench import __main__ as program
from ferry_bench import fio, plan, report, stats
from ferry_bench.groups.latency import percentile_us
from ferry_bench.processes import CommandFailed
from ferry_bench.rows import CEPH_ROWS, FERRY, ROWS, AtLeast, GrowthBelow, RatioBelow, Row, ValueBelow
from ferry_bench.turns import turned

FAST = Row("fast", "speed", "IOPS", True, (AtLeast(2.0, ("slow", "quick")),))
COSTLY = Row("costly", "cost", "s", False, (AtLeast(1.0, ("slow", "quick")),))
MACHINE = {"date": "today", "commit": "abc"}


def _plan(rounds=5):
    return plan.full(Path("rbd"), Path("disk"), Path("memory"), Path("source"), None, rounds, 3)


def _record(samples, skipped=None, machine=None):
    return report.as_json(_plan(), machine or MACHINE, samples, skipped or {})


def _contenders(row):
    """All whom a row's marks name."""
    names = set()
    for mark in row.marks:
        names.add(mark.subject)
        against = getattr(mark, "against", ())
        names.update([against] if isinstance(against, str) else against)
    return names


class Judging(unittest.TestCase):
    def test_the_best_peer_counts_and_ratios_are_formed_within_rounds(self):
        samples = {FERRY: [20, 40, 60], "slow": [1, 1, 1], "quick": [10, 20, 40]}
        verdict = stats.judge(FAST, FAST.marks[0], samples)
        self.assertEqual(verdict.against_name, "quick")
        self.assertEqual((verdict.ratio.low, verdict.ratio.median, verdict.ratio.high), (1.5, 2.0, 2.0))
        self.assertTrue(verdict.reached)

    def test_of_costs_the_smaller_is_the_better(self):
        samples = {FERRY: [2.0], "slow": [9.0], "quick": [1.0]}
        verdict = stats.judge(COSTLY, COSTLY.marks[0], samples)
        self.assertEqual((verdict.against_name, verdict.ratio.median, verdict.reached), ("quick", 0.5, False))

    def test_bounds_are_held_on_figures_ratios_and_growth(self):
        samples = {FERRY: [30.0], "base": [20.0]}
        for mark, reached in (
            (ValueBelow(31), True),
            (ValueBelow(30), False),
            (ValueBelow(21, "base"), True),
            (RatioBelow(1.6, "base"), True),
            (RatioBelow(1.5, "base"), False),
            (GrowthBelow(11, "base"), True),
            (GrowthBelow(10, "base"), False),
        ):
            with self.subTest(mark=mark):
                self.assertEqual(stats.judge(COSTLY, mark, samples).reached, reached)

    def test_contenders_take_turns(self):
        self.assertEqual(
            [turned(["a", "b", "c"], n) for n in (0, 1, 5)], [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
        )

    def test_every_row_belongs_to_one_group(self):
        for groups, rows in ((program.GROUPS, ROWS), (program.CEPH_GROUPS, CEPH_ROWS)):
            grouped = [row for group in groups for row in group.ROWS]
            self.assertCountEqual(grouped, [row.id for row in rows])


class Tables(unittest.TestCase):
    START = {"start": {FERRY: [5.0, 7.0, 6.0]}}

    def test_a_row_shows_median_extremes_mark_and_verdict(self):
        table = report.table(_record(self.START))
        self.assertIn(
            "| CPU time of `rbd ls` on a small store | < 20 ms | 6.00 (5.00–7.00) ms |  |  | reached |", table
        )

    def test_a_row_that_was_not_measured_says_why(self):
        table = report.table(_record({}, {"start": "skipped: no | rights\nmore"}))
        self.assertIn("skipped: no / rights |", table)
        self.assertNotIn("more", table)

    def test_merging_replaces_rows_and_names_all_commits(self):
        old = _record({**self.START, "prepare-size": {FERRY: [1.0], "1 GiB full": [1.0]}})
        new = _record({"start": {FERRY: [30.0]}}, machine={"date": "later", "commit": "def"})
        merged = report.merged(old, new)
        self.assertEqual({row["id"]: row["commit"] for row in merged["rows"]}, {"prepare-size": "abc", "start": "def"})
        self.assertIn("| commit | abc, def |", report.table(merged))
        self.assertIn("**missed**", report.table(merged))

    def test_only_the_block_between_the_markers_is_replaced(self):
        with tempfile.TemporaryDirectory() as directory:
            document = Path(directory) / "performance.md"
            document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
            for _ in range(2):
                report.update_docs(_record(self.START), document)
            text = document.read_text(encoding="utf-8")
            self.assertTrue(text.startswith("before\n") and text.endswith("after\n"))
            self.assertEqual(text.count("rbd ls"), 1)
            self.assertNotIn("old", text)
            self.assertTrue((Path(directory) / "performance.json").is_file())

    def test_rows_of_a_cluster_have_a_block_of_their_own(self):
        samples = {row.id: {name: [1.0] for name in _contenders(row)} for row in CEPH_ROWS}
        with tempfile.TemporaryDirectory() as directory:
            document = Path(directory) / "performance.md"
            local = f"{report.BEGIN}\nlocal\n{report.END}\n"
            document.write_text(f"{local}{report.CEPH_BEGIN}\nstale\n{report.CEPH_END}\n", encoding="utf-8")
            report.update_docs(_record(samples), document)
            text = document.read_text(encoding="utf-8")
            self.assertTrue(text.startswith(local))
            self.assertNotIn("stale", text)
            self.assertTrue((Path(directory) / "performance-ceph.json").is_file())

    def test_failed_rows_stay_out_of_the_document(self):
        with self.assertRaises(ValueError):
            report.update_docs(_record({}, {"start": "failed: x"}), Path("nowhere"))


class Logs(unittest.TestCase):
    def test_only_what_completed_in_the_span_counts(self):
        log = "".join(f"{at}, {at * 1000}, 0, 4096, 0, 0\n" for at in range(1, 201))
        self.assertEqual(percentile_us(log, 1, 100, 99), 100)
        self.assertEqual(percentile_us(log, 0, float("inf"), 50), 101)
        with self.assertRaises(ValueError):
            percentile_us(log, 300, 400, 99)

    def test_a_job_with_an_error_is_not_a_result(self):
        for text in ("", "{}", '{"jobs": [{"error": 5}]}'):
            with self.subTest(text=text), self.assertRaises(CommandFailed):
                fio.parse(text)
        self.assertEqual(fio.parse('a remark\n{"jobs": [{"error": 0, "x": 1}]}')["x"], 1)


if __name__ == "__main__":
    unittest.main()
