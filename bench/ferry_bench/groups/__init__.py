"""Groups of rows that share a setup. Each module has `ROWS`, the ids of its rows, and `measure(plan, wanted)`.

`measure` is a generator: it sets up, then yields one round after another as {row id: {contender: figure}}, only for
the ids in `wanted`, and cleans up when it is closed. The order of contenders is turned by one place in every round.
It raises Skipped if a row cannot be had on this machine.
"""
