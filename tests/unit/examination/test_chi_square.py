"""The tails of the chi-square distribution: tables, and an independent way to compute them."""

from __future__ import annotations

import math

import pytest

from lukshdrfs.examination.chi_square import critical_values, tails, two_sided


def upper_tail(statistic: float, freedom: int) -> float:
    """Compute Q(a, x) by its recurrence from a = 1 or 1/2 upwards (Abramowitz and Stegun 6.5.22 and 26.4.4)."""
    at = statistic / 2
    shape, found = (1.0, math.exp(-at)) if freedom % 2 == 0 else (0.5, math.erfc(math.sqrt(at)))
    terms = [found]
    while shape < freedom / 2:
        terms.append(math.exp(shape * math.log(at) - at - math.lgamma(shape + 1)))
        shape += 1
    return math.fsum(terms)


@pytest.mark.parametrize(
    ("freedom", "statistic", "upper"),
    [(1, 3.841, 0.05), (1, 10.828, 0.001), (10, 18.307, 0.05), (30, 59.703, 0.001), (100, 124.342, 0.05),
     (100, 77.929, 0.95), (255, 293.248, 0.05)],
)  # fmt: skip
def test_the_tables_of_textbooks(freedom: int, statistic: float, upper: float) -> None:
    """Critical values as they are printed everywhere (NIST/SEMATECH e-Handbook, 1.3.6.7.4)."""
    assert tails(statistic, freedom)[1] == pytest.approx(upper, rel=2e-3)


@pytest.mark.parametrize("freedom", [1, 2, 7, 254, 255, 256])
@pytest.mark.parametrize("ratio", [0.2, 0.7, 0.99, 1.0, 1.02, 1.3, 1.8, 2.5, 4.0])
def test_both_tails_are_precise(freedom: int, ratio: float) -> None:
    """Down to 1e-100 and beyond, the upper tail is that of the recurrence; the tails make 1."""
    lower, upper = tails(freedom * ratio, freedom)
    assert upper == pytest.approx(upper_tail(freedom * ratio, freedom), rel=1e-10)
    assert lower + upper == pytest.approx(1.0, rel=1e-12)


def test_the_lower_tail_far_out() -> None:
    """P(a, x) = x^a e^-x / Γ(a+1) · (1 + x/(a+1) + …), summed here term by term."""
    shape, at = 127.5, 50.0
    terms = [math.exp((shape + n) * math.log(at) - at - math.lgamma(shape + n + 1)) for n in range(200)]
    assert tails(100.0, 255)[0] == pytest.approx(math.fsum(terms), rel=1e-10)


@pytest.mark.parametrize("level", [0.05, 1e-4, 1e-8, 1e-13])
def test_critical_values_are_where_the_level_is(level: float) -> None:
    """Either side has half of the level."""
    low, high = critical_values(level, 255)
    assert two_sided(low, 255) == pytest.approx(level, rel=1e-6)
    assert two_sided(high, 255) == pytest.approx(level, rel=1e-6)


def test_the_ends() -> None:
    """Nothing is below 0, and what is impossibly far out has no probability; no value is an error."""
    assert tails(0.0, 255) == (0.0, 1.0)
    assert tails(1e9, 255) == (1.0, 0.0)
    assert two_sided(255.0, 255) == pytest.approx(0.976, abs=0.01)
