"""What comes out: the table for people, the JSON beside it, and the block in docs/performance.md."""

import json
from collections import Counter

from . import stats
from .rows import BY_ID, CEPH_ROWS, ROWS

BEGIN = "<!-- figures: begin (written by scripts/bench --update-docs) -->"
END = "<!-- figures: end -->"
CEPH_BEGIN = "<!-- figures on Ceph: begin (written by scripts/bench --ceph --update-docs) -->"
CEPH_END = "<!-- figures on Ceph: end -->"

# How the reason of a row that failed begins; a skipped one begins with the other.
FAILED = "failed: "
SKIPPED = "skipped: "

_MACHINE_LABELS = {
    "date": "date",
    "commit": "commit",
    "cpu": "CPU",
    "cores": "cores",
    "memory_gib": "memory (GiB)",
    "kernel": "kernel",
    "load_before": "load before the run",
    "disk_file_system": "disk",
    "memory_file_system": "memory file system",
}


def as_json(plan, machine, samples, skipped):
    """The whole run as data: samples of every round, and what became of every mark. Names no path."""
    return {
        "machine": machine,
        "plan": {name: value for name, value in vars(plan).items() if isinstance(value, int)},
        "rows": [_row_as_json(row, samples[row.id], machine) for row in (*ROWS, *CEPH_ROWS) if row.id in samples],
        "skipped": skipped,
    }


def merged(old, new):
    """The rows of two records; where both have a row, the new one's. Machine and plan are the new one's."""
    fresh = {row["id"] for row in new["rows"]}
    rows = [row for row in old["rows"] if row["id"] not in fresh] + new["rows"]
    skipped = {row: why for row, why in old["skipped"].items() if row not in fresh}
    skipped.update({row: why for row, why in new["skipped"].items() if row not in {kept["id"] for kept in rows}})
    return {**new, "rows": rows, "skipped": skipped}


def failed(record):
    """Rows that could not be measured although they should have been, with the reasons."""
    return {row: why for row, why in record["skipped"].items() if why.startswith(FAILED)}


def _row_as_json(row, samples, machine):
    return {
        "id": row.id,
        "what": row.what,
        "unit": row.unit,
        "date": machine["date"],
        "commit": machine["commit"],
        "samples": samples,
        "marks": [
            {
                "mark": verdict.mark,
                "against": verdict.against_name,
                "median": verdict.subject.median,
                "ratio": verdict.ratio and vars(verdict.ratio),
                "reached": verdict.reached,
            }
            for verdict in (stats.judge(row, mark, samples) for mark in row.marks)
        ],
    }


def number(value):
    """A figure with three significant digits at least, without an exponent."""
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= limit:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def _spread(spread, unit):
    text = number(spread.median)
    if spread.low != spread.high:
        text += f" ({number(spread.low)}–{number(spread.high)})"
    return f"{text} {unit}".rstrip()


def _row_lines(row, samples):
    what = row.what
    for mark in row.marks:
        verdict = stats.judge(row, mark, samples)
        against = f"{verdict.against_name}: {_spread(verdict.against, row.unit)}" if verdict.against else ""
        is_growth = verdict.ratio and verdict.mark.endswith(row.unit)
        ratio = _spread(verdict.ratio, row.unit if is_growth else "") if verdict.ratio else ""
        result = "reached" if verdict.reached else "**missed**"
        yield [what, verdict.mark, _spread(verdict.subject, row.unit), against, ratio, result]
        what = ""
    for name in (name for name in row.context if name in samples):
        yield ["", "", "", f"{name}: {_spread(stats.spread(samples[name]), row.unit)}", "", ""]


def _rounds(rows):
    """How many rounds the rows have; a merged record may have rows of several runs."""
    counts = {row["id"]: max((len(values) for values in row["samples"].values()), default=0) for row in rows}
    usual = Counter(counts.values()).most_common(1)[0][0] if counts else 0
    others = [f"{name}: {count}" for name, count in counts.items() if count != usual]
    return f"{usual}{' (' + ', '.join(others) + ')' if others else ''}"


def table(record):
    """The record of a run (`as_json`) as a Markdown table with the machine above it."""
    lines = ["| machine | |", "|---|---|"]
    # A merged record may have rows of several commits.
    commits = ", ".join(sorted({row["commit"] for row in record["rows"]})) or record["machine"]["commit"]
    machine = {**record["machine"], "commit": commits}
    lines += [f"| {_MACHINE_LABELS.get(name, name)} | {value} |" for name, value in machine.items()]
    lines += [f"| rounds | {_rounds(record['rows'])}; fio jobs of {record['plan']['job_ms'] / 1000:g} s |", ""]
    lines += ["| what | to reach | Ferry | peer | ratio | |", "|---|---|---|---|---|---|"]
    measured = {row["id"]: row["samples"] for row in record["rows"]}
    for row in (*ROWS, *CEPH_ROWS):
        if row.id in measured:
            lines += [f"| {' | '.join(cells)} |" for cells in _row_lines(row, measured[row.id])]
        elif row.id in record["skipped"]:
            reason = record["skipped"][row.id].splitlines()[0].replace("|", "/")
            lines.append(f"| {row.what} | | | | | {reason} |")
    return "\n".join(lines) + "\n"


def _dumped(record):
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def write(record, directory):
    """Writes result.json and result.md; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    json_path, table_path = directory / "result.json", directory / "result.md"
    json_path.write_text(_dumped(record), encoding="utf-8")
    table_path.write_text(table(record), encoding="utf-8")
    return json_path, table_path


def update_docs(record, document):
    """Replaces what lies between the markers of a document by the table of a record, and puts the record beside it as
    JSON. ValueError without markers, or for a record that has no business there."""
    if failed(record):
        raise ValueError(f"rows have failed: {', '.join(failed(record))}: measure them anew")
    unknown = [row["id"] for row in record["rows"] if row["id"] not in BY_ID]
    if unknown:
        raise ValueError(f"the result has rows that are no longer known: {', '.join(unknown)}: measure anew")
    on_ceph = {row.id for row in CEPH_ROWS}.intersection(row["id"] for row in record["rows"])
    begin, end, suffix = (CEPH_BEGIN, CEPH_END, "-ceph.json") if on_ceph else (BEGIN, END, ".json")
    text = document.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"{document}: the markers {begin!r} and {end!r} are missing")
    document.with_name(document.stem + suffix).write_text(_dumped(record), encoding="utf-8")
    document.write_text(f"{before}{begin}\n\n{table(record)}\n{end}{after}", encoding="utf-8")
