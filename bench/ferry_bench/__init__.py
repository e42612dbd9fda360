"""Ferry beside its peers: one program that measures all rows of docs/performance.md and judges them by their marks.

Promise: every contender of a row gets the same data, the same client, the same page cache and the same durability; the
contenders alternate in every round; nothing (process, mount, file) is left behind, however the run ends. What it does
not know: anything inside Ferry; it drives the binary as a user would.

Reading order: rows (what is measured and what is to be reached), plan (sizes and times), groups/ (how), then the parts
that these use: places, processes, ferry, peers, fio; and what comes out: stats, machine, report.
"""
