"""Statistics of small samples: is the difference of two arms more than their seeds explain?

Welch's test (1947): `t = (m_a - m_b) / sqrt(s_a^2 / n_a + s_b^2 / n_b)`, degrees of freedom after Welch and
Satterthwaite, two-sided. Pooled sigma: `sqrt(sum (n_i - 1) s_i^2 / sum (n_i - 1))`. Several tests of one question are
corrected by Holm's step-down procedure (1979), which holds whatever their dependence.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TINY = 1e-300
_MOST_TERMS = 10_000


@dataclass(frozen=True)
class Comparison:
    """Two arms beside each other."""

    effect: float
    """Mean of the second arm minus mean of the first."""
    n: tuple[int, int]
    sigma: float
    """Pooled standard deviation of a single run."""
    t: float
    degrees: float
    p: float
    """Two-sided."""
    low: float
    high: float
    """95 % confidence interval of the effect."""

    def verdict(self, p: float | None = None, level: float = 0.05) -> str:
        """`resolved` where the p-value, or one corrected for several tests, is below the level; else `unresolved`."""
        return "resolved" if (self.p if p is None else p) < level else "unresolved"


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Welch's test of two arms; each needs two finite values at least, or `ValueError`."""
    for values in (first, second):
        if len(values) < 2 or not all(map(math.isfinite, values)):
            raise ValueError(f"Welch's test needs two finite values in each arm at least; {list(values)} was given")
    effect = statistics.fmean(second) - statistics.fmean(first)
    shares = [statistics.variance(values) / len(values) for values in (first, second)]
    error, n, sigma = math.sqrt(sum(shares)), (len(first), len(second)), pooled_sigma([first, second])
    if error == 0:
        t = math.copysign(math.inf, effect) if effect else 0.0
        return Comparison(effect, n, sigma, t, float(sum(n) - 2), 0.0 if effect else 1.0, effect, effect)
    spread = sum(share**2 / (count - 1) for share, count in zip(shares, n, strict=True))
    degrees = sum(shares) ** 2 / spread
    t = effect / error
    reach = student_quantile(0.975, degrees) * error
    return Comparison(effect, n, sigma, t, degrees, two_sided(t, degrees), effect - reach, effect + reach)


def pooled_sigma(arms: Sequence[Sequence[float]]) -> float:
    """Standard deviation of a single run, from the scatter within arms; NaN where no arm has two values."""
    degrees = sum(len(values) - 1 for values in arms)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in arms if len(values) > 1)
    return math.sqrt(squares / degrees) if degrees else math.nan


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for being several, by name: `max over j <= i of (m - j) p_(j)`, at most 1."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def two_sided(t: float, degrees: float) -> float:
    """Probability of a Student t at least this far from 0 on either side."""
    return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def student_quantile(probability: float, degrees: float) -> float:
    """The t below which a share of Student's distribution lies, for shares from 0.5 on."""
    low, high = 0.0, 1.0
    while 1 - two_sided(high, degrees) / 2 < probability:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - two_sided(middle, degrees) / 2 < probability else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
