"""Compute exact confidence intervals of rates that were counted on images, without SciPy.

The intervals are those of C. J. Clopper and E. S. Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the
Case of the Binomial", Biometrika 26 (1934). Their limits are quantiles of Beta distributions.
"""

from __future__ import annotations

import math
from typing import Final

CONFIDENCE: Final = 0.95
"""The confidence of an interval where none is named."""

_SMALLEST: Final = 1e-300
_HALVINGS: Final = 200


def rate_interval(hits: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact Clopper-Pearson interval of a rate that was counted.

    Args:
        hits: The number of images that count, in 0..total.
        total: The number of images. The images must be independent draws.
        confidence: The least probability that the interval contains the rate, in 0..1 (both excluded).

    Returns:
        The lower and the upper limit in 0..1. Without images nothing is known, so the interval is ``(0.0, 1.0)``.

    Raises:
        ValueError: The counts are not ``0 <= hits <= total``, or the confidence is not between 0 and 1.

    Examples:
        >>> [round(limit, 4) for limit in rate_interval(2, 100)]
        [0.0024, 0.0704]
    """
    if not 0 <= hits <= total:
        raise ValueError(f"hits must be in 0..{total}, got {hits}")
    tail = _tail(confidence)
    low = 0.0 if hits == 0 else beta_quantile(tail, hits, total - hits + 1)
    high = 1.0 if hits == total else beta_quantile(1 - tail, hits + 1, total - hits)
    return low, high


def fitted_rate_interval(above: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of the false-alarm rate of a threshold that is one of the good images' own scores.

    Such a threshold was chosen by these images, so `rate_interval` does not apply. The share of all good images above
    an order statistic has a Beta distribution, whatever the distribution of the scores (H. A. David and H. N. Nagaraja,
    "Order Statistics", 2003, section 2.3). With ``above`` of ``total`` scores above the threshold its parameters are
    ``above + 1`` and ``total - above``. Where scores repeat, the true rate is smaller.

    Args:
        above: The number of images whose score is strictly above the threshold, in 0..total - 1.
        total: The number of good images that the threshold was fitted on.
        confidence: The probability that the interval contains the rate, in 0..1 (both excluded).

    Returns:
        The lower and the upper limit in 0..1.

    Raises:
        ValueError: The counts are not ``0 <= above < total``, or the confidence is not between 0 and 1.

    Examples:
        >>> [round(limit, 4) for limit in fitted_rate_interval(0, 30)]
        [0.0008, 0.1157]
    """
    if not 0 <= above < total:
        raise ValueError(f"above must be in 0..{total - 1}, got {above}")
    tail = _tail(confidence)
    return (
        beta_quantile(tail, above + 1, total - above),
        beta_quantile(1 - tail, above + 1, total - above),
    )


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Return the quantile of a Beta distribution, to about 1e-9 of its value for up to a million images.

    Args:
        probability: The probability below the quantile, in 0..1 (both excluded).
        a: The first parameter, at least 1.
        b: The second parameter, at least 1.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _beta_share(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return (1 - confidence) / 2


def _beta_share(x: float, a: float, b: float) -> float:
    """Return the share of a Beta distribution below ``x``: the regularised incomplete beta function."""
    # The continued fraction converges quickly below the mean, and the function is symmetric.
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    log_front = (
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * math.log(x)
        + b * math.log1p(-x)
        - math.log(a)
    )
    return math.exp(log_front) / _continued_fraction(x, a, b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function, by Lentz's method.

    The fraction is equation 26.5.8 of M. Abramowitz and I. A. Stegun, "Handbook of Mathematical Functions".
    """
    value, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(1, 1_000_000):
        m = term // 2
        if term % 2:
            factor = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            factor = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / (_not_zero(1 + factor * denominator))
        numerator = _not_zero(1 + factor / numerator)
        step = numerator * denominator
        value *= step
        if abs(step - 1) < 1e-15:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _SMALLEST else _SMALLEST
