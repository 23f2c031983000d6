"""Measure the agreement of two sets of numbers: Pearson's correlation in a stream, and Spearman's of ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class PairMoments:
    """The float64 means, squares and products of a stream of pairs of numbers.

    Two sets of pairs are merged by their means, so maps with values in 100.0..100.5 lose no digits.

    Source: T. Chan et al., "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """

    def __init__(self) -> None:
        self._count = 0
        self._means = np.zeros(2)
        self._products = np.zeros((2, 2))

    def add(self, first: NDArray[Any], second: NDArray[Any]) -> None:
        """Add the pairs of two arrays.

        Args:
            first: An array of any shape, not empty, finite.
            second: An array of the same shape, finite.
        """
        values = np.stack([first.ravel(), second.ravel()]).astype(np.float64)
        # Deviations are taken from the first pair, so equal numbers have a deviation of exactly 0.
        pivots = values[:, :1].copy()
        values -= pivots
        means = values.mean(axis=1, keepdims=True)
        values -= means
        one = PairMoments()
        one._count = values.shape[1]
        one._means = (pivots + means)[:, 0]
        # A BLAS product would leave its threads running.
        one._products = np.einsum("in,jn->ij", values, values)
        self.merge(one)

    def merge(self, other: PairMoments) -> None:
        """Add all pairs of another set. The other set has at least one pair."""
        count = self._count + other._count
        apart = other._means - self._means
        between = np.outer(apart, apart) * (self._count * other._count / count)
        self._products = self._products + other._products + between
        self._means = self._means + apart * (other._count / count)
        self._count = count

    @property
    def count(self) -> int:
        """The number of pairs."""
        return self._count

    def correlation(self) -> float:
        """Return Pearson's correlation, in -1..1.

        The correlation is 1 where neither number varies and 0 where only one varies.
        """
        (a, product), (_, b) = self._products
        if a == 0 or b == 0:
            return float(a == b)
        return float(np.clip(product / (math.sqrt(a) * math.sqrt(b)), -1, 1))

    def unexplained(self) -> float:
        """Return the sum of squares of the first numbers' distances from the line through the second that fits best.

        The result is 0 without pairs.
        """
        (a, product), (_, b) = self._products
        return max(float(a - product**2 / b if b else a), 0.0)

    def first_deviation(self) -> float:
        """Return the standard deviation of the pairs' first numbers, or 0 without pairs."""
        return math.sqrt(self._products[0, 0] / self._count) if self._count else 0.0


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's correlation: `PairMoments.correlation` of the ranks. Equal values share their mean rank.

    Args:
        first: ``(n,)``, not empty, finite.
        second: ``(n,)``, finite.
    """
    pairs = PairMoments()
    pairs.add(_ranks(np.asarray(first)), _ranks(np.asarray(second)))
    return pairs.correlation()


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return ranks
