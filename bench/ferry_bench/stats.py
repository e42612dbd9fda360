"""Judging: medians, spreads, ratios and marks. Pure arithmetic on samples."""

import statistics
from dataclasses import dataclass

from .rows import FERRY, AtLeast, GrowthBelow, RatioBelow, ValueBelow


@dataclass(frozen=True)
class Spread:
    """Median and extremes of some samples."""

    median: float
    low: float
    high: float


def spread(samples):
    """The spread of at least one sample."""
    return Spread(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True)
class Verdict:
    """One mark of a row, held against the samples."""

    mark: str
    subject: Spread
    against_name: str
    """Empty where the mark is on the figure itself."""
    against: Spread | None
    ratio: Spread | None
    """What is compared with the mark; of growths the difference. None where that is the figure itself."""
    reached: bool


def _ratios(numerators, denominators):
    return [n / d if d else float("inf") for n, d in zip(numerators, denominators, strict=True)]


def judge(row, mark, samples):
    """Holds one mark against `samples`: contender to a list with one figure per round.

    Ratios are formed within each round, whose contenders ran within the same minute, and the median of them counts: a
    machine that is slower for a while is so for all. Of several peers the best by median is taken.
    """
    subject = samples[mark.subject]
    match mark:
        case AtLeast(factor, against):
            best = max if row.higher_is_better else min
            name = best(against, key=lambda peer: statistics.median(samples[peer]))
            peer = samples[name]
            ratio = spread(_ratios(subject, peer) if row.higher_is_better else _ratios(peer, subject))
            text = f"≥ {factor:g} x {' and '.join(against)}"
            return Verdict(text, spread(subject), name, spread(peer), ratio, ratio.median >= factor)
        case RatioBelow(factor, name):
            ratio = spread(_ratios(subject, samples[name]))
            return Verdict(
                f"< {factor:g} x {name}", spread(subject), name, spread(samples[name]), ratio, ratio.median < factor
            )
        case GrowthBelow(limit, name):
            growth = spread([s - o for s, o in zip(subject, samples[name], strict=True)])
            return Verdict(
                f"< {name} + {limit:g} {row.unit}",
                spread(subject),
                name,
                spread(samples[name]),
                growth,
                growth.median < limit,
            )
        case ValueBelow(limit):
            figure = spread(subject)
            whose = "" if mark.subject == FERRY else f"{mark.subject}: "
            return Verdict(f"{whose}< {limit:g} {row.unit}", figure, "", None, None, figure.median < limit)
    raise TypeError(f"unknown kind of mark: {mark}")
