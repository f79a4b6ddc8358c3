"""A curve as one line of letters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"  # the second where a terminal has no Unicode


def sparkline(values: Sequence[float], width: int, lowest: float, highest: float, bars: str = BARS) -> str:
    """The values, in order, as at most `width` bars from `lowest` to `highest`. A bar is the mean of its values."""
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)] if count > 0 else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    span = highest - lowest
    shares = [min(max((mean - lowest) / span, 0.0), 1.0) if span > 0 else 0.5 for mean in means]
    return "".join(bars[round(share * (len(bars) - 1))] for share in shares)
