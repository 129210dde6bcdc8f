"""
The chi-square distribution's two tails, precise far out, where the levels of many tests lie.

They are the regularized incomplete gamma functions P(a, x) and Q(a, x) with a = freedom / 2 and x = statistic / 2: by
the series below x = a + 1, by the continued fraction above (Abramowitz and Stegun 6.5.29 and 6.5.31; the fraction is
evaluated by the modified method of Lentz). Each tail that is small is computed as such, not as 1 minus the other.
Wilson and Hilferty's approximation would do for a look: it is off by a sixth at p = 6e-13 (450 of 255).
"""

from __future__ import annotations

import math
from collections.abc import Callable

_PRECISION = 1e-15
_TINY = 1e-300
_STEPS = 10_000


def tails(statistic: float, freedom: int) -> tuple[float, float]:
    """
    Return the probabilities that a chi-square variable is at most, and at least, `statistic`.

    `freedom` is the number of degrees, at least 1. The relative error of either, if it is small, is below 1e-10.
    """
    shape, at = freedom / 2, statistic / 2
    if at <= 0:
        return 0.0, 1.0
    scale = math.exp(shape * math.log(at) - at - math.lgamma(shape))
    if at < shape + 1:
        lower = min(1.0, scale * _series(shape, at))
        return lower, 1.0 - lower
    upper = min(1.0, scale * _fraction(shape, at))
    return 1.0 - upper, upper


def two_sided(statistic: float, freedom: int) -> float:
    """Return the probability of a value at least as far out, on either side."""
    return min(1.0, 2 * min(tails(statistic, freedom)))


def _series(shape: float, at: float) -> float:
    term = total = 1.0 / shape
    for n in range(1, _STEPS):
        term *= at / (shape + n)
        total += term
        if term < total * _PRECISION:
            break
    return total


def _fraction(shape: float, at: float) -> float:
    down = at + 1.0 - shape
    c, d = 1.0 / _TINY, 1.0 / down
    value = d
    for n in range(1, _STEPS):
        factor = n * (shape - n)
        down += 2.0
        d = 1.0 / _not_zero(factor * d + down)
        c = _not_zero(down + factor / c)
        value *= c * d
        if abs(c * d - 1.0) < _PRECISION:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def critical_values(level: float, freedom: int) -> tuple[float, float]:
    """Return the values between which a statistic is not rejected by a two-sided test of this level (0 to 1)."""
    low = _crossing(lambda value: tails(value, freedom)[0] < level / 2, 0.0, float(freedom))
    high = _crossing(lambda value: tails(value, freedom)[1] > level / 2, float(freedom), 10.0 * freedom + 10_000.0)
    return low, high


def _crossing(below: Callable[[float], bool], low: float, high: float) -> float:
    """Return where `below` ceases to hold, by bisection."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return low
